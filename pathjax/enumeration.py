"""Sums over paths by listing them: exact, for networks small enough to list.

`enumerate_paths` walks the same equations as `paths` does, at the level of single neurons, and gives every path as
rows of arrays; what is computed from the list is jit-compiled and vmapped over paths.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pathjax._base.trees import ravel
from pathjax._interpreter.algebra import Algebra, Convolution, Structure
from pathjax._interpreter.examples import trace_apart
from pathjax._interpreter.jaxpr import Program, check_batch, trace
from pathjax._interpreter.lifting import Lifting, Scaled, absolute_power
from pathjax._interpreter.rules import interpret
from pathjax.types import AnyArray, ApplyFn, Params, XLike

__all__ = ["Paths", "enumerate_paths", "path_activations", "path_jacobian", "path_kernel", "path_values"]

NOTHING = -1  # pads rows; also the constant-1 source


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


class _Table(NamedTuple):
    """Lists of path prefixes, one list per cell: rows start[c] to start[c + 1] are those of cell c."""

    start: np.ndarray
    factors: np.ndarray
    coefficients: np.ndarray
    gates: np.ndarray
    sources: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return cast(np.ndarray, np.diff(self.start))


class _Listing(NamedTuple):
    """One array of the network: for each entry 1 + its cell in the table, or 0 where it has no path."""

    entries: np.ndarray
    table: _Table


class _Lister(Algebra[_Listing]):
    """Path sums as lists of paths."""

    def __init__(self) -> None:
        self._gates = 0

    def constant(self, value: Any) -> _Listing:
        numbers = np.asarray(value, np.float64)
        return _Listing(_count_up(np.asarray(numbers != 0)), _single(coefficients=numbers[numbers != 0]))

    def shape_only(self, function: Callable[..., Any], *operands: _Listing) -> _Listing:
        merged, table = _merge(operands)
        return _Listing(np.asarray(function(*(jnp.asarray(entries) for entries in merged))), table)

    def add(self, left: _Listing, right: _Listing) -> _Listing:
        merged, table = _merge((left, right))
        a, b = np.broadcast_arrays(*merged)
        targets = np.concatenate([np.arange(a.size), np.arange(b.size)])
        return _gather(table, targets, np.concatenate([a.ravel(), b.ravel()]), a.shape)

    def sum(self, operand: _Listing, axes: Sequence[int]) -> _Listing:
        kept = [axis for axis in range(operand.entries.ndim) if axis not in axes]
        shape = tuple(operand.entries.shape[axis] for axis in kept)
        moved = operand.entries.transpose([*kept, *axes]).reshape(math.prod(shape), -1)
        return _gather(operand.table, np.repeat(np.arange(len(moved)), moved.shape[1]), moved.ravel(), shape)

    def multiply(self, left: _Listing, right: _Listing) -> _Listing:
        a, b = np.broadcast_arrays(left.entries, right.entries)
        return _product(left.table, right.table, np.arange(a.size), a.ravel(), b.ravel(), a.shape)

    def scale(self, operand: _Listing, coefficient: Any) -> _Listing:
        return self.multiply(operand, self.constant(coefficient))

    def dot(self, left: _Listing, right: _Listing, dimension_numbers: Any) -> _Listing:
        (contract_left, contract_right), (batch_left, batch_right) = dimension_numbers
        a = _as_matrices(left.entries, batch_left, contract_left)
        b = _as_matrices(right.entries, batch_right, contract_right)
        shape = (
            *(left.entries.shape[axis] for axis in batch_left),
            *_free_shape(left.entries.shape, batch_left, contract_left),
            *_free_shape(right.entries.shape, batch_right, contract_right),
        )
        pairs = np.broadcast_arrays(a[:, :, None, :], b[:, None, :, :])
        targets = np.repeat(np.arange(math.prod(shape)), a.shape[-1])
        return _product(left.table, right.table, targets, pairs[0].ravel(), pairs[1].ravel(), shape)

    def conv(self, left: _Listing, right: _Listing, convolution: Convolution) -> _Listing:
        numbers = convolution.dimension_numbers
        images, kernels = left.entries.transpose(numbers.lhs_spec), right.entries.transpose(numbers.rhs_spec)
        groups = convolution.feature_group_count
        patches = _patches(images, kernels.shape[2:], convolution)
        examples, channels, places, taps = patches.shape[0], patches.shape[1], patches.shape[2:-1], patches.shape[-1]
        features = kernels.shape[0]
        a = patches.reshape(examples, groups, 1, channels // groups, math.prod(places), taps)
        b = kernels.reshape(1, groups, features // groups, channels // groups, 1, taps)
        # targets in the order (example, group, feature, place); channels and taps are summed over
        pairs = [np.moveaxis(side, 3, -1) for side in np.broadcast_arrays(a, b)]
        shape = (examples, features, *places)
        targets = np.repeat(np.arange(math.prod(shape)), taps * (channels // groups))
        result = _product(left.table, right.table, targets, pairs[0].ravel(), pairs[1].ravel(), shape)
        return result._replace(entries=result.entries.transpose(np.argsort(numbers.out_spec)))

    def gate(self, operand: _Listing, slopes: Sequence[Any], shape: tuple[int, ...]) -> _Listing:
        """Every entry gets a gate of its own, numbered in the order of the network."""
        first, self._gates = self._gates, self._gates + math.prod(shape)
        owned = _product(operand.table, _single(1), *_diagonal(operand.entries), shape)
        number = first + np.flatnonzero(operand.entries)
        column = np.repeat(number, owned.table.lengths)[:, None].astype(np.int32)
        return owned._replace(table=owned.table._replace(gates=np.hstack([owned.table.gates, column])))


class _Recorder(Structure):
    """Keeps the slopes of all gates, in the order of the network."""

    def __init__(self) -> None:
        self.slopes: list[Any] = []

    def gate(self, operand: None, slopes: Sequence[Any], shape: tuple[int, ...]) -> None:
        self.slopes.append(slopes[0])


def _patches(images: np.ndarray, window: tuple[int, ...], convolution: Convolution) -> np.ndarray:
    """The entries under each tap of the kernel: (example, channel, *places, tap)."""
    padded = _spread(images, convolution.lhs_dilation, convolution.padding)
    reach = [(size - 1) * step for size, step in zip(window, convolution.rhs_dilation, strict=True)]
    views = []
    for tap in itertools.product(*(range(size) for size in window)):
        first = [at * step for at, step in zip(tap, convolution.rhs_dilation, strict=True)]
        slices = [
            slice(begin, begin + size - span, stride)
            for begin, size, span, stride in zip(
                first, padded.shape[2:], reach, convolution.window_strides, strict=True
            )
        ]
        views.append(padded[(slice(None), slice(None), *slices)])
    return np.stack(views, axis=-1)


def _spread(images: np.ndarray, dilation: Sequence[int], padding: Sequence[tuple[int, int]]) -> np.ndarray:
    """Images with holes between their entries and a border around them (negative: cut off)."""
    sizes = [(size - 1) * step + 1 if size else 0 for size, step in zip(images.shape[2:], dilation, strict=True)]
    spread = np.zeros((*images.shape[:2], *sizes), images.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in dilation))] = images
    border = [(0, 0), (0, 0), *((max(low, 0), max(high, 0)) for low, high in padding)]
    cut = [slice(max(-low, 0), size - max(-high, 0)) for (low, high), size in zip(padding, sizes, strict=True)]
    return np.pad(spread[(slice(None), slice(None), *cut)], border)


def _count_up(present: np.ndarray) -> np.ndarray:
    """1, 2, 3, ... at the entries that are present, 0 elsewhere."""
    return np.where(present, np.cumsum(present).reshape(present.shape), 0)


def _single(cells: int = 0, *, factors: Any = None, coefficients: Any = None, sources: Any = None) -> _Table:
    """One prefix per cell."""
    given = [column for column in (factors, coefficients, sources) if column is not None]
    cells = len(given[0]) if given else cells
    return _Table(
        start=np.arange(cells + 1),
        factors=np.zeros((cells, 0), np.int32) if factors is None else np.asarray(factors, np.int32)[:, None],
        coefficients=np.ones(cells) if coefficients is None else np.asarray(coefficients),
        gates=np.zeros((cells, 0), np.int32),
        sources=np.full(cells, NOTHING, np.int32) if sources is None else np.asarray(sources, np.int32),
    )


def _merge(operands: Sequence[_Listing]) -> tuple[list[np.ndarray], _Table]:
    """The operands' entries over one table with the cells of all."""
    if all(operand.table is operands[0].table for operand in operands):
        return [operand.entries for operand in operands], operands[0].table
    tables = [operand.table for operand in operands]
    cells = np.cumsum([0, *(len(table.start) - 1 for table in tables)])
    rows = np.cumsum([0, *(table.start[-1] for table in tables)])
    merged = _Table(
        start=np.concatenate([[0], *(table.start[1:] + row for table, row in zip(tables, rows, strict=False))]),
        factors=_stack([table.factors for table in tables]),
        coefficients=np.concatenate([table.coefficients for table in tables]),
        gates=_stack([table.gates for table in tables]),
        sources=np.concatenate([table.sources for table in tables]),
    )
    entries = [
        np.where(operand.entries > 0, operand.entries + cell, 0) for operand, cell in zip(operands, cells, strict=False)
    ]
    return entries, merged


def _stack(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of all blocks, padded to one width."""
    width = max(block.shape[1] for block in blocks)
    padded = [np.pad(b, ((0, 0), (0, width - b.shape[1])), constant_values=NOTHING) for b in blocks]
    return np.concatenate(padded)


def _gather(table: _Table, targets: np.ndarray, entries: np.ndarray, shape: tuple[int, ...]) -> _Listing:
    """Entry `targets[i]` of the result gets the prefixes of `entries[i]`, for every i."""
    return _product(table, _single(1), targets, entries, np.ones_like(entries), shape)


def _diagonal(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.arange(entries.size), entries.ravel(), np.ones(entries.size, entries.dtype)


def _product(
    left: _Table, right: _Table, targets: np.ndarray, a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]
) -> _Listing:
    """Entry `targets[i]` of the result gets every prefix of `a[i]` with every one of `b[i]`, for every i."""
    live = np.flatnonzero((a > 0) & (b > 0))
    live = live[np.argsort(targets[live], kind="stable")]
    targets, a, b = targets[live], a[live] - 1, b[live] - 1
    many = right.lengths[b]
    counts = left.lengths[a] * many
    pair, within = _ragged(counts)
    at_left = left.start[a][pair] + within // many[pair]
    at_right = right.start[b][pair] + within % many[pair]
    per_target = np.bincount(targets, weights=counts, minlength=math.prod(shape)).astype(np.int64)
    filled = per_target > 0
    table = _Table(
        start=np.concatenate([[0], np.cumsum(per_target[filled])]),
        factors=np.hstack([left.factors[at_left], right.factors[at_right]]),
        coefficients=left.coefficients[at_left] * right.coefficients[at_right],
        gates=np.hstack([left.gates[at_left], right.gates[at_right]]),
        sources=np.maximum(left.sources[at_left], right.sources[at_right]),
    )
    return _Listing(_count_up(filled.reshape(shape)), table)


def _ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For i repeated counts[i] times: i, and the number of the repetition."""
    index = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return index, np.arange(len(index)) - first[index]


def _as_matrices(entries: np.ndarray, batch: Sequence[int], contract: Sequence[int]) -> np.ndarray:
    """The entries as (batch, free, contracted)."""
    free = [axis for axis in range(entries.ndim) if axis not in batch and axis not in contract]
    sizes = [math.prod(entries.shape[axis] for axis in axes) for axes in (batch, free, contract)]
    return entries.transpose([*batch, *free, *contract]).reshape(sizes)


def _free_shape(shape: tuple[int, ...], batch: Sequence[int], contract: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(shape) if axis not in batch and axis not in contract)


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
    check_batch(x_like)
    example = jax.ShapeDtypeStruct((1, *x_like.shape[1:]), x_like.dtype)
    program = trace_apart(apply, params, example)
    count = _count(program)
    if count > limit:
        number = f"{count:,}" if count < 10**15 else f"about {Decimal(count):.3e}"
        raise ValueError(
            f"The network has {number} paths, more than `limit` = {limit:,}. Raise the limit (a path takes some 50 "
            "bytes), or use the sums of `pathjax.paths`, which do not list paths."
        )
    with jax.ensure_compile_time_eval():
        output, _ = interpret(program, _Lister(), _weights(program), _sources(example.shape))
    # a network may end in moves, which leave the table as it was: bring its cells into the outputs' order
    output = _gather(output.table, np.arange(output.entries.size), output.entries.ravel(), output.entries.shape)
    ends = np.repeat(np.flatnonzero(output.entries), output.table.lengths)
    return Paths(
        factors=jnp.asarray(_trim(output.table.factors)),
        coefficients=jnp.asarray(output.table.coefficients),
        gates=jnp.asarray(_trim(output.table.gates)),
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


def _weights(program: Program) -> list[_Listing]:
    """One prefix per parameter: that weight, from the constant-1 source."""
    sizes = [math.prod(shape) for shape in program.parameter_shapes]
    first = np.cumsum([0, *sizes])
    return [
        _Listing(_numbered(shape), _single(factors=begin + np.arange(size)))
        for shape, size, begin in zip(program.parameter_shapes, sizes, first, strict=False)
    ]


def _sources(shape: tuple[int, ...]) -> _Listing:
    """One prefix per input coordinate, without a weight so far."""
    return _Listing(_numbered(shape), _single(sources=np.arange(math.prod(shape))))


def _numbered(shape: tuple[int, ...]) -> np.ndarray:
    return _count_up(np.ones(shape, bool))


def _trim(columns: np.ndarray) -> np.ndarray:
    """Without the columns that only pad."""
    return columns[:, (columns != NOTHING).any(axis=0)]


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
    slopes = jax.vmap(lambda example: _slopes(apply, params, example[None]))(x)
    return _activations(paths, slopes, x.reshape(len(x), paths.inputs))


@jax.jit
def _activations(paths: Paths, slopes: Any, x: Any) -> Any:
    with_open = jnp.concatenate([slopes, jnp.ones((len(x), 1), x.dtype)], axis=1)
    with_bias = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)

    def along(gates: Any, source: Any, output: Any) -> Any:
        activation = jnp.prod(with_open[:, gates], axis=1) * with_bias[:, source]
        return activation[:, None] * (jnp.arange(paths.width) == output)[None, :]

    return jax.vmap(along, out_axes=-1)(paths.gates, paths.sources, paths.outputs)


def _slopes(apply: ApplyFn, params: Params, x: Any) -> Any:
    """The slopes of all gates at one example, in the order of the listing."""
    program, recorder = trace(apply, params, x), _Recorder()
    point = (jax.tree.leaves(params), x)
    interpret(program, recorder, [None] * len(point[0]), None, points=[point])
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
