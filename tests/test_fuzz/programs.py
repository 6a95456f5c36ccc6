"""Random networks as short programs: a list of layers, and the seed of their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st

from .graphs import Drawing
from .layers import (
    GATES,
    MOVES,
    At,
    Bias,
    Branches,
    Constants,
    Conv,
    CReLU,
    Dense,
    Extremum,
    Flatten,
    Gate,
    GlobalPool,
    Halves,
    Layer,
    Layers,
    Loop,
    Move,
    Norm,
    Pad,
    Pool,
    PReLU,
    Reduce,
    Scale,
    Shared,
    Twice,
    Wrapped,
    apply_all,
    draw_all,
)

DEPTH = 6
PATHS = 1_500
ENTRIES = 40  # of any one activation
SQUARE_GATES = ("relu", "maximum", "where_ge", "leaky", "abs")


@dataclass(frozen=True)
class Program:
    """A network of `layers` on examples of `shape`; `numbers` says how its parameters and inputs are drawn.

    "halves": whole multiples of 1/2, so that every sum is exact and ties are plenty; "normal": normal, with zeros.
    """

    shape: tuple[int, ...]
    layers: Layers
    seed: int = 0
    numbers: str = "halves"

    @cached_property
    def _drawn(self) -> tuple[Drawing, list[tuple[int, ...]]]:
        graph, shapes = Drawing(), Positions()
        nodes = draw_all(self.layers, graph, graph.inputs(self.shape), shapes)
        return graph.finish(nodes), shapes.shapes  # type: ignore[return-value]

    @property
    def graph(self) -> Drawing:
        """The network neuron by neuron."""
        return self._drawn[0]

    def apply(self, params: list[Any], x: Any) -> Any:
        """The network in JAX, `params` in the order of use."""
        return apply_all(self.layers, x, iter(params))

    def arrays(self, examples: int) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
        """Parameters, inputs and a mask."""
        rng = np.random.default_rng(self.seed)
        kept = rng.choice([1.0, 0.9, 0.6])
        params = [self._numbers(rng, shape) for shape in self._drawn[1]]
        x = self._numbers(rng, (examples, *self.shape))
        return params, x, [rng.random(shape) < kept for shape in self._drawn[1]]

    def _numbers(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        drawn = rng.normal(size=shape) if self.numbers == "normal" else rng.integers(-3, 4, size=shape) / 2
        return np.asarray(drawn * (rng.random(shape) < 0.85))

    @property
    def is_exact(self) -> bool:
        """Whether no comparison in it hangs on rounding."""
        return self.numbers == "halves" and all(layer.is_exact for layer in unfold(self.layers))

    def coverage(self) -> Counter[str]:
        """How often it has each kind of layer."""
        return Counter(layer.label for layer in unfold(self.layers))


class Positions:
    """Gives parameters their positions, one after the other, and keeps their shapes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._next = 0

    def __call__(self, *shape: int) -> np.ndarray:
        self.shapes.append(shape)
        positions = self._next + np.arange(np.prod(shape, dtype=int)).reshape(shape)
        self._next += positions.size
        return positions


def unfold(layers: Layers) -> Iterator[Layer]:
    """All layers, also those inside others."""
    for layer in layers:
        yield layer
        yield from unfold(layer.inner)


# Drawing programs

Draw = Callable[[st.SearchStrategy], Any]
Shape = tuple[int, ...]
Kind = Callable[[Draw, Shape], Layer]

small = st.integers(1, 3)
seeds = st.integers(0, 99)


def _any_of(*choices: Any) -> st.SearchStrategy:
    return st.sampled_from(choices)


def _window(draw: Draw, space: Shape, dilated: bool) -> tuple[Shape, Shape]:
    """A window that fits into the space, with its dilation."""
    dilation = tuple(draw(_any_of(1, 1, 2)) if dilated and s > 2 else 1 for s in space)
    return tuple(draw(st.integers(1, min(3, 1 + (s - 1) // d))) for s, d in zip(space, dilation, strict=True)), dilation


def _padding(draw: Draw, size: Shape) -> Any:
    if (kind := draw(_any_of("VALID", "SAME", "explicit"))) != "explicit":
        return kind
    return tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in size)


def _conv(draw: Draw, shape: Shape) -> Layer:
    *space, channels = shape
    size, dilation = _window(draw, tuple(space), True)
    groups = draw(_any_of(*(g for g in (1, 2, 3) if channels % g == 0)))
    stride = tuple(draw(_any_of(1, 1, 2)) for _ in size)
    features = groups * draw(_any_of(1, 2))
    return Conv(
        features, size, stride, _padding(draw, size), dilation, groups, draw(st.booleans()), draw(_any_of(1, 1, 1, 2))
    )


def _pool(draw: Draw, shape: Shape) -> Layer:
    size, _ = _window(draw, shape[:-1], False)
    stride = tuple(draw(_any_of(1, 2)) for _ in size)
    return Pool(draw(_any_of("max", "avg")), size, stride, _padding(draw, size))


def _extremum(draw: Draw, shape: Shape) -> Layer:
    axis = draw(st.integers(0, len(shape) - 1))
    pieces = draw(_any_of(*(p for p in (1, 2, 3) if shape[axis] % p == 0)))
    return Extremum(axis, draw(st.booleans()), pieces)


def _move(draw: Draw, shape: Shape) -> Layer:
    axis = draw(st.integers(0, len(shape) - 1))
    fits = {"drop": shape[axis] > 1, "split": shape[axis] > 1, "fold": shape[axis] % 2 == 0 and len(shape) < 3}
    fits |= {"merge": axis + 1 < len(shape), "stack": len(shape) < 3, "to_end": len(shape) > 1}
    return Move(draw(_any_of(*(form for form in MOVES if fits.get(form, True)))), axis)


def _branches(draw: Draw, shape: Shape) -> Layer:
    left = _layers(draw, shape, 2)
    right = _layers(draw, shape, draw(st.integers(0, 2)))
    outs = [_shape_after(body, shape) for body in (left, right)]
    if outs[0] != outs[1] and draw(st.booleans()):  # a projection, so that they can be added
        width = outs[0][-1] if len(outs[0]) == 1 else int(np.prod(outs[0]))
        left += () if len(outs[0]) == 1 else (Flatten(),)
        right += (*(() if len(outs[1]) == 1 else (Flatten(),)), Dense(width))
    return Branches(left, right, draw(_any_of("add", "subtract", "concatenate")))


def _wrapped(draw: Draw, shape: Shape) -> Layer:
    form = draw(_any_of("jit", "nested jit", "checkpoint", "vmap", "custom_vjp"))
    if form == "custom_vjp":  # as layers with kernels of their own are: affine, and a ReLU by its own rule
        return Wrapped(form, (Dense(draw(small), True), Gate("relu")))
    return Wrapped(form, _layers(draw, shape, 2))


def _loop(draw: Draw, shape: Shape) -> Layer:
    form, remat = draw(_any_of("scan", "reverse", "fori")), draw(st.booleans())
    return Loop(draw(st.integers(1, 3)), form, draw(_any_of(*SQUARE_GATES)), remat and form != "fori")


def _dense(draw: Draw, shape: Shape) -> Layer:
    return Dense(draw(small), draw(st.booleans()), draw(_any_of("matmul", "einsum", "transposed", "left", "masked")))


def _gate(draw: Draw, shape: Shape) -> Layer:
    return Gate(draw(_any_of(*GATES)))


def _reduce(draw: Draw, shape: Shape) -> Layer:
    kind = draw(_any_of("sum", "mean", "cumsum"))
    return Reduce(kind if len(shape) > 1 else "cumsum", draw(st.integers(0, len(shape) - 1)))


def _prelu(draw: Draw, shape: Shape) -> Layer:
    form = draw(_any_of("where", "parts", "linen"))
    return PReLU(form, draw(_any_of("all", "channel")) if form != "linen" else "all")


def _norm(draw: Draw, shape: Shape) -> Layer:
    return Norm(draw(_any_of("divide", "multiply", "linen")), draw(st.booleans()), draw(seeds))


def _constants(draw: Draw, shape: Shape) -> Layer:
    return Constants(draw(_any_of("mask", "affine", "negate", "rsub", "matrix")), draw(seeds))


def _kinds(shape: Shape, *, nested: bool) -> list[Kind]:
    """The kinds of layers that take examples of this shape; those met twice are drawn twice as often."""
    kinds: list[Kind] = [_dense, _gate, _gate, _dense, _gate, _move, _norm, _constants, _prelu]
    kinds += [
        lambda draw, _: Bias(draw(_any_of("channel", "entry"))),
        lambda draw, _: Scale(draw(_any_of("channel", "entry", "all"))),
        lambda draw, _: At(draw(_any_of("set", "add"))),
        lambda draw, _: Pad(draw(st.integers(0, len(shape) - 1)), draw(st.integers(0, 1)), draw(st.integers(0, 1))),
        lambda draw, _: CReLU(),
        _extremum,
        _reduce,
    ]
    kinds += [lambda draw, _: Halves(draw(_any_of("maximum", "minimum", "where", "gated")))] * (shape[-1] > 1)
    kinds += [lambda draw, _: GlobalPool(draw(_any_of("max", "mean", "sum"))), _flatten] * (len(shape) > 1)
    kinds += [_conv, _conv, _conv, _pool, _pool] * (2 <= len(shape) <= 3)
    if not nested:
        kinds += [_branches, _branches, _branches, _wrapped, _wrapped]
        kinds += [lambda draw, shape: Shared(_layers(draw, shape, 2))]
        kinds += [lambda draw, _: Twice(draw(_any_of(*SQUARE_GATES)), draw(st.booleans())), _loop] * (shape[-1] <= 3)
    return kinds


def _flatten(draw: Draw, shape: Shape) -> Layer:
    return Flatten()


def _layers(draw: Draw, shape: Shape, depth: int) -> Layers:
    """A few layers for the inside of another."""
    first = shape
    layers: Layers = ()
    for _ in range(depth):
        kinds = _kinds(shape, nested=True)
        layer = kinds[draw(st.integers(0, len(kinds) - 1))](draw, shape)
        if _size_after((*layers, layer), first) is not None:
            layers, shape = (*layers, layer), _shape_after((layer,), shape)
    return layers or (Gate(),)


def _size_after(layers: Layers, shape: Shape) -> int | None:
    """The number of paths to the end of these layers; None where they are not a network, or too large a one."""
    graph = Drawing()
    nodes = draw_all(layers, graph, graph.inputs(shape), Positions())
    if not 0 < nodes.size <= ENTRIES or nodes.ndim > 3:
        return None
    total = graph.paths_at(nodes)
    return total if total <= PATHS else None


def _shape_after(layers: Layers, shape: Shape) -> Shape:
    graph = Drawing()
    return draw_all(layers, graph, graph.inputs(shape), Positions()).shape


@st.composite
def programs(draw: Draw) -> Program:
    """Programs of at most `DEPTH` layers and a readout, with at most `PATHS` paths; a layer too many is left out."""
    first = shape = draw(_any_of((3,), (4, 1), (3, 2), (3, 3, 1), (2, 2, 2), (4, 4, 1)))
    layers: Layers = ()
    for _ in range(draw(st.integers(1, DEPTH))):
        kinds = _kinds(shape, nested=False)
        layer = kinds[draw(st.integers(0, len(kinds) - 1))](draw, shape)
        size = _size_after((*layers, layer), first)
        if size is not None and size <= PATHS // 2:
            layers, shape = (*layers, layer), _shape_after((layer,), shape)
    if len(shape) > 1:
        layers, shape = (*layers, Flatten()), (int(np.prod(shape)),)
    if shape[0] > 3 or draw(st.booleans()):
        layers = (*layers, Dense(draw(_any_of(1, 2)), draw(st.booleans())))
    return Program(first, layers, draw(st.integers(0, 2**16)), draw(_any_of("halves", "normal")))
