"""All paths of a small network listed one by one, and the exact matrices of the factorization from that list.

`enumerate_paths` follows the network's operations neuron by neuron and gives a `Paths` with one row per path. From it,
`path_values`, `path_jacobian`, `path_kernel` and `path_activations` compute v, J_θ v, Π and J_v f; all are jit-compiled
and vmapped over paths. Time and memory grow with the number of paths; `pathjax.paths` sums over paths of any number.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from decimal import Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pathjax._base.trees import ravel
from pathjax._interpreter.jaxpr import Program, check_batch, check_floating
from pathjax._interpreter.lifting import absolute_power, lift, one_example
from pathjax._interpreter.listing import Recorder, list_paths, trimmed
from pathjax._interpreter.rules import interpret
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax.types import AnyArray, ApplyFn, Params, State, XLike

__all__ = ["Paths", "enumerate_paths", "path_activations", "path_jacobian", "path_kernel", "path_values"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["factors", "coefficients", "gates", "sources", "outputs"],
    meta_fields=["parameters", "inputs", "width"],
)
@dataclasses.dataclass(frozen=True)
class Paths:
    """All paths of a network, one row each.

    Attributes:
        factors: (k, depth) the path's weights, as indices into the raveled parameters, padded with −1.
        coefficients: (k,) the product of the constants on the path.
        gates: (k, gates) the path's gates, as indices into all gates in the order of computation, padded with −1.
        sources: (k,) the index of the raveled input at which the path starts; −1 if it starts at a bias.
        outputs: (k,) the output at which the path ends.
        parameters: number of parameters p.
        inputs: number of input coordinates.
        width: number of outputs o.
    """

    factors: Int[Array, "k depth"]
    coefficients: Float[Array, " k"]
    gates: Int[Array, "k gates"]
    sources: Int[Array, " k"]
    outputs: Int[Array, " k"]
    parameters: int
    inputs: int
    width: int

    def __len__(self) -> int:
        return int(self.sources.shape[0])

    def __repr__(self) -> str:
        sizes = f"inputs={self.inputs}, outputs={self.width}, weights={self.parameters:,}"
        return f"Paths(paths={len(self):,}, longest={self.factors.shape[-1]}, {sizes})"


def enumerate_paths(apply: ApplyFn, params: Params, x_like: XLike, *, limit: int, state: State = None) -> Paths:
    """All paths of the network, as arrays with one row per path, ordered by output.

    A path through a weight that happens to be 0 is listed, a path through a constant 0 is not. The structure of the
    network and its constants are read, the values of `params` and `x_like` are not. Time and memory are proportional to
    the number of paths times their length. Not for use under `jit`. With a `state` (see `pathjax.types`) the network is
    `apply(params, state, x)`, and the state's entries are constants on the paths.

    Raises ValueError where there are more than `limit` paths, with their number, and UnsupportedPrimitive where a layer
    is not piecewise linear.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 4))}
    >>> paths = enumerate_paths(apply, params, jnp.zeros((5, 2)), limit=100)
    >>> len(paths), paths.factors[0].tolist(), int(paths.sources[0]), int(paths.outputs[0])
    (24, [0, 6], 0, 0)
    """
    example = one_example(x_like)
    program = traced(apply, params, state).path_program(example)
    count = _count(program)
    if count > limit:
        number = f"{count:,}" if count < 10**15 else f"about {Decimal(count):.3e}"
        raise ValueError(
            f"The network has {number} paths, more than `limit` = {limit:,}. Raise the limit (a path takes some 50 "
            "bytes), or use the sums of `pathjax.paths`, which do not list paths."
        )
    output = list_paths(program)
    outputs = np.repeat(np.flatnonzero(output.entries), output.table.lengths)
    return Paths(
        factors=jnp.asarray(trimmed(output.table.factors)),
        coefficients=jnp.asarray(output.table.coefficients),
        gates=jnp.asarray(trimmed(output.table.gates)),
        sources=jnp.asarray(output.table.sources),
        outputs=jnp.asarray(outputs.astype(np.int32)),
        parameters=sum(math.prod(shape) for shape in program.parameter_shapes),
        inputs=math.prod(example.shape),
        width=output.entries.size,
    )


def _count(program: Program) -> int:
    """The number of paths: exact below 2^53, correct to 16 digits above."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        weights = [jnp.ones(shape, jnp.float64) for shape in program.parameter_shapes]
        output = lift(program, weights, jnp.ones(program.input_shape, jnp.float64), phi=absolute_power(0))
        if not jnp.any(output.array):
            return 0
        numerator, denominator = float(jnp.sum(output.array)).as_integer_ratio()
        return (numerator << int(output.exponent)) // denominator


@jax.jit
def path_values(paths: Paths, params: Params) -> Float[Array, " k"]:
    """The value of each path, v_p(θ): the product of the constants and weights on it.

    `params` may have other values than when the paths were listed. Cost: k · depth multiplications.

    Raises ValueError where `params` has another number of entries than the network that was listed.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((2, 3), 0.5), "second": jnp.full((3, 4), 2.0)}
    >>> paths = enumerate_paths(apply, params, jnp.zeros((5, 2)), limit=100)
    >>> values = path_values(paths, params)
    >>> values.shape, float(values[7])  # each is 0.5 · 2
    ((24,), 1.0)
    >>> trained = {"first": params["first"], "second": 1.5 * params["second"]}
    >>> float(path_values(paths, trained)[7])  # of the same paths at other weights
    1.5
    """
    weights = _padded(paths, params)

    def value(factors: Any, coefficient: Any) -> Any:
        return coefficient * jnp.prod(weights[factors])

    return jax.vmap(value)(paths.factors, paths.coefficients.astype(weights.dtype))


@jax.jit
def path_jacobian(paths: Paths, params: Params) -> Float[Array, "k p"]:
    """The derivative of each path value by each raveled parameter, J_θ v with the entries ∂v_p/∂θ_i.

    Computed as the product of the path's constants and its other weights, which is also right for weights of 0; for a
    weight that the path uses several times, the sum over these uses. The result is dense: k · p numbers.

    Raises ValueError where `params` has another number of entries than the network that was listed.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((2, 3), 0.5), "second": jnp.full((3, 4), 2.0)}
    >>> paths = enumerate_paths(apply, params, jnp.zeros((5, 2)), limit=100)
    >>> jacobian = path_jacobian(paths, params)
    >>> jacobian.shape, float(jacobian[0, 0]), float(jacobian[0, 6])  # path 0 uses the parameters 0 and 6
    ((24, 18), 2.0, 0.5)
    """
    weights = _padded(paths, params)

    def row(factors: Any, coefficient: Any) -> Any:
        on_path = weights[factors]
        before = jnp.cumprod(jnp.concatenate([jnp.ones(1, on_path.dtype), on_path[:-1]]))
        after = jnp.cumprod(jnp.concatenate([on_path[1:], jnp.ones(1, on_path.dtype)])[::-1])[::-1]
        return jnp.zeros_like(weights).at[factors].add(coefficient * before * after)[:-1]

    return jax.vmap(row)(paths.factors, paths.coefficients.astype(weights.dtype))


def path_kernel(paths: Paths, params: Params) -> Float[Array, "k k"]:
    """The Path Kernel of listed paths as a matrix, Π = J_θ v (J_θ v)ᵀ.

    The result is dense: k² numbers, from a Jacobian of k · p numbers. `pathjax.path_kernel` applies Π's p × p twin to
    vectors without forming a matrix.

    Raises ValueError where `params` has another number of entries than the network that was listed.
    Source: Gebhart et al. (2021), section 3.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    >>> paths = enumerate_paths(apply, params, jnp.zeros((5, 1)), limit=100)
    >>> kernel = path_kernel(paths, params)
    >>> kernel.shape, float(kernel[0, 0]), float(kernel[0, 1])  # 2² + 0.5²; no weight in common
    ((6, 6), 4.25, 0.0)
    """
    jacobian = path_jacobian(paths, params)
    return jacobian @ jacobian.T


def path_activations(
    paths: Paths, apply: ApplyFn, params: Params, x: Float[AnyArray, "n ..."], *, state: State = None
) -> Float[Array, "n o k"]:
    """How active each path is at each example, J_v f: a_p(x) · x_s(p) at the output where path p ends, else 0.

    The outputs of the network are these activations times the path values. a_p(x) is the product of the slopes of the
    gates on path p, read from one forward pass of the network. With `path_jacobian` it factors the Jacobian of the
    network, J_θ f = J_v f · J_θ v. The result is dense: n · o · k numbers. Pass the `state` for which the paths were
    listed.

    Raises ValueError where the examples of `x` have another number of coordinates than the network that was listed.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((2, 3), 0.5), "second": jnp.full((3, 4), 2.0)}
    >>> paths = enumerate_paths(apply, params, jnp.zeros((5, 2)), limit=100)
    >>> activations = path_activations(paths, apply, params, jnp.ones((5, 2)))
    >>> outputs = activations @ path_values(paths, params)
    >>> activations.shape, bool(jnp.allclose(outputs, apply(params, jnp.ones((5, 2)))))
    ((5, 4, 24), True)
    """
    check_batch(x)
    check_floating(params, x)
    if math.prod(x.shape[1:]) != paths.inputs:
        raise ValueError(
            f"`x` has {math.prod(x.shape[1:])} coordinates per example, but the paths were listed for {paths.inputs}. "
            "List the paths again with this shape of input, or give a single example an axis of its own: x[None]."
        )
    x = jnp.asarray(x)
    slopes = traced(apply, params, state).compiled(_slopes_of_examples)(params, x)
    return _activations(paths, slopes, x.reshape(len(x), paths.inputs))


def _slopes_of_examples(network: TracedNetwork, params: Params, x: Any) -> Any:
    program = network.program(one_example(x))
    return jax.vmap(lambda example: _slopes(program, params, example[None]))(x)


@jax.jit
def _activations(paths: Paths, slopes: Any, x: Any) -> Any:
    # a 1 at the end, which index −1 reads: for the padding of gates, and for paths that start at a bias
    padded_slopes = jnp.concatenate([slopes, jnp.ones((len(x), 1), x.dtype)], axis=1)
    padded_inputs = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)

    def of_path(gates: Any, source: Any, output: Any) -> Any:
        activation = jnp.prod(padded_slopes[:, gates], axis=1) * padded_inputs[:, source]
        return activation[:, None] * (jnp.arange(paths.width) == output)[None, :]

    return jax.vmap(of_path, out_axes=-1)(paths.gates, paths.sources, paths.outputs)


def _slopes(program: Program, params: Params, x: Any) -> Any:
    """The slopes of all gates at one example, in the order that `Paths.gates` counts them."""
    recorder, leaves = Recorder(), jax.tree.leaves(params)
    interpret(program, recorder, [None for _ in leaves], None, points=[(leaves, x)])
    return jnp.concatenate([jnp.zeros(0, x.dtype), *(slope.ravel().astype(x.dtype) for slope in recorder.slopes)])


def _padded(paths: Paths, params: Params) -> Any:
    """The raveled parameters with a 1 at the end, which the padding index −1 reads."""
    theta, _ = ravel(params)
    if theta.size != paths.parameters:
        raise ValueError(
            f"`params` has {theta.size} entries, but the paths were listed for {paths.parameters}. List the paths of "
            "these parameters."
        )
    return jnp.concatenate([theta, jnp.ones(1, theta.dtype)])
