"""Where paths start, or derivatives are taken, at one array of reals, other inputs are refused with the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from pathjax import connectivity, enumeration, isometry, paths, scores

from ..tolerances import EXACT

X = jax.random.normal(jax.random.key(0), (4, 3))
PARAMS = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}


def apply(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["first"]) @ params["second"]


def listed(apply: Any, params: Any, x: Any) -> Any:
    known = enumeration.enumerate_paths(lambda p, x: jax.nn.relu(x @ p["first"]) @ p["second"], PARAMS, X, limit=100)
    return enumeration.path_activations(known, apply, params, x)


@pytest.fixture(autouse=True)
def unchecked_types() -> Iterator[None]:
    """As a user meets it, without the run-time type checker that tests install, whose words would come first."""
    was_disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was_disabled)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "log_path_norm": paths.log_path_norm,
    "log_path_count": paths.log_path_count,
    "path_sum": paths.path_sum,
    "log_data_gram": paths.log_data_gram,
    "layers": paths.layers,
    "enumerate_paths": lambda *given: enumeration.enumerate_paths(*given, limit=100),
    "path_activations": listed,
    "connectivity": connectivity.connectivity,
    "effective_mask": connectivity.effective_mask,
    "synflow": scores.synflow,
    "synflow_l2": scores.synflow_l2,
    "synflow_data": scores.synflow_data,
    "path_kernel_trace": scores.path_kernel_trace,
    "mean_field_trace": scores.mean_field_trace,
    "px": scores.px,
    "jacobian_singular_values": isometry.jacobian_singular_values,
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def of_dictionary(params: Any, x: Any) -> Any:
    return apply(params, x["image"])


@every_function
def test_trees_of_inputs_are_refused_with_what_to_do(name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=r"is (a|one) dict.*array") as refused:
        FUNCTIONS[name](of_dictionary, PARAMS, {"image": X})
    assert "close over" in str(refused.value)


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"layers"}))  # `layers` reports lookups
def test_tokens_are_refused_with_what_to_do(name: str) -> None:
    tokens = jnp.arange(12).reshape(4, 3)
    with pytest.raises(ValueError, match=r"dtype int|but are int|floating-point") as refused:
        FUNCTIONS[name](apply, PARAMS, tokens)
    assert "Convert" in str(refused.value) and (
        "embedding" in str(refused.value) or "standardize" in str(refused.value)
    )


@every_function
def test_a_single_example_without_its_axis_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(Exception, match=r"x\[None\]"):
        FUNCTIONS[name](apply, PARAMS, X[0])
    with pytest.raises(Exception, match=r"x\[None\]|jnp\.asarray|single number"):
        FUNCTIONS[name](apply, PARAMS, jnp.ones(()))


@every_function
def test_an_image_without_its_axis_is_refused_with_the_remedy(name: str) -> None:
    model = nn.Sequential([nn.Conv(3, (2, 2)), lambda x: x.reshape(len(x), -1), nn.Dense(2)])
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4, 4, 2)))["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    with pytest.raises(Exception, match=r"x\[None\]"):
        FUNCTIONS[name](lambda params, x: model.apply({"params": params}, x), params, jnp.ones((4, 4, 2)))


def test_lookups_are_refused_by_name_and_the_rest_of_the_network_has_paths() -> None:
    """What the refusal advises for tokens: the part of the network after its embedding."""
    embed, rest = nn.Embed(7, 3), nn.Dense(2)
    tokens: Any = jnp.arange(4)
    table, params = embed.init(jax.random.key(0), tokens), rest.init(jax.random.key(1), X)
    with pytest.raises(ValueError, match="paths start after the embedding"):
        FUNCTIONS["log_path_norm"](lambda p, x: rest.apply(p[1], embed.apply(p[0], x)), (table, params), tokens)
    vectors: Any = embed.apply(table, tokens)
    kernel = np.abs(params["params"]["kernel"])
    norm = paths.log_path_norm(rest.apply, params, vectors)
    np.testing.assert_allclose(norm, np.log(kernel.sum()), rtol=EXACT)
