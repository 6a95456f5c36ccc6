"""Section: every method on the same networks, beside magnitude pruning after training with rewinding."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.base.names import DENSE, LOTTERY_TICKET, RANDOM
from experiments.base.wording import counted, enumerated
from experiments.evidence import plots
from experiments.evidence.cells import Cells, Group, in_order, inconclusive
from experiments.evidence.claims import HOLDS, Claim, Unit, of_all, verdict
from experiments.evidence.kept import Kept
from experiments.evidence.sections import Missing, Section, described, footer, link, not_kept, picture, table_of
from experiments.evidence.statistics import LEVEL, Interval, corrected, mean_interval
from experiments.report.drawing import style_of

__all__ = ["section"]

_STUDIES = ("mnist-methods", "mnist-methods-lenet-5", "digits", "fashion", "cifar10")
"""The first must be kept."""
_CHANGED_LATER = (
    "Two things were changed after first results of `mnist-methods` had been seen: it had 3 seeds, and got 2 more; and "
    "the claim on the lottery ticket counted `random` among its rivals. With 3 seeds, and with 5 and `random`, that "
    "claim was not settled. So its verdict is of a claim that was chosen late, and is to be taken with care."
)
"""What a reader must know of the claims on the first of the studies, whose verdict depends on it."""
_TITLE = "How far is pruning before training from pruning after it?"
_QUESTION = (
    "How far are prunings before training from what can be had by training first? The yardstick is iterative magnitude "
    "pruning with rewinding: train, prune the smallest weights, put the rest back to their early values, and so on "
    "(`lottery_ticket`)."
)
_POINTS, _PERCENT = Unit(100.0, "+.2f", "points"), Unit(100.0, ".2f")


class _Of(NamedTuple):
    """A kept study, its cells, and their errors (groups, methods, seeds)."""

    study: Kept
    cells: Cells
    errors: np.ndarray


def section(studies: Mapping[str, Kept]) -> Section | Missing:
    """The section, of those of its studies that are kept; the first must be."""
    if _STUDIES[0] not in studies:
        return not_kept(_TITLE, _QUESTION, [_STUDIES[0]])
    kept = [studies[name] for name in _STUDIES if name in studies]
    used, told_of_left_out = [], []
    for study in kept:
        left_out, told = inconclusive(study.finished)
        told_of_left_out += told
        methods = [method for method in study.finished["method"].unique() if method != DENSE and "+" not in method]
        cells = Cells(study.finished, tuple(in_order(methods))).restricted(functools.partial(_is_in, left_out))
        if cells.groups:
            used.append(_Of(study, cells, 1 - cells.values("test_accuracy")))
    if not used:
        return not_kept(_TITLE, _QUESTION, [_STUDIES[0]])
    leads = {of.study.name: _lead_of_ticket(of) for of in used}
    networks = sum(len(of.cells.settings) for of in used if LOTTERY_TICKET in of.cells.methods)
    bests = [best for of in used for best in _bests(of, networks)]
    return Section(
        _TITLE,
        _QUESTION,
        _in_short(bests),
        _answer(leads),
        [claim for of in used for claim in (leads[of.study.name], _lead_over_random(of)) if claim],
        [_table_of_bests(bests), *(part for of in used for part in _body(of))],
        [
            *(described(study) for study in kept),
            *told_of_left_out,
            "Intervals in the tables are Student’s 95% intervals over seeds, each by itself. Those of the claims "
            "compare runs of the same seeds; those of one claim are right together with probability 95%.",
            "The yardstick trains the network once for each of its levels, so it costs many times what the others do.",
            *(
                f"Of the runs of `{of.study.name}` {of.study.failed or 'none'} lack a result, and "
                f"{of.study.untrained or 'none'} did not train.{_told_of_ticket(of)}"
                for of in used
            ),
            "The best method is picked by the same error that is told of it. So it looks a little better than it is, "
            "and the lead of the yardstick a little smaller.",
            *([_CHANGED_LATER] if any(of.study.name == _STUDIES[0] for of in used) else []),
            "Where few seeds of random pruning differ much, no lead over it is sure, which does not say that there is "
            "none.",
            "An interval of Student’s may reach beyond 0 or 100%; it has no width where all seeds err alike, as "
            "networks do that give every image to one class.",
            *(sentence for of in used for sentence in of.cells.twins()),
        ],
        [link(study.name) for study in kept],
        {_figure_name(of): _figure(of) for of in used},
    )


def _is_in(left_out: Sequence[tuple[str, str]], group: Group) -> bool:
    return group[:2] not in left_out


def _figure_name(of: _Of) -> str:
    return f"methods-{of.study.name}"


def _body(of: _Of) -> list[str]:
    caption = (
        f"Study `{of.study.name}`: test error over density, with 95% intervals of the mean over seeds. The line "
        "across is the unpruned network."
    )
    return [
        picture(_figure_name(of), f"Test error over density, study {of.study.name}", caption),
        *(_table(of, *each) for each in of.cells.settings),
    ]


def _lead_of_ticket(of: _Of) -> Claim | None:
    if LOTTERY_TICKET not in of.cells.methods:
        return None
    rivals = [method for method in of.cells.methods if method not in (LOTTERY_TICKET, RANDOM)]
    if not rivals:
        return None
    words = (
        f"Study `{of.study.name}`: iterative magnitude pruning with rewinding errs less than every pruning before "
        "training but `random`, on each network in the mean over densities"
    )
    return _against(of, rivals, LOTTERY_TICKET, words)


def _lead_over_random(of: _Of) -> Claim | None:
    rivals = [method for method in of.cells.methods if method not in (LOTTERY_TICKET, RANDOM)]
    if RANDOM not in of.cells.methods or not rivals:
        return None
    words = (
        f"Study `{of.study.name}`: every pruning before training errs less than random pruning, on each network in "
        "the mean over densities"
    )
    return _against(of, rivals, RANDOM, words, less=True)


def _told_of_ticket(of: _Of) -> str:
    """Where the yardstick is rewound to, and where it is no yardstick, as sentences that begin with a space."""
    if LOTTERY_TICKET not in of.cells.methods:
        return ""
    epochs = of.study.about["options"].get("measure.rewind_epochs", 0)
    to = f"those after {counted(epochs, 'epoch')}" if epochs else "the initial ones"
    worse = []
    for at, group in enumerate(of.cells.groups):
        errors = {
            method: mean_interval(each).value for method, each in zip(of.cells.methods, of.errors[at], strict=True)
        }
        ticket = errors.pop(LOTTERY_TICKET)
        rival = min(errors, key=lambda method: np.nan_to_num(errors[method], nan=np.inf), default=LOTTERY_TICKET)
        if _lead(of, at, rival).high < 0:
            lost = of.cells.untrained(group, LOTTERY_TICKET)
            runs = f"; {lost} of its runs did not train" if lost else ""
            worse.append(f"`{group[1]}` at density {group[2]:g} ({100 * ticket:.0f}% error{runs})")
    no_yardstick = (
        f" By an interval of each density alone it errs more than the best of the others on {enumerated(worse)}."
        if worse
        else ""
    )
    return f" There `{LOTTERY_TICKET}` puts weights back to {to}.{no_yardstick}"


def _against(of: _Of, methods: Sequence[str], other: str, words: str, *, less: bool = False) -> Claim:
    """The claim that each of the methods errs more than another one, or less, on each network over all densities."""
    apart = {}
    for setting, groups in of.cells.settings.items():
        of_setting = of.errors[groups].mean(axis=0)  # NaN where a density lacks the seed
        for method in methods:
            difference = of_setting[of.cells.methods.index(method)] - of_setting[of.cells.methods.index(other)]
            if not np.isnan(difference).all():
                apart[method, setting] = -difference if less else difference
    level = corrected(len(apart))
    differences = {key: mean_interval(each, level) for key, each in apart.items()}
    if not differences:
        return Claim(words, "–", "all above 0 points", of_all([]))
    least = min(differences, key=lambda key: np.nan_to_num(differences[key].value, nan=np.inf))
    verdicts = {key: verdict(difference, low=0.0) for key, difference in differences.items()}
    sure = [
        f"{sum(verdicts[key] == HOLDS for key in keys)} of {len(keys)} comparisons on `{setting[1]}`"
        for setting in of.cells.settings
        if (keys := [key for key in verdicts if key[1] == setting])
    ]
    return Claim(
        words,
        f"{_POINTS.of(differences[least])} at the least (`{least[0]}` on `{least[1][1]}`); surely above 0 in "
        f"{enumerated(sure)}",
        "all above 0 points",
        of_all([*verdicts.values()]),
    )


class _Best(NamedTuple):
    """The lowest density of a data set and network, and the best pruning before training there.

    `ticket` and `lead` are the error of the yardstick and how much less it errs, None where it was not run.
    """

    setting: tuple[str, str]
    density: float
    method: str
    error: Interval
    ticket: Interval | None
    lead: Interval | None


def _bests(of: _Of, networks: int) -> list[_Best]:
    """Of the networks of one study; intervals of leads are right together for `networks` of them."""
    found = []
    for setting, groups in of.cells.settings.items():
        lowest = groups[-1]
        means = {method: mean_interval(of.errors[lowest, at]) for at, method in enumerate(of.cells.methods)}
        others = [method for method in means if method != LOTTERY_TICKET and np.isfinite(means[method].value)]
        if not others:
            continue
        best = min(others, key=lambda method: means[method].value)
        ticket = lead = None
        if LOTTERY_TICKET in means:
            ticket = means[LOTTERY_TICKET]
            lead = _lead(of, lowest, best, corrected(networks))
        found.append(_Best(setting, of.cells.groups[lowest][2], best, means[best], ticket, lead))
    return found


def _lead(of: _Of, group: int, method: str, level: float = LEVEL) -> Interval:
    """How much less the yardstick errs than a method in a group, over the same seeds."""
    both = of.errors[group, [of.cells.methods.index(name) for name in (method, LOTTERY_TICKET)]]
    return mean_interval(both[0] - both[1], level)


def _in_short(bests: Sequence[_Best]) -> str:
    """How much less the yardstick errs than the best pruning before training, at the lowest density of each network."""
    sides: dict[str, list[str]] = {"surely less": [], "not surely apart": [], "surely more": []}
    for best in bests:
        if best.lead is not None and np.isfinite(best.lead.value):
            side = "surely less" if best.lead.low > 0 else "surely more" if best.lead.high < 0 else "not surely apart"
            lead = _POINTS.spelled(best.lead.value)
            sides[side].append(f"`{best.setting[1]}` ({lead} points at density {best.density:g})")
    if not any(sides.values()):
        return "The yardstick was not run."
    words = {
        "surely less": "At the lowest density of a network, the lottery ticket errs surely less than the best pruning "
        "before training on",
        "not surely apart": "The lottery ticket and the best pruning before training are not surely apart on",
        "surely more": "The lottery ticket errs surely more, and is no yardstick, on",
    }
    return " ".join(f"{words[side]} {enumerated(networks)}." for side, networks in sides.items() if networks)


def _answer(leads: Mapping[str, Claim | None]) -> str:
    """The yardstick's lead over its closest rival, over all densities."""
    return " ".join(
        f"In `{name}` its lead in the mean over densities is {lead.number}."
        for name, lead in leads.items()
        if lead is not None
    )


def _table_of_bests(bests: Sequence[_Best]) -> str:
    rows = [
        (
            *(f"{best.setting[0]}, `{best.setting[1]}` at {best.density:g}", f"`{best.method}`"),
            *(_PERCENT.of(best.error), _PERCENT.of(best.ticket), _POINTS.bare(best.lead)),
        )
        for best in bests
        if best.ticket is not None and best.lead is not None
    ]
    head = ("data, network, density", "best before training", "its error, %", f"`{LOTTERY_TICKET}`, %")
    return "At the lowest density of each network; intervals of the last column are right together:\n\n" + table_of(
        (*head, "errs less by, points"), rows
    )


def _table(of: _Of, data: str, model: str) -> str:
    groups = of.cells.settings[data, model]
    rows = [
        (f"`{method}`", *(_PERCENT.of(mean_interval(of.errors[group, place])) for group in groups))
        for place, method in enumerate(of.cells.methods)
    ]
    head = ("method", *(f"density {of.cells.groups[group][2]:g}" for group in groups))
    return (
        f"Test error of `{model}` on {data} in per cent; unpruned it is {_PERCENT.of(_dense(of, data, model))}. Each "
        "number has its 95% interval.\n\n" + table_of(head, rows)
    )


def _dense(of: _Of, data: str, model: str) -> Interval:
    rows = of.study.finished
    rows = rows[(rows["data"] == data) & (rows["model"] == model) & (rows["method"] == DENSE)]
    return mean_interval(1 - rows["test_accuracy"].to_numpy())


def _figure(of: _Of) -> Figure:
    panels = []
    for (data, model), groups in of.cells.settings.items():
        densities = [of.cells.groups[group][2] for group in groups]
        lines = []
        for place, method in enumerate(of.cells.methods):
            numbers = [_in_percent(mean_interval(of.errors[group, place])) for group in groups]
            color, marker = style_of(method)
            lines.append(
                plots.Line(method, densities, numbers, color, marker, "--" if method == LOTTERY_TICKET else "-")
            )
        dense = _in_percent(_dense(of, data, model))
        color, marker = style_of(DENSE)
        lines.append(plots.Line(DENSE, [densities[0], densities[-1]], [dense, dense], color, "", "--"))
        panels.append(plots.Panel(f"{data}, {model}", lines))
    return plots.over_density(panels, "test error, %", footer([of.study]), logarithmic=True)


def _in_percent(interval: Interval) -> Interval:
    """In per cent, with an end above 100, which Student's interval may have, at 100."""
    return Interval(*(min(100 * each, 100.0) for each in interval))
