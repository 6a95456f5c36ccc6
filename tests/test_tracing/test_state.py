"""`state=` means the same in every public function that takes an `apply`, found by their signatures."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

import pathjax
from pathjax import connectivity, enumeration, factorization, isometry, ntk, path_kernel, paths, scores, transfer

from ..tolerances import EXACT

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 3))
Y = jnp.array([0, 1, 1, 0])
MASK = {
    "first": jnp.ones((3, 4), bool).at[0, 1].set(False),
    "second": jnp.ones((4, 2), bool),
    "shift": jnp.ones(4, bool),
}


def init(key: Any) -> Any:
    keys = jax.random.split(key, 3)
    return {
        "first": jax.random.normal(keys[0], (3, 4)),
        "second": jax.random.normal(keys[1], (4, 2)),
        "shift": jax.random.normal(keys[2], (4,)),
    }


PARAMS = init(jax.random.key(2))


def state_of(seed: int) -> Any:
    """Running statistics, a counter and random keys of both styles, as a Flax model may have them."""
    keys = jax.random.split(jax.random.key(seed), 3)
    statistics = {"mean": jax.random.normal(keys[0], (4,)), "scale": jax.random.uniform(keys[1], (4,), minval=0.5)}
    return {"norm": statistics, "count": jnp.asarray(seed), "rngs": (keys[2], jax.random.PRNGKey(seed))}


STATE, OTHER = state_of(3), state_of(4)


def apply(params: Any, state: Any, x: Any) -> Any:
    norm, (key, raw_key) = state["norm"], state["rngs"]
    h = (x @ params["first"] - norm["mean"][None]) * norm["scale"][None] + params["shift"][None]
    dropped = jax.random.uniform(key, (1, 4)) + jax.random.bernoulli(raw_key, 0.5, (1, 4))
    return jax.nn.relu(h) * (dropped / state["count"]) @ params["second"]


def closed(state: Any) -> Callable[[Any, Any], Any]:
    return lambda params, x: apply(params, state, x)


class Counted:
    """The network, which counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, params: Any, state: Any, x: Any) -> Any:
        self.calls += 1
        return apply(params, state, x)


def chosen(prunable: Any) -> list[str]:
    return [keystr(path) for path, leaf in tree_leaves_with_path(PARAMS) if prunable(path, leaf)]


def of_operator(apply: Any, **options: Any) -> Any:
    operator = ntk.operator(apply, PARAMS, X, mask=MASK, **options)
    return operator.matvec(jnp.ones((4, 2))), operator.trace()


def of_listed(apply: Any, **options: Any) -> Any:
    listed = enumeration.enumerate_paths(closed(STATE), PARAMS, X, limit=100)
    return enumeration.path_activations(listed, apply, PARAMS, X, **options)


def with_batches(score: Any, **given: Any) -> Callable[..., Any]:
    return lambda apply, **options: score(apply, PARAMS, [(X, Y)], **given, **options)


def with_x(function: Any, **given: Any) -> Callable[..., Any]:
    return lambda apply, **options: function(apply, PARAMS, X, **given, **options)


def of_path_kernel(apply: Any, **options: Any) -> Any:
    kernel = path_kernel.path_kernel(apply, PARAMS, X, **options)
    return kernel.diagonal(), kernel.trace()


def of_factorization(apply: Any, **options: Any) -> Any:
    parts = factorization.factorize(apply, PARAMS, X, rank=3, key=KEY, **options)
    return parts.eigenvalues, jnp.abs(parts.data_modes)


CALLS: dict[str, Callable[..., Any]] = {
    "factorization.factorize": of_factorization,
    "factorization.layer_kernels": with_x(factorization.layer_kernels),
    "path_kernel.path_kernel": of_path_kernel,
    "connectivity.connectivity": with_x(connectivity.connectivity, mask=MASK),
    "connectivity.effective_mask": with_x(connectivity.effective_mask, mask=MASK),
    "enumeration.enumerate_paths": lambda apply, **options: enumeration.path_values(
        enumeration.enumerate_paths(apply, PARAMS, X, limit=100, **options), PARAMS
    ),
    "enumeration.path_activations": of_listed,
    "isometry.jacobian_singular_values": with_x(isometry.jacobian_singular_values),
    "ntk.empirical": with_x(ntk.empirical, mask=MASK),
    "ntk.empirical_diagonal": with_x(ntk.empirical_diagonal, batch_size=3),
    "ntk.empirical_trace": with_x(ntk.empirical_trace),
    "ntk.mean_field": with_x(ntk.mean_field, mask=MASK),
    "ntk.mean_field_trace": with_x(ntk.mean_field_trace),
    "ntk.operator": of_operator,
    "ntk.sign_average": with_x(ntk.sign_average, key=KEY, samples=3),
    "paths.kernels": lambda apply, **options: chosen(paths.kernels(apply, PARAMS, X, **options)),
    "paths.layers": with_x(paths.layers),
    "paths.log_data_gram": with_x(paths.log_data_gram),
    "paths.log_path_count": with_x(paths.log_path_count, mask=MASK),
    "paths.log_path_norm": with_x(paths.log_path_norm),
    "paths.path_sum": with_x(paths.path_sum, gates="data"),
    "scores.force": with_batches(scores.force, mask=MASK),
    "scores.grasp": with_batches(scores.grasp, temperature=2.0),
    "scores.mean_field_trace": with_x(scores.mean_field_trace),
    "scores.ntk_sap": with_x(scores.ntk_sap, init=init, key=KEY, epsilon=0.1),
    "scores.path_kernel_trace": with_x(scores.path_kernel_trace),
    "scores.prospr": lambda apply, **options: scores.prospr(apply, PARAMS, [(X, Y)] * 3, steps=2, **options),
    "scores.px": with_x(scores.px),
    "scores.snip": with_batches(scores.snip),
    "scores.synflow": with_x(scores.synflow),
    "scores.synflow_data": with_x(scores.synflow_data),
    "scores.synflow_l2": with_x(scores.synflow_l2),
    "transfer.neural_tangent_transfer": with_x(transfer.neural_tangent_transfer, density=0.5, steps=2, key=KEY),
}

# what gives no arrays, or reads the values of the state as it lists paths
NOT_TRACED = {"connectivity.connectivity", "enumeration.enumerate_paths", "paths.kernels", "paths.layers"}

# what depends on which leaves there are and on zeros, not on the numbers in the state
OF_STRUCTURE = {
    "connectivity.connectivity",
    "connectivity.effective_mask",
    "paths.kernels",
    "paths.layers",
    "paths.log_path_count",
}
every_function = pytest.mark.parametrize("name", CALLS)


def public(parameter: str) -> set[str]:
    """The public functions with a parameter of this name."""
    names = set()
    for module in pkgutil.iter_modules(pathjax.__path__):
        members = vars(importlib.import_module(f"pathjax.{module.name}"))
        for name in members.get("__all__", ()):
            function = members[name]
            if inspect.isfunction(function) and parameter in inspect.signature(function).parameters:
                names.add(f"{module.name}.{name}")
    return names


def assert_same(found: Any, expected: Any) -> None:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (found, expected)]
    assert structures[0] == structures[1]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if isinstance(one, str):
            assert one == other
        else:
            scale = float(np.abs(np.where(np.isfinite(other), other, 0)).max(initial=0))
            np.testing.assert_allclose(one, other, rtol=EXACT, atol=EXACT * scale)


def test_every_public_function_of_a_network_takes_a_state() -> None:
    # a lottery ticket hands its state to `train`, and `sparsify` its own to a score
    assert public("apply") | {"pruning.lottery_ticket"} == public("state")
    assert public("apply") - {"pruning.sparsify"} == set(CALLS)


@every_function
def test_a_state_is_what_the_network_would_close_over(name: str) -> None:
    call = CALLS[name]
    expected = call(closed(STATE))
    assert_same(call(apply, state=STATE), expected)
    if name in OF_STRUCTURE:
        return
    other = call(apply, state=OTHER)
    assert_same(other, call(closed(OTHER)))
    pairs = zip(jax.tree.leaves(other), jax.tree.leaves(expected), strict=True)
    assert name == "enumeration.enumerate_paths" or not all(np.allclose(one, two) for one, two in pairs)


@every_function
def test_another_state_does_not_call_the_network_again(name: str) -> None:
    network = Counted()
    CALLS[name](network, state=STATE)
    first = network.calls
    assert first > 0
    CALLS[name](network, state=OTHER)
    assert network.calls == first


@pytest.mark.parametrize("name", [name for name in CALLS if name not in NOT_TRACED])
def test_a_state_may_be_traced_and_mapped_over(name: str) -> None:
    call = CALLS[name]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), STATE, OTHER)
    together = jax.jit(jax.vmap(lambda state: call(apply, state=state)))(states)
    for i, state in enumerate((STATE, OTHER)):
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], together), call(apply, state=state))


@pytest.mark.parametrize("name", ["paths.kernels", "paths.layers"])
def test_what_reads_the_program_alone_takes_a_traced_state(name: str) -> None:
    results = []
    jax.jit(lambda state: results.append(CALLS[name](apply, state=state)))(STATE)
    assert results == [CALLS[name](apply, state=STATE)]


@every_function
def test_what_is_no_array_in_a_state_is_refused_with_its_place(name: str) -> None:
    for wrong, message in (
        ({"mode": "train"}, r"`state` at \['mode'\] is a str, not an array of numbers\. Keep functions and settings"),
        ({"loss": jnp.sum}, r"`state` at \['loss'\] is a function"),
        ({"names": np.array(["a"])}, r"`state` at \['names'\] is an array of dtype <U1"),
    ):
        with pytest.raises(TypeError, match=message):
            CALLS[name](lambda params, state, x: apply(params, STATE, x), state=STATE | wrong)


def test_plain_numbers_and_empty_parts_belong_to_a_state() -> None:
    def scaled(params: Any, state: Any, x: Any) -> Any:
        assert state["nothing"] is None and state["empty"] == {}
        return jax.nn.relu(x @ params["first"]) @ params["second"] * state["scale"]

    params = {name: PARAMS[name] for name in ("first", "second")}
    state: dict[str, Any] = {"scale": 2.0, "nothing": None, "empty": {}}
    expected = ntk.empirical(lambda params, x: scaled(params, state, x), params, X)
    assert_same(ntk.empirical(scaled, params, X, state=state), expected)
