"""The training of many masked networks in one compiled program."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.base.batching import vmap_networks
from experiments.base.errors import InputError
from experiments.base.versions import versions
from experiments.train import distributed
from experiments.train.checkpoints import checkpointed, digest
from experiments.train.recipe import Recipe
from pathjax import masks
from pathjax.types import Key, Mask, Params

__all__ = [
    "Chance",
    "Trainable",
    "Trained",
    "all_devices",
    "chance",
    "optimizer",
    "pruned_stay_zero",
    "steps_to_level",
    "trainer",
    "why_untrained",
]

_CHUNK = 1000
"""Images that are evaluated at a time."""

_STEPS = {0.5: 0.1, 0.75: 0.1}
"""The step schedule: after each of these shares of all steps, the step size is multiplied by the number."""

_LEFT = 0.01
"""A training loss that falls by less than this share below that of the best constant guess has not left it."""

_ERRORS = 2.0
"""A test accuracy within this many binomial standard errors of that of the best constant guess is at chance."""

Images = tuple[jax.Array, jax.Array]
"""Images (n, h, w, c) and their labels (n,)."""

Augment = Callable[[Key, jax.Array], jax.Array]
"""`augment(key, images)` -> images."""


class Trainable(Protocol):
    """A network in training and in evaluation mode, as `steps.Network`."""

    @property
    def apply(self) -> Callable[[Params, Any, jax.Array], jax.Array]:
        """`apply(params, state, x)` -> outputs."""

    @property
    def train(self) -> Callable[[Params, Any, jax.Array], tuple[jax.Array, Any]]:
        """`train(params, state, x)` -> (outputs, state)."""


class _Functions(NamedTuple):
    """A `Trainable` of two functions."""

    apply: Callable[[Params, Any, jax.Array], jax.Array]
    train: Callable[[Params, Any, jax.Array], tuple[jax.Array, Any]]


class Trained(NamedTuple):
    """Networks after training, one for each entry of the leading axis (s).

    `train_loss` (s, epochs + 1) is the cross-entropy over the measured train images, before training and after each
    epoch; `test_loss` (s,) that of the test set, and `test_accuracy` (s,) a share in [0, 1]. All in evaluation mode.
    """

    params: Params
    state: Any
    train_loss: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray


class Chance(NamedTuple):
    """What is had without looking at an image: the lowest loss, in nats, and the highest accuracy that is chance."""

    loss: float
    accuracy: float


def chance(train_labels: np.ndarray, test_labels: np.ndarray, *, measured: int | None = None) -> Chance:
    """Chance on these labels, each (n,).

    The loss is that of the frequencies of the classes on the first `measured` labels, by default on all: then it is
    their entropy, log(classes) where they are even. The accuracy is that of
    always naming the commonest class of the test labels, p, plus two standard errors √(p (1 − p) / n).

    >>> even = np.arange(10).repeat(100)
    >>> found = chance(even, even)
    >>> round(found.loss, 4), round(found.accuracy, 4)
    (2.3026, 0.119)
    """
    shares = np.bincount(train_labels) / len(train_labels)
    loss = -float(np.mean(np.log(shares[train_labels[:measured]])))
    commonest = float(np.bincount(test_labels).max()) / len(test_labels)
    error = math.sqrt(commonest * (1 - commonest) / len(test_labels))
    return Chance(loss, commonest + _ERRORS * error)


def why_untrained(train_loss: np.ndarray, test_accuracy: float, chance: Chance) -> str:
    """Why a training counts as none: its loss (epochs + 1,) never left that of chance, or its accuracy is at chance.

    Nothing where it counts. The loss has to fall below 99% of `chance.loss` after some epoch, and the accuracy to end
    above `chance.accuracy`.
    """
    lowest, level = float(np.min(train_loss[1:])), (1 - _LEFT) * chance.loss
    if lowest >= level:
        return f"the training loss never fell below {level:.3f} nats, a guess by the frequencies of the classes"
    if test_accuracy <= chance.accuracy:
        return f"the test accuracy is {test_accuracy:.3f}, and up to {chance.accuracy:.3f} is chance"
    return ""


def optimizer(recipe: Recipe, steps_per_epoch: int) -> optax.GradientTransformation:
    """SGD with the recipe's momentum and schedule; weights decay in kernels alone, not in biases and norms."""
    steps = max(1, recipe.epochs * steps_per_epoch)
    warmup = round(recipe.warmup * steps_per_epoch)
    rest = max(1, steps - warmup)
    rate: optax.Schedule = {
        "constant": lambda: optax.constant_schedule(recipe.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(recipe.learning_rate, rest),
        "step": lambda: optax.piecewise_constant_schedule(
            recipe.learning_rate, {round(share * rest): factor for share, factor in _STEPS.items()}
        ),
    }[recipe.schedule]()
    if warmup:
        # the first step is not lost to a rate of 0
        rise = optax.linear_schedule(recipe.learning_rate / (warmup + 1), recipe.learning_rate, warmup)
        rate = optax.join_schedules([rise, rate], [warmup])
    kernels = lambda params: jax.tree_util.tree_map_with_path(masks.is_kernel, params)  # noqa: E731
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay, mask=kernels) if recipe.weight_decay else optax.identity(),
        optax.sgd(rate, momentum=recipe.momentum or None),
    )


def trainer(
    network: Trainable,
    train: Images,
    test: Images,
    recipe: Recipe,
    *,
    augment: Augment | None = None,
    measured: int | None = None,
    mesh: Mesh | None = None,
    checkpoints: Path | None = None,
) -> Callable[..., Trained]:
    """A function (params, state, mask, keys) -> Trained, whose arguments carry the networks on a leading axis (s).

    With `start` and `stop` the function trains the epochs `start` … `stop` − 1 of the recipe alone, with their step
    sizes and orders of images and with momentum that starts at zero; `train_loss` is then (s, stop − start + 1). With
    `with_losses=False` it computes no losses and no accuracy: they are NaN.

    Each epoch takes the train set in an order drawn from the network's key, in whole minibatches; the images left over
    at its end are not used in that epoch. `augment` is applied to each minibatch. Pruned weights start at zero and stay
    zero. One step of all networks is one program, compiled at the first call and used again for every mask. The train
    loss is the mean over the first `measured` train images, by default all.

    With a `mesh` of one axis, its devices share every minibatch: each has all weights, batch norm takes the statistics
    of the whole minibatch, and the numbers are those of one device up to rounding. Where the mesh spans several
    processes, all make the same calls; the networks and checkpoints of process 0 count.

    With precision "bfloat16", forward and backward passes are in bfloat16; weights, losses and updates are in float32.

    With a folder for `checkpoints`, a training that was cut off goes on from its last checkpoint, to the same numbers.
    It begins anew where anything else is that decides them: network, recipe, images, versions.

    Raises InputError where the number of devices does not divide a minibatch.
    """
    size = min(recipe.batch_size, len(train[1]))
    steps = len(train[1]) // size
    network = _in_precision(network, recipe.precision)
    if mesh is not None and size % mesh.size:
        raise InputError(f"{mesh.size} devices cannot share minibatches of {size}: give a multiple of their number.")
    rule = optimizer(recipe, steps)
    spread, everywhere = _spreading(mesh), _everywhere(mesh)

    def begin(params: Params, mask: Mask, step: int) -> tuple[Params, optax.OptState]:
        params = masks.apply_mask(mask, params)
        memory = masks.freeze(rule, mask).init(params)
        return params, optax.tree_utils.tree_set(memory, count=jnp.asarray(step, jnp.int32))  # of the step size

    def loss(params: Params, state: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        outputs, state = network.train(params, state, x)
        return _cross_entropy(outputs, y, recipe.label_smoothing).mean(), state

    def step(
        shared: Any, networks: tuple[Params, Any, optax.OptState], mask: Mask, key: Key, order: jax.Array
    ) -> tuple[Params, Any, optax.OptState]:
        (images, labels), number = shared
        params, state, memory = networks
        chosen = jax.lax.dynamic_slice_in_dim(order, number * size, size)
        x = spread(images[chosen])
        if augment is not None:
            x = spread(augment(jax.random.fold_in(jax.random.fold_in(key, 1), number), x))
        gradient, state = jax.grad(loss, has_aux=True)(params, state, x, labels[chosen])
        updates, memory = masks.freeze(rule, mask).update(gradient, memory, params)
        return optax.apply_updates(params, updates), state, memory

    def sums(chunk: Images, params: Params, state: Any) -> tuple[jax.Array, jax.Array]:
        """The summed cross-entropy and the number of right answers; a label of −1 does not count."""
        images, labels = chunk
        outputs, known = network.apply(params, state, spread(images)), labels >= 0
        losses = _cross_entropy(outputs, jnp.maximum(labels, 0), 0.0)
        return jnp.sum(jnp.where(known, losses, 0.0)), jnp.sum(jnp.argmax(outputs, axis=1) == labels)

    begin_all = jax.jit(vmap_networks(begin, (0, 0, None)))
    step_all = jax.jit(vmap_networks(step, (None, 0, 0, 0, 0)), donate_argnums=1)
    sums_all = jax.jit(vmap_networks(sums, (None, 0, 0)))
    keys_of_epoch = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, None)))
    orders_of = jax.jit(jax.vmap(lambda key: jax.random.permutation(key, len(train[1]))))
    whole = everywhere(train)
    pieces = everywhere(_chunks(*(part[:measured] for part in train), multiple=mesh.size if mesh else 1))
    unseen = everywhere(_chunks(*test, multiple=mesh.size if mesh else 1))

    def measure(chunks: list[Images], count: int, params: Params, state: Any) -> tuple[np.ndarray, np.ndarray]:
        losses, right = zip(*[jax.device_get(sums_all(chunk, params, state)) for chunk in chunks], strict=True)
        return np.sum(losses, axis=0) / count, np.sum(right, axis=0) / count

    @functools.cache
    def images_decide() -> str:
        return digest(train)

    def decided_by(params: Params, state: Any) -> list[str]:
        """What decides a training beside weights, state, mask and key, in words."""
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (params, state))
        x = jax.ShapeDtypeStruct((size, *train[0].shape[1:]), train[0].dtype)
        recipe_of_numbers = dataclasses.replace(recipe, checkpoint_every=1)
        program = jax.jit(network.train).lower(*one, x).as_text()
        return [images_decide(), program, repr(recipe_of_numbers), repr(measured), repr(versions())]

    def run(
        params: Params,
        state: Any,
        mask: Mask,
        keys: Key,
        *,
        start: int = 0,
        stop: int = recipe.epochs,
        with_losses: bool = True,
    ) -> Trained:
        # scores are rounded differently where processes choose their kernels by timing them: masks could differ
        params, state, mask = everywhere(distributed.broadcast_from_first((params, state, mask)))
        keys = everywhere(keys)
        params, memory = begin_all(params, mask, start * steps)
        state = jax.tree.map(jnp.copy, state)  # a step uses up its arguments
        count = len(train[1][:measured])
        losses = np.full((stop - start + 1, len(keys)), np.nan)
        if with_losses:
            losses[0] = measure(pieces, count, params, state)[0]
        with contextlib.ExitStack() as stack:
            kept = None
            networks, finished = (params, state, memory), start
            if checkpoints is not None:
                epochs = f"epochs {start} to {stop} {'with' if with_losses else 'without'} losses"
                identity = (params, state, mask, keys, epochs, decided_by(params, state))
                kept = stack.enter_context(checkpointed(checkpoints, *identity))
                epoch, (networks, losses) = kept.load((networks, losses))
                networks, losses = everywhere(networks), np.array(losses)  # loaded arrays are read-only
                finished = max(start, epoch)
            for number in range(finished, stop):
                keys_now = keys_of_epoch(keys, number)
                orders = orders_of(keys_now)
                for at in range(steps):
                    networks = step_all((whole, at), networks, mask, keys_now, orders)
                if with_losses:
                    losses[number + 1 - start] = measure(pieces, count, *networks[:2])[0]
                if kept is not None and (number + 1) % recipe.checkpoint_every == 0:
                    kept.save(number + 1, (networks, losses))
            params, state, _ = networks
            nothing = (np.full(len(keys), np.nan),) * 2
            of_test = measure(unseen, len(test[1]), params, state) if with_losses else nothing
            return Trained(params, state, losses.T, *of_test)

    return run


def _chunks(images: jax.Array, labels: jax.Array, *, multiple: int) -> list[Images]:
    """Images and labels in pieces of one size, a multiple of `multiple`; the last is filled up with labels of −1."""
    count = len(labels)
    number = math.ceil(count / _CHUNK)
    size = math.ceil(count / number / multiple) * multiple
    more = number * size - count
    images = jnp.pad(images, [(0, more)] + [(0, 0)] * (images.ndim - 1))
    labels = jnp.pad(labels, (0, more), constant_values=-1)
    return [(images[at : at + size], labels[at : at + size]) for at in range(0, len(labels), size)]


def all_devices() -> Mesh | None:
    """A mesh of all devices of all processes; None where there is only one."""
    return Mesh(np.array(jax.devices()), ("devices",)) if jax.device_count() > 1 else None


def _in_precision(network: Trainable, precision: str) -> Trainable:
    if precision == "float32":
        return network

    def lower(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(precision), tree)

    def apply(params: Params, state: Any, x: jax.Array) -> jax.Array:
        return network.apply(lower(params), state, lower(x)).astype(jnp.float32)

    def train(params: Params, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        outputs, new = network.train(lower(params), state, lower(x))
        return outputs.astype(jnp.float32), jax.tree.map(lambda old, leaf: leaf.astype(old.dtype), state, new)

    return _Functions(apply, train)


def _spreading(mesh: Mesh | None) -> Callable[[jax.Array], jax.Array]:
    """A function that spreads the examples of a batch over the devices."""
    if mesh is None:
        return lambda x: x
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return lambda x: jax.lax.with_sharding_constraint(x, rows)


def _everywhere(mesh: Mesh | None) -> Callable[[Any], Any]:
    """A function that puts the whole tree on every device."""
    if mesh is None:
        return lambda tree: tree
    whole = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        # from the host, as devices of several processes take arrays from there alone, and keys as their bits
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, whole, lambda index: host[index])

    return lambda tree: jax.tree.map(put, tree)


def _cross_entropy(outputs: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy (n,), a share `smoothing` of each label being spread over all classes."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    if not smoothing:
        return losses
    spread = jax.nn.logsumexp(outputs, axis=1) - jnp.mean(outputs, axis=1)
    return (1.0 - smoothing) * losses + smoothing * spread


def pruned_stay_zero(params: Params, mask: Mask) -> np.ndarray:
    """For each seed, whether every pruned weight is exactly zero (s,)."""
    stray = jax.tree.map(
        lambda leaf, kept: np.any((np.asarray(leaf) != 0) & ~np.asarray(kept), axis=tuple(range(1, np.ndim(leaf)))),
        params,
        mask,
    )
    return ~np.any(np.stack(jax.tree.leaves(stray)), axis=0)


def steps_to_level(train_loss: np.ndarray, *, level: float, steps_per_epoch: int) -> float:
    """Steps of training until the loss (epochs + 1,) first falls to `level`, or inf if it never does.

    Between two epochs the logarithm of the loss is taken as linear.
    """
    reached = np.flatnonzero(train_loss <= level)
    if not reached.size:
        return float("inf")
    after = int(reached[0])
    if after == 0:
        return 0.0
    high, low, wanted = (np.log(max(value, 1e-30)) for value in (train_loss[after - 1], train_loss[after], level))
    return float(steps_per_epoch * (after - 1 + (high - wanted) / (high - low)))
