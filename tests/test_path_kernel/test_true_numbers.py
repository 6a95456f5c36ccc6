"""Numbers of the Path Kernel are the true ones, and their logarithms stay finite where those leave the format."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import factorization, masks, ntk, path_kernel, scores
from pathjax._path_kernel import twin

from ..tolerances import EXACT, HALF, SINGLE, SINGLE_ROUNDING, STANDARD_ERRORS

KEY = jax.random.key(0)


def mlp(params: Any, x: Any) -> Any:
    for kernel in params[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ params[-1]


def weights(layers: int, width: int, size: float, dtype: Any = np.float32) -> list[Any]:
    """Normal weights of the standard deviation size / √width, for `width` inputs and half as many outputs."""
    rng = np.random.default_rng(7)
    shapes = [(width, width)] * (layers - 1) + [(width, width // 2)]
    return [jnp.asarray(rng.normal(size=shape) * size / np.sqrt(width), dtype) for shape in shapes]


def true_diagonal(params: Any, mask: Any = None) -> list[np.ndarray]:
    """∂R₂/∂u layer by layer in NumPy: the squared paths to a weight's input times those from its output."""
    squares = [np.square(np.asarray(leaf, np.float64)) for leaf in params]
    kept = [np.ones(leaf.shape, bool) if mask is None else np.asarray(mask[i]) for i, leaf in enumerate(squares)]
    squares = [np.where(keep, leaf, 0) for keep, leaf in zip(kept, squares, strict=True)]
    before, after = [np.ones(squares[0].shape[0])], [np.ones(squares[-1].shape[1])]
    for leaf in squares[:-1]:
        before.append(before[-1] @ leaf)
    for leaf in squares[:0:-1]:
        after.insert(0, leaf @ after[0])
    return [keep * np.outer(*ends) for keep, *ends in zip(kept, before, after, strict=True)]


def kernel_of(params: Any, mask: Any = None) -> path_kernel.PathKernel:
    return path_kernel.path_kernel(mlp, params, jnp.ones((1, len(params[0])), params[0].dtype), mask=mask)


def in_float64(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)


# The paths' squares are of the order 1e55 and 1e-68, outside of float32, and well within float64.
DEEP = {"overflows": weights(12, 6, 2e2), "underflows": weights(12, 6, 1e-3)}
DIRECTIONS = pytest.mark.parametrize("direction", DEEP)


@pytest.mark.parametrize(("density", "trace"), [(1.0, 1.65e9), (0.2, 6.64e6)])
def test_the_trace_of_ten_layers_needs_no_scale(density: float, trace: float) -> None:
    """The operator inside is scaled by 2^14 or more, so that a trace in its units would be wrong by many decades."""
    params = weights(10, 32, 2.04)
    mask = masks.from_scores(scores.magnitude(params), density=density)
    kernel, exact = kernel_of(params, mask), sum(leaf.sum() for leaf in true_diagonal(params, mask))
    np.testing.assert_allclose(exact, trace, rtol=HALF)
    assert float(twin.with_exponent(kernel).exponent) >= 14
    np.testing.assert_allclose(kernel.trace(), exact, rtol=10 * SINGLE_ROUNDING)
    np.testing.assert_allclose(kernel.log_trace(), np.log(exact), rtol=SINGLE_ROUNDING)
    # code that multiplies by the scale, as was right once, is right still
    assert float(kernel.log_scale) == 0.0
    pairs = path_kernel.top_eigenpairs(kernel, 1, key=KEY)
    vector = jax.tree.map(lambda leaf: leaf[0], pairs.eigenvectors)
    for product, leaf in zip(kernel.matvec(vector), vector, strict=True):
        error = np.abs(np.asarray(product) - float(pairs.eigenvalues[0]) * np.asarray(leaf)).max()
        assert error < SINGLE * float(pairs.eigenvalues[0])
    spectrum = path_kernel.spectral_density(kernel, order=3, samples=30, key=KEY)
    value, standard_error = spectrum.estimate(lambda eigenvalue: eigenvalue)
    assert abs(float(value) - exact) < STANDARD_ERRORS * float(standard_error)
    assert float(spectrum.log_scale) == 0.0


@DIRECTIONS
def test_logarithms_hold_where_numbers_leave_the_format(direction: str) -> None:
    params = DEEP[direction]
    mask = [jnp.ones(leaf.shape, bool).at[0, 0].set(False) for leaf in params]
    kernel, wide = kernel_of(params, mask), kernel_of(in_float64(params), mask)
    diagonal = true_diagonal(params, mask)
    exact = sum(leaf.sum() for leaf in diagonal)
    beyond = np.inf if direction == "overflows" else 0.0
    assert float(kernel.trace()) == beyond
    np.testing.assert_allclose(kernel.log_trace(), np.log(exact), rtol=SINGLE_ROUNDING)
    np.testing.assert_allclose(wide.trace(), exact, rtol=EXACT)
    for found, logs, expected, keep in zip(kernel.diagonal(), kernel.log_diagonal(), diagonal, mask, strict=True):
        np.testing.assert_array_equal(found, np.where(keep, beyond, 0.0))
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(logs, np.log(expected), rtol=SINGLE_ROUNDING)
    product = kernel.matvec(kernel.params)
    assert not any(np.isnan(leaf).any() for leaf in product)
    assert any(np.isinf(leaf).any() for leaf in product) == (direction == "overflows")


@DIRECTIONS
def test_the_derivative_of_the_log_trace_is_exact_at_any_depth(direction: str) -> None:
    params = DEEP[direction]

    @jax.jit
    def shares(params: Any) -> Any:
        slopes = jax.grad(lambda params: kernel_of(params).log_trace())(params)
        return jax.tree.map(lambda leaf, slope: leaf * slope / 2, params, slopes)

    score = scores.path_kernel_trace(mlp, params, jnp.ones((1, 6), jnp.float32))
    exact = jax.grad(lambda params: jnp.log(kernel_of(params).trace()))(in_float64(params))
    for found, scored, slope, leaf in zip(shares(params), score, exact, params, strict=True):
        expected = np.asarray(slope) * np.asarray(leaf, np.float64) / 2
        np.testing.assert_allclose(found, expected, rtol=SINGLE)
        np.testing.assert_allclose(scored, expected, rtol=SINGLE)


@DIRECTIONS
@pytest.mark.parametrize("width", [6, 8])
def test_spectra_hold_where_eigenvalues_leave_the_format(direction: str, width: int) -> None:
    """Formed whole for 6 units a layer; with 8, of more than 512 weights, by iteration."""
    params = weights(12, width, 2e2 if direction == "overflows" else 1e-3)
    kernel, wide = kernel_of(params), kernel_of(in_float64(params))
    pairs, exact = (path_kernel.top_eigenpairs(each, 3, key=KEY) for each in (kernel, wide))
    assert (np.asarray(pairs.eigenvalues) == (np.inf if direction == "overflows" else 0.0)).all()
    np.testing.assert_allclose(pairs.log_eigenvalues, np.log(exact.eigenvalues), rtol=SINGLE_ROUNDING)
    np.testing.assert_allclose(exact.log_eigenvalues, np.log(exact.eigenvalues), rtol=EXACT)
    assert float(pairs.residuals.max()) < SINGLE
    np.testing.assert_allclose(path_kernel.overlap(kernel, pairs, kernel, pairs), 1.0, rtol=SINGLE)
    np.testing.assert_allclose(path_kernel.cosine(kernel, kernel, key=KEY).value, 1.0, rtol=SINGLE)
    determinant, reference = (
        path_kernel.log_determinant(each, 1.0, key=KEY, order=30, samples=2).value for each in (kernel, wide)
    )
    # the many eigenvalues of zero are known to 512 roundings of the largest, which is itself far from 1
    assert np.isfinite(determinant) and (direction == "overflows" or abs(float(determinant - reference)) < SINGLE)
    density = path_kernel.spectral_density(kernel, order=6, samples=20, key=KEY)
    assert np.isfinite(density.log_nodes.max()) and np.isfinite(density.broadened().density).all()
    relative, error = density.estimate_from_logs(lambda logs: jnp.exp(logs - kernel.log_trace()))
    assert abs(float(relative) - 1) < STANDARD_ERRORS * float(error)


def test_the_smallest_eigenvalue_has_a_logarithm() -> None:
    params = [jnp.full((3, 1), 1e13, jnp.float32), jnp.full((1, 2), 2e13, jnp.float32)]
    # one hidden unit with weights a in and b out: the eigenvalues are |a|² + |b|², |a|², |b|² and 0
    kernel = kernel_of(params)
    np.testing.assert_allclose(path_kernel.log_smallest(kernel, key=KEY), np.log(3e26), rtol=SINGLE_ROUNDING)
    np.testing.assert_allclose(path_kernel.smallest(kernel, key=KEY), 3e26, rtol=10 * SINGLE_ROUNDING)
    assert np.isnan(path_kernel.log_smallest(kernel_of([0 * leaf for leaf in params]), key=KEY))
    deep = kernel_of([jnp.full((1, 1), 1e6, jnp.float32)] * 12)  # one path, of 12 weights
    assert np.isposinf(path_kernel.smallest(deep, key=KEY))
    np.testing.assert_allclose(path_kernel.log_smallest(deep, key=KEY), np.log(12 * 1e132), rtol=SINGLE_ROUNDING)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_true_units_are_exact_up_to_the_edge_of_the_format(dtype: Any) -> None:
    form = np.finfo(dtype)
    numbers = np.array([0.0, form.tiny, -3 * form.eps, 1.5, form.max / 2, np.inf, np.nan], dtype)
    span = 2 * form.maxexp
    for exponent in (-10 * span, -span, -form.maxexp, -7, 0, 3, form.maxexp, span - 3, span, 10 * span):
        with np.errstate(over="ignore", under="ignore"):
            expected = np.ldexp(numbers, exponent)
        found = np.asarray(twin.in_true_units(jnp.asarray(numbers), jnp.asarray(exponent, jnp.float32)))
        # below the normal numbers, which formats hold differently, all count as zero
        expected, found = (np.where(np.abs(each) < form.tiny, 0.0, each) for each in (expected, found))
        np.testing.assert_array_equal(found, expected)


# Factorizations


@DIRECTIONS
def test_a_factorization_of_a_deep_network_recomposes_its_kernel(direction: str) -> None:
    params = DEEP[direction]
    # inputs that bring outputs and Θ, though not Π, into the format
    x = np.random.default_rng(1).normal(size=(4, 6)) * (1e-18 if direction == "overflows" else 1e24)
    terms, exact = (
        factorization.factorize(mlp, each, jnp.asarray(x, each[0].dtype), rank=3, key=KEY)
        for each in (params, in_float64(params))
    )
    assert (np.asarray(terms.eigenvalues) == (np.inf if direction == "overflows" else 0.0)).all()
    np.testing.assert_allclose(terms.log_eigenvalues, np.log(exact.eigenvalues), rtol=SINGLE_ROUNDING)
    modes = np.abs(exact.data_modes)
    np.testing.assert_allclose(np.abs(terms.data_modes), modes, rtol=0, atol=SINGLE * modes.max())
    np.testing.assert_allclose(terms.shares, exact.shares, rtol=SINGLE, atol=SINGLE_ROUNDING)
    np.testing.assert_allclose(terms.cumulative, exact.cumulative, rtol=SINGLE)
    assert float(terms.log_scale) == 0.0
    whole = ntk.empirical(mlp, in_float64(params), jnp.asarray(x))
    recomposed = factorization.recompose(terms)
    np.testing.assert_allclose(
        recomposed, factorization.recompose(exact), rtol=0, atol=SINGLE * float(jnp.abs(whole).max())
    )
    aligned = factorization.alignment(terms, recomposed, rank=1)
    np.testing.assert_allclose(aligned.shares.sum(), 1.0, rtol=SINGLE)


def test_terms_that_a_user_sets_to_zero_are_left_out() -> None:
    params, x = weights(3, 4, 1.0, np.float64), jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)))
    terms = factorization.factorize(mlp, params, x, rank=6, key=KEY)
    first = factorization.factorize(mlp, params, x, rank=2, key=KEY)
    without = terms._replace(eigenvalues=terms.eigenvalues * (jnp.arange(6) < 2))
    np.testing.assert_array_equal(np.isfinite(without.log_eigenvalues), jnp.arange(6) < 2)
    np.testing.assert_allclose(factorization.recompose(without), factorization.recompose(first), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(without.cumulative[-1], first.cumulative[-1], rtol=EXACT)


# Curves of spectral densities


def one_layer(params: Any, x: Any) -> Any:
    return x @ params


def gaussian(logs: Any, center: Any, width: float) -> np.ndarray:
    return np.exp(-(((np.asarray(logs) - center) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))


def test_a_curve_is_of_the_nonzero_eigenvalues_and_integrates_to_one() -> None:
    """Of a linear layer on ones, weights to one output of 20 give an identity among zeros, whatever the signs."""
    params = jnp.full((30, 20), 0.3)
    kernel = path_kernel.path_kernel(one_layer, params, jnp.ones((1, 30)), outputs=[3])
    density = path_kernel.spectral_density(kernel, order=5, samples=4, key=KEY)
    curve = jax.jit(lambda density: density.broadened(width=0.25))(density)
    np.testing.assert_allclose(curve.zero_share, 0.95, rtol=EXACT)
    np.testing.assert_allclose(curve.density, gaussian(curve.log_eigenvalues, 0.0, 0.25), rtol=SINGLE, atol=EXACT)
    np.testing.assert_allclose(np.trapezoid(curve.density, curve.log_eigenvalues), 1.0, rtol=SINGLE_ROUNDING)
    np.testing.assert_allclose(curve.standard_error, 0.0, rtol=0, atol=EXACT)
    middle = density.broadened(jnp.array([-1.0, 0.0, 1.0]), width=0.25)
    np.testing.assert_allclose(middle.cumulative, [3.167124183e-5, 0.5, 1 - 3.167124183e-5], rtol=SINGLE_ROUNDING)


def test_a_curve_is_the_sum_of_its_nodes_with_the_scatter_of_its_starts() -> None:
    kernel = kernel_of(weights(3, 12, 1.5, np.float64))
    density = path_kernel.spectral_density(kernel, order=8, samples=400, key=KEY)
    curve = density.broadened(width=0.7)
    logs, shares = np.asarray(density.log_nodes), np.asarray(density.weights)
    np.testing.assert_allclose(logs, np.log(np.maximum(density.nodes, 1e-300)), rtol=EXACT)
    shares = np.where(logs > logs.max() + np.log(512 * np.finfo(np.float64).eps), shares, 0)
    bells = gaussian(np.asarray(curve.log_eigenvalues)[:, None, None], logs, 0.7)
    sums, nonzero = np.sum(bells * shares, axis=2), shares.sum(axis=1)
    np.testing.assert_allclose(curve.density, sums.mean(axis=1) / nonzero.mean(), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(np.trapezoid(curve.density, curve.log_eigenvalues), 1.0, rtol=SINGLE_ROUNDING)
    ends = np.asarray(curve.cumulative)[[0, -1]]
    np.testing.assert_allclose(ends, [0.0, 1.0], rtol=0, atol=SINGLE_ROUNDING)
    # the error of a quotient, from leaving out one start after the other
    left_out = (sums.sum(axis=1)[:, None] - sums) / (nonzero.sum() - nonzero)
    jackknife = np.sqrt(399 * left_out.var(axis=1))
    visible = np.asarray(curve.density) > 0.01
    np.testing.assert_allclose(np.asarray(curve.standard_error)[visible], jackknife[visible], rtol=HALF)
    assert np.asarray(curve.standard_error)[visible].min() > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_curve_tells_above_which_eigenvalue_it_is_resolved(dtype: Any) -> None:
    """With few steps, the 28 zeros of 490 eigenvalues merge with small ones in a node below all nonzero eigenvalues."""
    kernel = kernel_of(weights(3, 14, 1.5, dtype))
    eigenvalues = np.asarray(path_kernel.top_eigenpairs(kernel, 490, key=KEY).eigenvalues)
    smallest = float(np.log(eigenvalues[-29]))
    density = path_kernel.spectral_density(kernel, order=12, samples=50, key=KEY)
    nodes, is_resolved = np.asarray(density.nodes), np.asarray(density.is_resolved)
    np.testing.assert_array_equal(is_resolved, density.log_nodes > smallest)
    np.testing.assert_array_equal(is_resolved.sum(axis=1), 11)
    distances = np.abs(nodes[:, :, None] - eigenvalues[:-28]).min(axis=2)  # from nonzero eigenvalues
    assert (distances < nodes)[is_resolved].all() and not (distances < nodes)[~is_resolved].any()
    curve = density.broadened(width=0.01)
    assert 0 <= curve.zero_share < 0.01
    assert smallest < curve.resolved_above == density.log_nodes[:, 1].min()
    # the share of all eigenvalues above it is right, but for the weight of a node
    cumulative = jnp.interp(curve.resolved_above, curve.log_eigenvalues, curve.cumulative)
    above = (1 - curve.zero_share) * (1 - cumulative)
    truth = (np.log(np.maximum(eigenvalues, 1e-30)) > curve.resolved_above).mean()
    assert abs(above - truth) < density.weights[:, 1].mean()
    # with enough steps, nothing is unresolved, and the zeros are told
    density = path_kernel.spectral_density(kernel, order=60, samples=50, key=KEY)
    curve = density.broadened()
    np.testing.assert_allclose(curve.resolved_above, smallest, rtol=SINGLE)
    shares = jnp.sum(jnp.where(density.log_nodes > smallest - 1, 0, density.weights), axis=1)
    error = shares.std(ddof=1) / np.sqrt(50)
    assert abs(curve.zero_share - 28 / 490) < STANDARD_ERRORS * error


def test_an_unresolved_curve_says_so() -> None:
    density = path_kernel.spectral_density(kernel_of(weights(8, 6, 1.0)), order=1, samples=3, key=KEY)
    assert float(density.broadened().resolved_above) == np.inf
    zeros = path_kernel.spectral_density(kernel_of([jnp.zeros((3, 4)), jnp.zeros((4, 2))]), order=2, samples=2, key=KEY)
    assert float(zeros.broadened().resolved_above) == np.inf


def test_a_kernel_of_zeros_has_a_curve_of_zeros() -> None:
    kernel = kernel_of([jnp.zeros((3, 4)), jnp.zeros((4, 2))])
    curve = path_kernel.spectral_density(kernel, order=3, samples=2, key=KEY).broadened()
    assert float(curve.zero_share) == 1.0 and not np.asarray(curve.density).any()
    assert np.isfinite(curve.log_eigenvalues).all()


def test_impossible_curves_are_refused() -> None:
    density = path_kernel.spectral_density(kernel_of(weights(2, 4, 1.0)), order=3, samples=2, key=KEY)
    for width in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`width` must be positive, but is"):
            density.broadened(width=width)
    with pytest.raises(
        ValueError, match=r"`log_eigenvalues` must be one axis of points, \(g,\), but has shape \(2, 2\)"
    ):
        density.broadened(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="`points` must be at least 2, but is 1"):
        density.grid(1)


# Leaves


def biased(params: Any, x: Any) -> Any:
    hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return hidden @ params["second"]["kernel"] + params["second"]["bias"][None]


def biased_params() -> Any:
    rng = np.random.default_rng(2)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    return {
        "first": {"kernel": normal(4, 5), "bias": normal(5)},
        "second": {"kernel": normal(5, 3), "bias": normal(3)},
    }


def test_leaf_shares_name_the_leaves_and_tell_output_biases_from_the_rest() -> None:
    params = biased_params()
    kernel = path_kernel.path_kernel(biased, params, jnp.ones((1, 4)))
    pairs = path_kernel.top_eigenpairs(kernel, 43, key=KEY)
    carried = jax.jit(path_kernel.leaf_shares)(pairs)
    assert carried.paths == (
        "['first']['bias']", "['first']['kernel']", "['second']['bias']", "['second']['kernel']"
    )  # fmt: skip
    np.testing.assert_allclose(carried.shares.sum(axis=1), 1.0, rtol=EXACT)
    # over all pairs, the eigenvalues spread over the leaves as the diagonal does
    sums = [leaf.sum() for leaf in jax.tree.leaves(kernel.diagonal())]
    np.testing.assert_allclose(pairs.eigenvalues @ carried.shares, sums, rtol=EXACT)
    of_biases = np.asarray(carried.leading) == 2
    np.testing.assert_allclose(np.asarray(carried.shares)[of_biases, 2], 1.0, rtol=EXACT)
    np.testing.assert_allclose(np.asarray(pairs.eigenvalues)[of_biases], 1.0, rtol=EXACT)
    assert of_biases.sum() == 3
    chosen = path_kernel.path_kernel(
        biased, params, jnp.ones((1, 4)), where=lambda path, leaf: [key.key for key in path] != ["second", "bias"]
    )
    others = np.asarray(pairs.eigenvalues)[~of_biases]
    found = path_kernel.top_eigenpairs(chosen, 40, key=KEY).eigenvalues
    np.testing.assert_allclose(found, others, rtol=0, atol=EXACT * others[0])


def test_results_are_printed_by_their_sizes() -> None:
    kernel = kernel_of(weights(3, 4, 1.0))
    pairs = path_kernel.top_eigenpairs(kernel, 2, key=KEY)
    density = path_kernel.spectral_density(kernel, order=3, samples=2, key=KEY)
    assert repr(kernel) == "PathKernel(x=(1, 4), outputs=all of 2, rows=40, kept=40)"
    chosen = path_kernel.path_kernel(biased, biased_params(), jnp.ones((1, 4)), where=lambda path, leaf: leaf.ndim == 2)
    assert repr(chosen) == "PathKernel(x=(1, 4), outputs=all of 3, rows=35, kept=35)"  # of 43 weights
    assert repr(pairs) == "Eigenpairs(r=2, leaves=3)"
    assert repr(path_kernel.leaf_shares(pairs)) == "LeafShares(r=2, leaves=3)"
    assert repr(density) == "SpectralDensity(samples=2, order=3)"
    assert repr(density.broadened()) == "BroadenedDensity(points=400)"
