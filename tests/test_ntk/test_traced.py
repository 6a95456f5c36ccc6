"""A kernel calls `apply` once for each shape of input, and evaluates the program that this has given from then on."""

from __future__ import annotations

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import isometry, ntk
from pathjax._interpreter.traced import TracedNetwork

from ..tolerances import EXACT

KEY = jax.random.key(0)


class Counted:
    """A network that counts its calls by the number of examples in the batch."""

    def __init__(self) -> None:
        self.calls: collections.Counter[int] = collections.Counter()

    def __call__(self, params: Any, x: Any) -> Any:
        self.calls[len(x)] += 1
        return jnp.tanh(x @ params["hidden"]) @ params["out"]


def example(n: int = 5) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    params = {"hidden": jnp.asarray(rng.normal(size=(4, 6))), "out": jnp.asarray(rng.normal(size=(6, 3)))}
    return params, jnp.asarray(rng.normal(size=(n, 4)))


def mask_of(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf > 0, params)


@pytest.mark.parametrize("method", ["layerwise", "jacobian", "products"])
@pytest.mark.parametrize("function", [ntk.empirical, ntk.empirical_trace, ntk.empirical_diagonal])
def test_kernels_call_the_network_once_for_each_shape(function: Any, method: str) -> None:
    params, x = example()
    others = x[:3] if function is not ntk.empirical_diagonal else x[::-1]
    for mask in (None, mask_of(params)):
        network = Counted()
        function(network, params, x, others, mask=mask, method=method)
        assert network.calls == dict.fromkeys({5, len(others), 1}, 1)


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"mesh": jax.sharding.Mesh(np.array(jax.devices()), ("all",))}])
def test_chunks_and_devices_call_the_network_no_more_often(options: Any) -> None:
    params, x = example()
    network = Counted()
    ntk.empirical(network, params, x, **options)
    assert network.calls == {5: 1, 1: 1}


def test_compiled_kernels_call_the_network_once_for_each_shape() -> None:
    params, x = example()
    network = Counted()
    jax.jit(jax.vmap(lambda params: ntk.empirical(network, params, x)))(jax.tree.map(lambda leaf: leaf[None], params))
    assert network.calls == {5: 1, 1: 1}


@pytest.mark.parametrize("batch_size", [None, 2])
def test_whatever_is_asked_of_an_operator_calls_the_network_once_for_each_shape(batch_size: int | None) -> None:
    params, x = example()
    network = Counted()
    kernel = ntk.operator(network, params, x, mask=mask_of(params), batch_size=batch_size)
    vector = jnp.ones(kernel.shape)
    kernel.matvec(vector)
    jax.jit(ntk.Operator.matvec)(kernel, vector)
    kernel.trace()
    ntk.trace_estimate(kernel, key=KEY, samples=2)
    ntk.norm_estimate(kernel, key=KEY, samples=2)
    ntk.top_eigenpairs(kernel, 2, key=KEY)
    assert network.calls == ({5: 1, 1: 1} if batch_size is None else {5: 1, 2: 1, 1: 1})


@pytest.mark.parametrize("batch_size", [None, 90])
def test_a_search_for_eigenpairs_calls_the_network_once_for_each_shape(batch_size: int | None) -> None:
    params, x = example(180)
    network = Counted()

    def largest(params: Any) -> Any:
        kernel = ntk.operator(network, params, x, batch_size=batch_size)
        return ntk.top_eigenpairs(kernel, 1, key=KEY).eigenvalues[0]

    jax.grad(largest)(params)
    assert network.calls == ({180: 1} if batch_size is None else {180: 1, 90: 1})


def test_singular_values_of_the_jacobian_call_the_network_once_for_each_shape() -> None:
    params, x = example()
    network = Counted()
    isometry.jacobian_singular_values(network, params, x)
    assert network.calls == {5: 1, 1: 1}


def test_a_traced_network_is_its_function_of_any_arguments() -> None:
    params, x = example()
    network = Counted()
    traced = TracedNetwork(network, params)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, x))
    for arguments in ((params, x), (params, x[:2]), single, (params, np.asarray(x))):
        outputs, expected = traced(*arguments), Counted()(*arguments)
        np.testing.assert_allclose(outputs, expected, rtol=EXACT)
        assert outputs.dtype == expected.dtype
    assert traced == TracedNetwork(network, params) != TracedNetwork(Counted(), params)
    assert traced != TracedNetwork(network, single[0])
    assert traced != TracedNetwork(network, list(params.values()))


def test_a_precision_that_is_set_around_a_call_holds_for_it() -> None:
    params, x = example()
    network = TracedNetwork(Counted(), params)

    def precisions() -> set[Any]:
        jaxpr = network.program(x).closed.jaxpr
        return {eqn.params["precision"] for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"}

    assert precisions() == {None}
    with jax.default_matmul_precision("highest"):
        assert precisions() == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


# What an operator says of itself


def test_operators_are_printed_by_their_sizes() -> None:
    params, x = example()
    mask = mask_of(params)
    kept = sum(int(leaf.sum()) for leaf in jax.tree.leaves(mask))
    make = functools.partial(ntk.operator, Counted(), params, x)
    assert repr(make()) == "Operator(n=5, o=3, weights=42, kept=42, batch_size=None)"
    assert repr(make(mask=mask, batch_size=2)) == f"Operator(n=5, o=3, weights=42, kept={kept}, batch_size=2)"
    said = []
    jax.jit(lambda mask: said.append(repr(make(mask=mask))))(mask)
    assert said == ["Operator(n=5, o=3, weights=42, kept=traced, batch_size=None)"]
    several = jax.vmap(lambda scale: ntk.operator(Counted(), params, scale * x))(jnp.ones(7))
    assert repr(several) == "Operator(n=7, o=unknown, weights=294, kept=294, batch_size=None)"
