"""Constants of a network are computed by NumPy while it is traced; they are what JAX makes of them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import ntk, paths
from tests.tolerances import EXACT, SINGLE_ROUNDING

NUMBERS = jnp.arange(1.0, 13.0).reshape(3, 4)
OUT_OF_RANGE = jnp.array([-1.5, 300.0, 1.0, 2.0, 3.0, np.nan, 1e20, 7.0, 8.0, 9.0, 10.0, 11.0])


@pytest.mark.parametrize(
    "constant",
    [
        lambda: jnp.reshape(NUMBERS * 1.0, (12,), order="F"),
        lambda: jnp.ravel(NUMBERS * 2.0, order="F"),
        lambda: OUT_OF_RANGE.astype(jnp.uint8).astype(jnp.float32),
        lambda: (OUT_OF_RANGE.astype(jnp.int32) / 2).astype(jnp.float32),
        lambda: (jnp.arange(12) // 5 + 1).astype(jnp.bfloat16).astype(jnp.float64),
        lambda: 1 / jnp.sqrt(NUMBERS.T.reshape(-1) + 1e-5),
        lambda: jax.lax.rsqrt(jnp.squeeze(NUMBERS.reshape(1, 12), 0)) - 0.1,
    ],
    ids=["column by column", "raveled by columns", "bytes", "whole numbers", "bfloat16", "root", "inverse root"],
)
def test_constants_are_what_jax_makes_of_them(constant):
    def apply(params, x):
        return (x * constant()[None]) @ params["w"]

    expected = np.log(np.abs(np.asarray(jax.jit(constant)(), np.float64)) @ np.ones((12, 2)).sum(axis=1))
    norm = paths.log_path_norm(apply, {"w": jnp.ones((12, 2))}, jnp.ones((1, 12)))
    np.testing.assert_allclose(norm, expected, rtol=EXACT)


def test_constants_that_overflow_warn_of_nothing():
    def apply(params, x):
        return jax.nn.relu(x @ params["a"]) * np.float32(1e25) @ params["b"]

    params = {"a": jnp.ones((2, 3), jnp.float32), "b": jnp.ones((3, 1), jnp.float32)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths.path_sum(apply, params, jnp.ones((1, 2), jnp.float32), q=2)


def test_sums_do_without_promotion_of_types():
    def apply(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": jnp.ones((2, 3), jnp.float32), "b": jnp.ones((3, 1), jnp.float32)}
    with jax.numpy_dtype_promotion("strict"):
        norm = paths.log_path_norm(apply, params, jnp.ones((1, 2), jnp.float32))
    np.testing.assert_allclose(norm, np.log(6), rtol=SINGLE_ROUNDING)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 0.0])
def test_a_state_may_cancel_to_anything_under_a_known_mask(alpha):
    def apply(params, state, x):
        through = jax.nn.relu(x @ params["a"]) @ params["b"]
        return through * (1 - state["alpha"]) + state["alpha"] * x[:, :2] @ params["b"][:2]

    a, b, x = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(4, 5), (5, 2), (3, 4)]))
    params, state = {"a": a, "b": b}, {"alpha": jnp.asarray(alpha)}
    mask = {"a": np.ones((4, 5), bool), "b": np.ones((5, 2), bool)}
    mask["a"][:2] = False
    kept = jax.tree.map(lambda leaf, keep: leaf * keep, params, mask)
    jacobian = jax.jacobian(lambda params: apply(params, state, x))(kept)
    rows = np.concatenate([(np.asarray(jacobian[k]) * mask[k]).reshape(6, -1) for k in ("a", "b")], axis=1)
    kernel = ntk.empirical(apply, params, x, mask=mask, state=state)
    np.testing.assert_allclose(ntk.as_matrix(kernel), rows @ rows.T, rtol=0, atol=EXACT * np.abs(rows @ rows.T).max())


def test_a_state_of_whole_numbers_is_read_under_a_known_mask():
    def apply(params, state, x):
        return jax.nn.relu(x[:, state["order"]] @ params["a"])

    params, state = {"a": jnp.ones((3, 2))}, {"order": jnp.array([2, 0, 1])}
    mask = {"a": np.array([[True, False], [True, True], [False, True]])}
    assert ntk.empirical(apply, params, jnp.ones((2, 3)), mask=mask, state=state).shape == (2, 2, 2, 2)


def test_a_fixed_matrix_of_the_state_is_refused_with_the_remedy():
    def apply(params, state, x):
        return jax.nn.relu((x @ params["a"]) @ state) @ params["b"]

    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
    with pytest.raises(ValueError, match="Close over it in `apply` instead of passing it in `state`"):
        ntk.mean_field(apply, params, jnp.ones((2, 2)), state=jnp.eye(3))
