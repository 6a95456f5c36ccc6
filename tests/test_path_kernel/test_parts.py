"""Kernels of layers, of groups of them and of chosen outputs, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import path_kernel

from .. import networks, oracles
from ..tolerances import EXACT, SINGLE_ROUNDING

NETWORK = networks.build("linen_mlp")


def dense(kernel: path_kernel.PathKernel) -> Any:
    flat, unravel = ravel_pytree(kernel.params)
    columns = jax.jit(jax.vmap(lambda row: ravel_pytree(kernel.matvec(unravel(row)))[0]))(jnp.eye(flat.size))
    return np.asarray(columns)


def build(**options: Any) -> path_kernel.PathKernel:
    return path_kernel.path_kernel(NETWORK.apply, NETWORK.params, NETWORK.x, **options)


def layer(name: str) -> Any:
    return lambda path, _: path[0].key == name


def test_parts_are_principal_submatrices_and_their_traces_add_up() -> None:
    whole = dense(build())
    traces = 0.0
    for name, leaves in NETWORK.params.items():
        part = build(where=layer(name))
        rows, _ = ravel_pytree(
            {other: jax.tree.map(lambda leaf, on=other == name: jnp.full(leaf.shape, on), NETWORK.params[other])
             for other in NETWORK.params}
        )  # fmt: skip
        np.testing.assert_allclose(dense(part), whole * np.outer(rows, rows), rtol=0, atol=EXACT * np.abs(whole).max())
        traces += float(part.trace())
        assert sum(leaf.size for leaf in jax.tree.leaves(leaves)) == int(rows.sum())
    np.testing.assert_allclose(traces, np.trace(whole), rtol=EXACT)


def test_a_group_of_layers_is_one_part() -> None:
    group = build(where=lambda path, _: path[0].key != "Dense_2")
    singles = [build(where=layer(name)) for name in NETWORK.params if name != "Dense_2"]
    traces = [float(part.trace()) for part in singles]
    np.testing.assert_allclose(group.trace(), sum(traces), rtol=EXACT)


def test_kernels_of_outputs_add_up() -> None:
    whole = dense(build())
    parts = [dense(build(outputs=[output])) for output in range(2)]
    np.testing.assert_allclose(sum(parts), whole, rtol=0, atol=EXACT * np.abs(whole).max())
    np.testing.assert_allclose(dense(build(outputs=(1, 0, 1))), whole, rtol=0, atol=EXACT * np.abs(whole).max())


def test_a_pruned_weight_on_a_live_path_leaves_nothing_behind() -> None:
    def apply(params: Any, x: Any) -> Any:
        return jnp.maximum(x @ params["first"], 0) @ params["second"]

    params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    mask = {"first": jnp.array([[True, True]]), "second": jnp.ones((2, 3), bool).at[0, 0].set(False)}
    kernel = path_kernel.path_kernel(apply, params, jnp.ones((1, 1)), mask=mask)
    # ∂v/∂θ at the pruned weight is 0.5, not 0: a path ends there that is otherwise alive
    diagonal = kernel.diagonal()
    np.testing.assert_allclose(diagonal["second"], [[0, 0.25, 0.25], [0.25] * 3], rtol=EXACT)
    np.testing.assert_allclose(diagonal["first"], [[8.0, 12.0]], rtol=EXACT)
    values, vectors, *_ = path_kernel.top_eigenpairs(kernel, 7, key=jax.random.key(0))
    np.testing.assert_allclose(values.sum(), kernel.trace(), rtol=EXACT)
    assert not np.asarray(vectors["second"][:, 0, 0]).any()
    np.testing.assert_array_equal(dense(kernel)[2], 0.0)


def test_parts_go_through_jit_and_vmap() -> None:
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), NETWORK.params)

    def trace(params: Any) -> Any:
        part = path_kernel.path_kernel(NETWORK.apply, params, NETWORK.x, where=layer("Dense_1"), outputs=[1])
        return part.log_trace()

    both = jax.jit(jax.vmap(trace))(stacked)
    np.testing.assert_allclose(both[0], trace(NETWORK.params), rtol=EXACT)
    assert both[1] > both[0]


def nothing(**options: Any) -> Any:
    return lambda: build(**options)


ALL_PRUNED = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), NETWORK.params)
BIAS_PRUNED = jax.tree.map(lambda leaf: jnp.full(leaf.shape, leaf.ndim > 1), NETWORK.params)


def with_weight(value: float, dtype: Any = jnp.float64) -> Any:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), NETWORK.params)
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[0, 1].set(value)
    return params


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": ALL_PRUNED}, "`mask` keeps no weight, so that the Path Kernel has no row"),
        ({"where": lambda path, leaf: False}, "`where` chooses no leaf with a weight that is kept"),
        (
            {"where": lambda path, leaf: path[-1].key == "bias", "mask": BIAS_PRUNED},
            "`where` chooses no leaf with a weight that is kept",
        ),
        ({"outputs": [2]}, r"`outputs` must name some of the outputs 0 to 1, but is \[2\]"),
        ({"outputs": [-1, 0]}, r"`outputs` must name some of the outputs 0 to 1, but is \[-1, 0\]"),
        ({"outputs": []}, r"`outputs` must name some of the outputs 0 to 1, but is \[\]"),
        ({"mask": {"a": True}}, "`mask` must be a pytree of the same structure as `params`"),
    ],
)
def test_what_chooses_nothing_is_refused(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(**options)


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, jnp.float64), (-np.inf, jnp.float64), (1e20, jnp.float32)])
def test_weights_that_are_not_finite_are_refused_unless_pruned(value: float, dtype: Any) -> None:
    params = with_weight(value, dtype)
    with pytest.raises(ValueError, match=r"`params` at \['Dense_0'\]\['kernel'\] has a kept weight that is NaN or inf"):
        path_kernel.path_kernel(NETWORK.apply, params, NETWORK.x)
    mask = jax.tree.map(lambda leaf: jnp.isfinite(leaf) & (jnp.abs(leaf) < 1e19), params)
    kernel = path_kernel.path_kernel(NETWORK.apply, params, NETWORK.x, mask=mask)
    kept = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mask)])
    exact = np.trace(oracles.twin(networks.listed("linen_mlp"), NETWORK.theta, kept))
    tolerance = EXACT if dtype == jnp.float64 else SINGLE_ROUNDING
    np.testing.assert_allclose(kernel.trace(), exact, rtol=tolerance)


def test_a_network_of_another_result_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must return one array of shape \(n, o\)"):
        path_kernel.path_kernel(lambda p, x: NETWORK.apply(p, x)[:, 0], NETWORK.params, NETWORK.x)
