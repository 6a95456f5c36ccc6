"""What trainings start from: the masks of all methods and variants, against computations past the experiments."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import study
from experiments.base.batching import in_batches
from experiments.base.names import LOTTERY_TICKET, METHODS
from experiments.base.seeds import key_of
from experiments.data.loading import Dataset
from experiments.measure.pruning import METHODS as SCORED
from experiments.models import network_of
from experiments.starts import Starts
from experiments.train import tickets, training
from experiments.train.recipe import Recipe
from pathjax import masks, pruning, scores

ROUNDS, DENSITY, SEEDS = 3, 0.5, (0, 1)
RECIPE = Recipe(epochs=3, batch_size=10, learning_rate=0.1, schedule="step", weight_decay=1e-2)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(42, 4, 2, 1)).astype(np.float32)
LABELS = np.arange(42, dtype=np.int32) % 3
DATASET = Dataset("made_up", 3, IMAGES, LABELS, IMAGES[:6], LABELS[:6])
MODEL = study.Model("small", "lenet_300_100", factor=0.026, batch_norm=True, depth=1)
STUDY = study.Study(
    data=("made_up",),
    model=(MODEL,),
    method=METHODS,
    density=(0.5, 0.3),
    seeds=2,
    train=RECIPE,
    measure=study.Measures(rounds=ROUNDS, score_per_class=2, score_inputs=20),
)
NETWORK = network_of(MODEL, (4, 2, 1), 3)
_, STATE = NETWORK.init(jax.random.key(0))
ARRAYS = jnp.asarray(IMAGES), jnp.asarray(LABELS)
TRAINED = training.trainer(NETWORK, ARRAYS, (ARRAYS[0][:6], ARRAYS[1][:6]), RECIPE)


def starts_of(one=STUDY, trained=TRAINED, folder=None, **measure):
    """What the networks of a study start from, one network at a time, as on CPUs."""
    one = dataclasses.replace(one, measure=dataclasses.replace(one.measure, **measure))

    def batched(function):
        return lambda *networks, **options: in_batches(lambda *each: function(*each, **options), 1)(*networks)

    return Starts(one, MODEL, DATASET, batched(trained), batched, folder)


def start_of(method, density=DENSITY, seeds=SEEDS, starts=None, **measure):
    starts = starts or starts_of(**measure)
    starts.search((method, density), seeds, lambda *_: None)
    return starts.of((method, density), seeds)


def drawn(seed):
    return NETWORK.init(key_of(seed, "init"))[0]


def labelled(*numbers):
    """Batches of two images of each class, in the order of the classes."""
    places = [
        np.concatenate([np.flatnonzero(np.equal(LABELS, c))[2 * n : 2 * n + 2] for c in range(3)]) for n in numbers
    ]
    return [(jnp.asarray(IMAGES[place]), jnp.asarray(LABELS[place])) for place in places]


def evaluated(params, x):
    return NETWORK.apply(params, STATE, x)


def in_training(params, x):
    return NETWORK.train(params, STATE, x)


FIRST, INPUTS = jnp.asarray(IMAGES[:1]), jnp.asarray(IMAGES[:20])
KERNELS: dict[str, Any] = {"prunable": masks.is_kernel}
AS_AUTHORS: dict[str, Any] = {"has_aux": True}
DIRECT = {
    "random": lambda params, key: scores.random(params, key=key),
    "magnitude": lambda params, key: scores.magnitude(params),
    "snip": lambda params, key: scores.snip(in_training, params, labelled(0), **AS_AUTHORS),
    "snip_iterative": lambda params, key: scores.snip(in_training, params, labelled(0), **AS_AUTHORS),
    "grasp": lambda params, key: scores.grasp(in_training, params, labelled(0), **KERNELS, **AS_AUTHORS),
    "prospr": lambda params, key: scores.prospr(in_training, params, labelled(0, 1, 2, 3), **KERNELS, **AS_AUTHORS),
    "synflow": lambda params, key: scores.synflow(evaluated, params, FIRST),
    "synflow_l2": lambda params, key: scores.synflow_l2(evaluated, params, FIRST),
    "synflow_l2_absolute": lambda params, key: scores.synflow_l2(evaluated, params, FIRST, factor="absolute"),
    "synflow_data": lambda params, key: scores.synflow_data(evaluated, params, INPUTS),
    "synflow_data_l2": lambda params, key: scores.synflow_data(evaluated, params, INPUTS, q=2),
    "path_kernel_trace": lambda params, key: scores.path_kernel_trace(evaluated, params, FIRST, **KERNELS),
    "mean_field_trace": lambda params, key: scores.mean_field_trace(evaluated, params, FIRST, **KERNELS),
    "px": lambda params, key: scores.px(evaluated, params, labelled(0)[0][0], **KERNELS),
    "ntk_sap": lambda params, key: scores.ntk_sap(
        in_training,
        params,
        labelled(0)[0][0],
        init=lambda key: NETWORK.init(key)[0],
        key=key,
        **KERNELS,
        **AS_AUTHORS,
    ),
}
IN_TRAINING_MODE = ("snip", "snip_iterative", "grasp", "prospr", "ntk_sap")
ONE_ROUND = ("random", "magnitude", "snip", "grasp", "prospr")


def expected_mask(method, seed, *, density=DENSITY, sign=1.0):
    """The mask by a plain loop over rounds; `sign` −1 keeps the smallest scores."""
    params, key = drawn(seed), key_of(seed, method, density)
    rounds = 1 if method in ONE_ROUND else ROUNDS
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    for number in range(1, rounds + 1):
        score = DIRECT[method](masks.apply_mask(mask, params), jax.random.fold_in(key, number))
        counts = masks.kept_counts(params, density=density ** (number / rounds))
        mask = masks.keep_largest(jax.tree.map(lambda leaf: sign * leaf, score), counts, within=mask)
    return mask


def assert_equal(stacked, singles):
    """A tree of networks on a leading axis has these networks."""
    for place, single in enumerate(singles):
        jax.tree.map(lambda leaf, own, at=place: np.testing.assert_array_equal(leaf[at], own), stacked, single)


def differ(one, other):
    return any(not np.array_equal(*pair) for pair in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.fixture(scope="module")
def starts():
    return starts_of()


def test_every_method_that_scores_has_a_direct_computation():
    assert set(DIRECT) == set(SCORED) == set(METHODS) - {LOTTERY_TICKET}
    assert {name for name, method in SCORED.items() if method.in_training_mode} == set(IN_TRAINING_MODE)
    assert {name for name, method in SCORED.items() if not method.iterative} == set(ONE_ROUND)


@pytest.mark.parametrize("method", DIRECT)
def test_masks_are_those_of_a_plain_loop_over_public_scores(method, starts):
    found = start_of(method, starts=starts)
    assert_equal(found.mask, [expected_mask(method, seed) for seed in SEEDS])
    assert_equal(found.params, [drawn(seed) for seed in SEEDS])
    assert found.epoch == 0 and found.losses.shape == (2, 0)


@pytest.mark.parametrize("method", ["random", "grasp", "synflow"])
def test_inverted_scores_are_inverted_in_every_round(method, starts):
    found = start_of(f"{method}+inverted", starts=starts)
    assert_equal(found.mask, [expected_mask(method, seed, sign=-1.0) for seed in SEEDS])


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_scores_in_training_mode_differ_from_those_in_evaluation_mode(method, starts, monkeypatch):
    found = start_of(method, training_mode_scores=False)
    assert differ(start_of(method, starts=starts).mask, found.mask)
    monkeypatch.setitem(globals(), "in_training", evaluated)
    monkeypatch.setitem(globals(), "AS_AUTHORS", {})
    assert_equal(found.mask, [expected_mask(method, seed) for seed in SEEDS])


@pytest.mark.parametrize("method", ["snip", "synflow", LOTTERY_TICKET])
def test_shuffled_masks_keep_as_many_weights_of_each_layer(method, starts):
    plain, shuffled = start_of(method, starts=starts), start_of(f"{method}+shuffled", starts=starts)
    for seed in SEEDS:
        counts = [
            [layer.kept for layer in masks.statistics(jax.tree.map(lambda leaf, at=seed: leaf[at], each.mask))]
            for each in (plain, shuffled)
        ]
        assert counts[0] == counts[1]
    assert differ(plain.mask, shuffled.mask) and not differ(plain.params, shuffled.params)
    assert_equal(
        shuffled.mask,
        [
            masks.shuffle(
                jax.tree.map(lambda leaf, at=seed: leaf[at], plain.mask), key=key_of(seed, f"{method}+shuffled", 0.5)
            )
            for seed in SEEDS
        ],
    )


@pytest.mark.parametrize("method", ["random", "snip", LOTTERY_TICKET])
def test_other_weights_are_trained_under_the_same_mask(method, starts):
    plain, other = start_of(method, starts=starts), start_of(f"{method}+reinitialized", starts=starts)
    assert not differ(plain.mask, other.mask)
    assert_equal(other.params, [NETWORK.init(key_of(seed, f"{method}+reinitialized", DENSITY))[0] for seed in SEEDS])
    for seed in SEEDS:
        assert not np.any(other.params["hidden_0"]["kernel"][seed] == drawn(seed)["hidden_0"]["kernel"])


def test_what_a_seed_starts_from_depends_on_nothing_else_in_the_study(starts):
    methods = ("random+shuffled", "snip+reinitialized", "lottery_ticket+shuffled")
    alone = starts_of(dataclasses.replace(STUDY, method=methods, density=(DENSITY,)))
    for method in methods:
        start_of(method, 0.3, starts=starts)
        among = start_of(method, starts=starts)
        one = start_of(method, seeds=(1,), starts=alone)
        assert not differ(one.network, jax.tree.map(lambda leaf: leaf[1:], among.network))


@pytest.mark.parametrize("method", ["random", "snip", "synflow"])
def test_two_of_four_are_chosen_by_the_scores_of_the_unpruned_network(method, starts):
    found = start_of(f"{method}+2of4", starts=starts)
    for seed in SEEDS:
        score = DIRECT[method](drawn(seed), jax.random.fold_in(key_of(seed, method, 0.5), 1))
        for name, layer in score.items():
            if "kernel" in layer:
                kept = np.asarray(found.mask[name]["kernel"][seed]).reshape(-1, 4, layer["kernel"].shape[1])
                groups = np.asarray(layer["kernel"]).reshape(kept.shape)
                order = np.argsort(-groups, axis=1, kind="stable")
                expected = np.zeros_like(kept)
                np.put_along_axis(expected, order[:, :2], True, axis=1)
                np.testing.assert_array_equal(kept, expected)


# lottery tickets


@jax.jit
def slope(params, state, x, y):
    def loss(params):
        outputs, after = NETWORK.train(params, state, x)
        return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(len(y)), y]), after

    return jax.grad(loss, has_aux=True)(params)


def trained_by_hand(params, state, mask, start, stop, key):
    """Epochs of SGD with momentum, written out; `start` and `stop` are epochs."""
    steps = len(LABELS) // RECIPE.batch_size
    total = RECIPE.epochs * steps
    speed = jax.tree.map(jnp.zeros_like, params)

    for epoch in range(start, stop):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(LABELS))
        for number in range(steps):
            chosen = np.asarray(order[number * RECIPE.batch_size : (number + 1) * RECIPE.batch_size])
            gradient, state = slope(params, state, jnp.asarray(IMAGES[chosen]), jnp.asarray(LABELS[chosen]))
            step = epoch * steps + number
            rate = RECIPE.learning_rate * 0.1 ** sum(step >= round(share * total) for share in (0.5, 0.75))
            decayed = jax.tree_util.tree_map_with_path(
                lambda path, slope, leaf: slope + RECIPE.weight_decay * leaf * masks.is_kernel(path, leaf),
                gradient,
                params,
            )
            speed = jax.tree.map(lambda old, new: RECIPE.momentum * old + new, speed, decayed)
            params = masks.apply_mask(mask, jax.tree.map(lambda leaf, by, rate=rate: leaf - rate * by, params, speed))
    return params, state


@pytest.mark.parametrize("rewind", [0, 1])
def test_tickets_are_those_of_a_plain_loop(rewind):
    starts = starts_of(rewind_epochs=rewind)
    for density in STUDY.density:
        found = start_of(LOTTERY_TICKET, density, starts=starts)
        assert found.epoch == rewind and found.losses.shape == (2, rewind)
        for seed in SEEDS:
            params, state = NETWORK.init(key_of(seed, "init"))
            ticket = pruning.lottery_ticket(
                trained_by_hand,
                params,
                state=state,
                steps=RECIPE.epochs,
                density=density,
                rewind=rewind,
                key=key_of(seed, LOTTERY_TICKET),
            )
            of_seed = jax.tree.map(lambda leaf, at=seed: leaf[at], found.network)
            jax.tree.map(np.testing.assert_array_equal, of_seed[2], ticket.mask)
            for ours, theirs in zip(of_seed[:2], (ticket.params, ticket.state), strict=True):
                kept = masks.apply_mask(ticket.mask, ours) if theirs is ticket.params else ours
                jax.tree.map(
                    lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), kept, theirs
                )
    assert bool(rewind) == differ(found.params, jax.tree.map(lambda *leaves: np.stack(leaves), *map(drawn, SEEDS)))


def counting(calls):
    """The trainer, which remembers the epochs of each call."""

    def trained(*networks, start=0, stop=RECIPE.epochs, **options):
        calls.append((start, stop))
        return TRAINED(*networks, start=start, stop=stop, **options)

    return trained


def test_densities_share_their_levels_and_each_is_trained_once():
    calls: list[tuple[int, int]] = []
    starts = starts_of(trained=counting(calls), rewind_epochs=1)
    low = start_of(LOTTERY_TICKET, 0.3, seeds=(1,), starts=starts)
    assert calls == [(0, 1)] + [(1, 3)] * 6 and tickets.levels(0.3) == 6
    high = start_of(LOTTERY_TICKET, 0.5, seeds=(1,), starts=starts)
    shuffled = start_of("lottery_ticket+shuffled", 0.3, seeds=(1,), starts=starts)
    assert len(calls) == 7 and differ(low.mask, shuffled.mask)
    start_of(LOTTERY_TICKET, 0.5, seeds=(0, 1), starts=starts)
    assert len(calls) == 7 + 1 + tickets.levels(0.5)
    # in the other order, and with no other density in the study
    again = starts_of(rewind_epochs=1)
    assert not differ(start_of(LOTTERY_TICKET, 0.5, seeds=(1,), starts=again).mask, high.mask)
    assert not differ(start_of(LOTTERY_TICKET, 0.3, seeds=(1,), starts=again).mask, low.mask)
    alone = starts_of(dataclasses.replace(STUDY, density=(0.5,)), rewind_epochs=1)
    assert not differ(start_of(LOTTERY_TICKET, 0.5, seeds=(1,), starts=alone).mask, high.mask)


class _Killed(Exception):
    pass


def test_a_search_that_is_cut_off_goes_on_behind_its_last_level(tmp_path):
    expected = start_of(LOTTERY_TICKET, 0.3)
    calls: list[tuple[int, int]] = []

    def killed(*networks, **options):
        if len(calls) == 5:
            raise _Killed
        return counting(calls)(*networks, **options)

    with pytest.raises(_Killed):
        start_of(LOTTERY_TICKET, 0.3, seeds=(1,), starts=starts_of(trained=killed, folder=tmp_path))
    calls.clear()
    found = start_of(LOTTERY_TICKET, 0.3, starts=starts_of(trained=counting(calls), folder=tmp_path))
    assert not differ(found.network, expected.network) and len(calls) == 6 + 1
    # all is there, and a lower density goes on from it
    calls.clear()
    again = starts_of(trained=counting(calls), folder=tmp_path)
    assert not differ(start_of(LOTTERY_TICKET, 0.3, starts=again).network, expected.network) and calls == []
    lower = dataclasses.replace(STUDY, density=(0.5, 0.3, 0.25))
    more = start_of(LOTTERY_TICKET, 0.25, seeds=(1,), starts=starts_of(lower, counting(calls), tmp_path))
    assert len(calls) == 2  # level 6 again, which had only been pruned to 0.3, and level 7
    assert not differ(more.mask, start_of(LOTTERY_TICKET, 0.25, seeds=(1,), starts=starts_of(lower)).mask)


def test_a_density_between_takes_the_one_level_that_ends_there(tmp_path):
    calls: list[tuple[int, int]] = []
    low = dataclasses.replace(STUDY, density=(0.3,))
    start_of(LOTTERY_TICKET, 0.3, seeds=(1,), starts=starts_of(low, folder=tmp_path))
    found = start_of(LOTTERY_TICKET, 0.5, seeds=(1,), starts=starts_of(trained=counting(calls), folder=tmp_path))
    assert len(calls) == 1
    assert not differ(found.mask, start_of(LOTTERY_TICKET, 0.5, seeds=(1,)).mask)


@pytest.mark.parametrize("changed", ["recipe", "rewinding", "broken"])
def test_levels_of_another_search_are_not_gone_on_from(tmp_path, changed):
    calls: list[tuple[int, int]] = []
    start_of(LOTTERY_TICKET, 0.5, seeds=(1,), starts=starts_of(folder=tmp_path))
    files = sorted(tmp_path.rglob("*.npz"))
    assert [file.name for file in files] == ["density-0.5.npz", *(f"level-{level}.npz" for level in range(1, 5))]
    other = dataclasses.replace(STUDY, train=dataclasses.replace(RECIPE, learning_rate=0.2))
    if changed == "broken":
        for file in files:
            file.write_bytes(file.read_bytes()[:-20])
    starts = starts_of(
        other if changed == "recipe" else STUDY,
        counting(calls),
        tmp_path,
        rewind_epochs=1 if changed == "rewinding" else 0,
    )
    start_of(LOTTERY_TICKET, 0.5, seeds=(1,), starts=starts)
    assert len(calls) == 4 + (changed == "rewinding")


def test_tickets_of_several_seeds_side_by_side_are_those_one_by_one():
    together = Starts(STUDY, MODEL, DATASET, TRAINED, lambda function: function)
    assert not differ(start_of(LOTTERY_TICKET, 0.3, starts=together).mask, start_of(LOTTERY_TICKET, 0.3).mask)


def test_a_level_whose_weights_are_not_finite_is_named():
    def broken(params, *rest, **options):
        trained = TRAINED(params, *rest, **options)
        return trained._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, trained.params))

    with pytest.raises(ValueError, match="In level 1 of the lottery ticket: .* NaN"):
        start_of(LOTTERY_TICKET, 0.3, starts=starts_of(trained=broken))
