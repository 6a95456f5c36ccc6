"""Section: the numbers that others have published, beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.base.wording import enumerated
from experiments.evidence import plots, settling
from experiments.evidence.accounts import ACCOUNTS, CLOSE, SYNFLOW, SYNFLOW_DENSITIES, Account, less_theirs, our_errors
from experiments.evidence.claims import HOLDS, Claim, Unit, of_all, verdict
from experiments.evidence.kept import Kept
from experiments.evidence.sections import (
    Missing,
    Section,
    bullets,
    described,
    footer,
    link,
    not_kept,
    picture,
    recipe,
    table_of,
)
from experiments.evidence.statistics import Interval, corrected, mean_interval, stratified_interval

__all__ = ["section"]


_TITLE = "Are the published numbers met?"
_QUESTION = (
    "Two groups have published SNIP’s test error on MNIST, and the two do not seem to fit together. Does this code "
    "give the numbers of either?"
)
_POINTS, _PERCENT = Unit(form="+.2f", word="points"), Unit(form=".2f")
_PUZZLE = ("lenet_300_100", 0.1, 0.05)
"""The network and the two densities at which the two accounts seem to contradict each other."""


class _Row(NamedTuple):
    model: str
    density: float
    ours: Interval
    seeds: int
    theirs: float
    difference: Interval


def section(studies: Mapping[str, Kept]) -> Section | Missing:
    """The section, of the studies of both accounts. Others add further networks and longer trainings."""
    first = [account.studies[0] for account in ACCOUNTS]
    if lacking := [name for name in first if name not in studies]:
        return not_kept(_TITLE, _QUESTION, lacking)
    used = [studies[name] for account in ACCOUNTS for name in account.studies if name in studies]
    rows = [_rows(account, studies) for account in ACCOUNTS]
    if not any(row.seeds for each in rows for row in each):
        return not_kept(_TITLE, _QUESTION, first)
    claims = [_reproduced(account, each) for account, each in zip(ACCOUNTS, rows, strict=True)]
    apart = _apart(studies)
    claims.append(apart)
    body = [_told_of_settings(studies)]
    for account, each in zip(ACCOUNTS, rows, strict=True):
        body.append(
            f"Ours in a setting after that of {account.who}, beside {account.source}:\n\n{_table(account, each)}"
        )
    body.append(
        picture(
            "published",
            "Test error over density, ours and published",
            "Test error over density. Lines: ours, with 95% intervals of the mean over seeds. Crosses: published.",
        )
    )
    drawn = [*used]
    if settling.longer(studies):
        claims += settling.claims(studies)
        body.append(settling.table(studies))
        used += settling.longer(studies)
    body.append(_of_synflow())
    return Section(
        _TITLE,
        _QUESTION,
        _in_short(rows, studies),
        _answer(rows, apart, studies),
        claims,
        body,
        _sureness(used, studies),
        [link(study.name) for study in used],
        {"published": _figure(rows, drawn)},
    )


def _study_of(account: Account, model: str, studies: Mapping[str, Kept]) -> Kept | None:
    """The kept study that has a network in the setting of an account."""
    kept = [studies[name] for name in account.studies if name in studies]
    return next((study for study in kept if model in set(study.table["model"])), None)


def _rows(account: Account, studies: Mapping[str, Kept]) -> list[_Row]:
    """Ours beside theirs; the differences have intervals that are right together, and are wider by their rounding."""
    rows = []
    found = {key: _study_of(account, key[0], studies) for key in account.errors}
    ours = {key: our_errors(study, *key) for key, study in found.items() if study is not None}
    level = corrected(sum(bool(errors.notna().any()) for errors in ours.values()))
    for cell, errors in ours.items():
        error, difference = mean_interval(errors.to_numpy()), less_theirs(errors, account, cell, level)
        rows.append(_Row(*cell, error, int(errors.notna().sum()), account.errors[cell], difference))
    return rows


def _reproduced(account: Account, rows: list[_Row]) -> Claim:
    measured = [row for row in rows if row.seeds]
    return Claim(
        f"In a setting after that of {account.who}, our {len(measured)} errors are theirs to within {CLOSE:g} points",
        f"{_largest(rows)}, the largest",
        f"all between −{CLOSE:g} and {CLOSE:g} points",
        of_all([_is_near(row) for row in measured]),
    )


def _is_near(row: _Row) -> str:
    return verdict(row.difference, -CLOSE, CLOSE)


def _mean_difference(account: Account, studies: Mapping[str, Kept]) -> Interval:
    """The mean of ours less theirs, over the densities of each network and then over networks; seeds are draws.

    The interval is wider by the rounding of the published numbers.
    """
    strata = []
    for model in dict.fromkeys(model for model, _ in account.errors):
        if (study := _study_of(account, model, studies)) is not None:
            densities = [density for each, density in account.errors if each == model]
            ours = {density: our_errors(study, model, density) for density in densities}
            off = {at: each - account.errors[model, at] for at, each in ours.items() if each.notna().any()}
            strata.append(pd.DataFrame(off).dropna().mean(axis=1).to_numpy())
    mean = stratified_interval(strata)
    return Interval(mean.value, mean.low - account.rounding, mean.high + account.rounding)


def _largest(rows: list[_Row]) -> str:
    """The difference of largest size, with where it is."""
    worst = max(rows, key=lambda row: abs(np.nan_to_num(row.difference.value)), default=None)
    if worst is None:
        return "–"
    return f"{_POINTS.of(worst.difference)} (`{worst.model}` at density {worst.density:g})"


def _step(studies: Mapping[str, Kept]) -> Interval:
    """How much more the network with more weights errs in the one setting than that with fewer in the other."""
    model, more, fewer = _PUZZLE
    difference = our_errors(studies["mnist-sgd"], model, more) - our_errors(studies["mnist-snip"], model, fewer)
    return mean_interval(difference.to_numpy())


def _apart(studies: Mapping[str, Kept]) -> Claim:
    """Whether the network with more weights errs more in the one setting than that with fewer in the other."""
    model, more, fewer = _PUZZLE
    return Claim.of(
        f"`{model}` errs more at density {more:g} in our setting after the other group than at {fewer:g} in that after "
        "SNIP",
        _step(studies),
        _POINTS,
        low=0.0,
    )


def _in_short(rows: list[list[_Row]], studies: Mapping[str, Kept]) -> str:
    """Which of the two accounts ours agrees with, in which cells, and how our trainings differ from theirs."""
    parts, agreed = [], []
    for account, each in zip(ACCOUNTS, rows, strict=True):
        measured = [row for row in each if row.seeds]
        if not measured:
            continue
        near = [row for row in measured if _is_near(row) == HOLDS]
        cells = [f"`{row.model}` {'unpruned' if row.density == 1 else f'at density {row.density:g}'}" for row in near]
        which = f" ({enumerated(cells)})" if cells else ""
        parts.append(f"{len(near)} of {len(measured)} numbers of {account.who}{which}")
        agreed += [account.who] if len(near) == len(measured) else []
    told = f"with {enumerated(agreed)}" if agreed else "with neither account in all numbers"
    return (
        f"SNIP on MNIST agrees {told}. Our error is surely within {CLOSE:g} points of theirs for "
        f"{enumerated(parts)}.{_unlike(studies)}"
    )


def _unlike(studies: Mapping[str, Kept]) -> str:
    """How our trainings differ from the published ones, as a sentence that begins with a space, if they do."""
    told = []
    for account in ACCOUNTS:
        shorter, rates = [], []
        for study in (studies[name] for name in account.studies if name in studies):
            options = study.about["options"]
            steps = options["train.epochs"] * (options.get("train_images", 0) // options["train.batch_size"])
            named = enumerated([f"`{model}`" for model in study.table["model"].unique()])
            if account.first_cut and 0 < steps < account.first_cut:
                shorter.append(f"{named} for {steps:,} steps")
            if options["train.learning_rate"] != account.learning_rate:
                rates.append(f"{named} at the learning rate {options['train.learning_rate']:g}")
        if shorter:
            told.append(
                f"we train {enumerated(shorter)}, where {account.who} first cut the rate after {account.first_cut:,}"
            )
        if rates:
            told.append(f"we train {enumerated(rates)}, and they at {account.learning_rate:g}")
    return f" It is not like for like: {'; '.join(told)}." if told else ""


def _answer(rows: list[list[_Row]], apart: Claim, studies: Mapping[str, Kept]) -> str:
    model, more, fewer = _PUZZLE
    theirs, others = (account.errors for account in ACCOUNTS)
    step, ours = others[model, more] - theirs[model, fewer], _step(studies)
    rest = f"; the other {step - ours.value:.2f} are not explained" if 0 < ours.value < step else ""
    unpruned = our_errors(studies["mnist-sgd"], model, 1.0) - our_errors(studies["mnist-snip"], model, 1.0)
    differences = [
        f"In the mean our errors differ by {_POINTS.of(_mean_difference(account, studies))} from those of "
        f"{account.who}, at the most by {_largest(each)}."
        for account, each in zip(ACCOUNTS, rows, strict=True)
    ]
    puzzle = (
        f"The two accounts seem not to fit together: {ACCOUNTS[0].who} report {theirs[model, fewer]:g}% for `{model}` "
        f"at density {fewer:g}, and {ACCOUNTS[1].who} {others[model, more]:g}% with twice the weights, "
        f"{step:.2f} points more. The same comparison of our own runs gives {apart.number}{rest}. Unpruned, theirs "
        f"differ by {_POINTS.spelled(others[model, 1.0] - theirs[model, 1.0])} points, and ours by "
        f"{_POINTS.of(mean_interval(unpruned.to_numpy()))}."
    )
    return bullets([*differences, puzzle, *settling.told(studies)])


def _told_of_settings(studies: Mapping[str, Kept]) -> str:
    """How each account trains and how our studies do, and where a learning rate is not the published one."""
    lines = []
    for account in ACCOUNTS:
        lines.append(f"- Published by {account.who}: {account.setting}.")
        for name in account.studies:
            if name not in studies:
                continue
            options, models = studies[name].about["options"], studies[name].table["model"].unique()
            rate = options["train.learning_rate"]
            other = (
                "" if rate == account.learning_rate else f" The published learning rate is {account.learning_rate:g}."
            )
            named = enumerated([f"`{model}`" for model in models])
            lines.append(f"- Ours, `{name}`, for {named}: {recipe(options)}.{other}")
    return "Published settings and ours:\n\n" + "\n".join(lines)


def _table(account: Account, rows: list[_Row]) -> str:
    return table_of(
        ("network", "density", "our error, %", "seeds", f"{account.column}, %", "ours less theirs, points"),
        [
            (
                *(f"`{row.model}`", f"{row.density:g}", _PERCENT.of(row.ours), str(row.seeds), f"{row.theirs:g}"),
                _POINTS.bare(row.difference),
            )
            for row in rows
        ],
    )


def _of_synflow() -> str:
    head = ("network, data", *(f"density {density:g}" for density in SYNFLOW_DENSITIES), "ours")
    rows = [(name, *(f"{share:g}%" for share in shares), "needs a GPU") for name, shares in SYNFLOW.items()]
    return (
        "SynFlow’s published accuracies (Tanaka et al., NeurIPS 2020; these are the numbers kept with its authors’ "
        "code) are of networks too large for two CPU cores. `python -m experiments sweep paper` trains networks of "
        "that size on a GPU; no number of ours stands here.\n\n" + table_of(head, rows)
    )


def _sureness(used: list[Kept], studies: Mapping[str, Kept]) -> list[str]:
    failed = sum(study.failed for study in used)
    absent = [
        f"`{model}` in the setting of {account.who}"
        for account in ACCOUNTS
        for model in dict.fromkeys(model for model, _ in account.errors)
        if _study_of(account, model, studies) is None
    ]
    return [
        *(described(study) for study in used),
        *([f"Not measured here: {enumerated(absent)}."] if absent else []),
        "Errors are means over seeds with Student’s 95% intervals. The intervals of differences from one account are "
        "right together, and each is widened by the rounding of the published number. In their mean, networks count "
        "alike. The accounts give no intervals of their own.",
        *(
            [
                "The claims on what longer training changes are right together, and so are the distances from the "
                "published errors after it; in the table of changes each interval is by itself."
            ]
            if settling.longer(studies)
            else []
        ),
        f"{failed or 'None'} of these runs are without a result; means are over the seeds that have one.",
        "SNIP’s authors cut their rate for the first time after 25,000 steps; how long they trained is not known here. "
        "So a difference from them does not show that their numbers cannot be had. What the other group says of "
        "weight decay is not known here; ours has it.",
    ]


def _figure(rows: list[list[_Row]], used: list[Kept]) -> Figure:
    panels = []
    for model in dict.fromkeys(row.model for each in rows for row in each):
        for account, each in zip(ACCOUNTS, rows, strict=True):
            chosen = [row for row in each if row.model == model]
            if not chosen:
                continue
            densities = [row.density for row in chosen]
            published = [Interval(row.theirs, np.nan, np.nan) for row in chosen]
            panels.append(
                plots.Panel(
                    f"{model}, after {account.who}",
                    [
                        plots.Line("ours", densities, [row.ours for row in chosen], "#2f7fc1", "o"),
                        plots.Line("published", densities, published, "#d55e00", "x", style="none"),
                    ],
                )
            )
    return plots.over_density(panels, "test error, %", footer(used))
