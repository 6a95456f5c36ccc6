"""What a study takes: from finished networks within the time that they show, and without compiling anything."""

import dataclasses

import jax
import pytest

from experiments import cost_estimate, study
from experiments.base.shards import Shard
from experiments.data.loading import DATASETS, load
from experiments.networks import by_name
from experiments.records.trial import Trial
from experiments.setting import settings_of
from experiments.sweep import Group

SECONDS = {"random": 1.0, "snip": 2.0, "synflow": 3.0}
CURVES, COMPILING, SCORE = 0.5, 60.0, 1.5


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(
        'data = ["digits"]\nmethod = ["random", "snip", "synflow"]\ndensity = [0.5, 0.2, 0.1]\nseeds = 3\n'
        '[[model]]\nname = "fc"\nnetwork = "lenet_300_100"\n[measure]\ncurve_density = [0.2]\n'
    )
    return study.read(str(path), datasets=tuple(DATASETS))[1]


def names(small):
    return Group("digits", small.model[0], tuple(small.cells)).names(range(small.seeds))


def true_seconds(small, name):
    """What a network takes, where the first cell compiles everything and the first of each method its score."""
    _, _, method, density, _ = name
    steady = SECONDS.get(method, 0.8) + CURVES * (density == 0.2 or method == "dense")
    first = {"dense": COMPILING / small.seeds}.get(method, SCORE / small.seeds * (density == 0.5))
    return steady + first, steady


def taken(small, finished):
    return [Trial.partial(name, made={"seconds": true_seconds(small, name)[0]}) for name in finished]


@pytest.mark.parametrize("cells", [4, 6, 7, 9])
def test_what_is_left_is_estimated_within_a_half_from_finished_networks(small, digits, cells):
    guessed = cost_estimate.guess(small, small.model[0], digits)
    done, left = names(small)[: 3 * cells], names(small)[3 * cells :]
    estimate = cost_estimate.cost(small, guessed, left, taken(small, done))
    real = sum(true_seconds(small, name)[1] for name in left)
    assert real / 1.5 < estimate.networks < 1.5 * real
    assert estimate.finished == 3 * cells


def test_in_a_part_of_a_study_the_cell_that_ended_first_has_compiled_everything(small, digits):
    guessed = cost_estimate.guess(small, small.model[0], digits)
    part = list(settings_of(small, Shard(2, 2)))
    done, left = part[:6], part[6:]  # random at 0.5, then synflow at 0.5
    assert [name[2] for name in done[::3]] == ["random", "synflow"]
    seconds = [SECONDS["random"] + COMPILING / small.seeds] * 3 + [SECONDS["synflow"] + SCORE / small.seeds] * 3
    trials = [
        Trial.partial(name, made={"seconds": each, "finished": f"2026-01-01T00:00:{number:02}"})
        for number, (name, each) in enumerate(zip(done, seconds, strict=True))
    ]
    estimate = cost_estimate.cost(small, guessed, left, trials)
    real = sum(SECONDS[name[2]] + CURVES * (name[3] == 0.2) for name in left)
    assert real / 2 < estimate.networks < 2 * real


def test_each_level_of_lottery_tickets_is_counted_once_for_a_seed(small, digits):
    methods = ("random", "magnitude", "lottery_ticket", "lottery_ticket+shuffled")
    tickets = dataclasses.replace(small, method=methods, measure=study.Measures())
    guessed = cost_estimate.guess(tickets, tickets.model[0], digits)
    names = Group("digits", tickets.model[0], tuple(tickets.cells)).names(range(3))
    plain = guessed.networks["random", 0.1]
    assert 0.5 * plain < guessed.level < plain == pytest.approx(guessed.networks["lottery_ticket", 0.1], rel=0.01)

    def trainings(left):
        table = cost_estimate.plan(tickets, {"digits": digits}, names, kept=set(names) - set(left))
        return int(str(list(table.columns[5].cells)[0]))

    def seconds(left, factor=1.0):
        """The cost of what is left, after networks that took a factor of what was guessed."""
        finished = [
            Trial.partial(name, made={"seconds": factor * guessed.networks[name[2:4]]})
            for name in names
            if name not in left
        ]
        return cost_estimate.cost(tickets, guessed, left, finished).networks

    # 0.8⁴ < 0.5, 0.8⁸ < 0.2, 0.8¹¹ < 0.1
    assert trainings(names) == 3 * (1 + 4 * 3 + 11)
    assert seconds(names) == pytest.approx(39 * plain + 3 * 11 * guessed.level, rel=0.01)
    lowest = [name for name in names if "lottery_ticket" in name[2] and name[3] == 0.1 and name[4] > 0]
    first = [name for name in names if "lottery_ticket" in name[2] and name[4] == 0]
    between = [name for name in names if name[2:] == ("lottery_ticket", 0.2, 0)]
    for left, of_levels in ((lowest, 2 * (11 - 8)), (first, 11), (between, 1)):
        assert trainings(left) == len(left) + of_levels
        assert seconds(left, factor=2.0) == pytest.approx(2 * (len(left) * plain + of_levels * guessed.level), rel=0.05)


def test_failed_networks_and_records_without_seconds_say_nothing(small, digits):
    guessed = cost_estimate.guess(small, small.model[0], digits)
    trials = taken(small, names(small)[:9])
    silent = [dataclasses.replace(trial, reason="no memory") for trial in trials[:6]]
    silent += [dataclasses.replace(trial, made={}) for trial in trials[6:]]
    assert [cost_estimate.seconds_of(trial) for trial in silent] == [None] * 9
    assert cost_estimate.cost(small, guessed, names(small), silent).finished == 0


def test_loss_curves_and_expected_gates_cost_something(small, digits):
    def total(**measure):
        changed = dataclasses.replace(small, measure=dataclasses.replace(small.measure, **measure))
        guessed = cost_estimate.guess(changed, changed.model[0], digits)
        return cost_estimate.cost(changed, guessed, names(changed), []).networks

    assert total(curve_density=()) < total() < total(expected=True)
    assert total() < total(curve_density=(0.5, 0.2, 0.1)) < total(curve_density=(0.5, 0.2, 0.1), curve_steps=5000)


def test_a_study_is_listed_without_compiling_anything(small, digits):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    other = dataclasses.replace(small, model=(study.Model("fc", "lenet_300_100", factor=0.37),))
    before = len(compiled)
    table = cost_estimate.plan(other, {"digits": digits}, list(settings_of(other)), kept=set())
    assert len(compiled) == before and list(table.columns[-1].cells)[0] == "sizes, a rough guess"
    jax.jit(lambda x: x * 1.2345)(1.0)
    assert len(compiled) > before  # the listener does hear of compilations


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("lenet_300_100", (28, 28, 1), 784 * 300 + 300 * 100 + 100 * 10),
        ("lenet_5", (28, 28, 1), 24**2 * 25 * 20 + 8**2 * 25 * 20 * 50 + 800 * 500 + 500 * 10),
    ],
)
def test_multiply_adds_are_those_counted_by_hand(name, shape, expected):
    network = by_name.NETWORKS[name](shape, 10)
    like = jax.eval_shape(network.init, jax.random.key(0))
    assert cost_estimate.multiply_adds(network, shape, *like) == expected
