"""A function that is no `apply(params, x)`, or a model in its place, is refused with what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pathjax import ntk, path_kernel, paths, scores

X = jnp.ones((4, 3))
MODEL = nn.Dense(2)
PARAMS = MODEL.init(jax.random.key(0), X)["params"]
LINEAR = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
LINEN = "apply = lambda params, x: model.apply({'params': params}, x)"


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return nn.Dense(2)(x)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "synflow": scores.synflow,
    "path_kernel": path_kernel.path_kernel,
    "log_path_norm": paths.log_path_norm,
    "empirical": ntk.empirical,
}

# network, weights, state, what is said
WRONG: dict[str, tuple[Any, Any, Any, tuple[str, ...]]] = {
    "state missing": (
        lambda params, state, x: x @ params["kernel"],
        PARAMS,
        None,
        ("`apply` takes the arguments (params, state, x), but no `state=` was given",),
    ),
    "state given": (
        lambda params, x: x @ params["kernel"],
        PARAMS,
        {"mean": jnp.ones(2)},
        ("A `state=` was given, so `apply` is called as apply(params, state, x), but it takes (params, x).",),
    ),
    "inputs alone": (lambda x: x, PARAMS, None, ("takes the arguments (x), but is called as apply(params, x)",)),
    "linen module of one argument": (MODEL, PARAMS, None, ("is a model", LINEN)),
    "linen module": (Stack(), {"Dense_0": PARAMS}, None, ("weights alone", LINEN)),
    "method of a linen module": (MODEL.apply, PARAMS, None, ("weights alone", LINEN)),
    "method of a linen module, nested": (Stack().apply, {"Dense_0": PARAMS}, None, ("weights alone", LINEN)),
    "nnx model": (LINEAR, nnx.state(LINEAR, nnx.Param), None, ("is a model", "nnx.merge(graphdef, params)(x)")),
    "equinox model": (
        eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)),
        PARAMS,
        None,
        ("is a model", "jax.vmap(eqx.combine(params, static))(x)"),
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", WRONG)
def test_networks_of_other_arguments_are_refused_with_the_remedy(name: str, function: str) -> None:
    network, params, state, phrases = WRONG[name]
    with pytest.raises(Exception, match=re.escape(phrases[0])) as caught:
        FUNCTIONS[function](network, params, X, state=state)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    for phrase in phrases:
        assert phrase in said


def test_the_remedy_for_linen_runs() -> None:
    assert scores.synflow(lambda params, x: MODEL.apply({"params": params}, x), PARAMS, X)["kernel"].shape == (3, 2)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_examples_without_their_axis_get_the_remedy_in_every_function(function: str) -> None:
    def apply(params: Any, x: Any) -> Any:
        return x.reshape(len(x), -1) @ params

    with pytest.raises(Exception, match=r"x\[None\]"):
        FUNCTIONS[function](apply, jnp.ones((6, 2)), jnp.ones((2, 3)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_pairs_of_training_mode_are_refused_with_the_remedy(function: str) -> None:
    with pytest.raises(ValueError, match=r"take \[0\] of it, and let batch norm use its running statistics"):
        FUNCTIONS[function](lambda params, x: (x @ params, {"mean": x.mean(0)}), jnp.ones((3, 2)), X)


def test_weights_with_random_state_are_refused_by_kernels_in_the_words_of_the_framework() -> None:
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model)
    with pytest.raises(ValueError, match=r"which is not trained.*nnx\.split\(model, nnx\.Param, \.\.\.\)"):
        ntk.empirical(lambda params, x: nnx.merge(graphdef, params)(x), params, X)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(7, 4)(tokens)
        return nn.Dense(2)(nn.MultiHeadDotProductAttention(2)(x).mean(1))


def test_layers_of_a_network_of_tokens_are_reported() -> None:
    tokens = jnp.arange(12).reshape(4, 3) % 7
    model = Attention()
    params = model.init(jax.random.key(0), tokens)
    layers = paths.layers(lambda params, x: model.apply(params, x), params, tokens)
    reported = {layer.name.split("/", 1)[-1]: layer for layer in layers}
    assert not reported["Embed_0"].has_paths and "`gather`" in reported["Embed_0"].problems[0]
    assert reported["Dense_0"].has_paths
    problems = [problem for layer in layers for problem in layer.problems]
    assert any("`exp`" in problem and "a part of attention" in problem for problem in problems)
    assert not any("It multiplies two activations, the attention" in problem for problem in problems)
    assert all(len(layer.problems) == len(set(layer.problems)) for layer in layers)


def test_equal_problems_of_a_layer_are_told_once() -> None:
    def apply(params: Any, x: Any) -> Any:
        with jax.named_scope("layer"):
            for _ in range(3):
                x = jnp.tanh(x @ params)
        return x

    (layer,) = paths.layers(apply, jnp.ones((3, 3)), X)
    assert len(layer.problems) == 1


def test_tokens_are_told_where_paths_start() -> None:
    with pytest.raises(ValueError, match=r"tokens: paths start after the embedding.*ntk.*Convert images"):
        paths.log_path_norm(lambda params, x: x @ params, jnp.ones((3, 2)), jnp.ones((4, 3), int))
