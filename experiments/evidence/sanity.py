"""Section: how much of a method is the density of each layer, and how much which weights it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.base.names import LOTTERY_TICKET, RANDOM
from experiments.base.wording import counted, enumerated, percent
from experiments.evidence import plots
from experiments.evidence.cells import Cells, in_order
from experiments.evidence.claims import Claim, Unit
from experiments.evidence.kept import Kept
from experiments.evidence.sections import (
    Missing,
    Section,
    described,
    footer,
    link,
    not_kept,
    picture,
    shown_names,
    table_of,
)
from experiments.evidence.statistics import (
    Interval,
    Resampled,
    corrected,
    mean_interval,
    mean_of_groups,
    percentile_interval,
    rank_associations,
    weighted_means,
)

__all__ = ["VARIANTS", "section"]

VARIANTS = {
    "shuffled": "the kept weights are shuffled within each layer",
    "reinitialized": "the mask stays, and all weights are drawn anew",
    "inverted": "the weights that score least are kept",
}
"""The sanity checks of Frankle et al. (2021), by how their methods end, and what they do."""

_STUDY = "digits-sanity"
_TITLE = "How much is the density of each layer, and how much which weights are kept?"
_QUESTION = (
    "Frankle et al. (“Pruning neural networks at initialization: why are we missing the mark?”, ICLR 2021) found that "
    "prunings before training lose nothing when the kept weights are shuffled within each layer, or drawn anew. Is it "
    "so here?"
)
_CLOSE = 0.01
"""A change of accuracy by less than this counts as none."""
_LEAD, _STAYS = "lead over random", "share of the lead that shuffled masks keep"
_POINTS, _SHARE, _RHO = Unit(100.0, "+.1f", "points"), Unit(100.0, ".0f", "%"), Unit(form="+.2f")
_PI = "log_trace_path_kernel"


class _Arrays(NamedTuple):
    """Numbers (groups, methods, seeds) of the methods and their variants, NaN where there is none.

    `base`, `variants` and `random`, which is (groups, 1, seeds), are accuracies; `pi` and `shuffled_pi` the logarithms
    of Tr Π under the mask of the method and under the shuffled one.
    """

    base: np.ndarray
    variants: dict[str, np.ndarray]
    random: np.ndarray
    pi: np.ndarray
    shuffled_pi: np.ndarray


def section(studies: Mapping[str, Kept]) -> Section | Missing:
    """The section."""
    if _STUDY not in studies:
        return not_kept(_TITLE, _QUESTION, [_STUDY])
    study = studies[_STUDY]
    rows = study.finished
    is_varied = rows["method"].str.contains("+", regex=False)
    varied = {method.partition("+")[0] for method in rows.loc[is_varied, "method"]} - {RANDOM}
    cells = Cells(rows, tuple(in_order([name for name in varied if name in set(rows["method"])])))
    if not cells.groups:
        return not_kept(_TITLE, _QUESTION, [_STUDY])
    arrays = _Arrays(
        cells.values("test_accuracy"),
        {name: cells.values("test_accuracy", [f"{method}+{name}" for method in cells.methods]) for name in VARIANTS},
        cells.values("test_accuracy", [RANDOM]),
        cells.values(_PI),
        cells.values(_PI, [f"{method}+shuffled" for method in cells.methods]),
    )
    ranks = _ranks(arrays, cells)
    numbers, by_network = _numbers(arrays, cells, ranks), _by_network(arrays, cells)
    before = sum(method != LOTTERY_TICKET for method in cells.methods)
    return Section(
        _TITLE,
        _QUESTION,
        _in_short(numbers, by_network, cells),
        _answer(numbers, by_network, before, cells),
        _claims(numbers),
        [
            "Each method is trained again in three ways: "
            + "; ".join(f"*{name}*, {words}" for name, words in VARIANTS.items())
            + ". Every difference below is one of runs of the same seeds.",
            _table_by_network(by_network, cells) + _where_inverting_is_free(arrays, cells),
            picture(
                "sanity",
                "Change of accuracy by the sanity checks",
                "Accuracy of the varied method less that of the method itself, in points, with 95% intervals over "
                "seeds, each by itself.",
            ),
            *(_table(cells, arrays, place) for place in range(len(cells.groups))),
            _of_path_kernel(numbers, {name: rho[0] for name, rho in ranks.items()}, cells),
        ],
        _sureness(study, cells, len(numbers)),
        [link(_STUDY)],
        {"sanity": _figure(cells, arrays, study)},
    )


def _before_training(cells: Cells, draws: Resampled) -> np.ndarray:
    """How often each draw has each method, methods that train first never."""
    return draws.methods * np.array([method != LOTTERY_TICKET for method in cells.methods])


def _ranks(arrays: _Arrays, cells: Cells) -> dict[str, np.ndarray]:
    """The numbers ρ (draws + 1, groups) by name; the first draw is what was measured."""
    draws = cells.resampled()
    methods = _before_training(cells, draws)
    accuracy, pi = draws.cell_means(arrays.base), draws.cell_means(arrays.pi)
    shuffled, shuffled_pi = draws.cell_means(arrays.variants["shuffled"]), draws.cell_means(arrays.shuffled_pi)
    with np.errstate(invalid="ignore"):  # −∞ of two masks without a path
        own, other = (rank_associations(each, accuracy, methods) for each in (pi, shuffled_pi))
        changes = rank_associations(pi - shuffled_pi, accuracy - shuffled, methods)
    return {"ρ of own": own, "ρ of shuffled": other, "ρ beyond": own - other, "ρ of changes": changes}


def _numbers(arrays: _Arrays, cells: Cells, ranks: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """The numbers of the claims by name, of prunings before training, with intervals that are right together."""
    draws = cells.resampled()
    methods = _before_training(cells, draws)
    found = {name: _mean(draws.cell_means(variant - arrays.base), methods) for name, variant in arrays.variants.items()}
    leads = [each - arrays.random for each in (arrays.variants["shuffled"], arrays.base)]
    missing = np.isnan(leads[0]) | np.isnan(leads[1])
    lead_of_shuffled, lead = (_mean(draws.cell_means(np.where(missing, np.nan, each)), methods) for each in leads)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["share"] = lead_of_shuffled / lead
    found |= {name: mean_of_groups(rho) for name, rho in ranks.items()}
    return {name: percentile_interval(numbers, corrected(len(found))) for name, numbers in found.items()}


def _by_network(arrays: _Arrays, cells: Cells) -> dict[str, list[Interval]]:
    """For the lead over random pruning and for each variant its change in each group, in the mean over methods."""
    draws = cells.resampled()
    methods = _before_training(cells, draws)
    changes = {_LEAD: arrays.base - arrays.random}
    changes |= {name: variant - arrays.base for name, variant in arrays.variants.items()}
    level = corrected((len(changes) + 1) * len(cells.groups))
    means = {name: draws.cell_means(change) for name, change in changes.items()}
    drawn = {
        name: [weighted_means(of[:, place], methods) for place in range(len(cells.groups))]
        for name, of in means.items()
    }
    found = {name: [percentile_interval(each, level) for each in of_groups] for name, of_groups in drawn.items()}
    both = zip(drawn["shuffled"], drawn[_LEAD], strict=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [percentile_interval(1 + change / lead, level) for change, lead in both]
    # a share of what may be nothing is no share
    none = Interval(np.nan, np.nan, np.nan)
    return found | {_STAYS: [share if lead.low > 0 else none for share, lead in zip(shares, found[_LEAD], strict=True)]}


def _mean(means: np.ndarray, methods: np.ndarray) -> np.ndarray:
    """The mean over groups and methods of cell means (b, groups, m), in each draw."""
    return weighted_means(means.reshape(len(means), -1), np.tile(methods, means.shape[1]))


def _claims(numbers: Mapping[str, Interval]) -> list[Claim]:
    return [
        Claim.of(
            "Shuffling the kept weights within layers costs less than a point of accuracy, in the mean over methods "
            "and networks",
            numbers["shuffled"],
            _POINTS,
            low=-_CLOSE,
        ),
        Claim.of(
            "Drawing all weights anew under the mask costs less than a point",
            numbers["reinitialized"],
            _POINTS,
            low=-_CLOSE,
        ),
        Claim.of(
            "Keeping the weights that score least costs more than a point", numbers["inverted"], _POINTS, high=-_CLOSE
        ),
        Claim.of(
            "Masks shuffled within layers keep more than half of the lead over random pruning",
            numbers["share"],
            _SHARE,
            low=0.5,
        ),
        Claim.of(
            "Tr Π orders the methods better than layer densities alone do, that is, than Tr Π of their shuffled masks",
            numbers["ρ beyond"],
            _RHO,
            low=0.0,
        ),
        Claim.of("The more shuffling lowers Tr Π, the more it lowers accuracy", numbers["ρ of changes"], _RHO, low=0.0),
    ]


def _answer(
    numbers: Mapping[str, Interval], by_network: Mapping[str, Sequence[Interval]], methods: int, cells: Cells
) -> str:
    both = zip(cells.groups, by_network["shuffled"], strict=True)
    each = [f"{_POINTS.of(change)} on `{model}`" for (_, model, _), change in both]
    return (
        f"Shuffling changes accuracy by {enumerated(each)}, and by {_POINTS.of(numbers['shuffled'])} in the mean over "
        f"all pairs of {counted(methods, 'pruning', 'prunings')} before training and "
        f"{counted(len(cells.groups), 'network')}."
    )


def _in_short(numbers: Mapping[str, Interval], by_network: Mapping[str, Sequence[Interval]], cells: Cells) -> str:
    densities = enumerated([f"{density:g}" for density in dict.fromkeys(group[2] for group in cells.groups)])
    each = [f"{_SHARE.of(by_network[_STAYS][at])} on `{group[1]}`" for at, group in enumerate(cells.groups)]
    return (
        f"At density {densities}, masks that are shuffled within layers, which keep layer densities and nothing else, "
        f"keep {enumerated(each)} of the lead of prunings before training over random pruning; "
        f"{_SHARE.of(numbers['share'])} in all."
    )


def _table_by_network(by_network: Mapping[str, Sequence[Interval]], cells: Cells) -> str:
    rows = [
        (
            *(f"{data}, `{model}`", f"{density:g}"),
            *((_SHARE.of if name == _STAYS else _POINTS.bare)(of[place]) for name, of in by_network.items()),
        )
        for place, (data, model, density) in enumerate(cells.groups)
    ]
    return "In the mean over prunings before training, in points:\n\n" + table_of(
        ("data, network", "density", *by_network), rows
    )


def _where_inverting_is_free(arrays: _Arrays, cells: Cells) -> str:
    """Methods whose weights of lowest score may do about as well."""
    costs = {
        (place, at): arrays.variants["inverted"][place, at] - arrays.base[place, at]
        for place in range(len(cells.groups))
        for at in range(len(cells.methods))
    }
    costs = {key: cost for key, cost in costs.items() if not np.isnan(cost).all()}
    changes = {key: mean_interval(cost, corrected(len(costs))) for key, cost in costs.items()}
    free = [
        f"`{cells.methods[at]}` on `{cells.groups[place][1]}` ({_POINTS.of(change)})"
        for (place, at), change in changes.items()
        if not change.high <= -_CLOSE
    ]
    if not free:
        return ""
    return (
        f"\n\nKeeping the weights that score least does not surely cost a point here: {enumerated(free)}. These "
        f"{len(costs)} intervals are right together."
    )


def _of_path_kernel(numbers: Mapping[str, Interval], by_network: Mapping[str, np.ndarray], cells: Cells) -> str:
    words = {
        "ρ of own": "Tr Π of the method’s mask with its accuracy",
        "ρ of shuffled": "Tr Π of the shuffled mask with the method’s accuracy",
        "ρ beyond": "the first less the second",
        "ρ of changes": "change of log Tr Π by shuffling with change of accuracy",
    }
    rows = [(words[name], _RHO.of(numbers[name]), *(_RHO.spelled(each) for each in by_network[name])) for name in words]
    head = ("what is ranked", "ρ, mean over networks", *(f"`{model}`" for _, model, _ in cells.groups))
    return (
        "Does Π know more than layer densities? The shuffled mask has the layer densities of the method and nothing "
        "else of it, so that its Tr Π says what layer densities alone say. Spearman’s ρ among the methods on one "
        f"network:\n\n{table_of(head, rows)}"
    )


def _table(cells: Cells, arrays: _Arrays, place: int) -> str:
    data, model, density = cells.groups[place]
    rows = []
    for at, method in enumerate(cells.methods):
        base, random = arrays.base[place, at], arrays.random[place, 0]
        changed = [_POINTS.bare(mean_interval(variant[place, at] - base)) for variant in arrays.variants.values()]
        lead = mean_interval(base - random)
        share = "–"
        if lead.low > 0:
            both = ~np.isnan(arrays.variants["shuffled"][place, at] - base - random)
            left = arrays.variants["shuffled"][place, at] - random
            share = percent(float(left[both].mean() / (base - random)[both].mean())) if both.any() else "–"
        rows.append(
            (
                f"`{method}`",
                Unit(100.0, ".1f").of(mean_interval(base)),
                _POINTS.bare(lead),
                *changed,
                share,
            )
        )
    head = ("method", "accuracy, %", _LEAD, *arrays.variants, _STAYS)
    return f"`{model}` on {data} at density {density:g}; changes in points:\n\n" + table_of(head, rows)


def _sureness(study: Kept, cells: Cells, tried: int) -> list[str]:
    sentences = [
        described(study),
        f"The methods are {shown_names(cells.methods)}. Random pruning is the baseline and no method here.",
        "Intervals of the answer, of the claims and of ρ are those of the bootstrap of methods and seeds, each of the "
        f"level 1 − 0.05/{tried}. Those of the tables of accuracy are Student’s 95% intervals over seeds, each by "
        "itself.",
        "The share is the lead of shuffled masks over random pruning, divided by that of the methods over it. Both are "
        "means over all pairs of a method and a network, so that a network on which the lead is large counts more. In "
        "the tables it stands where the lead is surely above 0.",
    ]
    if LOTTERY_TICKET in cells.methods:
        sentences.append(
            f"`{LOTTERY_TICKET}` trains before it prunes. It is in the tables, and left out of answer and claims."
        )
    return sentences


def _figure(cells: Cells, arrays: _Arrays, study: Kept) -> Figure:
    panels = []
    for place, (data, model, density) in enumerate(cells.groups):
        rows = []
        for at, method in enumerate(cells.methods):
            numbers = {
                name: Interval(*(100 * end for end in mean_interval(variant[place, at] - arrays.base[place, at])))
                for name, variant in arrays.variants.items()
            }
            rows.append(plots.Row(method, numbers))
        panels.append(plots.Rows(f"{data}, {model}, density {density:g}", rows))
    return plots.in_rows(panels, "change of accuracy, points", footer([study]), width=2.8)
