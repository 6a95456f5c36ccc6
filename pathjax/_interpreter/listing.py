"""Path sums as lists: every path prefix of a network is a row of NumPy arrays, for networks small enough to list."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.algebra import Algebra, Convolution, Structure
from pathjax._interpreter.jaxpr import Program
from pathjax._interpreter.rules import interpret
from pathjax._interpreter.windows import Windows, entries_of_windows

__all__ = ["Listing", "Recorder", "Table", "list_paths", "trimmed"]

NOTHING = -1  # padding of `factors` and `gates`; in `sources` the constant-1 source


class Table(NamedTuple):
    """Lists of path prefixes, one list per cell, one prefix per row.

    Attributes:
        start: the prefixes of cell c are the rows start[c] to start[c + 1].
        factors: the weights on each prefix, as raveled indices of parameters, padded with `NOTHING`.
        coefficients: the product of the constants on each prefix.
        gates: the numbers of the gates on each prefix, padded with `NOTHING`.
        sources: the input coordinate at which each prefix starts, or `NOTHING` for the constant-1 source.
    """

    start: np.ndarray
    factors: np.ndarray
    coefficients: np.ndarray
    gates: np.ndarray
    sources: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return cast(np.ndarray, np.diff(self.start))


class Listing(NamedTuple):
    """One array of the network. Each of `entries` is 1 + the entry's cell in the table, or 0 if it has no path."""

    entries: np.ndarray
    table: Table


class Lister(Algebra[Listing]):
    """Path sums as lists of paths."""

    def __init__(self) -> None:
        self._gates = 0

    def constant(self, value: Any) -> Listing:
        numbers = np.asarray(value, np.float64)
        return Listing(_count_up(np.asarray(numbers != 0)), _single(coefficients=numbers[numbers != 0]))

    def shape_only(self, function: Callable[..., Any], *operands: Listing) -> Listing:
        merged, table = _merge(operands)
        return Listing(np.asarray(function(*(jnp.asarray(entries) for entries in merged))), table)

    def add(self, left: Listing, right: Listing) -> Listing:
        merged, table = _merge((left, right))
        a, b = np.broadcast_arrays(*merged)
        targets = np.concatenate([np.arange(a.size), np.arange(b.size)])
        return _gather(table, targets, np.concatenate([a.ravel(), b.ravel()]), a.shape)

    def sum(self, operand: Listing, axes: Sequence[int]) -> Listing:
        kept = [axis for axis in range(operand.entries.ndim) if axis not in axes]
        shape = tuple(operand.entries.shape[axis] for axis in kept)
        rows = operand.entries.transpose([*kept, *axes]).reshape(math.prod(shape), -1)
        return _gather(operand.table, np.repeat(np.arange(len(rows)), rows.shape[1]), rows.ravel(), shape)

    def multiply(self, left: Listing, right: Listing) -> Listing:
        a, b = np.broadcast_arrays(left.entries, right.entries)
        return _product(left.table, right.table, np.arange(a.size), a.ravel(), b.ravel(), a.shape)

    def scale(self, operand: Listing, coefficient: Any) -> Listing:
        return self.multiply(operand, self.constant(coefficient))

    def dot(self, left: Listing, right: Listing, dimension_numbers: Any) -> Listing:
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

    def conv(self, left: Listing, right: Listing, convolution: Convolution) -> Listing:
        numbers = convolution.dimension_numbers
        images, kernels = left.entries.transpose(numbers.lhs_spec), right.entries.transpose(numbers.rhs_spec)
        groups = convolution.feature_group_count
        patches = _patches(images, kernels.shape[2:], convolution)
        examples, channels, positions, taps = patches.shape[0], patches.shape[1], patches.shape[2:-1], patches.shape[-1]
        features = kernels.shape[0]
        a = patches.reshape(examples, groups, 1, channels // groups, math.prod(positions), taps)
        b = kernels.reshape(1, groups, features // groups, channels // groups, 1, taps)
        # targets in the order (example, group, feature, position); channels and taps are summed over
        pairs = [np.moveaxis(side, 3, -1) for side in np.broadcast_arrays(a, b)]
        shape = (examples, features, *positions)
        targets = np.repeat(np.arange(math.prod(shape)), taps * (channels // groups))
        result = _product(left.table, right.table, targets, pairs[0].ravel(), pairs[1].ravel(), shape)
        return result._replace(entries=result.entries.transpose(np.argsort(numbers.out_spec)))

    def gate(self, operand: Listing, slopes: Sequence[Any], shape: tuple[int, ...]) -> Listing:
        """Every entry gets its own gate, numbered in the order of the network."""
        first, self._gates = self._gates, self._gates + math.prod(shape)
        # one cell per entry, since entries may share a cell but not a gate
        separate = _product(operand.table, _single(1), *_diagonal(operand.entries), shape)
        numbers = first + np.flatnonzero(operand.entries)
        column = np.repeat(numbers, separate.table.lengths)[:, None].astype(np.int32)
        return separate._replace(table=separate.table._replace(gates=np.hstack([separate.table.gates, column])))


class Recorder(Structure):
    """Records the slopes of all gates, in the order of the network."""

    def __init__(self) -> None:
        self.slopes: list[Any] = []

    def gate(self, operand: None, slopes: Sequence[Any], shape: tuple[int, ...]) -> None:
        self.slopes.append(slopes[0])


def _patches(images: np.ndarray, window: tuple[int, ...], convolution: Convolution) -> np.ndarray:
    """The entries under each tap of the kernel: (example, channel, *positions, tap)."""
    windows = Windows(
        sizes=(1, 1, *window),
        strides=(1, 1, *convolution.window_strides),
        padding=[(0, 0), (0, 0), *convolution.padding],
        base_dilation=(1, 1, *convolution.lhs_dilation),
        window_dilation=(1, 1, *convolution.rhs_dilation),
    )
    # one program, because each operation would else be compiled on its own
    return np.asarray(jax.jit(lambda array: entries_of_windows(array, windows))(images))


def _count_up(present: np.ndarray) -> np.ndarray:
    """1, 2, 3, ... at the entries that are present, 0 elsewhere."""
    return np.where(present, np.cumsum(present).reshape(present.shape), 0)


def _single(cells: int = 0, *, factors: Any = None, coefficients: Any = None, sources: Any = None) -> Table:
    """A table with one prefix per cell: `cells` empty ones, or one for each number in the columns that are given."""
    given = [column for column in (factors, coefficients, sources) if column is not None]
    cells = len(given[0]) if given else cells
    return Table(
        start=np.arange(cells + 1),
        factors=np.zeros((cells, 0), np.int32) if factors is None else np.asarray(factors, np.int32)[:, None],
        coefficients=np.ones(cells) if coefficients is None else np.asarray(coefficients),
        gates=np.zeros((cells, 0), np.int32),
        sources=np.full(cells, NOTHING, np.int32) if sources is None else np.asarray(sources, np.int32),
    )


def _merge(operands: Sequence[Listing]) -> tuple[list[np.ndarray], Table]:
    """The operands' entries, renumbered for one table that holds the cells of all operands."""
    if all(operand.table is operands[0].table for operand in operands):
        return [operand.entries for operand in operands], operands[0].table
    tables = [operand.table for operand in operands]
    cells = np.cumsum([0, *(len(table.start) - 1 for table in tables)])
    rows = np.cumsum([0, *(table.start[-1] for table in tables)])
    merged = Table(
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


def _gather(table: Table, targets: np.ndarray, entries: np.ndarray, shape: tuple[int, ...]) -> Listing:
    """The listing whose entry `targets[i]` holds the prefixes of `entries[i]`, for every i."""
    return _product(table, _single(1), targets, entries, np.ones_like(entries), shape)


def _diagonal(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arguments of `_product` that multiply each entry by the first cell of the right table."""
    return np.arange(entries.size), entries.ravel(), np.ones(entries.size, entries.dtype)


def _product(
    left: Table, right: Table, targets: np.ndarray, a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]
) -> Listing:
    """The listing whose entry `targets[i]` joins every prefix of `a[i]` to every prefix of `b[i]`, for every i.

    `a` and `b` are entries of listings over the tables `left` and `right`.
    """
    with_paths = np.flatnonzero((a > 0) & (b > 0))
    with_paths = with_paths[np.argsort(targets[with_paths], kind="stable")]
    targets, a, b = targets[with_paths], a[with_paths] - 1, b[with_paths] - 1
    left_counts, right_counts = left.lengths[a], right.lengths[b]
    counts = left_counts * right_counts
    # prefixes of the left in order, each with all prefixes of the right
    left_rows = _ranges(left.start[a], left_counts)
    if (right_counts == 1).all():
        right_rows = np.repeat(right.start[b], counts)
    else:
        with_right = np.repeat(right_counts, left_counts)
        right_rows = _ranges(np.repeat(right.start[b], left_counts), with_right)
        left_rows = np.repeat(left_rows, with_right)
    per_target = np.bincount(targets, weights=counts, minlength=math.prod(shape)).astype(np.int64)
    filled = per_target > 0
    table = Table(
        start=np.concatenate([[0], np.cumsum(per_target[filled])]),
        factors=_side_by_side(left.factors, left_rows, right.factors, right_rows),
        coefficients=_joined(np.multiply, left.coefficients, left_rows, right.coefficients, right_rows, neutral=1),
        gates=_side_by_side(left.gates, left_rows, right.gates, right_rows),
        sources=_joined(np.maximum, left.sources, left_rows, right.sources, right_rows, neutral=NOTHING),
    )
    return Listing(_count_up(filled.reshape(shape)), table)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, ... of every start, as many as its count."""
    total = int(counts.sum())
    dtype = np.int32 if max(total, starts.max(initial=0) + total) < 2**31 else np.int64
    offsets = starts - (np.cumsum(counts) - counts)
    return np.arange(total, dtype=dtype) + np.repeat(offsets.astype(dtype), counts)


def _side_by_side(left: np.ndarray, left_rows: np.ndarray, right: np.ndarray, right_rows: np.ndarray) -> np.ndarray:
    """Rows of the left, continued by rows of the right."""
    columns = [side[:, i] for side in (left, right) for i in range(side.shape[1])]
    rows = [*[left_rows] * left.shape[1], *[right_rows] * right.shape[1]]
    result = np.empty((len(left_rows), len(columns)), left.dtype)
    for i, (column, numbers) in enumerate(zip(columns, rows, strict=True)):
        result[:, i] = column[numbers]
    return result


def _joined(
    join: Any, left: np.ndarray, left_rows: np.ndarray, right: np.ndarray, right_rows: np.ndarray, *, neutral: int
) -> np.ndarray:
    """Entries of both sides joined, where neither side has only entries that change nothing."""
    if (right == neutral).all():
        return left[left_rows]
    if (left == neutral).all():
        return right[right_rows]
    return cast(np.ndarray, join(left[left_rows], right[right_rows]))


def _as_matrices(entries: np.ndarray, batch: Sequence[int], contract: Sequence[int]) -> np.ndarray:
    """The entries in shape (batch, free, contracted), each the product of the sizes of such axes."""
    free = [axis for axis in range(entries.ndim) if axis not in batch and axis not in contract]
    sizes = [math.prod(entries.shape[axis] for axis in axes) for axes in (batch, free, contract)]
    return entries.transpose([*batch, *free, *contract]).reshape(sizes)


def _free_shape(shape: tuple[int, ...], batch: Sequence[int], contract: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(shape) if axis not in batch and axis not in contract)


def list_paths(program: Program) -> Listing:
    """Every path of a network traced for one example. The cells of the table are in the order of the outputs."""
    with jax.ensure_compile_time_eval():
        output = interpret(program, Lister(), _weights(program), _sources(program.input_shape))
    # where the network ends by moving entries, the cells are not yet in the order of the outputs, and where it ends by
    # leaving entries out, some belong to none
    if len(output.table.lengths) == output.entries.size and np.array_equal(
        output.entries, _numbered(output.entries.shape)
    ):
        return output
    return _gather(output.table, np.arange(output.entries.size), output.entries.ravel(), output.entries.shape)


def _weights(program: Program) -> list[Listing]:
    """For each parameter one prefix, from the constant-1 source: that weight."""
    sizes = [math.prod(shape) for shape in program.parameter_shapes]
    first = np.cumsum([0, *sizes])
    return [
        Listing(_numbered(shape), _single(factors=begin + np.arange(size)))
        for shape, size, begin in zip(program.parameter_shapes, sizes, first, strict=False)
    ]


def _sources(shape: tuple[int, ...]) -> Listing:
    """For each input coordinate one prefix, without weights."""
    return Listing(_numbered(shape), _single(sources=np.arange(math.prod(shape))))


def _numbered(shape: tuple[int, ...]) -> np.ndarray:
    return _count_up(np.ones(shape, bool))


def trimmed(columns: np.ndarray) -> np.ndarray:
    """The columns that hold anything but padding."""
    kept = [i for i in range(columns.shape[1]) if (columns[:1, i] != NOTHING).any() or (columns[:, i] != NOTHING).any()]
    return columns if len(kept) == columns.shape[1] else columns[:, kept]
