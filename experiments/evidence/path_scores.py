"""Section: the two scores that the paper proposes, SynFlow-L2 and SynFlow weighted by the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.base.wording import counted, enumerated
from experiments.evidence import plots
from experiments.evidence.cells import Cells, Group, inconclusive, tables
from experiments.evidence.claims import Claim, Unit
from experiments.evidence.kept import Kept
from experiments.evidence.sections import Missing, Section, described, footer, link, not_kept, picture, table_of
from experiments.evidence.statistics import Interval, corrected, mean_interval, stratified_interval

__all__ = ["COMPARISONS", "section"]

COMPARISONS = {
    ("synflow_l2", "synflow"): "SynFlow-L2 − SynFlow",
    ("synflow_data", "synflow"): "SynFlow with inputs − SynFlow",
    ("synflow_data_l2", "synflow_l2"): "SynFlow-L2 with inputs − SynFlow-L2",
    ("synflow_l2", "synflow_l2_absolute"): "SynFlow-L2, factor θ² − factor |θ|",
}
"""The pairs of methods that are compared, with words."""

_STUDIES = ("digits", "mnist-methods", "mnist-methods-lenet-5", "fashion", "cifar10")
_TITLE = "Where do SynFlow-L2 and the input-weighted variants win?"
_QUESTION = (
    "The paper proposes two changes of SynFlow: to score by squared path values (SynFlow-L2), and to weight paths by "
    "the inputs that they start from. Where do they win? And does it matter whether SynFlow-L2 multiplies the "
    "derivative by θ², as here, or by |θ|, as public implementations do?"
)
_CLOSE = 0.01
"""A difference of accuracy below this counts as none."""
_POINTS = Unit(100.0, "+.1f", "points")


def section(studies: Mapping[str, Kept]) -> Section | Missing:
    """The section, of those of its studies that are kept; `digits` must be."""
    if "digits" not in studies:
        return not_kept(_TITLE, _QUESTION, ["digits"])
    used = [studies[name] for name in _STUDIES if name in studies]
    whole = tables(used)
    left_out, told_of_them = inconclusive(whole)
    names = dict.fromkeys(name for pair in COMPARISONS for name in pair)
    cells = Cells(whole, tuple(names)).restricted(lambda group: group[:2] not in left_out)
    accuracy = cells.values("test_accuracy")
    differences = {
        pair: accuracy[:, cells.methods.index(pair[0])] - accuracy[:, cells.methods.index(pair[1])]
        for pair in COMPARISONS
    }
    differences = {pair: each for pair, each in differences.items() if not np.isnan(each).all()}
    if not differences:
        return not_kept(_TITLE, _QUESTION, ["digits"])
    overall = {pair: _overall(cells, each, corrected(len(differences))) for pair, each in differences.items()}
    level = corrected(len(cells.groups))
    by_group = {pair: [mean_interval(group, level) for group in each] for pair, each in differences.items()}
    tried = len(differences) * len(cells.settings)
    by_network = {pair: _by_network(cells, each, corrected(tried)) for pair, each in differences.items()}
    return Section(
        _TITLE,
        _QUESTION,
        _in_short(overall, by_network),
        _without_the_lowest(cells, differences),
        _claims(overall),
        [
            picture(
                "path-scores",
                "Differences of accuracy within the SynFlow family",
                "Accuracy of the first method less that of the second, in points, over density. Intervals of one "
                "comparison are right together.",
            ),
            _table_by_network(by_network),
            _where(by_group, cells),
            _table(by_group, cells),
        ],
        [
            *(described(study) for study in used),
            *told_of_them,
            "Every difference is that of runs of the same seed. Those of the claims are averaged over densities, then "
            "over seeds, then over networks, which count alike. Their intervals are Student’s, of the level 1 − "
            f"0.05/{len(differences)}, and speak of these networks and densities alone.",
            f"In the table by network all {tried} intervals are right together with probability 95%.",
            f"In the table by density each interval has the level 1 − 0.05/{len(cells.groups)}, so that a column is "
            "right together with probability 95%.",
        ],
        [link(study.name) for study in used],
        {"path-scores": _figure(by_group, cells, used)},
    )


def _overall(cells: Cells, differences: np.ndarray, level: float) -> Interval:
    """The mean over data sets and networks of the mean over densities; seeds of one of them are its draws."""
    return stratified_interval([differences[places].mean(axis=0) for places in cells.settings.values()], level)


def _claims(overall: Mapping[tuple[str, str], Interval]) -> list[Claim]:
    words = (
        "SynFlow-L2 is more accurate than SynFlow",
        "Weighting SynFlow by the inputs makes it more accurate",
        "Weighting SynFlow-L2 by the inputs makes it more accurate",
    )
    claims = [
        Claim.of(f"{claim}, in the mean over networks and densities", overall[pair], _POINTS, low=0.0)
        for pair, claim in zip(COMPARISONS, words, strict=False)
        if pair in overall
    ]
    factor = ("synflow_l2", "synflow_l2_absolute")
    if factor in overall:
        claims.append(
            Claim.of(
                "The factor of SynFlow-L2 does not matter: in the mean, θ² and |θ| are less than a point apart",
                overall[factor],
                _POINTS,
                low=-_CLOSE,
                high=_CLOSE,
            )
        )
    return claims


def _in_short(
    overall: Mapping[tuple[str, str], Interval],
    by_network: Mapping[tuple[str, str], Mapping[tuple[str, str], Interval]],
) -> str:
    """Which differences are surely above or below 0, in the mean and by network, and how large all are."""

    def sure(each: Interval) -> bool:
        return each.low > 0 or each.high < 0

    parts = [f"{COMPARISONS[pair]}, {_POINTS.of(difference)}" for pair, difference in overall.items()]
    number = counted(len(next(iter(by_network.values()))), "network")
    in_mean = [COMPARISONS[pair] for pair, each in overall.items() if sure(each)]
    mean = f"the difference is sure for {enumerated(in_mean)}" if in_mean else "no difference is sure"
    by_itself = [
        (f"{COMPARISONS[pair]} on `{model}` ({_POINTS.of(each)})", each)
        for pair, of_networks in by_network.items()
        for (_, model), each in of_networks.items()
    ]
    alone = [words for words, each in by_itself if sure(each)]
    largest, _ = max(by_itself, key=lambda item: abs(np.nan_to_num(item[1].value)))
    network = (
        f"it is sure for {enumerated(alone)}"
        if alone
        else f"none of {len(by_itself)} is sure; the largest is {largest}"
    )
    return f"In the mean over {number} {mean}: {'; '.join(parts)}. By network {network}."


def _by_network(cells: Cells, differences: np.ndarray, level: float) -> dict[tuple[str, str], Interval]:
    """The mean over the densities of each data set and network."""
    return {
        setting: mean_interval(differences[places].mean(axis=0), level) for setting, places in cells.settings.items()
    }


def _table_by_network(by_network: Mapping[tuple[str, str], Mapping[tuple[str, str], Interval]]) -> str:
    settings = next(iter(by_network.values()))
    rows = [
        (data, f"`{model}`", *(_POINTS.bare(of_networks[data, model]) for of_networks in by_network.values()))
        for data, model in settings
    ]
    head = ("data", "network", *(f"{COMPARISONS[pair]}, points" for pair in by_network))
    return "In the mean over densities, network by network:\n\n" + table_of(head, rows)


def _without_the_lowest(cells: Cells, differences: Mapping[tuple[str, str], np.ndarray]) -> str:
    """The same means without the lowest density."""
    lowest = min(density for _, _, density in cells.groups)
    rest = np.array([density > lowest for _, _, density in cells.groups])
    higher = [places[rest[places]] for places in cells.settings.values() if rest[places].any()]
    if not higher:
        return ""
    means = [np.mean([np.nanmean(each[places]) for places in higher]) for each in differences.values()]
    told = enumerated([_POINTS.spelled(float(mean)) for mean in means])
    return f"Without density {lowest:g} the means are {told} points, in this order."


def _where(by_group: Mapping[tuple[str, str], Sequence[Interval]], cells: Cells) -> str:
    """In which groups a difference is sure."""
    lines = []
    for pair, groups in by_group.items():
        above = [_named(cells.groups[place]) for place, each in enumerate(groups) if each.low > 0]
        below = [_named(cells.groups[place]) for place, each in enumerate(groups) if each.high < 0]
        told = [f"above 0 on {enumerated(above)}"] if above else []
        told += [f"below 0 on {enumerated(below)}"] if below else []
        lines += [f"- {COMPARISONS[pair]}: {' and '.join(told)}."] if told else []
    if not lines:
        return f"At one density of one network no difference is sure, in any of {len(cells.groups)} groups:"
    return "At one density of one network these differences are sure:\n\n" + "\n".join(lines) + "\n\nAll of them:"


def _named(group: Group) -> str:
    data, model, density = group
    return f"{data} {model} at {density:g}"


def _table(by_group: Mapping[tuple[str, str], Sequence[Interval]], cells: Cells) -> str:
    rows = [
        (
            *(data, f"`{model}`", f"{density:g}"),
            *(_POINTS.bare(groups[place]) for groups in by_group.values()),
        )
        for place, (data, model, density) in enumerate(cells.groups)
    ]
    head = ("data", "network", "density", *(f"{COMPARISONS[pair]}, points" for pair in by_group))
    return table_of(head, rows)


def _figure(by_group: Mapping[tuple[str, str], Sequence[Interval]], cells: Cells, used: Sequence[Kept]) -> Figure:
    panels = []
    for (data, model), places in cells.settings.items():
        densities = [cells.groups[place][2] for place in places]
        lines = [
            plots.Line(
                COMPARISONS[pair],
                densities,
                [Interval(*(100 * end for end in groups[place])) for place in places],
                plots.COLORS[at],
                "osD^"[at],
            )
            for at, (pair, groups) in enumerate(by_group.items())
        ]
        panels.append(plots.Panel(f"{data}, {model}", lines))
    return plots.over_density(panels, "difference, points", footer(used), level=0.0)
