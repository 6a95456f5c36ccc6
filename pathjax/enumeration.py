"""Sums over paths by listing them: exact, for networks small enough to list.

`enumerate_paths` walks the same equations as `paths` does, at the level of single neurons, and gives every path as
rows of arrays; what is computed from the list is jit-compiled and vmapped over paths.
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
from pathjax._interpreter.jaxpr import Program
from pathjax._interpreter.lifting import Lifting, Scaled, absolute_power, one_example
from pathjax._interpreter.listing import Recorder, list_paths, trimmed
from pathjax._interpreter.rules import interpret
from pathjax._interpreter.traced import traced
from pathjax.types import AnyArray, ApplyFn, Params, XLike

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
        factors: (k, depth) the path's weights, as positions among the raveled parameters; −1 pads.
        coefficients: (k,) the product of the constants on the path.
        gates: (k, gates) the gates on the path, as positions among all gates in the order of the network; −1 pads.
        sources: (k,) the input coordinate where it starts, raveled; −1 for the constant 1 of a bias.
        outputs: (k,) the output where it ends.
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


def enumerate_paths(apply: ApplyFn, params: Params, x_like: XLike, *, limit: int) -> Paths:
    """All paths of the network, as arrays with one row per path.

    Paths with a constant zero on them do not count; paths over weights that happen to be zero do. Paths are ordered
    by output. Reads the network's structure and its constants, not the values of the parameters; cannot be
    jit-compiled itself. Takes time and memory in proportion to the number of paths, about 50 bytes each for three
    hidden layers.

    Raises ValueError past `limit`, with the number of paths, and UnsupportedPrimitive where a layer is not
    piecewise linear.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 4))}
    >>> paths = enumerate_paths(apply, params, jnp.zeros((5, 2)), limit=100)
    >>> len(paths), paths.factors[0].tolist(), int(paths.sources[0]), int(paths.outputs[0])
    (24, [0, 6], 0, 0)
    """
    example = one_example(x_like)
    program = traced(apply, params).path_program(example)
    count = _count(program)
    if count > limit:
        number = f"{count:,}" if count < 10**15 else f"about {Decimal(count):.3e}"
        raise ValueError(
            f"The network has {number} paths, more than `limit` = {limit:,}. Raise the limit (a path takes some 50 "
            "bytes), or use the sums of `pathjax.paths`, which do not list paths."
        )
    output = list_paths(program)
    ends = np.repeat(np.flatnonzero(output.entries), output.table.lengths)
    return Paths(
        factors=jnp.asarray(trimmed(output.table.factors)),
        coefficients=jnp.asarray(output.table.coefficients),
        gates=jnp.asarray(trimmed(output.table.gates)),
        sources=jnp.asarray(output.table.sources),
        outputs=jnp.asarray(ends.astype(np.int32)),
        parameters=sum(math.prod(shape) for shape in program.parameter_shapes),
        inputs=math.prod(example.shape),
        width=output.entries.size,
    )


def _count(program: Program) -> int:
    """The number of paths: exact below 2^53, to 16 digits above."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        weights = [Scaled(jnp.ones(shape, jnp.float64), 0.0) for shape in program.parameter_shapes]
        ones = Scaled(jnp.ones(program.input_shape, jnp.float64), 0.0)
        output, _ = interpret(program, Lifting(absolute_power(0)), weights, ones)
        if not jnp.any(output.array):
            return 0
        numerator, denominator = float(jnp.sum(output.array)).as_integer_ratio()
        return (numerator << int(output.exponent)) // denominator


@jax.jit
def path_values(paths: Paths, params: Params) -> Float[Array, " k"]:
    """v_p(θ), the product of the constants and weights on each path.

    Vmapped over paths; k · depth multiplications. `params` may be any parameters of the tree that was listed.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((2, 3), 0.5), "second": jnp.full((3, 4), 2.0)}
    >>> paths = enumerate_paths(apply, params, jnp.zeros((5, 2)), limit=100)
    >>> path_values(paths, params).shape, float(path_values(paths, params)[7])
    ((24,), 1.0)
    """
    weights = _padded(paths, params)

    def value(factors: Any, coefficient: Any) -> Any:
        return coefficient * jnp.prod(weights[factors])

    return jax.vmap(value)(paths.factors, paths.coefficients.astype(weights.dtype))


@jax.jit
def path_jacobian(paths: Paths, params: Params) -> Float[Array, "k p"]:
    """J_θ v: the derivative of each path's value in each raveled parameter.

    The product of the path's other weights, so that a weight of zero is no special case; a weight met several times
    counts once for each. The result takes k · p numbers.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((2, 3), 0.5), "second": jnp.full((3, 4), 2.0)}
    >>> paths = enumerate_paths(apply, params, jnp.zeros((5, 2)), limit=100)
    >>> jacobian = path_jacobian(paths, params)
    >>> jacobian.shape, float(jacobian[0, 0]), float(jacobian[0, 6])
    ((24, 18), 2.0, 0.5)
    """
    weights = _padded(paths, params)

    def row(factors: Any, coefficient: Any) -> Any:
        met = weights[factors]
        before = jnp.cumprod(jnp.concatenate([jnp.ones(1, met.dtype), met[:-1]]))
        after = jnp.cumprod(jnp.concatenate([met[1:], jnp.ones(1, met.dtype)])[::-1])[::-1]
        return jnp.zeros_like(weights).at[factors].add(coefficient * before * after)[:-1]

    return jax.vmap(row)(paths.factors, paths.coefficients.astype(weights.dtype))


def path_kernel(paths: Paths, params: Params) -> Float[Array, "k k"]:
    """The Path Kernel Π = J_θ v (J_θ v)ᵀ.

    Source: Gebhart et al. (2021), section 3. The result takes k² numbers.

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
    paths: Paths, apply: ApplyFn, params: Params, x: Float[AnyArray, "n ..."]
) -> Float[Array, "n o k"]:
    """J_v f: a_p(x) · x_s(p) at the output where path p ends, zero at the others.

    a_p is the product of the slopes of the gates on the path, which the network's own forward pass gives. Together
    with `path_jacobian` it factors the Jacobian of the network, J_θ f = J_v f · J_θ v. The result takes n · o · k
    numbers.

    Raises ValueError where `apply` on `x` is not the network that was listed.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((2, 3), 0.5), "second": jnp.full((3, 4), 2.0)}
    >>> paths = enumerate_paths(apply, params, jnp.zeros((5, 2)), limit=100)
    >>> activations = path_activations(paths, apply, params, jnp.ones((5, 2)))
    >>> outputs = activations @ path_values(paths, params)
    >>> activations.shape, bool(jnp.allclose(outputs, apply(params, jnp.ones((5, 2)))))
    ((5, 4, 24), True)
    """
    if math.prod(x.shape[1:]) != paths.inputs:
        raise ValueError(
            f"`x` has {math.prod(x.shape[1:])} coordinates per example, but the listed network reads {paths.inputs}. "
            "List the paths of this network with this input shape."
        )
    x = jnp.asarray(x)
    program = traced(apply, params).program(one_example(x))
    slopes = jax.vmap(lambda example: _slopes(program, params, example[None]))(x)
    return _activations(paths, slopes, x.reshape(len(x), paths.inputs))


@jax.jit
def _activations(paths: Paths, slopes: Any, x: Any) -> Any:
    with_open = jnp.concatenate([slopes, jnp.ones((len(x), 1), x.dtype)], axis=1)
    with_bias = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)

    def along(gates: Any, source: Any, output: Any) -> Any:
        activation = jnp.prod(with_open[:, gates], axis=1) * with_bias[:, source]
        return activation[:, None] * (jnp.arange(paths.width) == output)[None, :]

    return jax.vmap(along, out_axes=-1)(paths.gates, paths.sources, paths.outputs)


def _slopes(program: Program, params: Params, x: Any) -> Any:
    """The slopes of all gates at one example, in the order of the listing."""
    recorder, leaves = Recorder(), jax.tree.leaves(params)
    interpret(program, recorder, [None for _ in leaves], None, points=[(leaves, x)])
    return jnp.concatenate([jnp.zeros(0, x.dtype), *(slope.ravel().astype(x.dtype) for slope in recorder.slopes)])


def _padded(paths: Paths, params: Params) -> Any:
    """The raveled parameters, and a 1 at the end where padding reads it."""
    theta, _ = ravel(params)
    if theta.size != paths.parameters:
        raise ValueError(
            f"`params` has {theta.size} entries, but the paths were listed for {paths.parameters}. List the paths of "
            "these parameters."
        )
    return jnp.concatenate([theta, jnp.ones(1, theta.dtype)])
