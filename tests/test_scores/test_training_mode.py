"""Scores of networks in training mode: batch norm takes the statistics of the scoring batch, as in its training."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from pathjax import masks, scores

from ..tolerances import EXACT

RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(8, 4, 4, 2))), jnp.asarray(RNG.integers(0, 3, 8))


class Case(NamedTuple):
    """`apply(params, state, x)` gives (outputs, new state); `direct(params, x)` the outputs, past pathjax."""

    apply: Any
    params: Any
    state: Any
    direct: Any


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(3, (2, 2), param_dtype=float)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, param_dtype=float)(x))
        return nn.Dense(3, param_dtype=float)(x.reshape(len(x), -1))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (2, 2), param_dtype=jnp.float64, rngs=rngs)
        self.norm = nnx.BatchNorm(3, param_dtype=jnp.float64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(48, 3, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.out(self.dropout(x).reshape(len(x), -1))


def linen() -> Case:
    model = Linen()
    variables = model.init(jax.random.key(0), X, train=False)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}

    def apply(params, state, x):
        return model.apply({"params": params, **state}, x, train=True, mutable=["batch_stats"])

    def direct(params, x):
        return model.apply({"params": params, **state}, x, train=True, mutable=["batch_stats"])[0]

    return Case(apply, params, state, direct)


def in_double_precision(leaf: Any) -> Any:
    return leaf.astype(float) if leaf.dtype == jnp.float32 else leaf


def of_nnx() -> Case:
    model = NNX(nnx.Rngs(0))
    model.dropout.deterministic = False
    model.norm.use_running_average = False
    graphdef, *parts = nnx.split(model, nnx.Param, ...)
    params, state = (jax.tree.map(in_double_precision, part) for part in parts)

    def apply(params, state, x):
        model = nnx.merge(graphdef, params, state)
        outputs = model(x)
        return outputs, nnx.state(model, nnx.BatchStat)

    # Flax changes statistics only in the trace that they are an argument of
    merged = jax.jit(lambda params, state, x: nnx.merge(graphdef, params, state)(x))

    def direct(params, x):
        return merged(params, state, x)

    return Case(apply, params, state, direct)


CASES = {"linen": linen(), "nnx": of_nnx()}
every_case = pytest.mark.parametrize("name", CASES)


def flat(tree: Any) -> Any:
    return ravel_pytree(tree)[0]


def loss_of(case: Case, batches: Any, temperature: float = 1.0) -> Any:
    """The mean loss as a function of the raveled weights, each batch with statistics of its own."""
    unravel = ravel_pytree(case.params)[1]

    def loss(vector: Any) -> Any:
        parts = [scores.cross_entropy(case.direct(unravel(vector), x) / temperature, y) * len(x) for x, y in batches]
        return sum(parts) / sum(len(x) for x, _ in batches)

    return loss


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(flat(found), expected, rtol=EXACT, atol=EXACT * float(jnp.abs(expected).max()))


BATCHES = {"whole": [(X, Y)], "split": [(X[:5], Y[:5]), (X[5:], Y[5:])]}


@every_case
@pytest.mark.parametrize("split", BATCHES)
def test_gradient_scores_in_training_mode_are_those_of_the_training_loss(name: str, split: str) -> None:
    case, batches = CASES[name], BATCHES[split]
    options: Any = {"state": case.state, "has_aux": True}
    vector, loss = flat(case.params), loss_of(case, batches)
    slopes = jax.jit(jax.grad(loss))
    assert_close(scores.snip(case.apply, case.params, batches, **options), jnp.abs(vector * slopes(vector)))
    mask = jax.tree.map(lambda leaf: jnp.asarray(RNG.random(leaf.shape) < 0.7), case.params)
    expected = jnp.abs(vector * slopes(jnp.where(flat(mask), vector, 0)))
    assert_close(scores.force(case.apply, case.params, batches, mask=mask, **options), expected)


@every_case
def test_grasp_in_training_mode_is_that_of_the_training_loss(name: str) -> None:
    case = CASES[name]
    vector, loss = flat(case.params), loss_of(case, [(X, Y)], 5.0)
    gradient = jax.grad(loss)
    product = jax.jit(lambda vector: jax.jvp(gradient, (vector,), (gradient(vector),))[1])(vector)
    options: Any = {"state": case.state, "has_aux": True, "temperature": 5.0}
    assert_close(scores.grasp(case.apply, case.params, [(X, Y)], **options), vector * product)


@every_case
def test_prospr_in_training_mode_takes_the_statistics_of_each_steps_batch(name: str) -> None:
    case, batches, rate = CASES[name], [(X[:5], Y[:5]), (X[5:], Y[5:]), (X, Y)], 0.1

    def loss_after_steps(vector: Any) -> Any:
        for batch in batches[:-1]:
            vector = vector - rate * jax.grad(loss_of(case, [batch]))(vector)
        return loss_of(case, batches[-1:])(vector)

    vector = flat(case.params)
    options: Any = {"state": case.state, "has_aux": True, "steps": 2, "learning_rate": rate}
    expected = jnp.abs(vector * jax.jit(jax.grad(loss_after_steps))(vector))
    assert_close(scores.prospr(case.apply, case.params, batches, **options), expected)


@every_case
def test_ntk_sap_in_training_mode_is_the_derivative_by_the_mask(name: str) -> None:
    case, key, epsilon = CASES[name], jax.random.key(1), 0.1
    vector, unravel = ravel_pytree(case.params)

    def init(key: Any) -> Any:
        return unravel(jax.random.normal(key, vector.shape))

    weights_key, noise_key, inputs_key = jax.random.split(jax.random.fold_in(key, 0), 3)
    leaves, structure = jax.tree.flatten(case.params)
    keys = jax.random.split(noise_key, len(leaves))
    noise = jax.tree.unflatten(
        structure, [jax.random.normal(each, leaf.shape) for each, leaf in zip(keys, leaves, strict=True)]
    )
    weights, step, x = flat(init(weights_key)), epsilon * flat(noise), jax.random.normal(inputs_key, X.shape)

    def change(mask: Any) -> Any:
        ends = [case.direct(unravel(mask * at), x) for at in (weights, weights + step)]
        return jnp.sum((ends[0] - ends[1]) ** 2) / len(x)

    options: Any = {"state": case.state, "has_aux": True, "epsilon": epsilon}
    found = scores.ntk_sap(case.apply, case.params, X, init=init, key=key, mask=ones(case.params), **options)
    assert_close(found, jnp.abs(jax.jit(jax.grad(change))(jnp.ones(vector.shape))))
    # weights of 0 in kernels count as pruned; the biases and shifts that begin at 0 do not
    by_itself = scores.ntk_sap(case.apply, case.params, X, init=init, key=key, **options)
    assert_close(by_itself, flat(found))


def ones(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)


def test_running_and_batch_statistics_give_other_scores_and_the_split_matters() -> None:
    case = CASES["linen"]
    evaluated = Linen()

    def running(params, state, x):
        return evaluated.apply({"params": params, **state}, x, train=False)

    options: Any = {"state": case.state, "has_aux": True}
    trained, split = (scores.snip(case.apply, case.params, BATCHES[name], **options) for name in BATCHES)
    other = scores.snip(running, case.params, [(X, Y)], state=case.state)
    assert not np.allclose(flat(trained), flat(split))
    assert not np.allclose(flat(trained), flat(other))


def test_a_mask_from_a_score_in_training_mode_keeps_norms_and_biases() -> None:
    case = CASES["linen"]
    score = scores.snip(case.apply, case.params, [(X, Y)], state=case.state, has_aux=True)
    mask = masks.from_scores(score, density=0.25)
    kernels = [case.params["Conv_0"]["kernel"], case.params["Dense_0"]["kernel"]]
    kept = mask["Conv_0"]["kernel"].sum() + mask["Dense_0"]["kernel"].sum()
    assert int(kept) == round(0.25 * sum(leaf.size for leaf in kernels))
    assert mask["BatchNorm_0"]["scale"].all() and mask["Dense_0"]["bias"].all()
