"""Kernels expected of random weights, neuron by neuron in plain NumPy: the independent truth of expected gates.

Weights are independent, of mean 0 and given second moments, and neurons before a gate are jointly Gaussian. For every
two neurons of an `oracles.Graph` the expected product of their values and of their derivatives is written out by
expanding the later one into its edges. Nothing is assumed of layers, and no two neurons are taken to be independent
unless a weight of mean 0 says so. Nothing here imports JAX or the library.
"""

from __future__ import annotations

import functools
import sys
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, owens_t

from .oracles import NONE, ONE, Edge, Graph


class Pair(NamedTuple):
    """For all pairs of examples (n, n): E[a(x) b(x')], and Σ_w E[∂a(x)/∂w ∂b(x')/∂w]."""

    value: np.ndarray
    tangent: np.ndarray

    @property
    def swapped(self) -> Pair:
        return Pair(self.value.T, self.tangent.T)

    def times(self, factor: float | np.ndarray) -> Pair:
        return Pair(factor * self.value, factor * self.tangent)


def total(pairs: list[Pair], n: int) -> Pair:
    zero = np.zeros((n, n))
    return Pair(sum((pair.value for pair in pairs), zero), sum((pair.tangent for pair in pairs), zero))


class Sides(NamedTuple):
    """Means and standard deviations (n,) of a neuron before its gate."""

    mean: np.ndarray
    deviation: np.ndarray

    @property
    def standard(self) -> np.ndarray:
        """The mean in standard deviations; 0 of a neuron that is always 0."""
        ratio = np.divide(self.mean, self.deviation, out=np.sign(self.mean) * 40, where=self.deviation > 0)
        return np.clip(ratio, -40, 40)

    @property
    def open(self) -> np.ndarray:
        """P(a > 0)."""
        return ndtr(self.standard)

    @property
    def ramp(self) -> np.ndarray:
        """E[max(a, 0)]."""
        return self.mean * self.open + self.deviation * density(self.standard)


def density(h: np.ndarray) -> np.ndarray:
    return np.exp(-(h**2) / 2) / np.sqrt(2 * np.pi)


def both_positive(h: np.ndarray, k: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """P(a > 0, b > 0) of Gaussians with means h and k, variances 1 and correlation ρ: Owen (1956)."""
    rest = np.sqrt(1 - rho**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        tails = owens_t(h, (k - rho * h) / (h * rest)) + owens_t(k, (h - rho * k) / (k * rest))
    opposite = (h * k < 0) | ((h * k == 0) & (h + k < 0))
    at_zero = (np.pi - np.arccos(rho)) / (2 * np.pi)
    return np.where((h == 0) & (k == 0), at_zero, (ndtr(h) + ndtr(k)) / 2 - tails - 0.5 * opposite)


def rectified(covariance: np.ndarray, left: Sides, right: Sides) -> tuple[np.ndarray, np.ndarray]:
    """E[a b; a, b > 0] and P(a, b > 0) of Gaussians with this covariance: Rosenbaum (1961)."""
    scale = left.deviation[:, None] * right.deviation[None]
    rho = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    rho = np.clip(rho, -1 + 1e-16, 1 - 1e-16)
    h, k = np.broadcast_arrays(left.standard[:, None], right.standard[None])
    share, rest = both_positive(h, k, rho), np.sqrt(1 - rho**2)
    tilt, other_tilt = density(h) * ndtr((k - rho * h) / rest), density(k) * ndtr((h - rho * k) / rest)
    joint = rest * np.exp(-(h**2 + k**2 - 2 * rho * h * k) / (2 * rest**2)) / (2 * np.pi)
    product = rho * (share - h * tilt - k * other_tilt) + joint
    value = np.outer(left.mean, right.mean) * share + scale * product
    value += np.outer(left.mean, right.deviation) * (rho * tilt + other_tilt)
    value += np.outer(left.deviation, right.mean) * (tilt + rho * other_tilt)
    return value, share


class Expectation:
    """The expected products of any two neurons.

    `moments` are the weights' second moments (p,), `kept` whether each is unpruned, `x` inputs (n, …). With `gates`,
    another expectation of the same network, what tangents pass through gates is as there: its gates are held.
    """

    def __init__(
        self,
        graph: Graph,
        moments: np.ndarray,
        x: np.ndarray,
        kept: np.ndarray | None = None,
        gates: Expectation | None = None,
    ) -> None:
        self.gates = gates
        self.open: dict[tuple[Edge, Edge], np.ndarray] = {}
        self.graph, self.flat, self.n = graph, x.reshape(len(x), -1), len(x)
        self.kept = np.ones(len(moments)) if kept is None else 1.0 * kept
        self.moments = moments * self.kept
        self.memory: dict[tuple[int, int], Pair] = {}
        self.known = self._known()
        sys.setrecursionlimit(20_000)

    def _known(self) -> dict[int, np.ndarray]:
        """The values (n,) of the neurons that depend on no weight."""
        known = self._certain_sources()
        for node, edges in enumerate(self.graph.edges):
            if edges and all(edge.origin in known and not edge.weights for edge in edges):
                slopes = [np.where(known[edge.origin] > 0, *self._slopes(edge)) for edge in edges]
                known[node] = sum(e.coefficient * s * known[e.origin] for e, s in zip(edges, slopes, strict=True))
        return known

    def _certain_sources(self) -> dict[int, np.ndarray]:
        return {node: self._source(node) for node in self.graph.sources}

    def kernels(self) -> Pair:
        """NNGP and NTK of the outputs, each (n, n, o)."""
        pairs = [self.pair(node, node) for node in self.graph.outputs]
        return Pair(np.stack([pair.value for pair in pairs], -1), np.stack([pair.tangent for pair in pairs], -1))

    def pair(self, i: int, j: int) -> Pair:
        if NONE in (i, j):
            return total([], self.n)
        if i < j:
            return self.pair(j, i).swapped
        if (i, j) not in self.memory:
            self.memory[i, j] = self._pair(i, j)
        return self.memory[i, j]

    def _pair(self, i: int, j: int) -> Pair:
        if i in self.known and j in self.known:
            return Pair(np.outer(self.known[i], self.known[j]), np.zeros((self.n, self.n)))
        if i in self.known:  # expand the neuron that depends on weights
            return total([self._edge_and_neuron(edge, i) for edge in self.graph.edges[j]], self.n).swapped
        return total([self._edge_and_neuron(edge, j) for edge in self.graph.edges[i]], self.n)

    def _source(self, node: int) -> np.ndarray:
        source = self.graph.sources[node]
        return np.ones(self.n) if source == ONE else self.flat[:, source]

    def _edge_and_neuron(self, edge: Edge, j: int) -> Pair:
        if not edge.weights and edge.gate is None:
            return self.pair(edge.origin, j).times(edge.coefficient)
        if j not in self.known:
            return total([self._edges(edge, other) for other in self.graph.edges[j]], self.n)
        if edge.weights:
            return total([], self.n)
        return Pair(np.outer(self._edge_mean(edge), self.known[j]), np.zeros((self.n, self.n)))

    def _edges(self, edge: Edge, other: Edge) -> Pair:
        if not other.weights and other.gate is None:
            return self._edge_and_neuron(edge, other.origin).times(other.coefficient)
        for one, two in ((edge, other), (other, edge)):
            if one.gate is not None and not one.weights and two.gate is None:  # E[φ(a) b] = E[φ'(a)] E[a b]
                product = self._edge_and_neuron(two, one.origin).swapped.times(one.coefficient)
                slope = self._mean_slope(one)[:, None]
                product = Pair(product.value * slope, product.tangent * self._held(one, two, slope))
                return product if one is edge else product.swapped
        if sorted(edge.weights) != sorted(other.weights):
            return total([], self.n)
        return self._weighted(edge, self._gated(edge, other).times(edge.coefficient * other.coefficient))

    def trace(self) -> float:
        """Σ_n Σ_o of the NTK at (x_n, x_n)."""
        return float(np.einsum("nno->", self.kernels().tangent))

    def _weighted(self, edge: Edge, pair: Pair) -> Pair:
        weights = list(edge.weights)
        tangent = np.prod(self.moments[weights]) * pair.tangent
        for place, weight in enumerate(weights):
            others = weights[:place] + weights[place + 1 :]
            tangent = tangent + self.kept[weight] * np.prod(self.moments[others]) * pair.value
        return Pair(np.prod(self.moments[weights]) * pair.value, tangent)

    def _gated(self, edge: Edge, other: Edge) -> Pair:
        if edge.origin in self.known or other.origin in self.known:
            return self._gated_known(edge, other)
        pair = self.pair(edge.origin, other.origin)
        if edge.gate is None and other.gate is None:
            return pair
        left, right = self.sides(edge.origin), self.sides(other.origin)
        both, share = rectified(pair.value - np.outer(left.mean, right.mean), left, right)
        if edge.origin == other.origin:  # a neuron with itself at one example is on one side, also where it is 0
            np.fill_diagonal(both, left.mean * left.ramp + left.deviation**2 * left.open)
            np.fill_diagonal(share, left.open)
        covariance = pair.value - np.outer(left.mean, right.mean)
        only_left = np.outer(left.ramp, right.mean) + covariance * left.open[:, None]
        only_right = np.outer(left.mean, right.ramp) + covariance * right.open[None]
        (a, b), (c, d) = self._slopes(edge), self._slopes(other)
        value = b * d * pair.value + (a - b) * d * only_left + b * (c - d) * only_right + (a - b) * (c - d) * both
        open_left, open_right = left.open[:, None], right.open[None]
        slopes = b * d + (a - b) * d * open_left + b * (c - d) * open_right + (a - b) * (c - d) * share
        return Pair(value, pair.tangent * self._held(edge, other, slopes))

    def _held(self, edge: Edge, other: Edge, slopes: np.ndarray) -> np.ndarray:
        """The expected products of slopes of two gated edges: those of `gates` where these are held."""
        if self.gates is not None:
            return self.gates.open[edge, other]
        return self.open.setdefault((edge, other), slopes)

    def _gated_known(self, edge: Edge, other: Edge) -> Pair:
        """Where one origin depends on no weight, its gate is no matter of chance."""
        factors = []
        for one in (edge, other):
            above, below = self._slopes(one)
            is_known = one.origin in self.known
            if not is_known and one.gate is not None:
                raise NotImplementedError("the mean of a gated neuron times a known one")
            factors.append(np.where(self.known[one.origin] > 0, above, below) if is_known else np.ones(self.n))
        return self.pair(edge.origin, other.origin).times(np.outer(*factors))

    def sides(self, node: int) -> Sides:
        mean = self.mean(node)
        return Sides(mean, np.sqrt(np.maximum(np.diagonal(self.pair(node, node).value) - mean**2, 0)))

    @functools.cache  # noqa: B019
    def mean(self, node: int) -> np.ndarray:
        if node in self.known:
            return self.known[node]
        return sum((self._edge_mean(edge) for edge in self.graph.edges[node]), np.zeros(self.n))

    def _edge_mean(self, edge: Edge) -> np.ndarray:
        if edge.weights:
            return np.zeros(self.n)
        if edge.gate is None:
            return edge.coefficient * self.mean(edge.origin)
        above, below = self._slopes(edge)
        return edge.coefficient * (below * self.mean(edge.origin) + (above - below) * self.sides(edge.origin).ramp)

    def _mean_slope(self, edge: Edge) -> np.ndarray:
        above, below = self._slopes(edge)
        return below + (above - below) * self.sides(edge.origin).open

    def _slopes(self, edge: Edge) -> tuple[float, float]:
        """Slopes above and below zero, of an edge gated by its own origin."""
        if edge.gate is None:
            return 1.0, 1.0
        above, below = (self.graph.gates[edge.gate](np.full((len(self.graph.edges), 1), side))[0] for side in (1, -1))
        return float(above), float(below)


class OfDrawnInputs(Expectation):
    """Of inputs that are drawn at random too: independent, of mean 0 and with second moments `x` (1, …)."""

    def _certain_sources(self) -> dict[int, np.ndarray]:
        return {node: np.ones(1) for node, source in self.graph.sources.items() if source == ONE}

    def _pair(self, i: int, j: int) -> Pair:
        is_input = [node in self.graph.sources and node not in self.known for node in (i, j)]
        if all(is_input):
            return Pair(self.flat[:, [self.graph.sources[i]]] * float(i == j), np.zeros((1, 1)))
        return super()._pair(i, j)
