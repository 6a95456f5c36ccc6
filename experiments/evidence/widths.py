"""Section: pruned networks of growing width against the Neural Tangent Kernel expected of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.base.errors import InputError
from experiments.base.names import DENSE
from experiments.base.wording import counted
from experiments.evidence.claims import Claim, Unit, of_all, verdict
from experiments.evidence.sections import Missing, Section, table_of
from experiments.evidence.statistics import Interval, corrected, mean_interval, stratified_interval

__all__ = ["Slope", "section", "slopes"]

_TITLE = "Infinite width of pruned networks"
_QUESTION = (
    "The Neural Tangent Kernel of a dense network comes closer to that of infinite width as the network grows, by one "
    "over the root of its width. Is there such a limit for pruned networks, and for which masks?"
)
_INITIALIZATION, _SQUARES = "initialization", "squares"
_BLIND = ("random", "random by layer", "blocks", "band")
"""Masks that are drawn without looking at the weights."""
_BY_SIZE = ("magnitude", "synflow")
"""Masks that are chosen by the sizes of the weights, and not by their signs."""
_FAMILIES = (
    ("Dense networks", (DENSE,), _INITIALIZATION),
    ("Masks drawn without looking at the weights, with the moments of the initialization", _BLIND, _INITIALIZATION),
    ("Masks chosen by the sizes of the weights, with the moments θ²", _BY_SIZE, _SQUARES),
    ("SNIP’s masks, which look at signs and images too, with the moments θ²", ("snip",), _SQUARES),
)
"""Kinds of masks that are claimed something of, with the second moments of the kernel that is expected."""
_EXPECTED, _CLOSE = -0.5, 0.1
_SLOPE = Unit(form=".2f")


class Slope(NamedTuple):
    """The exponent of the width in the distance of a kind of networks to the expected kernel.

    `exponents` has one number for each seed, and `distances` the mean distance at the least and at the largest width.
    """

    model: str
    mask: str
    moments: str
    exponents: np.ndarray
    distances: tuple[float, float]


def slopes(table: pd.DataFrame) -> list[Slope]:
    """The exponents of docs/widths/masks.csv: for each seed, the slope of a line on logarithmic axes."""
    found = []
    for (model, mask, moments), rows in table.groupby(["model", "mask", "moments"], sort=False):
        grid = rows.pivot(index="width", columns="seed", values="distance").sort_index()
        exponents = np.polyfit(np.log(grid.index.to_numpy(float)), np.log(grid.to_numpy()), 1)[0]
        means = grid.mean(axis=1)
        found.append(Slope(str(model), str(mask), str(moments), exponents, (means.iloc[0], means.iloc[-1])))
    return found


def section(file: Path) -> Section | Missing:
    """The section, of the table that `python -m experiments.widths --mask` writes."""
    if not file.exists():
        commands = ["python -m experiments.widths --mask --out runs/widths", "cp runs/widths/masks.* docs/widths/"]
        return Missing(_TITLE, _QUESTION, "the distances to the expected kernels", commands)
    try:
        table = pd.read_csv(file)
        found = slopes(table)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file} cannot be read ({error}); `python -m experiments.widths --mask` makes it.") from error
    widths = {model: sorted(rows["width"].unique()) for model, rows in table.groupby("model", sort=False)}
    seeds = int(table["seed"].nunique())
    density = table.loc[table["mask"] != DENSE, "density"].unique()
    claims = [claim for family in _FAMILIES for claim in _claims(found, *family)]
    words = "; ".join(f"`{model}` of widths {', '.join(map(str, each))}" for model, each in widths.items())
    return Section(
        _TITLE,
        _QUESTION,
        _answer(found),
        claims,
        [
            "Each number is the exponent of the width in the relative distance of Θ to the kernel that is expected of "
            "random weights under the mask; −1/2 is one over the root of the width. The expected kernel takes the "
            "second moments of the weights: those of the initialization, or the squares of the weights at hand, θ².",
            "![Distance to the expected kernel over the width](../widths/masks.png)",
            _table(found),
        ],
        [
            f"Networks: {words}; {counted(seeds, 'seed')}; masks keep {', '.join(f'{each:g}' for each in density)} of "
            "every kernel but the first. The kernels are taken on a few images of noise "
            "([expected gates](../expected-gates.md)).",
            "Each seed gives one exponent, from a line through its distances at all widths on logarithmic axes. In the "
            "table intervals are Student’s 95% intervals over seeds; those of a "
            "claim on each mask are right together.",
            "These are kernels at initialization. Nothing is trained.",
        ],
        ["[masks.csv](../widths/masks.csv)"],
        {},
    )


def _claims(found: Sequence[Slope], words: str, masks: Sequence[str], moments: str) -> list[Claim]:
    """That the distance falls under each of some masks, and that it does so by the root in the mean over them."""
    chosen = [slope for slope in found if slope.mask in masks and slope.moments == moments]
    intervals = [mean_interval(slope.exponents, corrected(len(chosen))) for slope in chosen]
    flattest = max(range(len(chosen)), key=lambda place: intervals[place].value)
    which = f"(the largest: `{chosen[flattest].model}`, {chosen[flattest].mask})"
    falls = Claim(
        f"{words}: the distance of Θ to the expected kernel falls as the width grows",
        f"{_SLOPE.of(intervals[flattest])} {which}",
        "all below 0",
        of_all([verdict(interval, high=0.0) for interval in intervals]),
    )
    models = dict.fromkeys(slope.model for slope in chosen)
    # seeds of one network are its draws, and all masks of a seed are of the same weights
    of_seeds = [np.mean([slope.exponents for slope in chosen if slope.model == model], axis=0) for model in models]
    by_the_root = Claim.of(
        f"{words}: the distance falls by one over the root of the width, in the mean over masks and networks",
        stratified_interval(of_seeds),
        _SLOPE,
        low=_EXPECTED - _CLOSE,
        high=_EXPECTED + _CLOSE,
    )
    return [falls, by_the_root]


def _answer(found: Sequence[Slope]) -> str:
    def span(masks: Sequence[str], moments: str) -> str:
        means = [_interval(slope) for slope in found if slope.mask in masks and slope.moments == moments]
        least, most = min(means), max(means)
        return f"{_SLOPE.of(least)} to {_SLOPE.of(most)}"

    return (
        f"The exponents are {span((DENSE,), _INITIALIZATION)} for dense networks, {span(_BLIND, _INITIALIZATION)} "
        f"under masks that do not look at the weights, {span(_BY_SIZE, _SQUARES)} under those chosen by size, if the "
        f"expected kernel takes the squares of the weights, and {span(('snip',), _SQUARES)} under SNIP’s masks."
    )


def _interval(slope: Slope) -> Interval:
    return mean_interval(slope.exponents)


def _table(found: Sequence[Slope]) -> str:
    head = ("network", "mask", "moments of the initialization", "distance", "moments θ²", "distance")
    pairs = dict.fromkeys((slope.model, slope.mask) for slope in found)
    by_key = {(slope.model, slope.mask, slope.moments): slope for slope in found}
    rows = []
    for model, mask in pairs:
        cells = []
        for moments in (_INITIALIZATION, _SQUARES):
            slope = by_key[model, mask, moments]
            cells += [_SLOPE.of(_interval(slope)), f"{slope.distances[0]:.2f} → {slope.distances[1]:.2f}"]
        rows.append((f"`{model}`", mask, *cells))
    return (
        table_of(head, rows)
        + "\n\n*Distance*: ‖Θ − Θ̄‖ / ‖Θ̄‖ in the mean over seeds, at the least and at the largest width."
    )
