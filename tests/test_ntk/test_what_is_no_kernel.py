"""What is given in place of inputs or of a kernel is told in words, with the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import dynamics, isometry, ntk, path_kernel, scores
from tests.tolerances import SINGLE

PARAMS = {"hidden": jnp.ones((3, 5)), "outputs": jnp.ones((5, 2))}
SHAPE = jax.ShapeDtypeStruct((4, 3), jnp.float64)


def apply(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["hidden"]) @ params["outputs"]


@pytest.mark.parametrize(
    "function",
    [
        ntk.empirical,
        ntk.empirical_trace,
        ntk.empirical_diagonal,
        ntk.mean_field,
        ntk.mean_field_trace,
        ntk.operator,
        scores.synflow_data,
        scores.px,
        isometry.jacobian_singular_values,
    ],
)
def test_a_shape_in_place_of_inputs_is_told_with_inputs_that_need_no_data(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"is a shape alone, .*jax\.random\.normal\(jax\.random\.key\(0\), \(4, 3\)\)"):
        inspect.unwrap(function)(apply, PARAMS, SHAPE)


def test_a_shape_in_a_batch_is_told_too() -> None:
    with pytest.raises(TypeError, match="`x` is a shape alone"):
        scores.snip(apply, PARAMS, [(SHAPE, jnp.zeros(4, int))])


@pytest.mark.parametrize("function", [dynamics.critical_learning_rate, ntk.spectrum, ntk.as_matrix])
def test_a_kernel_that_is_no_array_is_told_with_what_takes_its_place(function: Callable[..., Any]) -> None:
    kernel = path_kernel.path_kernel(apply, PARAMS, SHAPE)
    with pytest.raises(TypeError, match=r"`PathKernel` came.* 2 / top_eigenpairs\(kernel, 1, key=key\)"):
        inspect.unwrap(function)(kernel)
    with pytest.raises(TypeError, match=r"`MeanField` came.*its field `ntk`"):
        inspect.unwrap(function)(ntk.mean_field(apply, PARAMS, jnp.ones((4, 3))))


def test_the_remedy_gives_the_critical_learning_rate_of_an_operator() -> None:
    x = jax.random.normal(jax.random.key(1), (4, 3))
    kernel, key = ntk.operator(apply, PARAMS, x), jax.random.key(2)
    rate = 2 / ntk.top_eigenpairs(kernel, 1, key=key).eigenvalues[0]
    np.testing.assert_allclose(rate, dynamics.critical_learning_rate(ntk.empirical(apply, PARAMS, x)), rtol=SINGLE)
