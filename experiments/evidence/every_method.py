"""Section: every method on the same networks, beside magnitude pruning after training with rewinding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.base.names import DENSE
from experiments.base.wording import enumerated
from experiments.evidence import plots
from experiments.evidence.cells import Cells, in_order
from experiments.evidence.claims import Claim, Unit, of_all, verdict
from experiments.evidence.kept import Kept
from experiments.evidence.sections import Missing, Section, described, footer, link, not_kept, picture, table_of
from experiments.evidence.statistics import Interval, corrected, mean_interval
from experiments.report.drawing import style_of

__all__ = ["TICKET", "section"]

TICKET = "lottery_ticket"
"""Iterative magnitude pruning with rewinding: it prunes after training, so it is no pruning before training."""

_STUDY = "mnist-methods"
_TITLE = "Every method on the same networks"
_QUESTION = (
    "How far are prunings before training from what can be had by training first? The yardstick is iterative magnitude "
    "pruning with rewinding: train, prune the smallest weights, put the rest back to their early values, and so on "
    "(`lottery_ticket`)."
)
_POINTS, _PERCENT = Unit(100.0, "+.2f", "points"), Unit(100.0, ".2f")


def section(studies: Mapping[str, Kept]) -> Section | Missing:
    """The section."""
    study = studies.get(_STUDY)
    if study is None:
        return not_kept(_TITLE, _QUESTION, [_STUDY])
    methods = in_order([method for method in study.finished["method"].unique() if method != DENSE])
    cells = Cells(study.finished, tuple(methods))
    errors = 1 - cells.values("test_accuracy")
    models = list(dict.fromkeys(model for _, model, _ in cells.groups))
    rivals = [method for method in methods if method not in (TICKET, "random")]
    claims = [
        _against(
            cells,
            errors,
            [method for method in methods if method != TICKET],
            TICKET,
            "Iterative magnitude pruning with rewinding errs less than every pruning before training, on each network "
            "in the mean over densities",
        ),
        _against(
            cells,
            errors,
            rivals,
            "random",
            "Every pruning before training errs less than random pruning, on each network in the mean over densities",
            less=True,
        ),
    ]
    return Section(
        _TITLE,
        _QUESTION,
        _answer(cells, errors, claims),
        claims,
        [
            picture(
                "methods",
                "Test error over density",
                "Test error over density, with 95% intervals of the mean over seeds. The line across is the unpruned "
                "network.",
            ),
            *(_table(cells, errors, study, model) for model in models),
        ],
        [
            described(study),
            "Intervals in the tables are Student’s 95% intervals over seeds, each by itself. Those of the claims "
            "compare runs of the same seeds and are right together with probability 95%.",
            "The yardstick trains the network once for each of its levels, so it costs many times what the others do.",
            f"Of its runs {study.failed or 'none'} lack a result, and {study.untrained or 'none'} did not train.",
        ],
        [link(_STUDY)],
        {"methods": _figure(cells, errors, study)},
    )


def _against(
    cells: Cells, errors: np.ndarray, methods: Sequence[str], other: str, words: str, *, less: bool = False
) -> Claim:
    """The claim that each of the methods errs more than another one, or less, on each network over all densities."""
    models = list(dict.fromkeys(model for _, model, _ in cells.groups))
    if other not in cells.methods or not methods:
        return Claim(f"{words} (`{other}` is not in the study)", "–", "–", of_all([]))
    differences = {}
    for model in models:
        groups = [place for place, group in enumerate(cells.groups) if group[1] == model]
        of_model = errors[groups].mean(axis=0)  # NaN where a density lacks the seed
        for method in methods:
            apart = of_model[cells.methods.index(method)] - of_model[cells.methods.index(other)]
            level = corrected(len(methods) * len(models))
            differences[method, model] = mean_interval(-apart if less else apart, level)
    least = min(differences, key=lambda key: np.nan_to_num(differences[key].value, nan=np.inf))
    verdicts = [verdict(difference, low=0.0) for difference in differences.values()]
    sure = sum(each == "holds" for each in verdicts)
    return Claim(
        words,
        f"{_POINTS.of(differences[least])} at the least (`{least[0]}` on `{least[1]}`); surely above 0 in {sure} of "
        f"{len(verdicts)} comparisons",
        "all above 0 points",
        of_all(verdicts),
    )


def _answer(cells: Cells, errors: np.ndarray, claims: Sequence[Claim]) -> str:
    """The yardstick and the best other method at the lowest density of each network."""
    parts = []
    for model in dict.fromkeys(model for _, model, _ in cells.groups):
        place = max(at for at, group in enumerate(cells.groups) if group[1] == model)
        means = {method: mean_interval(errors[place, at]) for at, method in enumerate(cells.methods)}
        others = {method: mean for method, mean in means.items() if method != TICKET and np.isfinite(mean.value)}
        best = min(others, key=lambda method: others[method].value)
        words = f"`{best}` errs on {_PERCENT.of(others[best])}% of the test images"
        if TICKET in means:
            words += f", `{TICKET}` on {_PERCENT.of(means[TICKET])}%"
        parts.append(f"of `{model}` at density {cells.groups[place][2]:g}, {words}")
    return (
        f"The best of the prunings before training come this far at the lowest density: {enumerated(parts)}. The "
        f"yardstick’s lead over its closest rival, over all densities, is {claims[0].number}."
    )


def _table(cells: Cells, errors: np.ndarray, study: Kept, model: str) -> str:
    groups = [place for place, group in enumerate(cells.groups) if group[1] == model]
    dense = _dense(study, model)
    rows = [
        (f"`{method}`", *(_PERCENT.of(mean_interval(errors[group, place])) for group in groups))
        for place, method in enumerate(cells.methods)
    ]
    head = ("method", *(f"density {cells.groups[group][2]:g}" for group in groups))
    return (
        f"Test error of `{model}` in per cent; unpruned it is {_PERCENT.of(dense)}. Each number has its 95% "
        "interval.\n\n" + table_of(head, rows)
    )


def _dense(study: Kept, model: str) -> Interval:
    rows = study.finished[(study.finished["model"] == model) & (study.finished["method"] == DENSE)]
    return mean_interval(1 - rows["test_accuracy"].to_numpy())


def _figure(cells: Cells, errors: np.ndarray, study: Kept) -> Figure:
    panels = []
    for model in dict.fromkeys(model for _, model, _ in cells.groups):
        groups = [place for place, group in enumerate(cells.groups) if group[1] == model]
        densities = [cells.groups[group][2] for group in groups]
        lines = []
        for place, method in enumerate(cells.methods):
            numbers = [_in_percent(mean_interval(errors[group, place])) for group in groups]
            color, marker = style_of(method)
            lines.append(plots.Line(method, densities, numbers, color, marker, "--" if method == TICKET else "-"))
        dense = _in_percent(_dense(study, model))
        color, marker = style_of(DENSE)
        lines.append(plots.Line(DENSE, [densities[0], densities[-1]], [dense, dense], color, "", "--"))
        panels.append(plots.Panel(model, lines))
    return plots.over_density(panels, "test error, %", footer([study]), logarithmic=True)


def _in_percent(interval: Interval) -> Interval:
    return Interval(*(100 * each for each in interval))
