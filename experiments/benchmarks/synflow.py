"""SynFlow in 100 rounds to density 0.01, beside the same loop in PyTorch on the same weights, in one run.

`python -m experiments.benchmarks.synflow` prunes ResNet-20 and ResNet-18 for images of 32 × 32 × 3, float32, batch norm
in evaluation mode at its initialization. It prints the seconds of both loops (least of several, taken in turns, after
one that compiles), those of 100 gradients of the lifted network and 100 selections alone, and in how many weights
the two masks differ, in single and in double precision. PyTorch is an extra of this benchmark alone:

    pip install torch==2.13.0    # the CPU build
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.lifting import NETWORKS, ResNet
from pathjax import masks, pruning, scores
from pathjax.types import Mask, Params

__all__ = ["Bench", "Peer", "main", "measure"]


class Bench(NamedTuple):
    """Seconds of both loops and of what pathjax's is made of, and the kept weights that only one of the masks has."""

    ours: float
    peer: float
    gradients: float
    selections: float
    kept: int
    differ: int
    differ_in_double: int


class Peer:
    """SynFlow as Tanaka et al. have it, in PyTorch, on a `ResNet` and its parameters.

    Every tensor of the state is replaced by its absolute value; scores are |θ ∂R/∂θ| of kernels at an input of ones,
    and after round t of T the weights at or below the (1 − ρ^(t/T))·N-th smallest score are pruned.
    """

    def __init__(self, network: ResNet, params: Params, statistics: Any) -> None:
        self._torch = torch = importlib.import_module("torch")
        self._network = network
        self._structure = jax.tree.structure(params)

        def tensor(leaf: Any) -> Any:
            array = np.abs(np.asarray(leaf))
            # (h, w, in, out) to (out, in, h, w), and (in, out) to (out, in)
            return torch.tensor(np.ascontiguousarray(array.transpose(_to_torch(array.ndim))))

        self._weights = {path: tensor(leaf) for path, leaf in _named(params)}
        self._state = {path: tensor(leaf) for path, leaf in _named(statistics)}
        self._kernels = [path for path, leaf in _named(params) if leaf.ndim >= 2]

    def prune(self, *, density: float, rounds: int, side: int) -> Mask:
        """The mask, as one of the Flax parameters."""
        torch = self._torch
        kept = {path: torch.ones_like(self._weights[path]) for path in self._kernels}
        ones = torch.ones((1, 3, side, side), dtype=next(iter(self._weights.values())).dtype)
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
            array = (kept[path] > 0).numpy() if path in kept else np.ones(weight.shape, bool)
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


def measure(network: ResNet, *, density: float, rounds: int, side: int, repeats: int) -> Bench:
    """Both loops on the same weights."""
    x = jnp.ones((1, side, side, 3), jnp.float32)
    variables = jax.jit(network.init)(jax.random.key(0), x)
    params, statistics = variables["params"], variables["batch_stats"]
    ours, theirs, score = _loops(network, params, statistics, x, density)
    gradient = jax.jit(lambda params: score(params, None))
    saliency = gradient(params)
    kept = int(masks.count(ours(rounds)))

    def repeated(step: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [jax.block_until_ready(step()) for _ in range(rounds)][-1]

    mine, other, gradients, selections = timing.least(
        [
            lambda: ours(rounds),
            lambda: theirs(rounds),
            repeated(lambda: gradient(params)),
            repeated(lambda: masks.keep_largest(saliency, kept)),
        ],
        repeats,
    )
    differ = _difference(ours(rounds), theirs(rounds))
    with jax.enable_x64(True):
        wide = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree) for tree in (params, statistics, x)]
        ours, theirs, _ = _loops(network, wide[0], wide[1], wide[2], density)
        differ_in_double = _difference(ours(rounds), theirs(rounds))
    return Bench(mine, other, gradients, selections, kept, differ, differ_in_double)


def _loops(
    network: ResNet, params: Params, statistics: Any, x: jax.Array, density: float
) -> tuple[Callable[[int], Mask], Callable[[int], Mask], Callable[..., Any]]:
    """Both loops as functions of the number of rounds, and the score of ours."""
    peer = Peer(network, params, statistics)

    def apply(params: Params, state: Any, x: jax.Array) -> Any:
        return network.apply({"params": params, "batch_stats": state}, x)

    def score(params: Params, key: Any) -> Any:
        return scores.synflow(apply, params, x, state=statistics)

    def ours(rounds: int) -> Mask:
        return pruning.prune(score, params, density=density, rounds=rounds)

    def theirs(rounds: int) -> Mask:
        return peer.prune(density=density, rounds=rounds, side=x.shape[1])

    return ours, theirs, score


def _difference(left: Mask, right: Mask) -> int:
    """How many kept weights of the first are not kept in the second."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return sum(int(np.count_nonzero(np.asarray(a) & ~np.asarray(b))) for a, b in pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.synflow", description=__doc__)
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--side", type=int, default=32, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the least is taken")
    options = parser.parse_args(arguments)
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise SystemExit("This benchmark compares with PyTorch: pip install torch==2.13.0") from error
    print(f"{timing.machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in options.network:
        begin = time.perf_counter()
        result = measure(
            NETWORKS[name],
            density=options.density,
            rounds=options.rounds,
            side=options.side,
            repeats=options.repeats,
        )
        print(
            f"{name}, {options.rounds} rounds to density {options.density:g}, {options.side} × {options.side} × 3: "
            f"pathjax {result.ours:.2f} s, PyTorch {result.peer:.2f} s: {result.peer / result.ours:.1f} times as fast\n"
            f"  the gradients alone {result.gradients:.2f} s, the selections alone {result.selections:.2f} s\n"
            f"  of {result.kept} kept weights {result.differ} are others; in float64, {result.differ_in_double} "
            f"({time.perf_counter() - begin:.0f} s in all)",
            flush=True,
        )


if __name__ == "__main__":
    main()
