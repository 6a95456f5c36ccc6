"""SynFlow in 100 rounds to density 0.01, beside the same loop in PyTorch on the same weights, in one run.

`python -m experiments.benchmarks.synflow` prunes ResNet-20 and ResNet-18 for images of 32 × 32 × 3, float32, batch norm
in evaluation mode at its initialization: the first loop of a process and later ones, the loop beside its gradients
alone, and in how many weights the two masks differ in double precision. The limit is as many gradients of the
network itself. PyTorch is an extra of this benchmark alone:

    pip install torch==2.13.0    # the CPU build
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import command, machines, processes, timing
from experiments.benchmarks.lifting import NETWORKS, ResNet
from experiments.benchmarks.rows import Row
from pathjax import masks, pruning, scores
from pathjax.types import Mask, Params

__all__ = ["FULL", "TOY", "Peer", "Sizes", "difference", "rows"]


class Sizes(NamedTuple):
    """The networks, and how they are pruned; the masks are compared in double precision for those in `compared`."""

    networks: dict[str, ResNet]
    rounds: int
    density: float
    side: int
    compared: tuple[str, ...]


FULL = Sizes(NETWORKS, 100, 0.01, 32, ("ResNet-20",))
TOY = Sizes({"toy": ResNet((1,), 4, True)}, 3, 0.1, 4, ())

# of ours over PyTorch's seconds, in later calls and in the first; and of selection over the gradients
_AIMS = {"ResNet-20": (1 / 3, 1 / 0.7), "ResNet-18": (1 / 3.3, 1 / 2)}
_SELECTION = {"ResNet-18": 0.6}


class Loop(NamedTuple):
    """Seconds of the first loop and of a later one, of what it is made of, and the number of kept weights."""

    first: float
    later: float
    gradients: float
    kept: int


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """For each network the first loop, later ones and what the gradients are of it; then the masks."""
    for name, network in sizes.networks.items():
        given: dict[str, Any] = {"rounds": sizes.rounds, "side": sizes.side, "repeats": repeats}
        pruned = given | {"density": sizes.density}
        loops = [functools.partial(ours, network, **pruned), functools.partial(limit, network, **given)]
        if machines.has_pytorch():
            loops.append(functools.partial(peer, network, **pruned))
        mine, least, *others = processes.in_turn(*loops, repeats=repeats)
        for other in others:
            timing.check_equal(f"kept weights of {name}", mine.kept, other.kept)
        work = f"SynFlow, {sizes.rounds} rounds to density {sizes.density:g}, {name}"
        bound = f"{sizes.rounds} plain gradients"
        for kind, at in (("later calls", 1), ("first call", 0)):
            yield Row(
                f"{work}, {kind}",
                "s",
                mine[at],
                peer=others[0][at] if others else None,
                beside="PyTorch" if others else "no PyTorch",
                limit=least[at],
                bound=bound,
                aim_ratio=_AIMS[name][1 - at] if name in _AIMS else None,
            )
        yield Row(
            f"{work}: gradients and selection beside the gradients alone",
            "s",
            mine.later,
            mine.gradients,
            f"{sizes.rounds} lifted gradients",
            aim_ratio=1 + _SELECTION[name] if name in _SELECTION else None,
        )
    if machines.has_pytorch():
        for name in sizes.compared:
            compared = functools.partial(
                difference, sizes.networks[name], rounds=sizes.rounds, density=sizes.density, side=sizes.side
            )
            differ = processes.fresh(compared)
            yield Row(f"SynFlow, {name}: kept weights that PyTorch prunes, float64", "", differ, aim=0)


class Peer:
    """SynFlow as Tanaka et al. have it, in PyTorch, on a `ResNet` and its parameters.

    Every tensor of the state is replaced by its absolute value; scores are |θ ∂R/∂θ| of kernels at an input of ones,
    and after round t of T the weights at or below the (1 − ρ^(t/T))·N-th smallest score are pruned.
    """

    def __init__(self, network: ResNet, params: Params, statistics: Any) -> None:
        self._torch = torch = importlib.import_module("torch")
        self._device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
        self._network = network
        self._structure = jax.tree.structure(params)

        def tensor(leaf: Any) -> Any:
            array = np.abs(np.asarray(leaf))
            # (h, w, in, out) to (out, in, h, w), and (in, out) to (out, in)
            return torch.tensor(np.ascontiguousarray(array.transpose(_to_torch(array.ndim))), device=self._device)

        self._weights = {path: tensor(leaf) for path, leaf in _named(params)}
        self._state = {path: tensor(leaf) for path, leaf in _named(statistics)}
        self._kernels = [path for path, leaf in _named(params) if leaf.ndim >= 2]

    def prune(self, *, density: float, rounds: int, side: int) -> Mask:
        """The mask, as one of the Flax parameters."""
        torch = self._torch
        kept = {path: torch.ones_like(self._weights[path]) for path in self._kernels}
        ones = torch.ones((1, 3, side, side), dtype=next(iter(self._weights.values())).dtype, device=self._device)
        size = sum(leaf.numel() for leaf in kept.values())
        for round_ in range(1, rounds + 1):
            weights = {path: leaf.clone().requires_grad_(path in kept) for path, leaf in self._weights.items()}
            masked = {path: leaf * kept[path] if path in kept else leaf for path, leaf in weights.items()}
            self._forward(masked, ones).sum().backward()
            products = {path: (weights[path] * weights[path].grad).abs() for path in kept}
            pruned = size - round(density ** (round_ / rounds) * size)
            if pruned:
                level = torch.kthvalue(torch.cat([leaf.flatten() for leaf in products.values()]), pruned).values
                kept = {path: (leaf > level).to(leaf.dtype) for path, leaf in products.items()}
        return self._as_mask(kept)

    def _as_mask(self, kept: dict[str, Any]) -> Mask:
        leaves = []
        for path, weight in self._weights.items():
            array = (kept[path] > 0).cpu().numpy() if path in kept else np.ones(weight.shape, bool)
            leaves.append(array.transpose(_to_flax(array.ndim)))
        return jax.tree.unflatten(self._structure, leaves)

    def _forward(self, weights: dict[str, Any], x: Any) -> Any:
        """The same network as `ResNet`: convolutions and norms in the order of their names."""
        functional = self._torch.nn.functional
        network, convolutions, norms = self._network, iter(range(99)), iter(range(99))

        def conv(x: Any, size: int, stride: int) -> Any:
            weight = weights[f"['Conv_{next(convolutions)}']['kernel']"]
            # as Flax' "SAME": what does not divide goes to the end
            total = max(size - stride, 0) if x.shape[-1] % stride == 0 else size - 1
            before = total // 2
            return functional.conv2d(functional.pad(x, [before, total - before] * 2), weight, stride=stride)

        def norm(x: Any) -> Any:
            name = f"['BatchNorm_{next(norms)}']"
            mean, variance = (self._state[f"{name}['{what}']"] for what in ("mean", "var"))
            return functional.batch_norm(x, mean, variance, weights[f"{name}['scale']"], weights[f"{name}['bias']"])

        def shortcut(x: Any, width: int, stride: int) -> Any:
            if x.shape[1] == width:
                return x
            if network.projects:
                return norm(conv(x, 1, stride))
            side = (width - x.shape[1]) // 2
            return functional.pad(x[:, :, ::2, ::2], [0, 0, 0, 0, side, side])

        x = functional.relu(norm(conv(x, 3, 1)))
        for stage, blocks in enumerate(network.blocks):
            for block in range(blocks):
                width, stride = network.width * 2**stage, 2 if stage and not block else 1
                h = functional.relu(norm(conv(x, 3, stride)))
                x = functional.relu(norm(conv(h, 3, 1)) + shortcut(x, width, stride))
        dense = weights["['Dense_0']['kernel']"], weights["['Dense_0']['bias']"]
        return functional.linear(x.mean(dim=(2, 3)), *dense)


def _named(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _to_torch(axes: int) -> tuple[int, ...]:
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(axes, tuple(range(axes)))


def _to_flax(axes: int) -> tuple[int, ...]:
    return {4: (2, 3, 1, 0), 2: (1, 0)}.get(axes, tuple(range(axes)))


def ours(network: ResNet, *, density: float, rounds: int, side: int, repeats: int) -> Loop:
    """pathjax's loop, and as many gradients of the lifted network as it takes."""
    params, statistics, x = _built(network, side)
    prune, score = _loop(network, params, statistics, x, density)
    first = timing.seconds(lambda: prune(rounds))
    gradient = jax.jit(lambda params: score(params, None))
    gradient(params)  # compiles
    later, gradients = timing.least([lambda: prune(rounds), _repeated(gradient, params, rounds)], repeats)
    return Loop(first, later, gradients, int(masks.count(prune(rounds))))


def peer(network: ResNet, *, density: float, rounds: int, side: int, repeats: int) -> Loop:
    """PyTorch's loop."""
    params, statistics, _ = _built(network, side)
    loop = Peer(network, params, statistics)
    first, later = timing.first_and_later(lambda: loop.prune(density=density, rounds=rounds, side=side), repeats)
    kept = masks.count(jax.tree.map(jnp.asarray, loop.prune(density=density, rounds=rounds, side=side)))
    return Loop(first, later, np.nan, int(kept))


def limit(network: ResNet, *, rounds: int, side: int, repeats: int) -> Loop:
    """As many gradients of the network itself."""
    params, statistics, x = _built(network, side)
    apply = _apply(network)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(apply(params, statistics, x))))
    first, later = timing.first_and_later(_repeated(gradient, params, rounds), repeats)
    return Loop(first, later, np.nan, 0)


def difference(network: ResNet, *, density: float, rounds: int, side: int) -> int:
    """How many weights pathjax keeps and PyTorch does not, in double precision."""
    with jax.enable_x64(True):
        wide = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree) for tree in _built(network, side)]
        params, statistics, x = wide
        mine = _loop(network, params, statistics, x, density)[0](rounds)
        other = Peer(network, params, statistics).prune(density=density, rounds=rounds, side=side)
        pairs = zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True)
        return sum(int(np.count_nonzero(np.asarray(a) & ~np.asarray(b))) for a, b in pairs)


def _built(network: ResNet, side: int) -> tuple[Params, Any, jax.Array]:
    """Parameters, statistics of batch norm, and an input of ones."""
    x = jnp.ones((1, side, side, 3), jnp.float32)
    variables = jax.jit(network.init)(jax.random.key(0), x)
    return variables["params"], variables["batch_stats"], x


def _apply(network: ResNet) -> Callable[[Params, Any, jax.Array], Any]:
    return lambda params, state, x: network.apply({"params": params, "batch_stats": state}, x)


def _loop(
    network: ResNet, params: Params, statistics: Any, x: jax.Array, density: float
) -> tuple[Callable[[int], Mask], Callable[..., Any]]:
    """pathjax's loop as a function of the number of rounds, and its score."""
    apply = _apply(network)

    def score(params: Params, key: Any) -> Any:
        return scores.synflow(apply, params, x, state=statistics)

    return lambda rounds: pruning.prune(score, params, density=density, rounds=rounds), score


def _repeated(function: Callable[[Any], Any], argument: Any, times: int) -> Callable[[], Any]:
    return lambda: [jax.block_until_ready(function(argument)) for _ in range(times)][-1]


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
