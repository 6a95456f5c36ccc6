"""Numbers at the edge of their format: none is mistaken for "no path", and padding does not touch a scale."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import enumeration, path_kernel, paths

from ..tolerances import EXACT, SINGLE, SINGLE_ROUNDING


def mlp(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["first"]) @ params["second"]


def weights(value: float, dtype: Any) -> Any:
    return {"first": jnp.full((3, 4), value, dtype), "second": jnp.ones((4, 2), dtype)}


def test_broken_weights_give_nan_or_infinity_and_not_minus_infinity() -> None:
    ones = weights(1.0, jnp.float64)
    for broken, is_broken in ((jnp.nan, jnp.isnan), (jnp.inf, jnp.isinf)):
        params = ones | {"first": ones["first"].at[0, 0].set(broken)}
        norm = paths.log_path_norm(mlp, params, jnp.ones((1, 3)))
        assert bool(is_broken(norm))
        assert norm != -jnp.inf


@pytest.mark.parametrize(("value", "q"), [(1e-4, 2), (300.0, 2), (1.0, 0.5)])
def test_half_precision_is_widened_before_powers(value: float, q: float) -> None:
    half = jnp.full((4, 3), value, jnp.float16)
    norm = paths.log_path_norm(lambda p, x: x @ p, half, jnp.ones((1, 4), jnp.float16), q=q)
    np.testing.assert_allclose(norm, np.log(12.0) + q * np.log(float(half[0, 0])), rtol=SINGLE_ROUNDING)


@pytest.mark.parametrize(
    ("layer", "factor"),
    [(lambda h: 1.9 * jax.nn.relu(h), 1.9), (lambda h: h + jax.nn.relu(h), 2.0), (lambda h: h / 3.0, 1 / 3)],
    ids=["scaled", "residual", "divided"],
)
@pytest.mark.parametrize("rolled", [False, True])
def test_sums_without_weights_between_stay_within_the_format(layer: Any, factor: float, rolled: bool) -> None:
    def apply(params: Any, x: Any) -> Any:
        h = x * params[None]
        if rolled:
            return jax.lax.scan(lambda h, _: (layer(h), None), h, None, length=300)[0]
        for _ in range(300):
            h = layer(h)
        return h

    norm = paths.log_path_norm(apply, jnp.ones(3, jnp.float32), jnp.ones((1, 3), jnp.float32))
    np.testing.assert_allclose(norm, np.log(3.0) + 300 * np.log(factor), rtol=SINGLE)


def test_sums_at_the_edge_of_the_format_are_given_as_they_are() -> None:
    params = {"first": jnp.full((2, 2), 1e25, jnp.float32), "second": jnp.array([[1e25, 0.0]] * 2, jnp.float32)}
    sums = paths.path_sum(mlp, params, jnp.ones((1, 2), jnp.float32))
    assert sums.tolist() == [[np.inf, 0.0]]
    small = {"first": jnp.full((1, 2), 1e-22, jnp.float32), "second": jnp.full((2, 1), 1e-21, jnp.float32)}
    raised = paths.path_sum(lambda p, x: 1e15 * mlp(p, x), small, jnp.ones((1, 1), jnp.float32))
    np.testing.assert_allclose(raised, 2e-28, rtol=SINGLE)


@pytest.mark.parametrize(("constant", "weight"), [(3e38, 1e-30), (1e-37, 1e30)])
def test_constants_at_the_edge_of_the_format_keep_their_digits(constant: float, weight: float) -> None:
    params = jnp.full((2, 3), weight, jnp.float32)
    norm = paths.log_path_norm(lambda p, x: constant * (x @ p), params, jnp.ones((1, 2), jnp.float32))
    np.testing.assert_allclose(norm, np.log(6.0) + np.log(constant) + np.log(weight), rtol=SINGLE)


def test_constants_before_any_weight_join_at_one_scale() -> None:
    """Inputs beside a thousand times themselves: two paths through each weight, of coefficients 1 and 1000."""
    params = jnp.asarray([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
    norm = paths.log_path_norm(lambda p, x: (x + 1000.0 * x) @ p, params, jnp.ones((1, 2)))
    np.testing.assert_allclose(norm, np.log(1001 * 11.5), rtol=EXACT)


def test_data_grams_of_small_inputs_do_not_vanish() -> None:
    sign, log_abs = paths.log_data_gram(mlp, weights(1.0, jnp.float32), jnp.full((1, 3), 1e-25, jnp.float32))
    np.testing.assert_allclose(log_abs, np.log(12.0) + 2 * np.log(1e-25), rtol=SINGLE)
    assert bool((sign == 1).all())


def test_squares_beyond_the_format_are_infinite_and_not_missing() -> None:
    norm = paths.log_path_norm(mlp, weights(1e20, jnp.float32), jnp.ones((1, 3), jnp.float32), q=2)
    assert norm == jnp.inf


def test_pruned_weights_leave_no_trace_in_derivatives_of_any_power() -> None:
    params = weights(1.0, jnp.float64)
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    mask["first"] = mask["first"].at[0].set(False)
    for value in (0.0, jnp.nan):
        pruned = params | {"first": params["first"].at[0].set(value)}
        slope = jax.grad(lambda p: paths.log_path_norm(mlp, p, jnp.ones((1, 3)), q=0.5, mask=mask))(pruned)
        # 16 paths of value 1 are left, 2 through each kept weight of the first layer and of the second: q · 2 / 16
        np.testing.assert_allclose(slope["first"], [[0.0] * 4] + [[0.5 * 2 / 16] * 4] * 2, rtol=EXACT)
        np.testing.assert_allclose(slope["second"], np.full((4, 2), 0.5 * 2 / 16), rtol=EXACT)


def test_negative_powers_are_refused() -> None:
    with pytest.raises(ValueError, match="`q` must not be negative, but is -1"):
        paths.log_path_norm(mlp, weights(1.0, jnp.float64), jnp.ones((1, 3)), q=-1)


@pytest.mark.parametrize("padded", [False, True])
def test_padding_does_not_push_a_kernel_out_of_its_format(padded: bool) -> None:
    def deep(params: Any, x: Any) -> Any:
        for kernel in params:
            x = jax.nn.relu(x @ kernel)
            x = jnp.concatenate([x, jnp.zeros((len(x), 1), x.dtype)], axis=1)[:, :4] if padded else x
        return x

    params = [jnp.full((4, 4), 1e-4, jnp.float32)] * 12
    kernel = path_kernel.path_kernel(deep, params, jnp.ones((1, 4), jnp.float32))
    # every weight w of a layer: v / w squared, summed over the paths through it
    exact = np.log(12 * 4.0**13) + 22 * np.log(1e-4)
    np.testing.assert_allclose(kernel.log_trace(), exact, rtol=SINGLE)


def test_examples_of_different_scales_keep_their_digits() -> None:
    x = jnp.stack([jnp.full(3, 1e28, jnp.float32), jnp.full(3, 1e-28, jnp.float32)])
    sums = paths.path_sum(mlp, weights(1.0, jnp.float32), x)
    np.testing.assert_allclose(sums, np.array([[12e28] * 2, [12e-28] * 2]), rtol=SINGLE)


def test_a_batch_without_examples_has_empty_sums() -> None:
    params, none = weights(1.0, jnp.float64), jnp.ones((0, 3))
    assert paths.path_sum(mlp, params, none, gates="data").shape == (0, 2)
    assert paths.log_data_gram(mlp, params, none)[1].shape == (0, 0, 2)
    listed = enumeration.enumerate_paths(mlp, params, none, limit=100)
    assert enumeration.path_activations(listed, mlp, params, none).shape == (0, 2, 24)


def test_double_precision_inputs_of_numpy_are_read_where_jax_is_in_single_precision() -> None:
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        norm = paths.log_path_norm(mlp, weights(1.0, jnp.float32), np.ones((5, 3)))
    np.testing.assert_allclose(norm, np.log(24.0), rtol=SINGLE_ROUNDING)


def test_low_precision_weights_have_logarithms_of_full_precision() -> None:
    norm = paths.log_path_norm(mlp, weights(1.0, jnp.bfloat16), jnp.ones((1, 3), jnp.bfloat16))
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, np.log(24.0), rtol=SINGLE_ROUNDING)
