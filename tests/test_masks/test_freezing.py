"""Frozen optimizers wherever an optimizer goes: pruned weights are exactly 0 after every step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from pathjax import masks, scores

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2, weight_decay_rate=0.01),
    "muon": lambda: optax.contrib.muon(0.1, weight_decay=0.1),
    "clipped, with noise": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.adam(0.1)
    ),
}


def labels(params):
    """The optimizer of each leaf: the first layer has its own, and everything else another."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "first" if "first" in str(path[0]) else "rest", params)


# what a frozen optimizer is put into, or what is put into it
PLACES = {
    "alone": lambda tx, mask: masks.freeze(tx, mask),
    "chain": lambda tx, mask: optax.chain(optax.clip(1.0), masks.freeze(tx, mask), optax.scale(0.5)),
    "multi_transform": lambda tx, mask: optax.multi_transform(
        {"first": masks.freeze(tx, mask), "rest": masks.freeze(optax.sgd(0.1), mask)}, labels
    ),
    "around multi_transform": lambda tx, mask: masks.freeze(
        optax.multi_transform({"first": tx, "rest": optax.sgd(0.1)}, labels), mask
    ),
    "masked": lambda tx, mask: optax.chain(
        optax.masked(masks.freeze(tx, mask), lambda params: jax.tree.map(lambda one: one == "first", labels(params))),
        masks.freeze(optax.scale(-0.1), mask),
    ),
    "MultiSteps": lambda tx, mask: optax.MultiSteps(masks.freeze(tx, mask), every_k_schedule=2),
    "around MultiSteps": lambda tx, mask: masks.freeze(optax.MultiSteps(tx, every_k_schedule=2), mask),
    "inject_hyperparams": lambda tx, mask: optax.inject_hyperparams(
        lambda factor: optax.chain(masks.freeze(tx, mask), optax.scale(factor))
    )(factor=0.5),
    "apply_if_finite": lambda tx, mask: optax.apply_if_finite(masks.freeze(tx, mask), max_consecutive_errors=3),
}

# adafactor, muon and noise keep states of their own, and need each place only once
CASES = [(name, place) for name in OPTIMIZERS for place in PLACES if name == "adamw" or place in ("alone", "chain")]
CASES += [("muon", "multi_transform"), ("adafactor", "multi_transform"), ("adafactor", "MultiSteps")]


def problem():
    """Weights, and a loss whose gradient is nowhere 0: it moves pruned weights too, unless they are held."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "first": {"kernel": jax.random.normal(keys[0], (4, 5)), "bias": jnp.zeros(5)},
        "second": {"kernel": jax.random.normal(keys[1], (5, 3)), "bias": jnp.zeros(3)},
    }
    mask = masks.from_scores(scores.random(params, key=keys[2]), density=0.4)
    loss = lambda params: sum(jnp.sum(jnp.square(leaf - 3.0)) for leaf in jax.tree.leaves(params))  # noqa: E731
    return masks.apply_mask(mask, params), mask, loss


def assert_held(params, mask, start=None):
    """Pruned weights are exactly 0, and, after `start`, all kept ones have moved."""
    start = start if start is None else jax.tree.leaves(start)
    for place, (leaf, kept) in enumerate(zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)):
        leaf, kept = np.asarray(leaf), np.asarray(kept)
        np.testing.assert_array_equal(leaf[~kept], 0.0)
        if start is not None:
            assert (leaf != np.asarray(start[place]))[kept].all()


@pytest.mark.parametrize(("name", "place"), CASES)
def test_pruned_weights_are_exactly_zero_after_every_step(name, place):
    params, mask, loss = problem()
    start, optimizer = params, PLACES[place](OPTIMIZERS[name](), mask)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(4):
        params, state = step(params, state)
        assert_held(params, mask)
    assert_held(params, mask, start)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_train_state_holds_them(name):
    params, mask, loss = problem()
    state = TrainState.create(apply_fn=None, params=params, tx=masks.freeze(OPTIMIZERS[name](), mask))
    for _ in range(3):
        state = state.apply_gradients(grads=jax.grad(loss)(state.params))
        assert_held(state.params, mask)
    assert_held(state.params, mask, params)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.second = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.norm(self.first(x))))


@pytest.mark.parametrize("as_arrays", (False, True))
@pytest.mark.parametrize(
    ("name", "place"), [(name, "alone") for name in OPTIMIZERS] + [("adamw", place) for place in PLACES]
)
def test_an_nnx_optimizer_holds_them(name, place, as_arrays):
    model = Net(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    mask = masks.from_scores(scores.random(params, key=jax.random.key(1)), density=0.4)
    nnx.update(model, masks.apply_mask(mask, params))
    optimizer = PLACES[place](OPTIMIZERS[name](), nnx.to_pure_dict(mask) if as_arrays else mask)
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    optimizer, start = nnx.Optimizer(model, optimizer, wrt=nnx.Param), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    loss = lambda model: sum(jnp.sum((leaf - 3.0) ** 2) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))  # noqa: E731

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(4):
        step(model, optimizer)
        assert_held(nnx.state(model, nnx.Param), mask)
    assert_held(nnx.state(model, nnx.Param), mask, start)


# errors


def test_weights_that_are_not_masked_are_refused_at_the_start():
    params, mask, loss = problem()
    dense = jax.tree.map(lambda leaf: leaf + 1.0, params)
    pruned = int(np.sum(~mask["first"]["kernel"]))
    message = (
        rf"are not masked: {pruned} of the pruned ones at \['first'\]\['kernel'\].*masks.apply_mask\(mask, params\)"
    )
    for optimizer in (PLACES[place](optax.adam(0.1), mask) for place in PLACES):
        with pytest.raises(ValueError, match=message):
            optimizer.init(dense)
    with pytest.raises(ValueError, match=message):
        TrainState.create(apply_fn=None, params=dense, tx=masks.freeze(optax.adam(0.1), mask))
    # weights that are not known are not looked at, and kept weights may be anything
    jax.jit(masks.freeze(optax.adam(0.1), mask).init)(dense)
    jax.eval_shape(masks.freeze(optax.adam(0.1), mask).init, dense)
    masks.freeze(optax.adam(0.1), mask).init(masks.apply_mask(mask, jax.tree.map(lambda leaf: leaf * jnp.nan, dense)))
    masks.freeze(optax.adam(0.1), None).init(dense)


def test_a_pruned_weight_that_is_not_a_number_is_refused():
    params, mask, _ = problem()
    place = int(np.flatnonzero(~np.asarray(mask["second"]["kernel"]).ravel())[0])
    kernel = params["second"]["kernel"].ravel().at[place].set(jnp.nan).reshape(5, 3)
    with pytest.raises(ValueError, match=r"1 of the pruned ones at \['second'\]\['kernel'\]"):
        masks.freeze(optax.sgd(0.1), mask).init(params | {"second": params["second"] | {"kernel": kernel}})


def test_an_nnx_model_that_is_not_masked_is_told_the_remedy():
    model = Net(nnx.Rngs(0))
    mask = masks.from_scores(scores.random(nnx.state(model, nnx.Param), key=jax.random.key(1)), density=0.4)
    with pytest.raises(
        ValueError, match=r"nnx.update\(model, masks.apply_mask\(mask, nnx.state\(model, nnx.Param\)\)\)"
    ):
        nnx.Optimizer(model, masks.freeze(optax.adam(0.1), mask), wrt=nnx.Param)


def test_swapped_and_wrong_arguments_are_told():
    params, mask, _ = problem()
    with pytest.raises(TypeError, match=r"arguments of `freeze` are swapped.*masks.freeze\(optimizer, mask\)"):
        masks.freeze(mask, optax.adam(0.1))
    with pytest.raises(TypeError, match=r"`optimizer` is a dict, but an optax optimizer has `init` and `update`"):
        masks.freeze(mask, mask)
    with pytest.raises(TypeError, match=r"`mask` must have boolean leaves; at \['first'\]\['bias'\]"):
        masks.freeze(optax.adam(0.1), params)
    with pytest.raises(TypeError, match="an optax optimizer has"):
        masks.freeze(optax.adam, mask)


def test_a_mask_of_another_network_is_refused_in_every_place():
    params, _, _ = problem()
    mask = {"first": {"kernel": jnp.ones((4, 5), bool), "bias": jnp.ones(5, bool)}}
    for optimizer in (PLACES[place](optax.adam(0.1), mask) for place in PLACES if place != "masked"):
        with pytest.raises(ValueError, match=r"`mask` has no leaf at \['second'\]\['bias'\]"):
            optimizer.init(params)
    other = params | {"third": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"`params` has no leaf at \['third'\]"):
        masks.freeze(optax.adam(0.1), jax.tree.map(lambda leaf: leaf == leaf, other)).init(params)
