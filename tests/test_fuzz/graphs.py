"""The oracle's graph with what random networks need besides: gates of any slopes, contests, and a look at its own size.

Plain NumPy, as the oracle is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..oracles import NONE, Edge, Graph, _is_max, forward


class Drawing(Graph):
    """A graph that counts its paths while it is drawn, and keeps what each gate compares.

    `contests` lists the neurons that a gate compares with each other, or one neuron that it compares with zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.contests: list[list[int]] = []
        self._counts: list[int] = []

    def paths_at(self, nodes: np.ndarray) -> int:
        """The number of paths that end in these neurons."""
        for node in range(len(self._counts), len(self.edges)):
            is_source = node in self.sources
            self._counts.append(1 if is_source else sum(self._counts[edge.origin] for edge in self.edges[node]))
        return sum(self._counts[int(node)] for node in nodes.ravel() if node != NONE)

    def fill(self, nodes: np.ndarray) -> np.ndarray:
        """Neurons that always are zero, without a path, where there are none: a zero that can win a maximum."""
        filled = nodes.copy()
        for position in zip(*np.nonzero(nodes == NONE), strict=True):
            self.edges.append([])
            filled[position] = len(self.edges) - 1
        return filled

    def linear(self, nodes: np.ndarray, kernel: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Last axis of `nodes` (…, i) times `coefficients · kernel`, both (i, o)."""
        new = np.full((*nodes.shape[:-1], kernel.shape[1]), NONE)
        for *rest, o in np.ndindex(new.shape):
            row = nodes[tuple(rest)]
            factors = zip(row, kernel[:, o], coefficients[:, o], strict=True)
            new[*rest, o] = self._neuron([Edge(int(node), (int(w),), float(c)) for node, w, c in factors])
        return new

    def mix(self, nodes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Last axis of `nodes` (…, i) times a constant matrix (i, o)."""
        new = np.full((*nodes.shape[:-1], matrix.shape[1]), NONE)
        for *rest, o in np.ndindex(new.shape):
            row = nodes[tuple(rest)]
            new[*rest, o] = self._neuron(
                [Edge(int(node), coefficient=float(c)) for node, c in zip(row, matrix[:, o], strict=True)]
            )
        return new

    def sided(
        self, nodes: np.ndarray, above: float, below: float, at: float, by: np.ndarray | None = None
    ) -> np.ndarray:
        """Gates with these slopes above, below and at zero of `by` (default: of the neuron itself)."""
        deciders = nodes if by is None else self.fill(by)

        def edges(node: int, position: tuple[int, ...]) -> list[Edge]:
            decider = int(deciders[position])
            if node == NONE:
                return []
            self.contests.append([decider])
            gate = self._gate(lambda z: np.where(z[decider] > 0, above, np.where(z[decider] < 0, below, at)))
            return [Edge(node, gate=gate)]

        return self._each(nodes, edges)

    def parametric(self, nodes: np.ndarray, weights: np.ndarray, at: float) -> np.ndarray:
        """PReLU: slope 1 above zero, a weight below; at zero the share `at` goes above."""
        weights = np.broadcast_to(weights, nodes.shape)
        above, below = self.sided(nodes, 1.0, 0.0, at), self.sided(nodes, 0.0, 1.0, 1.0 - at)
        return self.add(above, self.scale(below, weights))

    def contest(self, rivals: np.ndarray, ties: str, *, smallest: bool = False) -> np.ndarray:
        """The largest, or smallest, of the last axis."""
        return self._extremum(self.fill(rivals), ties, -1.0 if smallest else 1.0)

    def _max(self, windows: np.ndarray, ties: str) -> np.ndarray:
        return self._extremum(windows, ties, 1.0)

    def _extremum(self, windows: np.ndarray, ties: str, sign: float) -> np.ndarray:
        def edges(_: int, at: tuple[int, ...]) -> list[Edge]:
            rivals = [int(node) for node in windows[at] if node != NONE]
            self.contests.append(rivals)
            return [
                Edge(node, gate=self._gate(_signed(_is_max(rivals, i, ties), sign))) for i, node in enumerate(rivals)
            ]

        return self._each(windows[..., 0], edges)


def _signed(gate: Callable[[np.ndarray], np.ndarray], sign: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda z: gate(sign * z)


def has_close_contests(graph: Drawing, theta: np.ndarray, x: np.ndarray) -> bool:
    """Whether a gate compares numbers so close that rounding decides; zeros of zero terms are exact."""
    z, gates = forward(graph, theta, x)
    sizes = np.zeros_like(z)
    for node, edges in enumerate(graph.edges):
        if node in graph.sources:
            sizes[node] = np.abs(z[node])
        for edge in edges:
            slope = 1.0 if edge.gate is None else np.abs(gates[edge.gate])
            sizes[node] += abs(edge.coefficient * np.prod(theta[list(edge.weights)])) * slope * sizes[edge.origin]
    return any(_is_close(sorted(set(rivals)), z, sizes) for rivals in graph.contests)


def _is_close(rivals: Sequence[int], z: np.ndarray, sizes: np.ndarray) -> bool:
    values, reach = z[list(rivals)], 1e-8 * sizes[list(rivals)]
    if len(rivals) == 1:
        return bool(np.any((np.abs(values) <= reach) & (reach > 0)))
    gaps = np.abs(values[:, None] - values[None])
    reaches = np.maximum(reach[:, None], reach[None])
    apart = ~np.eye(len(rivals), dtype=bool)[:, :, None]
    return bool(np.any((gaps <= reaches) & (reaches > 0) & apart))
