"""Gradients and Hessian-vector products of a mean loss over many batches, with one batch in memory at a time.

The gradient of the loss after steps of training holds the batches of these steps.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pathjax._base.arguments import check_no_shape, check_not_function
from pathjax._base.leaves import ChosenLeaves
from pathjax._base.network import as_batch, kept_weights
from pathjax._base.programs import Static
from pathjax._base.trees import concrete
from pathjax._interpreter.jaxpr import batch_length
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax.types import ApplyFn, Mask, Params, State

__all__ = [
    "Batches",
    "Loss",
    "LossFn",
    "check_labels",
    "curvature_product",
    "first_batches",
    "kernels_of",
    "mean_gradient",
    "outputs_of",
    "replayable",
    "slopes_before_steps",
    "train",
]

LossFn: TypeAlias = Callable[[Any, Any], jax.Array]
"""`loss(outputs, targets)`, the mean loss of n examples with the outputs of `apply` and targets of any kind."""

Batches: TypeAlias = Iterable[Any]
"""Pairs (x, y) of inputs (n, ...) and targets, or dictionaries of both."""

_TARGET_NAMES = ("y", "label", "labels", "target", "targets")


class Loss(NamedTuple):
    """The loss of a network on a batch, as a static option of compiled programs.

    Attributes:
        function: loss(outputs, targets).
        has_aux: whether `apply` returns a pair, of which the first is the outputs.
        check: check(outputs_like, targets) raises for targets that the loss does not take; None where it is the user's.
    """

    function: Static
    has_aux: bool
    check: Callable[[Any, Any], None] | None

    def at(self, network: TracedNetwork, params: Params, x: Any, y: Any, temperature: Any) -> Array:
        """The mean loss of a batch, times the number of its examples."""
        outputs = outputs_of(network.outputs(params, x), self.has_aux)
        if temperature is not None:
            outputs = jax.tree.map(lambda leaf: leaf / temperature, outputs)
        loss = self.function(outputs, y)
        if jnp.shape(loss) != ():
            raise ValueError(
                f"`loss(outputs, targets)` must return one number, the mean over the examples, but it has shape "
                f"{jnp.shape(loss)}. Take the mean: jnp.mean(loss(outputs, targets))."
            )
        return loss * batch_length(x)


def outputs_of(result: Any, has_aux: bool) -> Any:
    """The outputs in what `apply` returned. Raises ValueError where no pair came and `has_aux` says that it would."""
    if not has_aux:
        return result
    if not isinstance(result, tuple | list) or len(result) != 2:
        came = f"{len(result)} parts" if isinstance(result, tuple | list) else "no pair"
        raise ValueError(
            "With `has_aux=True`, `apply` must return a pair: the outputs, and what is not scored, such as new batch "
            f"statistics; but it returned {came}. Leave `has_aux` out, or return (outputs, rest)."
        )
    return result[0]


def mean_gradient(
    network: TracedNetwork, params: Params, batches: Batches, *, loss: Loss, temperature: Any = None
) -> Params:
    """The gradient g of the mean loss over all examples of all batches; each batch counts by its number of examples.

    With a `temperature` the outputs are divided by it before the loss.
    """
    gradient = network.compiled(_gradient, loss=loss)
    return _mean_over(lambda x, y: gradient(params, x, y, temperature), network, params, batches, loss)


def curvature_product(
    network: TracedNetwork, params: Params, batches: Batches, vector: Params, *, loss: Loss, temperature: Any = None
) -> Params:
    """H w for a pytree w = `vector`, with H the Hessian of the mean loss over all examples of all batches."""
    product = network.compiled(_product, loss=loss)
    return _mean_over(lambda x, y: product(params, vector, x, y, temperature), network, params, batches, loss)


def first_batches(
    network: TracedNetwork, params: Params, batches: Batches, number: int, *, loss: Loss
) -> list[tuple[Any, Any]]:
    """The first `number` batches that hold examples, or all where there are fewer; further ones are not read."""
    return list(itertools.islice(_labelled(network, params, batches, loss), number))


def train(
    network: TracedNetwork,
    params: Params,
    batches: Sequence[tuple[Any, Any]],
    *,
    kept: Mask,
    learning_rate: ArrayLike,
    loss: Loss,
) -> list[Params]:
    """The weights w₀ = `params`, w₁, w₂, … before and after each step of gradient descent, a batch for each step.

    A step is w_{k+1} = w_k − η · kept ⊙ ∇L_k(w_k), with the mean loss L_k of its batch.
    """
    gradient = network.compiled(_gradient, loss=loss)
    weights = [params]
    for x, y in batches:
        total = gradient(weights[-1], x, y, None)
        weights.append(_stepped(weights[-1], _kept_part(kept, total), learning_rate / batch_length(x)))
    return weights


def slopes_before_steps(
    network: TracedNetwork,
    weights: Sequence[Params],
    batches: Sequence[tuple[Any, Any]],
    *,
    kept: Mask,
    learning_rate: ArrayLike,
    loss: Loss,
) -> Params:
    """The gradient by w₀ of the loss of the last batch at w_M, after the steps of `train` on the batches before it.

    By the chain rule: v_M = ∇L_M(w_M), and back through step k it is v_k = v_{k+1} − η H_k(w_k) (kept ⊙ v_{k+1}), with
    the Hessian H_k of the step's batch.
    """
    product = network.compiled(_product, loss=loss)
    *steps, last = batches
    slopes = mean_gradient(network, weights[-1], [last], loss=loss)
    for before, (x, y) in reversed(list(zip(weights[:-1], steps, strict=True))):
        change = product(before, _kept_part(kept, slopes), x, y, None)
        slopes = _stepped(slopes, change, learning_rate / batch_length(x))
    return slopes


_kept_part = jax.jit(kept_weights)


@jax.jit
def _stepped(tree: Params, direction: Params, size: ArrayLike) -> Params:
    """The tree minus `size` times the direction, in the types of the tree."""
    return jax.tree.map(lambda leaf, slope: leaf - jnp.asarray(size, leaf.dtype) * slope, tree, direction)


def replayable(batches: Batches) -> Batches:
    """The batches in a form that can be read more than once: an iterator is read into a list."""
    return list(batches) if isinstance(batches, Iterator) else batches


def kernels_of(apply: ApplyFn, params: Params, state: State, data: Any) -> ChosenLeaves:
    """The kernels of a network, from what a score reads: an array of inputs, an iterable of such, or of batches."""
    return traced(apply, params, state).kernels(_first_inputs(data))


def _first_inputs(data: Any) -> Any:
    check_no_shape("data", data)
    if hasattr(data, "shape"):
        return data
    are_inputs = isinstance(data, tuple | list) and all(hasattr(part, "shape") for part in data)
    for batch in data if are_inputs else _each(data):
        return batch if hasattr(batch, "shape") else as_batch("x", _pair(batch)[0])
    raise ValueError("`data` has no batches. Give at least one; an iterator that was read before is empty.")


def check_labels(labels: Array, outputs: int) -> None:
    """Raise TypeError for labels that are not integers, ValueError for labels outside 0 … o − 1 unless traced."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"Labels must be integers 0 … {outputs - 1}; they are {labels.dtype}. Convert with .astype(int), take the "
            "arg max of one-hot labels: jnp.argmax(labels, axis=-1). For targets of another kind pass your own `loss`."
        )
    values = concrete(labels)
    if values is None or values.size == 0:
        return
    for value in (values.min(), values.max()):
        if not 0 <= value < outputs:
            raise ValueError(f"Labels must lie in 0 … {outputs - 1}, as there are {outputs} outputs; one is {value}.")


def _gradient(network: TracedNetwork, params: Params, x: Any, y: Any, temperature: Any, *, loss: Loss) -> Params:
    """The gradient of the loss of one batch, summed over its examples."""
    return jax.grad(lambda params: loss.at(network, params, x, y, temperature))(params)


def _product(
    network: TracedNetwork, params: Params, vector: Params, x: Any, y: Any, temperature: Any, *, loss: Loss
) -> Params:
    """The Hessian of the loss of one batch, summed over its examples, times a vector."""

    def slope(params: Params) -> Array:
        # reverse over forward mode: one gradient of the derivative along w
        return jax.jvp(lambda params: loss.at(network, params, x, y, temperature), (params,), (vector,))[1]

    return jax.grad(slope)(params)


def _mean_over(
    sum_over: Callable[[Any, Any], Params], network: TracedNetwork, params: Params, batches: Batches, loss: Loss
) -> Params:
    """The mean over the examples of all batches, where `sum_over(x, y)` is the sum over the examples of one batch."""
    total, examples = None, 0
    for x, y in _labelled(network, params, batches, loss):
        part = sum_over(x, y)
        total, examples = part if total is None else _added(total, part), examples + batch_length(x)
    if total is None:
        raise ValueError(
            "`batches` has no examples. Give at least one pair (x, y); an iterator that was read before is empty, a "
            "list is not."
        )
    return _divided(total, examples)


@jax.jit
def _added(left: Params, right: Params) -> Params:
    return jax.tree.map(jnp.add, left, right)


@functools.partial(jax.jit, static_argnames="number")
def _divided(tree: Params, number: int) -> Params:
    return jax.tree.map(lambda leaf: leaf / number, tree)


def _labelled(network: TracedNetwork, params: Params, batches: Batches, loss: Loss) -> Iterator[tuple[Any, Any]]:
    """The batches as trees of arrays, with shapes and labels checked; empty batches are left out."""
    for batch in _each(batches):
        inputs, targets = _pair(batch)
        x, y = as_batch("x", inputs), as_batch("y", targets)
        n = batch_length(x)
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(y)}
        if lengths - {(n,)}:
            x_shapes, y_shapes = (", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(part)) for part in (x, y))
            raise ValueError(
                "In a batch (x, y), y must hold one label for each example of x, (n,) for (n, ...), or one target, "
                f"(n, ...): the shapes are {y_shapes} and {x_shapes}. For targets of another shape than (n,) pass a "
                "`loss` of your own; for logits (n, ..., o) it is lambda logits, labels: "
                "scores.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.ravel())."
            )
        if n == 0:
            continue
        if loss.check is not None:
            outputs = outputs_of(network.outputs_like(x), loss.has_aux)
            if isinstance(outputs, tuple) and len(outputs) == 2 and not loss.has_aux:
                raise ValueError(
                    "`apply` returned a pair. Pass `has_aux=True` if its first part is the outputs, as with new batch "
                    "statistics; or pass a `loss` of your own, which gets both parts."
                )
            if not loss.has_aux:
                network.output(x)  # raises where there is no row of outputs for each example
            loss.check(outputs, y)
        yield x, y


def _each(batches: Batches) -> Iterator[Any]:
    remedy = "Pass an iterable of pairs: [(x, y)] for a single batch."
    if isinstance(batches, Mapping):
        raise TypeError(
            f"`batches` is one dictionary, but must be an iterable of batches. {remedy[:-1]}, or [{{...}}]."
        )
    parts = list(batches) if isinstance(batches, tuple | list) else [batches]
    if shapes := [str(tuple(part.shape)) for part in parts if hasattr(part, "shape")]:
        raise TypeError(f"`batches` holds bare arrays, of shape {' and '.join(shapes)}, not pairs. {remedy}")
    check_not_function("batches", batches)
    if not isinstance(batches, Iterable):
        raise TypeError(f"`batches` is a {type(batches).__name__}, but must be an iterable of batches. {remedy}")
    return iter(batches)


def _pair(batch: Any) -> tuple[Any, Any]:
    """The inputs and the targets of a batch."""
    if isinstance(batch, Mapping):
        targets = [name for name in batch if name in _TARGET_NAMES]
        if len(targets) != 1 or len(batch) < 2:
            raise ValueError(
                f"A batch is a dictionary with the keys {', '.join(map(repr, batch))}, of which exactly one must be "
                f"that of the targets ({', '.join(map(repr, _TARGET_NAMES))}). Pass pairs instead: "
                '((batch["image"], batch["class"]) for batch in batches).'
            )
        inputs = {name: value for name, value in batch.items() if name not in targets}
        # one array is the input itself; several are a dictionary of inputs
        return next(iter(inputs.values())) if len(inputs) == 1 else inputs, batch[targets[0]]
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        came = f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise TypeError(
            f"A batch must be a pair (x, y) of inputs and targets, or a dictionary of both, but one is {came}. Pass an "
            "iterable of pairs: [(x, y)] for a single batch."
        )
    return batch[0], batch[1]
