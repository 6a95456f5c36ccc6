"""What is read off a kernel: its matrix, eigenvalues, conditioning, and distance to infinite width."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import dynamics, ntk

from ..tolerances import EXACT


def kernel_of(jacobian1, jacobian2=None):
    """The kernel of Jacobians (n, o, p)."""
    return jnp.einsum("iap,jbp->ijab", jacobian1, jacobian1 if jacobian2 is None else jacobian2)


def linearized(kernel):
    outputs = jnp.ones(kernel.shape[1:])
    return inspect.unwrap(dynamics.linearized)(kernel, outputs, outputs, jnp.ones(2), learning_rate=1.0)


def jacobian(n, o, p, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, o, p)))


def test_matrix_is_the_product_of_raveled_jacobians():
    left, right = jacobian(3, 2, 7), jacobian(4, 2, 7, seed=1)
    np.testing.assert_allclose(
        ntk.as_matrix(kernel_of(left, right)), left.reshape(6, 7) @ right.reshape(8, 7).T, rtol=EXACT
    )


def test_eigenvalues_are_squared_singular_values_of_the_jacobian_in_descending_order():
    left = jacobian(3, 2, 9)
    expected = np.linalg.svd(left.reshape(6, 9), compute_uv=False) ** 2
    np.testing.assert_allclose(ntk.spectrum(kernel_of(left)), expected, rtol=EXACT)


def test_eigenvalues_sum_to_the_trace():
    kernel = kernel_of(jacobian(4, 3, 20))
    np.testing.assert_allclose(ntk.spectrum(kernel).sum(), jnp.einsum("iiaa->", kernel), rtol=EXACT)


def test_condition_number_is_that_of_the_jacobian_squared():
    left = jacobian(3, 2, 9)
    np.testing.assert_allclose(
        ntk.condition_number(kernel_of(left)), np.linalg.cond(left.reshape(6, 9)) ** 2, rtol=EXACT
    )


def test_a_kernel_for_each_output_has_the_eigenvalues_of_the_whole():
    kernel = jnp.einsum("iap,jap->ija", jacobian(4, 3, 9), jacobian(4, 3, 9))
    whole = jnp.einsum("ija,ab->ijab", kernel, jnp.eye(3))
    np.testing.assert_allclose(ntk.spectrum(kernel), ntk.spectrum(whole), rtol=EXACT)
    np.testing.assert_allclose(ntk.condition_number(kernel), ntk.condition_number(whole), rtol=EXACT)
    np.testing.assert_allclose(dynamics.critical_learning_rate(kernel), 2 / ntk.spectrum(whole)[0], rtol=EXACT)
    for function in (ntk.as_matrix, linearized):
        with pytest.raises(ValueError, match=r"for each output.*'ija,ab->ijab'"):
            inspect.unwrap(function)(kernel)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_kernel_singular_within_rounding_has_infinite_condition_number(dtype):
    fewer_weights_than_outputs = kernel_of(jacobian(5, 2, 6).astype(dtype))
    assert ntk.condition_number(fewer_weights_than_outputs) == jnp.inf
    assert ntk.condition_number(jnp.zeros((3, 3, 2, 2), dtype)) == jnp.inf


def test_one_example_and_one_output_is_perfectly_conditioned():
    assert ntk.condition_number(jnp.full((1, 1, 1, 1), 3.0)) == 1.0


def test_nan_in_a_kernel_is_not_hidden():
    kernel = jnp.full((2, 2, 1, 1), jnp.nan)
    assert jnp.isnan(ntk.condition_number(kernel))
    assert jnp.isnan(ntk.spectrum(kernel)).all()


def test_a_kernel_times_c_has_relative_distance_c_minus_one():
    infinite = jnp.asarray([[4.0, 1.0, 0.5], [1.0, 3.0, 0.2]])
    finite = 1.25 * jnp.einsum("ij,ab->ijab", infinite, jnp.eye(4))
    np.testing.assert_allclose(ntk.relative_distance(finite, infinite), 0.25, rtol=EXACT)


def test_correlated_outputs_add_to_the_distance():
    infinite = jnp.eye(3)
    finite = jnp.einsum("ij,ab->ijab", infinite, jnp.ones((2, 2)))
    np.testing.assert_allclose(ntk.relative_distance(finite, infinite), 1.0, rtol=EXACT)


class Measure(NamedTuple):
    """A measure of a matrix in NumPy, and its derivative by the matrix's entries (first-order perturbation theory)."""

    value: Callable[[np.ndarray], Any]
    slope: Callable[[np.ndarray], np.ndarray]


def slope_of_condition(values, vectors):
    least, most = (np.outer(vectors[:, i], vectors[:, i]) for i in (0, -1))
    return most / values[0] - values[-1] / values[0] ** 2 * least


MEASURES = {
    "spectrum": Measure(lambda matrix: np.linalg.eigvalsh(matrix)[::-1], lambda matrix: np.eye(len(matrix))),
    "condition_number": Measure(np.linalg.cond, lambda matrix: slope_of_condition(*np.linalg.eigh(matrix))),
    "as_matrix": Measure(lambda matrix: matrix, np.ones_like),
}


@pytest.mark.parametrize("name", MEASURES)
def test_kernels_can_be_vmapped_jitted_and_differentiated(name):
    measure, expected = getattr(ntk, name), MEASURES[name]
    rows = [np.asarray(jacobian(3, 2, 9, seed)).reshape(6, 9) for seed in range(3)]
    kernels = jnp.stack([kernel_of(jacobian(3, 2, 9, seed)) for seed in range(3)])
    for one, row in zip(jax.jit(jax.vmap(measure))(kernels), rows, strict=True):
        np.testing.assert_allclose(one, expected.value(row @ row.T), rtol=EXACT)
    found = jax.grad(lambda kernel: measure(kernel).sum())(kernels[0]).transpose(0, 2, 1, 3).reshape(6, 6)
    exact = expected.slope(rows[0] @ rows[0].T)
    np.testing.assert_allclose(found, exact, rtol=0, atol=EXACT * np.abs(exact).max())


def test_gradient_of_the_condition_number_is_zero_on_a_singular_kernel():
    np.testing.assert_array_equal(jax.grad(ntk.condition_number)(kernel_of(jacobian(5, 2, 6))), 0)


# Bad input


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 2), (3, 3, 2, 1)])
def test_what_is_not_a_finite_kernel_is_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(n, m, o, o\), but .* came.*infinite-width"):
        inspect.unwrap(ntk.as_matrix)(jnp.ones(shape))


@pytest.mark.parametrize("measure", [ntk.spectrum, ntk.condition_number])
def test_a_kernel_of_two_batches_has_no_spectrum(measure):
    rectangular = jnp.ones((3, 2, 1, 1))
    with pytest.raises(ValueError, match="one batch with itself.*Leave out `x2`"):
        inspect.unwrap(ntk.spectrum)(rectangular)


def test_kernels_of_different_examples_are_not_compared():
    with pytest.raises(ValueError, match=r"shapes \(3, 2, 4, 4\) and \(2, 3\) came.*same `x1` and `x2`"):
        inspect.unwrap(ntk.relative_distance)(jnp.ones((3, 2, 4, 4)), jnp.ones((2, 3)))
