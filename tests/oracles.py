"""Paths listed neuron by neuron, in plain NumPy: the independent truth that the library is held to.

A network is a `Graph` of single neurons. Layers are written out by loops over arrays of neuron numbers, so that
everything which only moves values about (reshape, transpose, flip, pad, repeat, slice, concatenate) is ordinary NumPy
indexing on these arrays; −1 stands for "no neuron", a value that is zero for every input and every parameter.
Parameters are named by their position in the raveled parameter vector (`jax.tree` order). A factor that is the
constant 0 makes no edge, hence no path. Nothing here imports JAX or the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

ONE = -1  # the source of biases and constant shifts: an input that always is 1
NONE = -1  # no neuron


class Edge(NamedTuple):
    """One term `coefficient · Π θ[weights] · gate · origin` of the sum that a neuron is."""

    origin: int
    weights: tuple[int, ...] = ()
    coefficient: float = 1.0
    gate: int | None = None


class Path(NamedTuple):
    """One path from a source (input coordinate, or `ONE`) to an output; `weights` repeats tied weights."""

    source: int
    output: int
    weights: tuple[int, ...]
    coefficient: float
    gates: tuple[int, ...]


class Graph:
    """A network as neurons and edges; every method takes arrays of neurons and returns an array of new ones.

    Neurons are numbered in the order of computation. A gate is a function of the neurons' values, (neurons, n) → (n,).
    """

    def __init__(self) -> None:
        self.edges: list[list[Edge]] = [[]]
        self.sources: dict[int, int] = {0: ONE}
        self.gates: list[Callable[[np.ndarray], np.ndarray]] = []
        self.outputs: tuple[int, ...] = ()

    # One neuron, one gate

    def _neuron(self, edges: Sequence[Edge]) -> int:
        alive = [edge for edge in edges if edge.origin != NONE and edge.coefficient != 0]
        if not alive:
            return NONE
        self.edges.append(alive)
        return len(self.edges) - 1

    def _gate(self, slope: Callable[[np.ndarray], np.ndarray]) -> int:
        self.gates.append(slope)
        return len(self.gates) - 1

    def _each(self, nodes: np.ndarray, edges: Callable[[int, tuple[int, ...]], Sequence[Edge]]) -> np.ndarray:
        """A new neuron for every entry of `nodes`, from the edges that `edges(node, position)` gives."""
        new = np.full(nodes.shape, NONE)
        for position in np.ndindex(nodes.shape):
            new[position] = self._neuron(edges(int(nodes[position]), position))
        return new

    # Ends

    def inputs(self, shape: Sequence[int]) -> np.ndarray:
        """One neuron for each coordinate of one example, numbered as in its ravel."""
        nodes = np.arange(len(self.edges), len(self.edges) + math.prod(shape))
        for source, node in enumerate(nodes):
            self.edges.append([])
            self.sources[int(node)] = source
        return nodes.reshape(shape)

    def finish(self, nodes: np.ndarray) -> Graph:
        """Name the outputs, one-dimensional (o,)."""
        if nodes.ndim != 1:
            raise ValueError(f"outputs of one example have one axis, not shape {nodes.shape}")
        self.outputs = tuple(int(node) for node in nodes)
        return self

    # Layers with weights

    def dense(self, nodes: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        """Last axis of `nodes` (…, i) times `kernel` (i, o), plus `bias` (o,)."""
        new = np.full((*nodes.shape[:-1], kernel.shape[1]), NONE)
        for position in np.ndindex(new.shape):
            *rest, o = position
            row = nodes[tuple(rest)]
            new[position] = self._neuron([Edge(int(row[i]), (int(kernel[i, o]),)) for i in range(len(row))])
        return new if bias is None else self.bias(new, bias)

    def conv(
        self,
        nodes: np.ndarray,
        kernel: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        stride: Sequence[int] | None = None,
        padding: Sequence[tuple[int, int]] | None = None,
        dilation: Sequence[int] | None = None,
        groups: int = 1,
    ) -> np.ndarray:
        """Convolution of `nodes` (*space, c) with `kernel` (*window, c / groups, o); padding as explicit pairs."""
        *_, per_group, features = kernel.shape
        size = kernel.shape[:-2]
        stride, dilation = stride or (1,) * len(size), dilation or (1,) * len(size)
        extent = [d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True)]
        padded = pad(nodes, [*(padding or [(0, 0)] * len(size)), (0, 0)])
        space = [(s - e) // t + 1 for s, e, t in zip(padded.shape[:-1], extent, stride, strict=True)]
        new = np.full((*space, features), NONE)
        for *place, o in np.ndindex(new.shape):
            group = o // (features // groups)
            edges = []
            for *offset, c in np.ndindex((*size, per_group)):
                at = [p * t + k * d for p, t, k, d in zip(place, stride, offset, dilation, strict=True)]
                edges.append(Edge(int(padded[*at, group * per_group + c]), (int(kernel[*offset, c, o]),)))
            new[*place, o] = self._neuron(edges)
        return new if bias is None else self.bias(new, bias)

    def bias(self, nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """`nodes` plus parameters, broadcast: each a path from the constant 1."""
        weights = np.broadcast_to(weights, nodes.shape)
        return self._each(nodes, lambda node, at: [Edge(node), Edge(0, (int(weights[at]),))])

    def scale(self, nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """`nodes` times parameters, broadcast."""
        weights = np.broadcast_to(weights, nodes.shape)
        return self._each(nodes, lambda node, at: [Edge(node, (int(weights[at]),))])

    # Layers with constants

    def constant_affine(self, nodes: np.ndarray, coefficients: np.ndarray | float, shifts=0.0) -> np.ndarray:
        """`coefficients · nodes + shifts`, both constant and broadcast: batch norm with running statistics."""
        c, b = np.broadcast_to(coefficients, nodes.shape), np.broadcast_to(shifts, nodes.shape)
        return self._each(
            nodes, lambda node, at: [Edge(node, coefficient=float(c[at])), Edge(0, coefficient=float(b[at]))]
        )

    def add(self, *terms: np.ndarray) -> np.ndarray:
        """Sum of arrays of neurons of one shape."""
        return self._each(terms[0], lambda _, at: [Edge(int(term[at])) for term in terms])

    def sum_over_axis(self, nodes: np.ndarray, axis: int, coefficient: float = 1.0) -> np.ndarray:
        """Sum over one axis, times a constant (1 / length for the mean)."""
        moved = np.moveaxis(nodes, axis, -1)
        return self._each(moved[..., 0], lambda _, at: [Edge(int(node), coefficient=coefficient) for node in moved[at]])

    def avg_pool(self, nodes: np.ndarray, size: Sequence[int], stride=None, padding=None) -> np.ndarray:
        """Mean over windows of `nodes` (*space, c); padding counts as zeros."""
        windows = _windows(nodes, size, stride, padding)
        return self.sum_over_axis(windows, -1, 1 / math.prod(size))

    # Gates

    def relu(self, nodes: np.ndarray, slope: float = 0.0, at_zero: float | None = None) -> np.ndarray:
        """One edge per neuron with gate 1 above zero, `slope` below, and `at_zero` (default `slope`) at zero."""
        level = slope if at_zero is None else at_zero

        def edges(node: int, _: tuple[int, ...]) -> list[Edge]:
            gate = self._gate(lambda z: np.where(z[node] > 0, 1.0, np.where(z[node] < 0, slope, level)))
            return [Edge(node, gate=gate)]

        return self._each(nodes, edges)

    def abs(self, nodes: np.ndarray) -> np.ndarray:
        """One edge per neuron, whose gate is the sign, 1 at zero."""
        return self.relu(nodes, slope=-1.0, at_zero=1.0)

    def prelu(self, nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Two edges per neuron: gate x ≥ 0 without a weight, gate x < 0 with the slope parameter (broadcast)."""
        weights = np.broadcast_to(weights, nodes.shape)

        def edges(node: int, at: tuple[int, ...]) -> list[Edge]:
            above, below = self._gate(lambda z: 1.0 * (z[node] >= 0)), self._gate(lambda z: 1.0 * (z[node] < 0))
            return [Edge(node, gate=above), Edge(node, (int(weights[at]),), gate=below)]

        return self._each(nodes, edges)

    def crelu(self, nodes: np.ndarray) -> np.ndarray:
        """relu(x) and relu(−x), side by side on the last axis."""
        return np.concatenate([self.relu(nodes), self.relu(self.constant_affine(nodes, -1.0))], axis=-1)

    def max_over_axis(self, nodes: np.ndarray, axis: int, ties: str = "share") -> np.ndarray:
        """Maximum over one axis: gates "is the arg max". Ties "share" (`reduce_max`) or go to the "first"."""
        if (nodes == NONE).any():
            raise ValueError("a zero that is not a neuron can win the maximum: no paths are defined for it here")
        return self._max(np.moveaxis(nodes, axis, -1), ties)

    def max_pool(self, nodes: np.ndarray, size: Sequence[int], stride=None, padding=None) -> np.ndarray:
        """Maximum over windows of `nodes` (*space, c); padding never wins; of ties the first in row-major order."""
        if (nodes == NONE).any():
            raise ValueError("a zero that is not a neuron can win the maximum: no paths are defined for it here")
        return self._max(_windows(nodes, size, stride, padding), "first")

    def _max(self, windows: np.ndarray, ties: str) -> np.ndarray:
        def edges(_: int, at: tuple[int, ...]) -> list[Edge]:
            rivals = [int(node) for node in windows[at] if node != NONE]
            return [Edge(node, gate=self._gate(_is_max(rivals, i, ties))) for i, node in enumerate(rivals)]

        return self._each(windows[..., 0], edges)


def _is_max(rivals: list[int], index: int, ties: str) -> Callable[[np.ndarray], np.ndarray]:
    def gate(z: np.ndarray) -> np.ndarray:
        wins = z[rivals] == z[rivals].max(axis=0)
        if ties == "first":
            return 1.0 * (wins.argmax(axis=0) == index)
        return wins[index] / wins.sum(axis=0)

    return gate


def _windows(nodes: np.ndarray, size: Sequence[int], stride=None, padding=None) -> np.ndarray:
    """Windows of `nodes` (*space, c) as (*places, c, prod(size)), row-major inside a window. Stride defaults to 1."""
    stride = stride or (1,) * len(size)
    padded = pad(nodes, [*(padding or [(0, 0)] * len(size)), (0, 0)])
    space = [(s - k) // t + 1 for s, k, t in zip(padded.shape[:-1], size, stride, strict=True)]
    windows = np.full((*space, nodes.shape[-1], math.prod(size)), NONE)
    for *place, c in np.ndindex(windows.shape[:-1]):
        corner = [p * t for p, t in zip(place, stride, strict=True)]
        windows[*place, c] = [padded[*np.add(corner, offset), c] for offset in np.ndindex(*size)]
    return windows


def pad(nodes: np.ndarray, widths: Sequence[tuple[int, int]]) -> np.ndarray:
    """Zero padding: no neurons around `nodes`."""
    return np.pad(nodes, widths, constant_values=NONE)


def dilate(nodes: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Zeros between entries of each axis (a transposed convolution is a convolution over these)."""
    new = np.full([(s - 1) * f + 1 for s, f in zip(nodes.shape, factors, strict=True)], NONE)
    new[tuple(slice(None, None, f) for f in factors)] = nodes
    return new


# What the network computes


def forward(graph: Graph, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of all neurons (neurons, n) and of all gates (gates, n) on inputs x (n, …)."""
    flat = x.reshape(len(x), -1)
    z, gates = np.zeros((len(graph.edges), len(x))), np.zeros((len(graph.gates), len(x)))
    for node, edges in enumerate(graph.edges):
        if node in graph.sources:
            z[node] = _source_value(graph.sources[node], flat)
        for edge in edges:
            term = edge.coefficient * np.prod(theta[list(edge.weights)]) * z[edge.origin]
            if edge.gate is not None:
                gates[edge.gate] = graph.gates[edge.gate](z)
                term = term * gates[edge.gate]
            z[node] += term
    return z, gates


def _source_value(source: int, flat: np.ndarray) -> np.ndarray:
    return np.ones(len(flat)) if source == ONE else flat[:, source]


def outputs(graph: Graph, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The network's outputs (n, o), computed neuron by neuron."""
    z, _ = forward(graph, theta, x)
    return np.stack([np.zeros(len(x)) if node == NONE else z[node] for node in graph.outputs], axis=-1)


# The list of paths


def paths(graph: Graph) -> list[Path]:
    """Every path from a source to an output."""
    reaching: list[list[Path]] = []
    for node, edges in enumerate(graph.edges):
        if node in graph.sources:
            reaching.append([Path(graph.sources[node], NONE, (), 1.0, ())])
        else:
            reaching.append([_extend(path, edge) for edge in edges for path in reaching[edge.origin]])
    ends = [(o, node) for o, node in enumerate(graph.outputs) if node != NONE]
    return [path._replace(output=o) for o, node in ends for path in reaching[node]]


def _extend(path: Path, edge: Edge) -> Path:
    return path._replace(
        weights=path.weights + edge.weights,
        coefficient=path.coefficient * edge.coefficient,
        gates=path.gates if edge.gate is None else (*path.gates, edge.gate),
    )


def pruned(graph: Graph, mask: np.ndarray) -> Graph:
    """The same neurons without the edges of pruned weights (mask False): only paths of kept weights are listed."""
    result = Graph()
    result.sources, result.gates, result.outputs = graph.sources, graph.gates, graph.outputs
    result.edges = [[edge for edge in edges if all(mask[i] for i in edge.weights)] for edges in graph.edges]
    return result


def masked(theta: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Parameters (p,) with the pruned ones (mask False) at zero."""
    return theta if mask is None else np.where(mask, theta, 0.0)


def is_kept(listed: list[Path], mask: np.ndarray | None) -> np.ndarray:
    """Whether all weights of each path are unpruned (k,)."""
    return np.array([mask is None or all(mask[i] for i in path.weights) for path in listed], dtype=bool)


# Path values and their derivatives


def values(listed: list[Path], theta: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """v_p = c_p Π_{i∈p} θ_i, (k,)."""
    theta = masked(theta, mask)
    return np.array([path.coefficient * np.prod([theta[i] for i in path.weights]) for path in listed])


def jacobian(listed: list[Path], theta: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """∂v_p/∂θ_i (k, p): the sum, over the places of weight i on path p, of the product of all the others.

    With a mask, columns of pruned weights are zero.
    """
    theta = masked(theta, mask)
    result = np.zeros((len(listed), len(theta)))
    for p, path in enumerate(listed):
        for place, i in enumerate(path.weights):
            others = path.weights[:place] + path.weights[place + 1 :]
            result[p, i] += path.coefficient * np.prod([theta[j] for j in others])
    return result if mask is None else result * mask


def path_kernel(listed: list[Path], theta: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Π = (∂v/∂θ)(∂v/∂θ)ᵀ, (k, k)."""
    j = jacobian(listed, theta, mask)
    return j @ j.T


def twin(listed: list[Path], theta: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """G = (∂v/∂θ)ᵀ(∂v/∂θ), (p, p); rows and columns of pruned weights are zero."""
    j = jacobian(listed, theta, mask)
    return j.T @ j


# Sums over paths


def activations(
    graph: Graph, listed: list[Path], theta: np.ndarray, x: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """J_v f = [p ends in o] · a_p(x) · x_s(p), (n, o, k)."""
    _, gates = forward(graph, masked(theta, mask), x)
    flat = x.reshape(len(x), -1)
    result = np.zeros((len(x), len(graph.outputs), len(listed)))
    for p, path in enumerate(listed):
        result[:, path.output, p] = _slope(path, gates) * _source_value(path.source, flat)
    return result


def _slope(path: Path, gates: np.ndarray) -> np.ndarray:
    return np.prod(gates[list(path.gates)], axis=0)


def magnitudes(listed: list[Path], theta: np.ndarray, q: float, mask: np.ndarray | None = None) -> np.ndarray:
    """|v_p|^q (k,), zero on paths with a pruned weight, also for q = 0."""
    power = np.abs(theta) ** q
    product = [abs(path.coefficient) ** q * np.prod([power[i] for i in path.weights]) for path in listed]
    return np.where(is_kept(listed, mask), product, 0.0)


def path_sum(
    graph: Graph,
    listed: list[Path],
    theta: np.ndarray,
    x: np.ndarray,
    *,
    q: float = 1,
    gates: str = "open",
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Σ_{p→o} |v_p|^q gate_p |x_s|^q, (n, o): gates all 1 ("open") or the slopes a_p(x) ("data", which keep sign)."""
    _, slopes = forward(graph, masked(theta, mask), x)
    flat = np.abs(x.reshape(len(x), -1)) ** q
    result = np.zeros((len(x), len(graph.outputs)))
    for path, size in zip(listed, magnitudes(listed, theta, q, mask), strict=True):
        gate = {"open": 1.0, "data": _slope(path, slopes)}[gates]
        result[:, path.output] += size * gate * _source_value(path.source, flat)
    return result


def path_norm(listed: list[Path], theta: np.ndarray, q: float, mask: np.ndarray | None = None) -> float:
    """Σ_p |v_p|^q over all outputs."""
    return float(magnitudes(listed, theta, q, mask).sum())


def path_count(listed: list[Path], mask: np.ndarray | None = None) -> int:
    """The number of paths whose weights are all unpruned."""
    return int(is_kept(listed, mask).sum())


def path_mass(listed: list[Path], theta: np.ndarray, q: float, mask: np.ndarray | None = None) -> np.ndarray:
    """Σ_p n_ip |v_p|^q (p,), n_ip how often path p uses weight i: the mass of paths through each weight."""
    result = np.zeros(len(theta))
    for path, size in zip(listed, magnitudes(listed, theta, q, mask), strict=True):
        for i in path.weights:
            result[i] += size
    return result


def data_gram(
    graph: Graph,
    listed: list[Path],
    theta: np.ndarray,
    x1: np.ndarray,
    x2: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """K_v(x, x')_o = Σ_{p→o} a_p(x) a_p(x') x_s x'_s over paths without a pruned weight, (n, m, o)."""
    kept = is_kept(listed, mask)
    a1 = activations(graph, listed, theta, x1, mask) * kept
    a2 = a1 if x2 is None else activations(graph, listed, theta, x2, mask) * kept
    return np.einsum("nok,mok->nmo", a1, a2)


def neural_tangent_kernel(
    graph: Graph,
    listed: list[Path],
    theta: np.ndarray,
    x1: np.ndarray,
    x2: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Θ = J_v f(x) · Π · J_v f(x')ᵀ, (n, m, o, o)."""
    a1 = activations(graph, listed, theta, x1, mask)
    a2 = a1 if x2 is None else activations(graph, listed, theta, x2, mask)
    return np.einsum("nok,kl,mpl->nmop", a1, path_kernel(listed, theta, mask), a2, optimize=True)
