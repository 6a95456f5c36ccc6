"""Lottery tickets: who is kept, what is rewound, and that a ticket learns."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathjax import masks, pruning, scores

SIZE = 4 * 9 + 9 * 3


def initial(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "bias": jnp.asarray(rng.standard_normal(9)),
        "first": jnp.asarray(rng.standard_normal((4, 9))),
        "second": jnp.asarray(rng.standard_normal((9, 3))),
    }


def moved(params, steps):
    """The weights after these steps of a made-up training, each step a rotation of some weights into others."""
    for step in steps:
        params = {
            name: leaf + 0.2 * np.sin(np.arange(leaf.size) * (step + 1.0)).reshape(leaf.shape)
            for name, leaf in params.items()
        }
    return params


class Recorder:
    """A training that notes how it was called, and leaves rubbish where weights are pruned."""

    def __init__(self):
        self.calls = []

    def __call__(self, params, mask, start, stop, key):
        self.calls.append((params, mask, start, stop, key))
        numbers = moved({name: np.asarray(leaf) for name, leaf in params.items()}, range(start, stop))
        return {name: jnp.where(mask[name], leaf, 1e6) for name, leaf in numbers.items()}


def by_hand(params, planned, rewind, steps):
    """(masks of all levels, weights after `rewind` steps), in NumPy."""
    start = moved({name: np.asarray(leaf) for name, leaf in params.items()}, range(rewind))
    kept = {"first": np.ones((4, 9), bool), "second": np.ones((9, 3), bool)}
    levels = []
    for reached in planned:
        trained = moved(start | {name: start[name] * kept[name] for name in kept}, range(rewind, steps))
        sizes = np.concatenate([np.where(kept[name], np.abs(trained[name]), -1).ravel() for name in kept])
        chosen = np.zeros(SIZE, bool)
        chosen[np.argsort(-sizes, kind="stable")[: round(reached * SIZE)]] = True
        kept = {"first": chosen[:36].reshape(4, 9), "second": chosen[36:].reshape(9, 3)}
        levels.append(kept)
    return levels, start


@pytest.mark.parametrize("rewind", (0, 3))
@pytest.mark.parametrize(("density", "levels"), ((0.8, 1), (0.512, 3), (0.5, 4), (0.1, 11)))
def test_levels_keep_the_exact_counts_and_rewind_to_step_k(density, levels, rewind):
    params, train, reports = initial(), Recorder(), []
    ticket = pruning.lottery_ticket(
        train, params, steps=10, density=density, rewind=rewind, progress=lambda *report: reports.append(report)
    )
    planned = [0.8**level for level in range(1, levels)] + [density]
    assert reports == [(level, levels, round(at * SIZE) / SIZE) for level, at in enumerate(planned, start=1)]
    expected, start = by_hand(params, planned, rewind, 10)
    calls = train.calls[1:] if rewind else train.calls
    if rewind:
        assert train.calls[0][2:] == (0, 3, None)
        assert all(bool(leaf.all()) for leaf in jax.tree.leaves(train.calls[0][1]))
    assert [call[2:] for call in calls] == [(rewind, 10, None)] * levels
    for kept, (given, mask, *_) in zip(expected, [*calls[1:], (ticket.params, ticket.mask)], strict=True):
        assert mask["bias"].all()
        np.testing.assert_array_equal(given["bias"], start["bias"])
        for name, chosen in kept.items():
            np.testing.assert_array_equal(mask[name], chosen)
            np.testing.assert_array_equal(given[name], np.where(chosen, start[name], 0))


def test_a_density_of_one_is_the_dense_network_at_step_k():
    params, train = initial(), Recorder()
    ticket = pruning.lottery_ticket(train, params, steps=10, density=1, rewind=2)
    assert [call[2:4] for call in train.calls] == [(0, 2)]
    assert float(masks.density(ticket.mask)) == 1.0
    np.testing.assert_array_equal(ticket.params["first"], moved(params, range(2))["first"])


def test_local_scope_keeps_the_share_of_each_leaf():
    ticket = pruning.lottery_ticket(Recorder(), initial(), steps=2, density=0.25, pruned=0.5, scope="local")
    assert [entry.kept for entry in masks.statistics(ticket.mask)] == [9, 9, round(0.25 * 27)]


def test_levels_get_keys_of_their_own():
    train = Recorder()
    pruning.lottery_ticket(train, initial(), steps=2, density=0.5, rewind=1, key=jax.random.key(3))
    assert len({tuple(jax.random.key_data(call[-1]).tolist()) for call in train.calls}) == len(train.calls) == 5


def test_reinitialized_levels_and_tickets_have_weights_of_their_own():
    def init(key):
        return {name: jax.random.normal(key, leaf.shape) for name, leaf in initial().items()}

    train, key = Recorder(), jax.random.key(4)
    ticket = pruning.lottery_ticket(train, initial(), steps=2, density=0.5, key=key, reinitialize=init)
    started = [call[0]["bias"] for call in train.calls] + [ticket.params["bias"]]
    assert len({tuple(np.asarray(bias).tolist()) for bias in started}) == 5
    for weights, mask in [(call[0], call[1]) for call in train.calls] + [(ticket.params, ticket.mask)]:
        assert all(bool(((weights[name] != 0) == mask[name]).all()) for name in ("first", "second"))
    assert int(masks.count(ticket.mask)) == round(0.5 * SIZE)


def test_jit_and_vmap_over_seeds_equal_eager():
    def train(params, mask, start, stop, key):
        noise = jax.random.normal(key, params["first"].shape)
        return params | {"first": params["first"] + (stop - start) * noise}

    def run(params, key):
        return pruning.lottery_ticket(train, params, steps=3, density=0.5, rewind=1, key=key)

    seeds, keys = [initial(seed) for seed in range(3)], jax.random.split(jax.random.key(2), 3)
    eager = [run(params, key) for params, key in zip(seeds, keys, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, jax.jit(run)(seeds[0], keys[0]), eager[0])
    together = jax.vmap(run)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds), keys)
    for index, expected in enumerate(eager):
        jax.tree.map(lambda got, want, i=index: np.testing.assert_array_equal(got[i], want), together, expected)


# a real training


def apply(params, x):
    return jax.nn.relu(x @ params["first"] + params["bias"][None]) @ params["second"]


def digits(count, seed):
    """Noisy copies of ten 8×8 patterns, and which of them."""
    patterns = np.random.default_rng(0).standard_normal((10, 64))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    return jnp.asarray(patterns[labels] + rng.standard_normal((count, 64))), jnp.asarray(labels)


def test_a_ticket_of_a_tenth_learns_and_its_weights_stay_on_the_mask():
    x, y = digits(256, 1)
    rates = optax.linear_schedule(3e-3, 0.0, 150)

    @jax.jit
    def step(params, state, mask, at):
        optimizer = masks.freeze(optax.scale_by_adam(), mask)
        slopes = jax.grad(lambda params: scores.cross_entropy(apply(params, x), y))(params)
        updates, state = optimizer.update(slopes, state, params)
        return jax.tree.map(lambda leaf, update: leaf - rates(at) * update, params, updates), state

    def train(params, mask, start, stop, key):
        state = masks.freeze(optax.scale_by_adam(), mask).init(params)
        for at in range(start, stop):
            params, state = step(params, state, mask, at)
        return params

    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "bias": jnp.zeros(40),
        "first": jax.random.normal(keys[0], (64, 40)) / 8,
        "second": jax.random.normal(keys[1], (40, 10)) / 6,
    }
    ticket = pruning.lottery_ticket(train, params, steps=150, density=0.1, rewind=10, pruned=0.5)
    trained = train(ticket.params, ticket.mask, 10, 150, None)
    test_x, test_y = digits(500, 2)
    outputs = [apply(at, test_x) for at in (ticket.params, trained)]
    before, after = (float(scores.cross_entropy(at, test_y)) for at in outputs)
    assert int(masks.count(ticket.mask)) == round(0.1 * (64 * 40 + 40 * 10))
    assert after < before / 2
    assert float((outputs[1].argmax(1) == test_y).mean()) > 0.9
    for name in ("first", "second"):
        assert not bool(jnp.any(trained[name][~ticket.mask[name]]))


# model state


class NormTraining:
    """A made-up training of a batch-norm layer: weights rotate, and statistics follow what they are trained on."""

    def __init__(self):
        self.calls = []

    def __call__(self, params, state, mask, start, stop, key):
        self.calls.append((params, state, mask, start, stop, key))
        for at in range(start, stop):
            params, state = self.step(params, state, mask, at)
        return params, state

    @staticmethod
    def step(params, state, mask, at):
        moved_by_one = moved({name: np.asarray(leaf) for name, leaf in params.items()}, [at])
        params = {name: np.where(mask[name], leaf, 0) for name, leaf in moved_by_one.items()}
        mean = 0.9 * np.asarray(state["batch_stats"]["mean"]) + 0.1 * params["first"].mean(0)
        return params, {"batch_stats": {"mean": mean}, "steps": np.asarray(state["steps"]) + 1}


@pytest.mark.parametrize("rewind", (0, 3))
def test_a_ticket_rewinds_the_model_state_with_the_weights(rewind):
    params, reports, train = initial(), [], NormTraining()
    state = {"batch_stats": {"mean": jnp.arange(9.0)}, "steps": jnp.asarray(0)}
    ticket = pruning.lottery_ticket(
        train,
        params,
        state=state,
        steps=7,
        density=0.5,
        rewind=rewind,
        key=jax.random.key(0),
        progress=lambda *report: reports.append(report),
    )
    # by hand: the first steps dense, then each level from the weights and statistics after them
    everything = {name: np.ones(leaf.shape, bool) for name, leaf in params.items()}
    early: Any = params
    early_state: Any = state
    for at in range(rewind):
        early, early_state = NormTraining.step(early, early_state, everything, at)
    planned = [0.8, 0.8**2, 0.8**3, 0.5]
    mask = everything
    for reached in planned:
        trained, trained_state = {name: early[name] * mask[name] for name in early}, early_state
        for at in range(rewind, 7):
            trained, trained_state = NormTraining.step(trained, trained_state, mask, at)
        assert int(trained_state["steps"]) == 7
        sizes = np.concatenate(
            [np.where(mask[name], np.abs(trained[name]), -1).ravel() for name in ("first", "second")]
        )
        chosen = np.zeros(SIZE, bool)
        chosen[np.argsort(-sizes, kind="stable")[: round(reached * SIZE)]] = True
        mask = everything | {"first": chosen[:36].reshape(4, 9), "second": chosen[36:].reshape(9, 3)}
    for name, kept in mask.items():
        np.testing.assert_array_equal(ticket.mask[name], kept)
        np.testing.assert_array_equal(ticket.params[name], np.where(kept, early[name], 0))
    jax.tree.map(np.testing.assert_array_equal, ticket.state, early_state)
    assert int(ticket.state["steps"]) == rewind
    levels = train.calls[1:] if rewind else train.calls
    assert [call[3:5] for call in levels] == [(rewind, 7)] * 4
    for call in levels:
        jax.tree.map(np.testing.assert_array_equal, call[1], early_state)
    assert reports == [(level, 4, round(at * SIZE) / SIZE) for level, at in enumerate(planned, start=1)]
    assert all(call[-1] is not None for call in train.calls)


def test_without_a_state_a_ticket_has_none():
    ticket = pruning.lottery_ticket(Recorder(), initial(), steps=2, density=0.5)
    assert ticket.state is None


def test_a_batch_norm_network_is_rewound_and_its_ticket_trains_on():
    """With Flax' own batch norm: the statistics of the ticket are those of the rewind step, and training continues."""
    model = nn.Sequential([nn.Dense(8), nn.BatchNorm(use_running_average=False, momentum=0.9), nn.relu, nn.Dense(10)])
    x, y = digits(64, 1)
    x = x.astype(jnp.float32)
    variables = model.init(jax.random.key(0), x)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}

    @jax.jit
    def step(params, state, mask):
        def loss(params):
            outputs, new_state = model.apply({"params": params, **state}, x, mutable=["batch_stats"])
            return scores.cross_entropy(outputs, y), new_state

        slopes, new_state = jax.grad(loss, has_aux=True)(params)
        return masks.apply_mask(mask, jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, params, slopes)), new_state

    def train(params, state, mask, start, stop, key):
        for _ in range(start, stop):
            params, state = step(params, state, mask)
        return params, state

    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    expected, statistics = train(params, state, everything, 0, 4, None)
    ticket = pruning.lottery_ticket(train, params, state=state, steps=20, density=0.3, rewind=4, pruned=0.6)
    jax.tree.map(np.testing.assert_array_equal, ticket.state, statistics)
    jax.tree.map(np.testing.assert_array_equal, ticket.params, masks.apply_mask(ticket.mask, expected))
    after, _ = train(ticket.params, ticket.state, ticket.mask, 4, 20, None)

    def loss(params):
        return scores.cross_entropy(model.apply({"params": params, **state}, x, mutable=["batch_stats"])[0], y)

    assert float(loss(after)) < float(loss(ticket.params))


def test_a_training_that_returns_no_state_or_another_one_is_refused():
    state = {"mean": jnp.zeros(3)}
    run = functools.partial(pruning.lottery_ticket, params=initial(), state=state, steps=2, density=0.5)
    for returned, message in (
        (lambda params, state: params, "returned a dict, but with a `state` it must return a pair"),
        (lambda params, state: (params, state, 0), "must return a pair"),
        (lambda params, state: (params, {}), r"`the state that `train` returned`.*no leaf at \['mean'\]"),
        (
            lambda params, state: (params, {"mean": jnp.zeros(4)}),
            r"\['mean'\] has shape \(4,\), but `state` has \(3,\)",
        ),
        (lambda params, state: ({"first": params["first"]}, state), r"`train` has no leaf at \['bias'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            run(lambda params, state, *rest, returned=returned: returned(params, state))


# errors


def test_what_cannot_be_is_refused():
    def run(train=None, **options):
        given = {"steps": 4, "density": 0.5, **options}
        return pruning.lottery_ticket(train or Recorder(), initial(), **given)

    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
        run(density=0)
    with pytest.raises(ValueError, match=r"`pruned` must lie in \(0, 1\), .* it is 1"):
        run(pruned=1)
    with pytest.raises(ValueError, match="0 ≤ rewind < steps; they are 4 and 4"):
        run(rewind=4)
    with pytest.raises(ValueError, match="0 ≤ rewind < steps; they are -1 and 4"):
        run(rewind=-1)
    with pytest.raises(ValueError, match="keeps none of the prunable weights"):
        run(density=0.001)
    with pytest.raises(ValueError, match="pass a `key`, and no `rewind`"):
        run(reinitialize=lambda key: initial())
    with pytest.raises(ValueError, match="pass a `key`, and no `rewind`"):
        run(reinitialize=lambda key: initial(), key=jax.random.key(0), rewind=1)


@pytest.mark.parametrize("rewind", (0, 2))
def test_other_trees_are_refused(rewind):
    def forgetful(params, mask, start, stop, key):
        return {"first": params["first"]}

    with pytest.raises(ValueError, match=r"`train` must be .* `train` has no leaf at \['bias'\]"):
        pruning.lottery_ticket(forgetful, initial(), steps=4, density=0.5, rewind=rewind)
    with pytest.raises(ValueError, match=r"`reinitialize` at \['first'\] has shape \(9, 4\)"):
        pruning.lottery_ticket(
            Recorder(),
            initial(),
            steps=4,
            density=0.5,
            key=jax.random.key(0),
            reinitialize=lambda key: initial() | {"first": jnp.ones((9, 4))},
        )


def test_trained_weights_that_are_not_finite_name_the_leaf_and_the_level():
    def diverging(params, mask, start, stop, key):
        return params | {"second": jnp.where(mask["first"].all(), params["second"], jnp.nan)}

    with pytest.raises(ValueError, match=r"In level 2 of 4, of the trained weights: .* those at \['second'\]"):
        pruning.lottery_ticket(diverging, initial(), steps=4, density=0.5)
