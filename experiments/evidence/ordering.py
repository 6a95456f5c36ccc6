"""Section: whether what is known before training orders prunings by the accuracy that training then gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.base.names import DENSE, LOTTERY_TICKET, QUANTITIES, RANDOM
from experiments.base.wording import counted, enumerated
from experiments.evidence import plots
from experiments.evidence.cells import Cells, in_order, inconclusive, tables
from experiments.evidence.claims import HOLDS, NOT, Claim, Unit
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
    mean_of_groups,
    percentile_interval,
    rank_associations,
)

__all__ = ["KNOWN", "STUDIES", "section"]

STUDIES = ("digits", "mnist-methods", "mnist-methods-lenet-5", "fashion", "cifar10")

_TITLE = "Does the Path Kernel order prunings by trained accuracy, without data?"
_QUESTION = (
    "Take one data set, one network and one density, so that density itself explains nothing. Does the trace of the "
    "Path Kernel Π, which needs no data, put the pruning methods in the order of the accuracy that training then "
    "gives? And does it do so better than simpler numbers?"
)

_PI = "log_trace_path_kernel"
_WITHOUT_RANDOM = "without `random`"

KNOWN: dict[str, tuple[str, str, int]] = {
    _PI: (QUANTITIES[_PI], "no data", 1),
    "log_top_path_kernel": (QUANTITIES["log_top_path_kernel"], "no data", 1),
    "effective_rank_path_kernel": (QUANTITIES["effective_rank_path_kernel"], "no data", 1),
    "log_path_norm_1": (QUANTITIES["log_path_norm_1"], "no data", 1),
    "log_path_norm_2": (QUANTITIES["log_path_norm_2"], "no data", 1),
    "log_path_count": (QUANTITIES["log_path_count"], "no data", 1),
    "log_layer_density_mean": ("mean log layer density", "no data, no weights", 1),
    "log_layer_density_min": ("least log layer density", "no data, no weights", 1),
    "log_trace_ntk": (QUANTITIES["log_trace_ntk"], "images", 1),
    "log_top_ntk": (QUANTITIES["log_top_ntk"], "images", 1),
    "effective_rank_ntk": (QUANTITIES["effective_rank_ntk"], "images", 1),
    "log_condition_ntk": ("− " + QUANTITIES["log_condition_ntk"], "images", -1),
}
"""The quantities that are tried, with their words, what they read, and their sign: a small condition number is expected
to be good."""

_AGAINST = ("log_path_norm_1", "log_path_norm_2", "log_path_count", "log_layer_density_mean", "log_trace_ntk")
"""What the trace of Π is claimed to order better than."""

_RHO = Unit(form="+.2f")

_OVER_PATHS = (
    "synflow", "synflow_l2", "synflow_l2_absolute", "synflow_data", "synflow_data_l2", "path_kernel_trace",
    "mean_field_trace", "px",
)  # fmt: skip
"""Methods that score by sums over paths, as Π does."""

_BESIDE = ("log_path_count", "log_layer_density_mean")
"""What ρ of other choices of methods is told of, beside Tr Π."""


def section(studies: Mapping[str, Kept]) -> Section | Missing:
    """The section, of those of `STUDIES` that are kept; `digits` must be."""
    if "digits" not in studies:
        return not_kept(_TITLE, _QUESTION, ["digits"])
    used = [studies[name] for name in STUDIES if name in studies]
    whole = tables(used)
    left_out, told_of_them = inconclusive(whole)
    methods = in_order([method for method in whole["method"].unique() if _is_before_training(method)])
    cells = Cells(whole, tuple(methods)).restricted(lambda group: group[:2] not in left_out)
    if not cells.groups:
        return not_kept(_TITLE, _QUESTION, ["digits"])
    trained = Cells(cells.table[cells.table["did_not_train"] == ""], cells.methods)
    by_group = _associations(cells, cells.resampled())
    of_all = {name: mean_of_groups(rho) for name, rho in by_group.items()}
    of_trained = {name: mean_of_groups(rho) for name, rho in _associations(trained, trained.resampled()).items()}
    names = [name for name in KNOWN if name == _PI or np.isfinite(of_all[name][0])]
    level = corrected(len(names))
    orders = {name: percentile_interval(of_all[name], level) for name in names}
    among_trained = {name: percentile_interval(of_trained[name], level) for name in names}
    better = {
        name: percentile_interval(mean_of_groups(by_group[_PI] - by_group[name]), corrected(len(names) - 1))
        for name in names
        if name != _PI
    }
    claims = [
        Claim.of("Tr Π orders the methods by trained accuracy", orders[_PI], _RHO, low=0.0),
        Claim.of(
            "Tr Π orders the methods by trained accuracy among the runs that trained", among_trained[_PI], _RHO, low=0.0
        ),
        *(
            Claim.of(f"Tr Π orders the methods better than {KNOWN[name][0]}", better[name], _RHO, low=0.0)
            for name in _AGAINST
            if name in better
        ),
    ]
    by_setting = _by_setting(cells, by_group, names, level)
    of_groups = {name: rho[0] for name, rho in by_group.items()}
    chosen = _of_choices(cells)
    return Section(
        _TITLE,
        _QUESTION,
        _in_short(orders, claims, cells, by_setting),
        _answer(orders, by_setting, chosen),
        claims,
        [
            _table(names, orders, among_trained, better),
            picture(
                "ordering",
                "How quantities known before training order the methods",
                "Spearman’s ρ with trained accuracy among the methods of one group, in the mean over groups. Intervals "
                f"are right together for the {len(names)} quantities of a panel.",
            ),
            _table_by_setting(by_setting),
            _table_by_group(cells, of_groups[_PI]),
            _table_of_choices(chosen),
        ],
        [*_sureness(used, cells, trained, len(names), told_of_them), *_without_rho(names, of_groups), *cells.twins()],
        [link(study.name) for study in used],
        {"ordering": _figure(orders, among_trained, by_setting, used)},
    )


def _is_before_training(method: str) -> bool:
    return method not in (DENSE, LOTTERY_TICKET) and "+" not in method


def _associations(cells: Cells, draws: Resampled, names: Sequence[str] = tuple(KNOWN)) -> dict[str, np.ndarray]:
    """For each quantity ρ of each group in each draw."""
    accuracy = draws.cell_means(cells.values("test_accuracy"))
    return {
        name: KNOWN[name][2] * rank_associations(draws.cell_means(cells.values(name)), accuracy, draws.methods)
        for name in names
    }


def _by_setting(
    cells: Cells, correlations: Mapping[str, np.ndarray], names: Sequence[str], level: float
) -> dict[tuple[str, str], dict[str, Interval]]:
    """The intervals of the quantities for each data set and network, from the same draws."""
    return {
        setting: {name: percentile_interval(mean_of_groups(correlations[name], groups), level) for name in names}
        for setting, groups in cells.settings.items()
    }


def _of_choices(cells: Cells) -> dict[str, tuple[int, list[Interval]]]:
    """For other choices of methods how many they are, and ρ of Tr Π and of `_BESIDE`; right together."""
    choices = {
        _WITHOUT_RANDOM: [method for method in cells.methods if method != RANDOM],
        "without `random` and `magnitude`": [method for method in cells.methods if method not in (RANDOM, "magnitude")],
        "those that score by sums over paths": [method for method in cells.methods if method in _OVER_PATHS],
        "all others": [method for method in cells.methods if method not in _OVER_PATHS],
    }
    names = (_PI, *_BESIDE)
    level = corrected(len(choices) * len(names))
    found = {}
    for words, methods in choices.items():
        part = Cells(cells.table, tuple(methods))
        if part.groups:
            rho = _associations(part, part.resampled(), names)
            found[words] = len(methods), [percentile_interval(mean_of_groups(each), level) for each in rho.values()]
    return found


def _in_short(
    orders: Mapping[str, Interval],
    claims: Sequence[Claim],
    cells: Cells,
    by_setting: Mapping[tuple[str, str], Mapping[str, Interval]],
) -> str:
    does = {HOLDS: "does", NOT: "does not"}.get(claims[0].verdict, "may or may not")
    above = [f"`{model}`" for (_, model), of_setting in by_setting.items() if of_setting[_PI].low > 0]
    alone = enumerated(above) if above else "none of them"
    told = (
        f"In the mean over {counted(len(cells.groups), 'group')} Tr Π {does} rank with accuracy, with Spearman’s ρ = "
        f"{_RHO.of(orders[_PI])}; of {counted(len(by_setting), 'network')} by itself this is sure on {alone}."
    )
    simpler = {claim.words.rpartition(" than ")[2]: claim.verdict for claim in claims[2:]}
    if not simpler:
        return told
    beaten = [words for words, verdict in simpler.items() if verdict == HOLDS]
    surely = f"surely orders better than {enumerated(beaten)}" if beaten else "does not surely order better than any"
    return f"{told} Of {len(simpler)} simpler numbers ({enumerated(list(simpler))}) it {surely}."


def _answer(
    orders: Mapping[str, Interval],
    by_setting: Mapping[tuple[str, str], Mapping[str, Interval]],
    chosen: Mapping[str, tuple[int, Sequence[Interval]]],
) -> str:
    first = max(orders, key=lambda name: np.nan_to_num(orders[name].value, nan=-np.inf))
    best = "Tr Π itself" if first == _PI else f"{KNOWN[first][0]} ({_RHO.of(orders[first])})"
    each = [f"{_RHO.of(of_setting[_PI])} on `{model}`" for (_, model), of_setting in by_setting.items()]
    without = (
        f" Without random pruning the mean over groups is {_RHO.of(chosen[_WITHOUT_RANDOM][1][0])}."
        if _WITHOUT_RANDOM in chosen
        else ""
    )
    return f"Network by network it is {enumerated(each)}.{without} Of {len(orders)} quantities, {best} has the largest."


def _table(
    names: Sequence[str],
    orders: Mapping[str, Interval],
    among_trained: Mapping[str, Interval],
    better: Mapping[str, Interval],
) -> str:
    head = ("quantity", "reads", "ρ, all runs", "ρ, runs that trained", "ρ of Tr Π less this ρ")
    rows = [
        (
            *(KNOWN[name][0], KNOWN[name][1], _RHO.of(orders[name]), _RHO.of(among_trained[name])),
            _RHO.of(better[name]) if name in better else "–",
        )
        for name in sorted(names, key=lambda name: -orders[name].value)
    ]
    return table_of(head, rows)


def _table_by_setting(by_setting: Mapping[tuple[str, str], Mapping[str, Interval]]) -> str:
    shown = [name for name in (_PI, "effective_rank_path_kernel", *_AGAINST) if name in next(iter(by_setting.values()))]
    rows = [
        (f"{data}, `{model}`", *(_RHO.of(orders[name]) for name in shown))
        for (data, model), orders in by_setting.items()
    ]
    return "The same for each data set and network, all runs:\n\n" + table_of(
        ("data, network", *(KNOWN[name][0] for name in shown)), rows
    )


def _table_by_group(cells: Cells, rho: np.ndarray) -> str:
    densities = sorted({density for _, _, density in cells.groups}, reverse=True)
    found = dict(zip(cells.groups, rho, strict=True))
    rows = [
        (
            f"{data}, `{model}`",
            *(
                _RHO.spelled(found[data, model, density]) if (data, model, density) in found else "not run"
                for density in densities
            ),
        )
        for data, model in cells.settings
    ]
    return "ρ of Tr Π in each group, without intervals:\n\n" + table_of(
        ("data, network", *(f"density {density:g}" for density in densities)), rows
    )


def _without_rho(names: Sequence[str], of_groups: Mapping[str, np.ndarray]) -> list[str]:
    """Sentences on quantities that have no ρ in some groups."""
    missing = {name: int(np.isnan(of_groups[name]).sum()) for name in names}
    told = [f"{KNOWN[name][0]} in {counted(number, 'group')}" for name, number in missing.items() if number]
    return (
        [f"A quantity that is the same for all methods of a group has no ρ there: {enumerated(told)}."] if told else []
    )


def _table_of_choices(chosen: Mapping[str, tuple[int, Sequence[Interval]]]) -> str:
    rows = [(words, str(number), *map(_RHO.of, rho)) for words, (number, rho) in chosen.items()]
    head = ("methods", "how many", *(f"ρ, {KNOWN[name][0]}" for name in (_PI, *_BESIDE)))
    return (
        "The same for other choices of methods, in the mean over all groups; all intervals of this table are right "
        f"together. By sums over paths score {shown_names(_OVER_PATHS)}.\n\n{table_of(head, rows)}"
    )


def _sureness(used: Sequence[Kept], cells: Cells, trained: Cells, tried: int, left_out: Sequence[str]) -> list[str]:
    lost = sum(int(each.table["method"].isin(cells.methods).sum()) * sign for each, sign in ((cells, 1), (trained, -1)))
    return [
        *(described(study) for study in used),
        *left_out,
        "A group is one data set, one network and one density. In it, the methods are ranked by the mean of a quantity "
        "over seeds and by the mean accuracy; groups count alike.",
        f"The intervals are those of the bootstrap of methods and seeds. Each has the level 1 − 0.05/{tried}, so that "
        f"all {tried} quantities together are right with probability 95%; differences from Tr Π have 1 − "
        f"0.05/{tried - 1}.",
        f"The methods compared are {shown_names(cells.methods)}. They are not a sample of all methods, and several "
        "score by sums over paths, as Π does; another choice of methods gives another ρ.",
        "“Layer density” stands for what layer densities alone know: the kept shares of the layers, without which "
        "weights are kept. For plain dense layers “mean”, times the number of layers, is the logarithm of the share "
        "of the paths that a random mask of these densities leaves.",
        f"“Runs that trained” leaves out {counted(lost, 'run')} that did not train: the loss never fell by 1% "
        "below that of guessing, or the test accuracy is no better than chance can give. They are chosen by how "
        "training went, which may change ρ either way.",
        "“No data” is said of the quantity: many of the masks were chosen with images.",
    ]


def _figure(
    orders: Mapping[str, Interval],
    among_trained: Mapping[str, Interval],
    by_setting: Mapping[tuple[str, str], Mapping[str, Interval]],
    used: Sequence[Kept],
) -> Figure:
    together = [
        plots.Row(KNOWN[name][0], {"all runs": orders[name], "runs that trained": among_trained[name]})
        for name in orders
    ]
    panels = [plots.Rows("all groups", together)]
    for (data, model), of_setting in by_setting.items():
        rows = [plots.Row(KNOWN[name][0], {"all runs": of_setting[name]}) for name in orders]
        panels.append(plots.Rows(f"{data}, {model}", rows))
    return plots.in_rows(panels, "Spearman ρ", footer(used), axis_of=_from_minus_one, width=2.6)


def _from_minus_one(axis: Axes) -> None:
    axis.set(xlim=(-1.05, 1.05), xticks=[-1.0, -0.5, 0.0, 0.5, 1.0])
