"""What holds of a factorization whatever the network, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import factorization, ntk, path_kernel, paths
from pathjax.factorization import Factorization

from .. import networks
from ..tolerances import DIFFERENCES, EXACT, HALF_THE_DIGITS, SINGLE, SINGLE_ROUNDING, SUMS

KEY = jax.random.key(0)


def mlp(params: Any, x: Any) -> Any:
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias[None])
    return x @ params[-1][0]


def parameters(*widths: int, dtype: Any = jnp.float64, seed: int = 3) -> Any:
    keys = jax.random.split(jax.random.key(seed), len(widths))
    return [
        (jax.random.normal(key, (i, o), dtype) * np.sqrt(2 / i), 0.1 * jnp.ones(o, dtype))
        for key, i, o in zip(keys, widths[:-1], widths[1:], strict=False)
    ]


def mask_of(params: Any, share: float = 0.7) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) < share), params)


def inputs(n: int, width: int, dtype: Any = jnp.float64) -> Any:
    return jax.random.normal(jax.random.key(9), (n, width), dtype)


def factorized(apply: Any, params: Any, x: Any, **options: Any) -> Factorization:
    """The factorization, compiled as one program; masks are known in it."""
    return jax.jit(lambda params, x: factorization.factorize(apply, params, x, key=KEY, **options))(params, x)


def matrix(kernel: Any) -> np.ndarray:
    return np.asarray(ntk.as_matrix(kernel))


@pytest.fixture(scope="module")
def large() -> tuple[Any, Any, Any]:
    """More parameters than are decomposed densely: parameters, mask, inputs."""
    params = parameters(9, 20, 20, 3)
    return params, mask_of(params), inputs(5, 9)


@pytest.fixture(scope="module")
def found(large: tuple[Any, Any, Any]) -> Factorization:
    """The four largest modes of the masked network."""
    params, mask, x = large
    return factorized(mlp, params, x, rank=4, mask=mask)


@pytest.mark.parametrize("name", ["biased_mlp", "residual_convs"])
def test_full_rank_is_the_empirical_kernel(name: str) -> None:
    network = networks.build(name)
    size = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    found = factorized(network.apply, network.params, network.x, rank=size)
    exact = ntk.empirical(network.apply, network.params, network.x)
    np.testing.assert_allclose(factorization.recompose(found), exact, rtol=0, atol=EXACT * float(jnp.abs(exact).max()))
    parts = factorization.layer_kernels(network.apply, network.params, network.x)
    np.testing.assert_allclose(sum(jax.tree.leaves(parts)), exact, rtol=0, atol=EXACT * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("eager", [False, True])
def test_what_truncation_leaves_is_positive_semidefinite_with_the_trace_that_is_told(
    large: Any, found: Factorization, eager: bool
) -> None:
    params, mask, x = large
    if eager:
        found = factorization.factorize(mlp, params, x, rank=4, key=KEY, mask=mask)
    exact = matrix(ntk.empirical(mlp, params, x, mask=mask))
    left = exact - matrix(factorization.recompose(found))
    assert np.linalg.eigvalsh(left)[0] > -EXACT * np.trace(exact)
    np.testing.assert_allclose(found.remainder, np.trace(left), rtol=EXACT)
    np.testing.assert_allclose(found.trace, np.trace(exact), rtol=EXACT)
    np.testing.assert_allclose(found.cumulative[-1], 1 - np.trace(left) / np.trace(exact), rtol=EXACT)
    assert float(found.shares.min()) > 0 and float(found.cumulative[-1]) < 1


def test_layer_kernels_are_those_of_a_jacobian_with_a_mask(large: Any, found: Factorization) -> None:
    params, mask, x = large
    parts = factorization.layer_kernels(mlp, params, x, mask=mask)
    masked = jax.tree.map(lambda keep, leaf: jnp.where(keep, leaf, 0), mask, params)
    for part, jacobian, keep, trace in zip(
        jax.tree.leaves(parts),
        jax.tree.leaves(jax.jacobian(mlp)(masked, x)),
        jax.tree.leaves(mask),
        jax.tree.leaves(found.layer_traces),
        strict=True,
    ):
        rows = (jacobian * keep[None, None]).reshape(*jacobian.shape[:2], -1)
        np.testing.assert_allclose(part, jnp.einsum("iap,jbp->ijab", rows, rows), rtol=0, atol=EXACT)
        np.testing.assert_allclose(trace, jnp.sum(rows**2), rtol=EXACT)


def test_chunks_masks_that_are_traced_and_pruned_weights_change_nothing(large: Any, found: Factorization) -> None:
    params, mask, x = large
    spoiled = jax.tree.map(lambda keep, leaf: jnp.where(keep, leaf, jnp.nan), mask, params)
    find = jax.jit(lambda params, mask: factorization.factorize(mlp, params, x, rank=4, key=KEY, mask=mask, chunk=3))
    for other in (find(params, mask), find(spoiled, mask)):
        for ours, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(found), strict=True):
            # with a traced mask eigenpairs are found by iteration
            np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=HALF_THE_DIGITS, atol=HALF_THE_DIGITS)


def test_seeds_go_through_vmap_and_properties_with_them() -> None:
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(parameters(4, 6, 2, seed=seed) for seed in (0, 1, 2)))
    x = inputs(3, 4)
    find = lambda params: factorization.factorize(mlp, params, x, rank=7, key=KEY)  # noqa: E731
    together = jax.jit(jax.vmap(find))(stacked)
    assert together.cumulative.shape == (3, 7) and together.remainder.shape == (3,)
    for seed in (0, 1, 2):
        alone = factorized(mlp, jax.tree.map(lambda leaf, seed=seed: leaf[seed], stacked), x, rank=7)
        for name in ("eigenvalues", "trace", "shares", "remainder"):
            np.testing.assert_allclose(getattr(together, name)[seed], getattr(alone, name), rtol=EXACT, atol=SUMS)


def test_gradients_are_those_of_finite_differences() -> None:
    params, x = [kernel for kernel, _ in parameters(3, 4, 2)], inputs(3, 3)

    @jax.jit
    def carried(params: Any) -> Any:
        apply = lambda params, x: jax.nn.relu(x @ params[0]) @ params[1]  # noqa: E731
        found = factorization.factorize(apply, params, x, rank=3, key=KEY)
        return found.cumulative[-1] + found.log_eigenvalues[0]

    gradient = jax.grad(carried)(params)
    direction = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    ahead, behind = (
        carried(jax.tree.map(lambda leaf, d, s=step: leaf + s * d, params, direction)) for step in (1e-5, -1e-5)
    )
    slope = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=DIFFERENCES)


def steep(dtype: Any) -> tuple[Any, Any, Any]:
    """A network whose Π is above 1e40 and whose inputs are so small that Θ is not: apply, parameters and inputs."""
    params = [1e7 * kernel.astype(dtype) for kernel, _ in parameters(8, 12, 12, 12, 2)]

    def apply(params: Any, x: Any) -> Any:
        for kernel in params[:-1]:
            x = jax.nn.relu(x @ kernel)
        return x @ params[-1]

    return apply, params, (1e-18 * inputs(3, 8)).astype(dtype)


def test_float32_agrees_with_float64_where_the_path_kernel_leaves_the_format() -> None:
    wide, single = (factorized(*steep(dtype), rank=3) for dtype in (jnp.float64, jnp.float32))
    assert single.trace.dtype == jnp.float32
    assert float(single.log_eigenvalues[0]) > np.log(3.4e38)
    np.testing.assert_allclose(single.shares, wide.shares, rtol=SINGLE, atol=SINGLE_ROUNDING)
    exact = factorization.recompose(wide)
    np.testing.assert_allclose(
        factorization.recompose(single), exact, rtol=0, atol=SINGLE * float(jnp.abs(exact).max())
    )


def test_a_network_of_zeros_has_no_modes() -> None:
    params = [jnp.zeros((3, 4)), jnp.zeros((4, 2))]
    found = factorization.factorize(
        lambda p, x: jax.nn.relu(x @ p[0]) @ p[1], params, jnp.ones((2, 3)), rank=4, key=KEY
    )
    assert not np.any(found.data_modes) and not np.any(found.shares) and float(found.trace) == 0.0


def test_a_linear_layer_reaches_its_bounds() -> None:
    # every weight is a path of its own, so that Π is the identity
    apply = lambda params, x: x @ params  # noqa: E731
    params, x = jnp.ones((4, 3)), inputs(5, 4)
    kernel, gram = path_kernel.path_kernel(apply, params, x), paths.log_data_gram(apply, params, x)
    found = factorization.bounds(ntk.empirical(apply, params, x), kernel, gram, key=KEY)
    np.testing.assert_allclose(found.slack[jnp.array([0, 2])], 0.0, rtol=0, atol=EXACT)
    np.testing.assert_allclose(found.log_trace_path_kernel, np.log(12), rtol=EXACT)
    values = np.linalg.eigvalsh(np.asarray(x @ x.T))
    np.testing.assert_allclose(10 ** found.slack[1], 4 * values[-1] / values.sum(), rtol=EXACT)
    # inputs that are orthonormal reach the other one too
    eye = jnp.eye(4)
    gram = paths.log_data_gram(apply, params, eye)
    found = factorization.bounds(ntk.empirical(apply, params, eye), kernel, gram, key=KEY)
    np.testing.assert_allclose(found.slack, 0.0, rtol=0, atol=EXACT)


@jax.jit
def steep_bounds(params: Any, x: Any) -> factorization.Bounds:
    apply, _, _ = steep(jnp.float32)
    kernel, gram = path_kernel.path_kernel(apply, params, x), paths.log_data_gram(apply, params, x)
    return factorization.bounds(ntk.empirical(apply, params, x), kernel, gram, key=KEY)


def test_bounds_stay_finite_where_the_path_kernel_does_not() -> None:
    _, params, x = steep(jnp.float32)
    found = steep_bounds(params, x)
    assert float(found.log_trace_path_kernel) > np.log(3.4e38) > float(found.log_trace_ntk)
    assert np.isfinite(found.slack).all() and (found.slack >= 0).all()


def test_alignment_splits_the_eigenvalues_of_the_kernel(large: Any, found: Factorization) -> None:
    params, mask, x = large
    exact = ntk.empirical(mlp, params, x, mask=mask)
    aligned = factorization.alignment(found, exact, rank=3)
    values, vectors = np.linalg.eigh(matrix(exact))
    values, vectors = values[::-1][:3], vectors[:, ::-1][:, :3]
    np.testing.assert_allclose(aligned.eigenvalues, values, rtol=EXACT)
    kept = vectors.T @ matrix(factorization.recompose(found)) @ vectors
    np.testing.assert_allclose(aligned.shares.sum(axis=1) * values, np.diag(kept), rtol=EXACT)
    modes, _ = np.linalg.qr(np.asarray(found.data_modes).reshape(15, 4))
    np.testing.assert_allclose(aligned.overlap, np.sum((modes.T @ vectors) ** 2, axis=0), rtol=EXACT)
    assert (np.asarray(aligned.overlap) < 1).all()


def test_alignment_at_full_rank_is_whole() -> None:
    network = networks.build("biased_mlp")
    size = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    found = factorized(network.apply, network.params, network.x, rank=size)
    aligned = factorization.alignment(found, factorization.recompose(found), rank=6)
    np.testing.assert_allclose(aligned.overlap, 1.0, rtol=EXACT)
    live = np.asarray(aligned.eigenvalues) > 1e-9 * float(aligned.eigenvalues[0])
    np.testing.assert_allclose(aligned.shares.sum(axis=1)[live], 1.0, rtol=EXACT)


def test_kernel_target_alignment_is_that_of_its_definition() -> None:
    kernel = np.asarray(inputs(6, 6))
    kernel, labels = kernel @ kernel.T, np.array([0, 1, 1, 2, 0, 5])
    target = (labels[:, None] == labels).astype(float)
    plain = np.sum(kernel * target) / (np.linalg.norm(kernel) * np.linalg.norm(target))
    found = factorization.kernel_target_alignment(jnp.asarray(kernel), labels, centered=False)
    np.testing.assert_allclose(found, plain, rtol=EXACT)
    centring = np.eye(6) - 1 / 6
    a, b = centring @ kernel @ centring, centring @ target @ centring
    centred = np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))
    for added in (0.0, 100.0):  # a constant changes nothing
        found = factorization.kernel_target_alignment(jnp.asarray(kernel + added), labels)
        np.testing.assert_allclose(found, centred, rtol=EXACT)
    huge = factorization.kernel_target_alignment(jnp.asarray(1e30 * target, jnp.float32), labels)
    np.testing.assert_allclose(huge, 1.0, rtol=SINGLE)


def network(**changed: Any) -> dict[str, Any]:
    """Arguments of a factorization, one of them changed."""
    params = parameters(3, 4, 2)
    return {"apply": mlp, "params": params, "x": inputs(3, 3), "rank": 2, "key": KEY} | changed


REFUSED = {
    "rank above the kept weights": (lambda p: {"rank": 9, "mask": first_entries(p, 8)}, "number of kept weights, 8"),
    "all-pruned mask": (lambda p: {"mask": first_entries(p, 0)}, "`mask` prunes every weight"),
    "mask of another tree": (lambda p: {"mask": {"a": jnp.ones(3, bool)}}, "`mask` must be a pytree of the same"),
    "NaN weight": (lambda p: {"params": [(p[0][0].at[1, 1].set(jnp.nan), p[0][1]), p[1]]}, r"`params` at \[0\]\[0\]"),
    "infinite weight": (lambda p: {"params": [(p[0][0], p[0][1] / 0), p[1]]}, r"`params` at \[0\]\[1\]"),
    "NaN input": (lambda p: {"x": jnp.ones((3, 3)).at[1, 2].set(jnp.nan)}, "first in example 1"),
    "whole numbers": (lambda p: {"x": np.ones((3, 3), np.int32)}, "dtype int32"),
    "no example": (lambda p: {"x": jnp.ones((0, 3))}, "at least one"),
    "one output less its axis": (lambda p: {"apply": lambda p, x: mlp(p, x)[:, 0]}, r"it returned \(3,\)"),
    "outputs summed over examples": (
        lambda p: {"apply": lambda p, x: mlp(p, x).sum(0)},
        r"one array of shape \(n, o\)",
    ),
    "a pytree": (lambda p: {"apply": lambda p, x: {"out": mlp(p, x)}}, "a pytree of arrays"),
    "no chunk": (lambda p: {"chunk": 0}, "`chunk` must be at least 1"),
}


def first_entries(params: Any, count: int) -> Any:
    """A mask that keeps the first weights of the first leaf."""
    mask = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
    first = jnp.arange(params[0][0].size).reshape(params[0][0].shape) < count
    return [(first, mask[0][1]), *mask[1:]]


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_what_and_why(case: str) -> None:
    change, words = REFUSED[case]
    arguments = network() | change(parameters(3, 4, 2))
    apply, params, x = (arguments.pop(name) for name in ("apply", "params", "x"))
    with pytest.raises(ValueError, match=words):
        unchecked(factorization.factorize)(apply, params, x, **arguments)


def test_kernels_of_other_batches_are_refused(large: Any, found: Factorization) -> None:
    params, mask, x = large
    kernel = path_kernel.path_kernel(mlp, params, x, mask=mask)
    square, other = jnp.ones((5, 5, 3, 3)), jnp.ones((4, 4, 3))
    with pytest.raises(ValueError, match="the factorization is of 5 examples and 3 outputs"):
        factorization.alignment(found, jnp.ones((4, 4, 3, 3)), rank=1)
    with pytest.raises(ValueError, match="`rank` must lie between 1 and the number of Θ's eigenvectors, 15"):
        factorization.alignment(found, square, rank=16)
    with pytest.raises(ValueError, match=r"goes with \(5, 5, 3\)"):
        unchecked(factorization.bounds)(square, kernel, (other, other), key=KEY)
    part = path_kernel.path_kernel(mlp, params, x, mask=mask, outputs=[0])
    with pytest.raises(ValueError, match="`kernel` is of some leaves or outputs alone"):
        unchecked(factorization.bounds)(square, part, (jnp.ones((5, 5, 3)),) * 2, key=KEY)
    traced = jnp.ones((5, 5))
    for of_traced in (
        lambda: unchecked(factorization.bounds)(traced, kernel, (jnp.ones((5, 5, 3)),) * 2, key=KEY),
        lambda: unchecked(factorization.alignment)(found, traced, rank=1),
    ):
        with pytest.raises(ValueError, match=r"\(n, n, o, o\), was expected, but \(5, 5\) came"):
            of_traced()
    for labels in (jnp.arange(4), jnp.ones(5), jnp.ones((5, 2), int)):
        with pytest.raises(ValueError, match="`labels` must be one integer for each of the 5 examples"):
            unchecked(factorization.kernel_target_alignment)(jnp.eye(5), labels)
    with pytest.raises(ValueError, match=r"but \(5, 5, 3, 3\) came"):
        unchecked(factorization.kernel_target_alignment)(square, jnp.arange(5))


def unchecked(function: Any) -> Any:
    """The function without the checks of its annotations, which users do not have."""
    return getattr(function, "__wrapped__", function)


# What the null space is, and what is printed


@pytest.mark.parametrize(("roundings", "is_zero"), [(100, True), (1000, False)])
def test_zero_means_one_thing_for_the_spectrum_of_the_path_kernel(roundings: int, is_zero: bool) -> None:
    """Eigenvalues 1, six times, and so many roundings of it, twice."""
    constant = float(np.sqrt(roundings * np.finfo(np.float64).eps))

    def apply(params: Any, x: Any) -> Any:
        return x @ params["w"] + (constant * params["b"])[None]

    params, x = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.ones((4, 3))
    kernel = path_kernel.path_kernel(apply, params, x)
    pairs = path_kernel.top_eigenpairs(kernel, 8, key=KEY)
    eigenvalues = factorization.factorize(apply, params, x, rank=8, key=KEY).eigenvalues
    assert int(jnp.sum(eigenvalues > 0)) == (6 if is_zero else 8)
    ratio = path_kernel.smallest(kernel, key=KEY) / pairs.eigenvalues[0]
    # of so many roundings, up to ten are lost
    tolerance = EXACT if is_zero else 10 / roundings
    np.testing.assert_allclose(ratio, 1.0 if is_zero else constant**2, rtol=tolerance)
    # all pairs that are not zero count, and each overlaps with itself wholly
    np.testing.assert_allclose(path_kernel.overlap(kernel, pairs, kernel, pairs), 1.0, rtol=EXACT)


def test_factorizations_are_printed_by_their_sizes(found: Factorization) -> None:
    assert repr(found) == "Factorization(n=5, o=3, r=4, leaves=6)"
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), found)
    assert repr(several) == "Factorization(batch=(2,), n=5, o=3, r=4, leaves=6)"
