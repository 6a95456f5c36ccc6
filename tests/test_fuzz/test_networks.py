"""Random networks: everything that pathjax says of them equals the oracle's listed paths, and those JAX's derivatives.

`make test` draws the same few networks every time; `make fuzz` as many as it is told to, from the seed that it is told.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import enumeration, path_kernel, paths, scores
from pathjax._interpreter import lifting
from pathjax._interpreter.traced import traced

from .. import oracles
from ..tolerances import EXACT
from .evaluation import numpy_for_xla, probed_once
from .graphs import has_close_contests
from .programs import Program, programs

NETWORKS = int(os.environ.get("FUZZ_NETWORKS", "16"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SHARES = 1 if "FUZZ_NETWORKS" in os.environ else 4  # so that a few can be shared among processes

LIMIT = 10_000


class Quantities(NamedTuple):
    """What pathjax says of one network; sums per example and output, (n, o)."""

    log_norms: Any
    log_count: Any
    open_sums: Any
    data_sums: Any
    outputs: Any
    share: Any
    pairs: Any
    diagonal: Any
    product: Any


class Problem(NamedTuple):
    """A network's numbers: parameters, mask and a direction as lists, pairs of inputs."""

    params: list[Any]
    mask: list[Any]
    direction: list[Any]
    x: Any
    x2: Any


def kept_weights(problem: Problem) -> list[Any]:
    """The parameters, zero where they are pruned."""
    return [jnp.where(m, p, 0) for m, p in zip(problem.mask, problem.params, strict=True)]


def ravel(leaves: list[Any]) -> Any:
    return jnp.concatenate([jnp.zeros(0), *(jnp.ravel(leaf) for leaf in leaves)])


def quantities(apply: Any, problem: Problem, has_rows: bool) -> Quantities:
    """What is asked of every network; the Path Kernel's twin where a weight is kept."""
    params, mask, direction, x, x2 = problem
    kept = kept_weights(problem)
    diagonal = product = jnp.zeros_like(ravel(kept))
    if has_rows:
        kernel = path_kernel.path_kernel(apply, params, x, mask=mask)
        diagonal, product = (ravel(tree) for tree in (kernel.diagonal(), kernel.matvec(direction)))
    ones = [jnp.where(m, 1.0, 0.0) for m in mask]
    program = traced(apply, kept).path_program(x)
    pairs = lifting.lift(program, ones, x * x2, phi=lifting.absolute_power(0), points=[(kept, x), (kept, x2)])
    return Quantities(
        log_norms=[paths.log_path_norm(apply, params, x, q=q, mask=mask) for q in (1, 2)],
        log_count=paths.log_path_count(apply, params, x, mask=mask),
        open_sums=[paths.path_sum(apply, params, x, q=q, mask=mask) for q in (1, 2)],
        data_sums=[paths.path_sum(apply, params, x, q=q, mask=mask, gates="data") for q in (1, 2)],
        outputs=lifting.lift(program, kept, x, phi=lambda v: v, points=[(kept, x)]).value(),
        share=ravel(scores.synflow(apply, kept, x)),
        pairs=pairs.value(),
        diagonal=diagonal,
        product=product,
    )


class MoreQuantities(NamedTuple):
    """What else pathjax says of some networks; values and activations are those of the listed paths."""

    gram: Any
    trace: Any
    values: Any
    activations: Any


def more_quantities(
    apply: Any, problem: Problem, listed: enumeration.Paths, has_rows: bool
) -> tuple[Quantities, MoreQuantities]:
    """Everything; the Path Kernel's trace where a weight is kept."""
    params, mask, _, x, x2 = problem
    kept = kept_weights(problem)
    more = MoreQuantities(
        gram=paths.log_data_gram(apply, params, x, x2, mask=mask),
        trace=path_kernel.path_kernel(apply, params, x, mask=mask).trace() if has_rows else jnp.zeros(()),
        values=enumeration.path_values(listed, kept),
        activations=enumeration.path_activations(listed, apply, kept, x),
    )
    return quantities(apply, problem, has_rows), more


class Truth:
    """The same by listed paths. Sums are given with the sum of their terms' sizes, to which rounding is relative."""

    def __init__(self, program: Program, problem: Problem) -> None:
        self.graph, self.x, self.x2 = program.graph, np.asarray(problem.x), np.asarray(problem.x2)
        self.listed = oracles.paths(self.graph)
        self.theta, self.mask = _flat(problem.params, float), _flat(problem.mask, bool)
        self.activations = self._activations(self.x)
        self.values = oracles.values(self.listed, self.theta, self.mask)
        self.jacobian = oracles.jacobian(self.listed, self.theta, self.mask)

    def _activations(self, x: np.ndarray) -> np.ndarray:
        return oracles.activations(self.graph, self.listed, self.theta, x, self.mask)

    def sums(self, q: int, gates: str) -> tuple[np.ndarray, np.ndarray]:
        exact = oracles.path_sum(self.graph, self.listed, self.theta, self.x, q=q, gates=gates, mask=self.mask)
        return exact, oracles.path_sum(self.graph, self.listed, self.theta, self.x, q=q, mask=self.mask)

    def outputs(self) -> tuple[np.ndarray, np.ndarray]:
        return self.activations @ self.values, np.abs(self.activations) @ np.abs(self.values)

    def share(self) -> np.ndarray:
        norm = oracles.path_norm(self.listed, self.theta, 1, self.mask)
        return oracles.path_mass(self.listed, self.theta, 1, self.mask) / (norm or 1.0)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        products = self.activations * self._activations(self.x2) * oracles.is_kept(self.listed, self.mask)
        return products.sum(axis=-1), np.abs(products).sum(axis=-1)

    def product(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        j = self.jacobian
        return j.T @ (j @ direction), np.abs(j).T @ (np.abs(j) @ np.abs(direction))

    def gradient(self, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of Σ cotangent · f in the kept weights."""
        row = np.einsum("no,nok->k", cotangent, self.activations)
        size = np.einsum("no,nok->k", np.abs(cotangent), np.abs(self.activations))
        return row @ self.jacobian, size @ np.abs(self.jacobian)


def _flat(leaves: list[Any], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(np.ravel(leaf) for leaf in leaves)])


def assert_close(ours: Any, theirs: Any, sizes: Any = None) -> None:
    """Equal up to rounding, relative to the sizes of the terms."""
    sizes = np.abs(theirs) if sizes is None else sizes
    ours = np.asarray(ours)
    assert ours.shape == np.shape(theirs)
    wrong = ~(np.abs(ours - theirs) <= EXACT * sizes)
    assert not wrong.any(), f"{ours[wrong][:5]} is not {np.asarray(theirs)[wrong][:5]}"


def log(number: float) -> float:
    return float(np.log(number)) if number > 0 else -np.inf


def problem_of(program: Program, examples: int) -> Problem:
    params, x, mask = program.arrays(2 * examples)
    direction = [np.cos(1.0 + np.arange(p.size).reshape(p.shape)) for p in params]
    return Problem(*jax.tree.map(jnp.asarray, (params, mask, direction, x[:examples], x[examples:])))


def check(program: Program, *, compiled: bool = False) -> None:
    """Hold one network to the oracle, and the oracle to JAX; XLA evaluates only what is `compiled`, NumPy all else."""
    with numpy_for_xla():
        problem = problem_of(program, examples=3 if compiled else 1)
    if not program.is_exact:
        kept = np.where(_flat(problem.mask, bool), _flat(problem.params, float), 0.0)
        hypothesis.assume(not has_close_contests(program.graph, kept, np.concatenate([problem.x, problem.x2])))
    truth = Truth(program, problem)
    has_rows, direction = bool(truth.mask.any()), _flat(problem.direction, float)
    with numpy_for_xla():
        check_oracle(program, problem, truth)
        listed = enumeration.enumerate_paths(program.apply, problem.params, problem.x, limit=LIMIT)
        if not compiled and program.seed % 8 != 0:  # one function to trace, which is faster
            ours = jax.jit(quantities, static_argnums=(0, 2))(program.apply, problem, has_rows)
            check_sums(ours, truth, direction)
            check_listing(listed, *read_listing(listed, program, problem), truth)
            return
    # all functions in one program of XLA's, or each called on its own, on numbers
    compute: Any = jax.jit(more_quantities, static_argnums=(0, 3)) if compiled else more_quantities
    with contextlib.nullcontext() if compiled else numpy_for_xla():
        ours, more = compute(program.apply, problem, listed, has_rows)
    check_sums(ours, truth, direction)
    check_more(more, truth)
    check_listing(listed, more.values, more.activations, truth)


def check_oracle(program: Program, problem: Problem, truth: Truth) -> None:
    """The graph is the network: its outputs, and its derivatives at every tie."""
    kept = kept_weights(problem)
    outputs, pullback = jax.vjp(lambda params: program.apply(params, problem.x), kept)
    cotangent = np.cos(np.arange(outputs.size).reshape(outputs.shape))
    gradient = [jnp.where(m, g, 0) for m, g in zip(problem.mask, pullback(jnp.asarray(cotangent))[0], strict=True)]
    assert_close(outputs, *truth.outputs())
    assert_close(ravel(gradient), *truth.gradient(cotangent))


def check_sums(ours: Quantities, truth: Truth, direction: np.ndarray) -> None:
    """Sums without listing equal sums over the list."""
    listed, theta, mask = truth.listed, truth.theta, truth.mask
    np.testing.assert_allclose(ours.log_count, log(oracles.path_count(listed, mask)), rtol=EXACT, atol=EXACT)
    for i, q in enumerate((1, 2)):
        norm = log(oracles.path_norm(listed, theta, q, mask))
        np.testing.assert_allclose(ours.log_norms[i], norm, rtol=EXACT, atol=EXACT)
        assert_close(ours.open_sums[i], *truth.sums(q, "open"))
        assert_close(ours.data_sums[i], *truth.sums(q, "data"))
    assert_close(ours.outputs, *truth.outputs())
    assert_close(ours.share, truth.share())
    assert_close(ours.pairs, *truth.pairs())
    assert_close(ours.diagonal, (truth.jacobian**2).sum(axis=0))
    assert_close(ours.product, *truth.product(direction))


def check_more(ours: MoreQuantities, truth: Truth) -> None:
    """The public data Gram, and the Path Kernel's trace."""
    sign, log_abs = ours.gram
    exact = oracles.data_gram(truth.graph, truth.listed, truth.theta, truth.x, truth.x2, truth.mask)
    sizes = np.max(np.abs(exact), initial=1.0)
    np.testing.assert_allclose(sign * np.exp(log_abs), exact, rtol=EXACT, atol=EXACT * sizes)
    assert_close(ours.trace, (truth.jacobian**2).sum())


def check_listing(ours: enumeration.Paths, values: Any, activations: Any, truth: Truth) -> None:
    """The same paths, each as often, with the same values and activations."""
    values, activations = np.asarray(values), np.asarray(activations)
    factors = [tuple(sorted(i for i in row if i >= 0)) for row in np.asarray(ours.factors).tolist()]
    left = _rows(
        np.asarray(ours.outputs), np.asarray(ours.sources), factors, np.asarray(ours.coefficients), activations
    )
    ends, sources, coefficients = (
        [getattr(path, name) for path in truth.listed] for name in ("output", "source", "coefficient")
    )
    factors = [tuple(sorted(path.weights)) for path in truth.listed]
    right = _rows(ends, sources, factors, coefficients, truth.activations)
    assert [key for key, _ in left] == [key for key, _ in right], "other paths"
    order, oracle_order = [row[-1] for _, row in left], [row[-1] for _, row in right]
    assert_close(values[order], truth.values[oracle_order])
    assert_close(activations[..., order], truth.activations[..., oracle_order])


def read_listing(ours: enumeration.Paths, program: Program, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Values and activations of one example from the rows of the list, without functions for their number."""
    kept, x = kept_weights(problem), problem.x[:1]
    theta = np.append(_flat(kept, float), 1.0)
    values = np.asarray(ours.coefficients) * theta[np.asarray(ours.factors)].prod(axis=1)
    slopes = np.append(np.asarray(enumeration._slopes(traced(program.apply, kept).program(x), kept, x)), 1.0)
    inputs = np.append(np.ravel(x), 1.0)
    along = slopes[np.asarray(ours.gates)].prod(axis=1) * inputs[np.asarray(ours.sources)]
    ends = np.arange(ours.width)[:, None] == np.asarray(ours.outputs)[None]
    return values, (ends * along)[None]


def _rows(outputs: Any, sources: Any, factors: Any, coefficients: Any, activations: np.ndarray) -> list[Any]:
    """Each path's (output, source, weights), and after it what orders paths that share them, in one order."""
    along = activations.sum(axis=1).T  # (k, n): a path ends in one output
    # rounded, at a step that short binary fractions do not meet half-way
    columns = np.round(np.column_stack([np.asarray(coefficients, float), along]) * 1234567.891).astype(np.int64)
    keys = zip(map(int, outputs), map(int, sources), factors, strict=True)
    return sorted((key, (*row, i)) for i, (key, row) in enumerate(zip(keys, columns.tolist(), strict=True)))


class Tally:
    """How many networks were held to the oracle, and which layers they had."""

    def __init__(self) -> None:
        self.networks, self.paths, self.layers = 0, 0, Counter[str]()

    def add(self, program: Program) -> None:
        self.networks += 1
        self.paths += program.graph.paths_at(np.array(program.graph.outputs))
        self.layers.update(program.coverage().keys())

    def __str__(self) -> str:
        counts = "\n".join(f"{count:6}  {label}" for label, count in self.layers.most_common())
        return f"{self.networks} networks of {self.paths} paths held. Of these have each layer:\n{counts}"


def fuzz(networks: int, seed: int, *, every: int = 16) -> Tally:
    """Hold that many networks to the oracle, one in `every` compiled if small; the smallest that fails is raised."""
    tally = Tally()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=networks, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(programs())
    def holds(program: Program) -> None:
        check(program, compiled=program.seed % every == every - 1 and len(program.graph.edges) < 100)
        tally.add(program)
        if tally.networks % 100 == 0:
            print(f"seed {seed}: {tally.networks} networks so far", flush=True)  # noqa: T201
            jax.clear_caches()  # what was traced of a network is not used again, and only takes memory
            gc.collect()

    try:
        with probed_once():
            holds()
    finally:
        print(f"\nseed {seed}: {tally}", flush=True)  # noqa: T201
        jax.clear_caches()  # an operation that NumPy took over once would be slow in later tests
    return tally


# `make test` holds one half of the few networks to their paths, `make long` the other, `make fuzz` all that it is told
SHARE_PARAMETERS = [pytest.param(i, marks=[pytest.mark.long] if i >= (SHARES + 1) // 2 else []) for i in range(SHARES)]


@pytest.mark.parametrize("share", SHARE_PARAMETERS)
def test_random_networks_equal_their_listed_paths(share: int) -> None:
    networks = NETWORKS // SHARES
    assert fuzz(networks, SHARES * SEED + share).networks >= networks
