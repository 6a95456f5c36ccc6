"""What a study would compute, and about how long that takes: from its finished networks, or guessed from its sizes.

Nothing is compiled or run, so that a study is listed in the time that the imports take.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from experiments.base import variants
from experiments.base.names import BATCHES, DENSE, LOTTERY_TICKET
from experiments.base.seeds import key_of
from experiments.base.wording import counted
from experiments.data.loading import Dataset
from experiments.measure.pruning import METHODS
from experiments.models import network_of
from experiments.networks.layers import Network, State
from experiments.records.trial import Name, Trial
from experiments.setting import has_curves
from experiments.study import Cell, Model, Study
from experiments.train.tickets import levels
from experiments.workbench import LOSS_IMAGES
from pathjax.types import Params

__all__ = ["Cost", "Guess", "cost", "guess", "multiply_adds", "plan", "seconds_of"]

# The constants are CPU seconds of one core of a server, from the parts of cells of LeNet-300-100 on digits and of
# LeNet-5 on CIFAR-10. Another machine may be several times faster or slower; networks finished on it say how much.

_MULTIPLY_ADDS = 7e9
"""Multiply-adds in a second of training."""

_COMPILING, _COMPILING_A_LAYER = 12.0, 8.0
"""Seconds to compile all programs of a network: once, and for each kernel."""

_COMPILING_A_SCORE = 0.7
"""Seconds to compile the score of one method."""

_QUANTITIES, _QUANTITIES_A_MULTIPLY_ADD = 0.3, 2.3e-6
"""Seconds for the quantities before training: of any network, and for each multiply-add of an image."""

_CURVES, _CURVES_A_MULTIPLY_ADD_AND_RANK = 0.2, 2e-7
"""Seconds for the loss curves and their predictions: of any network; and for the part of Θ of rank r, which takes most
of the time, for each multiply-add of an image and each of the r modes."""

_EXPECTED = 0.1
"""Seconds for the predictions from expected gates."""

_ROUND = 2e-3
"""Seconds of a round of pruning beside its multiply-adds."""

_PASSES = 3
"""A pass forward and backward takes as many multiply-adds as this many forward passes."""


class Guess(NamedTuple):
    """Seconds guessed from sizes: to compile the programs of a network, and of one network by its cell.

    `level` is one level of a lottery ticket, which the networks are without.
    """

    compiling: float
    networks: dict[Cell, float]
    level: float


class Cost(NamedTuple):
    """Estimated seconds to compile the programs of a network, and to compute all networks that are left.

    `finished` is the number of networks that these come from; 0 where they are guessed from sizes.
    """

    compiling: float
    networks: float
    finished: int


def plan(
    study: Study,
    datasets: Mapping[str, Dataset],
    wanted: Collection[Name],
    kept: Collection[Name],
    finished: Iterable[Trial] = (),
) -> Table:
    """A table of what would run of the `wanted` trials, and about how many minutes it takes.

    `finished` trials say it best. Trainings are those of the networks that are left, and of the levels of their lottery
    tickets.
    """
    sizes, minutes = ("cells", "networks", "kept", "trainings"), ("compiling", "computing", "all")
    columns = ("data", "model", *sizes, *minutes, "estimated from")
    table = Table(*columns, title="What would run, and about how many minutes it takes one process")
    finished = list(finished)
    in_all = [0.0, 0.0]
    for name, model in itertools.product(study.data, study.model):
        names = [trial for trial in wanted if trial[:2] == (name, model.name)]
        if not names:
            continue
        left = [trial for trial in names if trial not in kept]
        each = Cost(0.0, 0.0, 0)
        if left:
            own = [trial for trial in finished if (trial.data, trial.model) == (name, model.name)]
            each = cost(study, guess(study, model, datasets[name]), left, own)
        in_all = [total + more for total, more in zip(in_all, each[:2], strict=True)]
        source = counted(each.finished, "network") if each.finished else "sizes, a rough guess"
        trainings = len(left) + _levels_left(left, kept)
        counts = (len({trial[2:4] for trial in names}), len(names), len(names) - len(left), trainings)
        table.add_row(name, model.name, *map(str, counts), *_minutes(each[:2]), source if left else "")
    table.add_section()
    table.add_row("all", "", "", "", "", "", *_minutes(in_all), "")
    return table


def seconds_of(trial: Trial) -> float | None:
    """Seconds that a finished trial took, where its record says so."""
    seconds = getattr(trial, "made", {}).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and seconds > 0 and not trial.reason else None


def cost(study: Study, guessed: Guess, left: Sequence[Name], finished: Sequence[Trial]) -> Cost:
    """The cost of the networks that are left of one data set and model, from those of it that are finished.

    A network costs what the finished ones of its method cost, with loss curves or without them as it is. Of a method of
    which none is finished it costs what was guessed, times the median factor by which the others were guessed wrong.
    The levels of lottery tickets are counted apart.
    """
    steady, count = _steady(study, guessed, finished)
    # of two the lower one: what is left of compilation in them only adds
    factors = sorted(seconds / guessed_seconds for seconds, guessed_seconds in steady.values())
    off = factors[(len(factors) - 1) // 2] if factors else 1.0

    total = off * guessed.level * _levels_left(left, [trial.name for trial in finished])
    for _, _, method, density, _ in left:
        own = None if _is_ticket(method) else steady.get((method, has_curves(study, (method, density))))
        total += own[0] if own else off * guessed.networks[method, density]
    return Cost(off * guessed.compiling, total, count)


def _steady(
    study: Study, guessed: Guess, finished: Sequence[Trial]
) -> tuple[dict[tuple[str, bool], tuple[float, float]], int]:
    """Seconds of a network once all is compiled, measured and guessed, by its method and whether it has curves.

    And of how many networks. The cells that ran first include compilation: where a method has several cells, the
    slowest of them does not count; of one cell, the compilation is taken off in the proportion of the guesses. Lottery
    tickets are left out, since how many levels a finished one has trained is not known.
    """
    by_cell: dict[Cell, list[float]] = {}
    for trial in finished:
        cell = trial.method, trial.density
        if (seconds := seconds_of(trial)) is not None and cell in guessed.networks:
            by_cell.setdefault(cell, []).append(seconds)
    ended = [(trial.made["finished"], (trial.method, trial.density)) for trial in finished if "finished" in trial.made]
    first = min(ended)[1] if ended else (DENSE, 1.0)
    kinds: dict[tuple[str, bool], list[Cell]] = {}
    for cell in by_cell:
        if _is_ticket(cell[0]):
            continue
        kinds.setdefault((cell[0], has_curves(study, cell)), []).append(cell)
    steady = {}
    for kind, cells in kinds.items():
        means = sorted(float(np.mean(by_cell[cell])) for cell in cells)
        expected = float(np.mean([guessed.networks[cell] for cell in cells]))
        if len(means) > 1:
            steady[kind] = float(np.median(means[:-1])), expected
            continue
        compiling = guessed.compiling if cells[0] == first else _COMPILING_A_SCORE
        steady[kind] = means[0] * expected / (expected + compiling / len(by_cell[cells[0]])), expected
    return steady, sum(map(len, by_cell.values()))


def guess(study: Study, model: Model, dataset: Dataset) -> Guess:
    """What the networks of one data set and model would cost, from the sizes of the network and of its data."""
    dataset = dataset.first(study.train_images, study.test_images)
    shape, measure = dataset.train_images.shape[1:], study.measure
    network = network_of(model, shape, dataset.classes)
    params, state = jax.eval_shape(network.init, key_of(0))
    each = multiply_adds(network, shape, params, state)
    forward = each / _MULTIPLY_ADDS
    count = len(dataset.train_labels)
    evaluated = (study.train.epochs + 1) * min(LOSS_IMAGES, count) + len(dataset.test_labels)
    training = forward * (_PASSES * study.train.epochs * count + evaluated)
    kernel = forward * _PASSES * measure.ntk_images * dataset.classes
    quantities = _QUANTITIES + _QUANTITIES_A_MULTIPLY_ADD * each + kernel * (3 if measure.changes else 1)
    descent = forward * _PASSES * measure.curve_steps * measure.ntk_images
    curves = _CURVES + _CURVES_A_MULTIPLY_ADD_AND_RANK * measure.rank * each + kernel + descent
    curves += _EXPECTED if measure.expected else 0.0

    level = forward * _PASSES * (study.train.epochs - measure.rewind_epochs) * count

    def of(cell: Cell) -> float:
        has_score = cell[0] != DENSE and not _is_ticket(cell[0])
        scored = _scoring(study, cell[0], forward, count, dataset.classes) if has_score else 0.0
        return training + quantities + scored + (curves if has_curves(study, cell) else 0.0)

    layers = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(params))
    compiling = _COMPILING + _COMPILING_A_LAYER * layers + _COMPILING_A_SCORE * len(study.method)
    return Guess(compiling, {cell: of(cell) for cell in study.cells}, level)


def _is_ticket(method: str) -> bool:
    return variants.parts(method)[0] == LOTTERY_TICKET


def _levels_left(left: Iterable[Name], kept: Iterable[Name]) -> int:
    """The levels that are trained for the lottery tickets among the trials that are left of one data set and model.

    Those that a seed has trained for the trials that are kept count no more. A ticket in between takes one level.
    """
    needed: dict[int, set[int]] = {}
    for _, _, method, density, seed in left:
        if _is_ticket(method):
            needed.setdefault(seed, set()).add(levels(density))
    trained = dict.fromkeys(needed, 0)
    for _, _, method, density, seed in kept:
        if _is_ticket(method) and seed in trained:
            trained[seed] = max(levels(density), trained[seed])
    return sum(
        max(of_seed) - trained[seed] if max(of_seed) > trained[seed] else len(of_seed)
        for seed, of_seed in needed.items()
    )


def _scoring(study: Study, method: str, forward: float, count: int, classes: int) -> float:
    """Seconds to prune one network."""
    read = {"synflow_data": study.measure.score_inputs or count, "synflow_data_l2": study.measure.score_inputs or count}
    read |= {name: batches * study.measure.score_per_class * classes for name, batches in BATCHES.items()}
    base, variant = variants.parts(method)
    rounds = study.measure.rounds if METHODS[base].iterative and variant != variants.TWO_OF_FOUR else 1
    return rounds * (_ROUND + _PASSES * forward * read.get(base, 1))


def multiply_adds(network: Network, shape: tuple[int, ...], params: Params, state: State) -> int:
    """How many multiplications of a weight and an activation one image takes, from the traced network.

    Of the weights and the state only the shapes are read.
    """
    traced = jax.make_jaxpr(network.apply)(params, state, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return _in_equations(traced.jaxpr)


def _in_equations(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        total += sum(_in_equations(getattr(inner, "jaxpr", inner)) for inner in _inner(equation.params.values()))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * int(np.prod([left[axis] for axis in contracted], dtype=int))
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            written = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += equation.outvars[0].aval.size * kernel.size // written
    return total


def _inner(values: Iterable[Any]) -> list[Any]:
    """The programs among the options of an equation."""
    return [value for value in values if hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")]


def _minutes(seconds: Iterable[float]) -> list[str]:
    each = list(seconds)
    return [f"{value / 60:.1f}" for value in (*each, sum(each))]
