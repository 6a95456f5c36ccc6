"""Section: how far the fall of the loss can be predicted before training, with less and less data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.base.wording import enumerated, factor
from experiments.evidence import plots
from experiments.evidence.cells import Cells, in_order
from experiments.evidence.claims import Claim, Unit
from experiments.evidence.kept import Kept
from experiments.evidence.sections import Missing, Section, described, footer, link, not_kept, picture, table_of
from experiments.evidence.statistics import (
    Interval,
    Resampled,
    corrected,
    mean_of_groups,
    percentile_interval,
    rank_associations,
    weighted_medians,
)
from experiments.records.trial_summaries import TOPS
from experiments.report.ticks import log_axis

__all__ = ["RUNGS", "section"]

RUNGS = {
    "data_free": ("Π alone", "no data"),
    "no_data": ("expected gates", "no data"),
    "moments": ("expected gates", "mean and covariance of the images"),
    "inputs": ("expected gates", "the images"),
    "low_rank": ("part of Θ in the leading modes of Π", "the images"),
    "linearized": ("Θ", "the images"),
}
"""The predictions with what each reads of the data, from the least to the most."""

_STUDY = "ladder"
_TITLE = "Can convergence be predicted without data?"
_QUESTION = (
    "The paper says that the Path Kernel predicts how fast a network converges from its architecture and weights "
    "alone. How far is that prediction off, and what has to be known besides?"
)
_CLOSE = 0.3
"""Decades, a factor of two, within which a prediction counts as right."""
_MANY = 10
"""Methods from which on a bootstrap of them has intervals that contain the truth about as often as they say."""
_DECADES, _RHO = Unit(form=".2f", word="decades"), Unit(form="+.2f")
_SHORT = {
    "data_free": "Π alone",
    "no_data": "gates, no data",
    "moments": "gates, moments",
    "inputs": "gates, images",
    "low_rank": "part of Θ",
    "linearized": "Θ",
}


def section(studies: Mapping[str, Kept]) -> Section | Missing:
    """The section."""
    study = studies.get(_STUDY)
    if study is None:
        return not_kept(_TITLE, _QUESTION, [_STUDY])
    rows = study.finished[study.finished["gap_linearized"].notna()]  # networks whose loss curves were asked for
    cells = Cells(rows, tuple(in_order(rows["method"].unique())))  # the unpruned network too
    if not cells.groups:
        return not_kept(_TITLE, _QUESTION, [_STUDY])
    draws = cells.resampled()
    names = [name for name in RUNGS if rows[f"gap_{name}"].notna().any()]
    level = corrected(len(names))
    medians = {name: _medians(cells, draws, f"gap_{name}") for name in names}
    overall = {name: percentile_interval(median, level) for name, median in medians.items()}
    orders = {name: percentile_interval(_orders(cells, draws, name), level) for name in names}
    claims = [
        _within(overall, "data_free", "Π alone predicts the loss curve"),
        _within(overall, "no_data", "Expected gates without data predict the loss curve"),
        _within(overall, "linearized", "Θ, with the images, predicts the loss curve"),
    ]
    steps = {
        name: _gain(cells, draws, before, name, len(names) - 1) for before, name in zip(names, names[1:], strict=False)
    }
    if "no_data" in steps:
        gain = steps["no_data"]
        claims.append(
            Claim.of(
                "Without data, expected gates predict the loss curve better than Π alone, in the median over cells",
                gain,
                _DECADES,
                low=0.0,
            )
        )
    claims += [
        Claim.of(f"How far the loss falls ranks with how far {words} predicts it to fall", orders[name], _RHO, low=0.0)
        for name, words in (("data_free", "Π alone"), ("no_data", "expected gates without data"))
        if name in orders
    ]
    by_model = _by_model(cells, draws, names, level)
    gains = _gains_by_model(cells, draws) if {"data_free", "no_data"} <= set(names) else {}
    return Section(
        _TITLE,
        _QUESTION,
        _in_short(overall, by_model, gains),
        _answer(overall, by_model),
        claims,
        [
            "Each prediction is made before the first step, and compared with what full-batch gradient descent on the "
            "squared loss then does on a small batch of images. Its *gap* is the distance of the two loss curves in "
            "decades, in the mean over steps: 0.3 decades are a factor of two. *Expected gates* is Θ̄, the Neural "
            "Tangent Kernel in which each gate counts for as often as it is open over random signs of the weights "
            "([expected gates](../expected-gates.md)).",
            _table(names, overall, steps, orders, cells, draws, level),
            picture(
                "convergence",
                "How far predictions of the loss are off",
                "The median gap over the cells of a network, in decades; a cell is one method at one density. The line "
                "is at a factor of two. Intervals are right together for the predictions of a panel.",
            ),
            _table_by_model(names, by_model, gains),
        ],
        _sureness(study, cells, len(names)),
        [link(_STUDY)],
        {"convergence": _figure(names, overall, by_model, study)},
    )


def _medians(cells: Cells, draws: Resampled, name: str, groups: np.ndarray | None = None) -> np.ndarray:
    """The median of a column over cells, in each draw; of some groups or of all."""
    means = draws.cell_means(cells.values(name))
    chosen = means if groups is None else means[:, groups]
    return weighted_medians(chosen.reshape(len(chosen), -1), np.tile(draws.methods, chosen.shape[1]))


def _orders(cells: Cells, draws: Resampled, name: str) -> np.ndarray:
    known, real = (draws.cell_means(cells.values(column)) for column in (f"{name}_drop", "real_drop"))
    return mean_of_groups(rank_associations(known, real, draws.methods))


def _gain(
    cells: Cells, draws: Resampled, before: str, name: str, tried: int, groups: np.ndarray | None = None
) -> Interval:
    """The median over cells, of some groups or of all, of how much closer a prediction comes than one before it."""
    gain = draws.cell_means(cells.values(f"gap_{before}")) - draws.cell_means(cells.values(f"gap_{name}"))
    chosen = gain if groups is None else gain[:, groups]
    medians = weighted_medians(chosen.reshape(len(chosen), -1), np.tile(draws.methods, chosen.shape[1]))
    return percentile_interval(medians, corrected(tried))


def _gains_by_model(cells: Cells, draws: Resampled) -> dict[tuple[str, str], Interval]:
    """For each data set and network how much closer expected gates without data come than Π alone."""
    return {
        setting: _gain(cells, draws, "data_free", "no_data", len(cells.settings), groups)
        for setting, groups in cells.settings.items()
    }


def _by_model(
    cells: Cells, draws: Resampled, names: Sequence[str], level: float
) -> dict[tuple[str, str], dict[str, Interval]]:
    return {
        setting: {name: percentile_interval(_medians(cells, draws, f"gap_{name}", groups), level) for name in names}
        for setting, groups in cells.settings.items()
    }


def _within(overall: Mapping[str, Interval], name: str, words: str) -> Claim:
    gap = overall.get(name, Interval(np.nan, np.nan, np.nan))
    return Claim.of(f"{words} to within a factor of two, in the median over cells", gap, _DECADES, high=_CLOSE)


def _answer(overall: Mapping[str, Interval], by_model: Mapping[tuple[str, str], Mapping[str, Interval]]) -> str:
    told = [_DECADES.bare(overall[name]) for name in _TOLD if name in overall]
    return f"In decades these are {enumerated(told)}.{_network_by_network(by_model)}"


def _in_short(
    overall: Mapping[str, Interval],
    by_model: Mapping[tuple[str, str], Mapping[str, Interval]],
    gains: Mapping[tuple[str, str], Interval],
) -> str:
    """By which factors the predictions are off, and where expected gates are no better than Π alone."""
    told = [f"{_factors(overall[name])} ({_spelled(name)})" for name in _TOLD if name in overall]
    worse = [
        f" On `{setting[1]}` Π alone is off by a factor of {factor(by_model[setting]['data_free'].value)} and expected "
        f"gates without data by {factor(by_model[setting]['no_data'].value)}"
        f"{', surely more' if gain.high < 0 else ', which are not surely apart'}."
        for setting, gain in gains.items()
        if gain.value < 0 and by_model[setting]["no_data"].value > by_model[setting]["data_free"].value
    ]
    return (
        f"In the median over cells, predictions of the loss curve are off by a factor of {enumerated(told)}."
        f"{''.join(worse)}"
    )


def _factors(decades: Interval) -> str:
    """A number of decades as a factor with its interval."""
    value, low, high = (factor(each) if np.isfinite(each) else "–" for each in decades)
    return f"{value} [{low}, {high}]"


def _network_by_network(by_model: Mapping[tuple[str, str], Mapping[str, Interval]]) -> str:
    """Where expected gates come closer than Π alone, and where they do not."""
    each = [
        f"{_DECADES.spelled(gaps['data_free'].value)} and {_DECADES.spelled(gaps['no_data'].value)} on `{model}`"
        for (_, model), gaps in by_model.items()
        if "no_data" in gaps and np.isfinite(gaps["no_data"].value)
    ]
    return (
        f" Network by network the gaps of Π alone and of expected gates without data are {enumerated(each)}."
        if each
        else ""
    )


_TOLD = ("data_free", "no_data", "inputs", "linearized")
"""The predictions that the answer names."""


def _spelled(name: str) -> str:
    words, reads = RUNGS[name]
    return f"expected gates, {reads}" if words == "expected gates" else words


def _table(
    names: Sequence[str],
    overall: Mapping[str, Interval],
    steps: Mapping[str, Interval],
    orders: Mapping[str, Interval],
    cells: Cells,
    draws: Resampled,
    level: float,
) -> str:
    head = ("prediction", "reads", "median gap, decades", "closer than the row before", "ρ of the falls", "gap of λmax")
    rows = []
    for name in names:
        top = percentile_interval(_top_gaps(cells, draws, name), level)
        rows.append(
            (
                *RUNGS[name],
                _DECADES.bare(overall[name]),
                Unit(form="+.2f").of(steps[name]) if name in steps else "–",
                _RHO.of(orders[name]),
                _DECADES.bare(top) if np.isfinite(top.value) else "–",
            )
        )
    return (
        table_of(head, rows)
        + "\n\n*Closer*: the gap of a cell in the row before less that in this row, in the median over cells; "
        "the median of differences is not the difference of medians. *ρ of the falls*: Spearman’s ρ, among the methods "
        "of one group, of how far the loss falls with how far it was predicted to fall; groups in which all "
        "predictions are equal have none. *Gap of λmax*: the median distance between the largest "
        "eigenvalue that the prediction takes and that of Θ, in decades; the critical learning rate is off by as much."
    )


def _top_gaps(cells: Cells, draws: Resampled, name: str) -> np.ndarray:
    if name not in TOPS:
        return np.full(len(draws.methods), np.nan)
    with np.errstate(invalid="ignore"):  # a kernel that is 0 has the logarithm −∞, and two such kernels no distance
        gaps = np.abs(cells.values(TOPS[name]) - cells.values("log_top_ntk")) / np.log(10)
    means = draws.cell_means(gaps)
    return weighted_medians(means.reshape(len(means), -1), np.tile(draws.methods, means.shape[1]))


def _table_by_model(
    names: Sequence[str],
    by_model: Mapping[tuple[str, str], Mapping[str, Interval]],
    gains: Mapping[tuple[str, str], Interval],
) -> str:
    rows = []
    for setting, gaps in by_model.items():
        gain = [Unit(form="+.2f").of(gains[setting])] if gains else []
        rows.append((f"{setting[0]}, `{setting[1]}`", *(_DECADES.bare(gaps[name]) for name in names), *gain))
    head = ("data, network", *(_SHORT[name] for name in names), *(["gates, no data: closer than Π"] if gains else []))
    return "Median gaps by architecture, in decades:\n\n" + table_of(head, rows)


def _sureness(study: Kept, cells: Cells, tried: int) -> list[str]:
    options = study.about["options"]
    reasons = [reason for reason in cells.table["why_not_expected"].unique() if reason]
    lacking = cells.table.loc[cells.table["why_not_expected"] != "", "model"].unique()
    untrained = cells.table[cells.table["did_not_train"] != ""]
    gaps = untrained[[f"gap_{name}" for name in RUNGS if cells.table[f"gap_{name}"].notna().any()]]
    right = int((gaps < _CLOSE).all(axis=1).sum())
    sentences = [
        described(study),
        f"Curves are those of {options.get('measure.ntk_images', 10)} images over "
        f"{options.get('measure.curve_steps', 50)} steps of half the critical size of the linearized network; gaps "
        "belong to this number of steps. The size itself is taken from Θ, and so from the images, for every "
        "prediction. SGD with minibatches on the whole train set, which gives accuracies, is another process.",
        f"Of {len(cells.table)} runs {len(untrained)} did not train. They count: where no signal passes little moves, "
        f"and in {right} of the {len(untrained)} every prediction is right to within a factor of two.",
        f"The intervals are those of the bootstrap of methods and seeds. Each has the level 1 − 0.05/{tried}, so that "
        f"the {tried} predictions together are right with probability 95%.",
    ]
    if len(cells.methods) < _MANY:
        sentences.append(
            f"There are {len(cells.methods)} methods here, the unpruned network among them. From so few, intervals of "
            "a bootstrap are somewhat too narrow, which bears on claims whose interval ends close to a bound."
        )
    if len(lacking):
        named = enumerated([f"`{model}`" for model in lacking])
        sentences.append(f"Expected gates have no closed form for {named}: {reasons[0].rstrip('.')}.")
    return sentences


def _figure(
    names: Sequence[str],
    overall: Mapping[str, Interval],
    by_model: Mapping[tuple[str, str], Mapping[str, Interval]],
    study: Kept,
) -> Figure:
    panels = [plots.Rows("all cells", [plots.Row(_SHORT[name], {"gap": overall[name]}) for name in names])]
    for (data, model), gaps in by_model.items():
        panels.append(plots.Rows(f"{data}, {model}", [plots.Row(_SHORT[name], {"gap": gaps[name]}) for name in names]))
    return plots.in_rows(
        panels,
        "median gap, decades",
        footer([study]),
        level=_CLOSE,
        axis_of=lambda axis: log_axis(axis, "x"),
        width=2.6,
    )
