"""What the figures of a study show, in sentences. Every number in them is computed from the results at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from experiments.options import DENSE
from experiments.records.reading import CHANGES, PREDICTIONS, Results
from experiments.records.runs import QUANTITIES
from experiments.report.figures import shown_curves
from experiments.report.wording import fold, listed, number, percent, points
from experiments.widths import Sweep

__all__ = [
    "failures",
    "of_accuracy",
    "of_associations",
    "of_change",
    "of_curves",
    "of_gaps",
    "of_layers",
    "of_path_kernel",
    "of_quantities",
    "of_spectra",
    "of_widths",
    "summary",
]

_ABSENT = "It is not in these results."

_LAZY = 0.1
"""A kernel that training changes by less than this share of its norm counts as kept."""

_STRATA = ["data", "model", "density"]


def summary(study: Results) -> str:
    """The paragraph that opens the report."""
    seeds = study.trials["seed"].nunique()
    methods = [method for method in study.cells["method"].unique() if method != DENSE]
    counted = (
        f"{len(study.trials)} networks: {_count(len(study.settings), 'combination')} of data and model, "
        f"{_count(len(methods), 'pruning method')}, {_count(len(study.densities), 'density', 'densities')}, "
        f"{_count(seeds, 'seed')}."
    )
    return " ".join(
        part for part in (counted, failures(study), _wins(study), of_gaps(study), _strongest(study)) if part
    )


def failures(study: Results) -> str:
    """How many trials failed, and why most of them; nothing where none did."""
    if not study.failed:
        return ""
    reasons = pd.Series([trial.reason for trial in study.failed]).value_counts()
    return (
        f"{len(study.failed)} of {len(study.failed) + len(study.trials)} trials failed and are in no figure, "
        f"{reasons.iloc[0]} of them with: {reasons.index[0]}."
    )


def of_accuracy(study: Results) -> str:
    """Which method is best most often, and how far the methods lie apart at the lowest density."""
    parts = []
    for setting, part in study.parts():
        known = _pruned(part).dropna(subset=["test_accuracy_mean"])
        if known.empty:
            continue
        lowest = known[known["density"] == known["density"].min()]
        best, worst = (lowest.loc[pick(lowest["test_accuracy_mean"])] for pick in (pd.Series.idxmax, pd.Series.idxmin))
        dense = part.cells.loc[part.cells["method"] == DENSE, "test_accuracy_mean"]
        words = f"{best['method']} {_accuracy(best)}"
        if len(lowest) > 1:
            apart = best["test_accuracy_mean"] - worst["test_accuracy_mean"]
            words += f", {points(apart)} above {worst['method']}"
        if len(dense):
            lost = dense.iloc[0] - best["test_accuracy_mean"]
            words += f" and {points(abs(lost))} {'below' if lost >= 0 else 'above'} the dense network"
        parts.append(f"{setting}: {words} (density {best['density']:g}).")
    return _told(f"{_wins(study)} At the lowest density:", parts)


def of_curves(study: Results) -> str:
    """Which cells are drawn, and how far the loss really falls in them."""
    parts = []
    for setting, part in study.parts():
        cells = part.cells.set_index(["method", "density"])["real_drop_mean"]
        falls = [f"{_cell(*cell)} {number(cells[cell])}" for cell in shown_curves(part)]
        parts += [f"{setting}: {', '.join(falls)}."] if falls else []
    return _told("The real loss falls, in decades:", parts)


def of_gaps(study: Results) -> str:
    """How close each prediction comes to the real curve, and whether it orders the cells as that does."""
    found = {name: study.cells[f"gap_{name}_mean"].dropna() for name in PREDICTIONS}
    medians = [f"{number(gap.median())} by {PREDICTIONS[name]}" for name, gap in found.items() if len(gap)]
    if not medians:
        return "No predicted loss curve is in these results."
    both = study.cells[["gap_linearized_mean", "gap_data_free_mean"]].dropna()
    closer = int((both["gap_linearized_mean"] < both["gap_data_free_mean"]).sum())
    orders = {name: study.association(f"{name}_drop", "real_drop", ["data", "model"]) for name in PREDICTIONS}
    ordered = [f"{order} by {PREDICTIONS[name]}" for name, order in orders.items() if order.groups]
    baseline = study.association("density", "real_drop", ["data", "model"])
    words = f"The real loss curves are missed by, in the median over cells and in decades, {listed(medians)}"
    words += f"; Θ is closer than Π in {closer} of {len(both)} cells." if len(both) else "."
    if ordered:
        words += (
            f" How far the loss falls is ordered among the cells of one data set and model with ρ = {listed(ordered)}; "
            f"by density alone with {baseline}."
        )
    return words


def of_path_kernel(study: Results) -> str:
    """Between which methods the quantities range at the lowest density, and where no path is left."""
    parts = []
    for setting, part in study.parts():
        ranges = [
            f"{QUANTITIES[name]} {found}"
            for name in ("log_trace_path_kernel", "effective_rank_path_kernel")
            if (found := _range(part, f"{name}_mean", lambda value: number(value, ".1f")))
        ]
        parts += [f"{setting} at density {part.densities[-1]:g}: {', '.join(ranges)}."] if ranges else []
    cut = study.cells[np.isneginf(study.cells["log_path_norm_1_mean"])]
    last = (
        f" No path is left, and no point drawn, for {_cells(cut)}." if len(cut) else " Every network has a path left."
    )
    return _told(f"{last} Of the pruned networks, at the lowest density:", parts)


def of_spectra(study: Results) -> str:
    """How many eigenvalues Θ has above its rounding, and where the median of Π lies."""
    parts = []
    for setting, part in study.parts():
        ranks, medians, words = _by_cell(part, _rank), _by_cell(part, _median), []
        if ranks:
            size = max(map(len, part.trials["log_ntk_eigenvalues"]))
            found = _of_cells(part, ranks, lambda count: number(count, ".0f"))
            words.append(f"above rounding are of {size} eigenvalues of Θ {found}")
        if medians:
            found = _of_cells(part, medians, lambda exponent: f"10^{number(exponent, '.1f')}")
            words.append(f"the median eigenvalue of Π above zero is {found}")
        parts += [f"{setting}: {'; '.join(words)}."] if words else []
    return _told("Dense and at the lowest density:", parts)


def of_quantities(study: Results) -> str:
    """Which quantity goes most with accuracy over the cells drawn, and how many do clearly."""
    found = {name: study.association(name, "test_accuracy", []) for name in QUANTITIES}
    others = {name: one for name, one in found.items() if name != "density" and one.groups}
    if not others:
        return "There are too few cells to rank them."
    best = max(others, key=lambda name: abs(others[name].rho))
    clear = sum(one.clear for one in others.values())
    return (
        f"{QUANTITIES[best]} goes most with accuracy, ρ = {others[best]} over {others[best].cells} cells; "
        f"{clear} of {len(others)} intervals leave out 0. Density alone has {found['density']}."
    )


def of_associations(study: Results) -> str:
    """Which quantities go with accuracy, over all cells of a setting and within densities."""
    parts = [f"{setting}: {of_quantities(part)}" for setting, part in study.parts()]
    return _told(f"{_strongest(study)} Over all cells:", parts)


def of_layers(study: Results) -> str:
    """The most thinned layer and the dead units by method at the lowest density; layers that are emptied."""
    parts = []
    for setting, part in study.parts():
        at = part.trials[part.trials["density"] == (part.densities or [1.0])[-1]]
        at = at[(at["method"] != DENSE) & at["layer_density"].map(bool)]
        least = {method: pd.DataFrame(group["layer_density"].tolist()).mean() for method, group in at.groupby("method")}
        if not least:
            continue
        method = min(least, key=lambda name: least[name].min())
        words = (
            f"{setting} at density {part.densities[-1]:g}: {method} thins a layer most, {least[method].idxmin()} to "
        )
        words += percent(least[method].min())
        dead = _range(part, "dead_units_mean_mean", percent)
        parts.append(f"{words}; the share of dead units is {dead}." if dead else f"{words}; dead units are not there.")
    empty = study.trials["layer_density"].map(lambda layers: bool(layers) and min(layers.values()) == 0.0)
    emptied = study.trials[empty].drop_duplicates([*_STRATA, "method"])
    last = f"A layer is emptied in {_cells(emptied)}." if len(emptied) else "No layer is emptied."
    return _told(f"{last} At the lowest density:", parts)


def of_change(study: Results) -> str:
    """How many cells keep their kernels through training, and whether Θ and Π change together."""
    sentences = []
    for name, words in list(CHANGES.items())[:2]:
        values = study.cells[f"{name}_mean"]
        there = values.dropna()
        if there.empty:
            sentences.append(f"The {words} is not in these results.")
            continue
        most, least = study.cells.loc[there.idxmax()], study.cells.loc[there.idxmin()]
        sentences.append(
            f"The {words} stays below {percent(_LAZY)} in {int((there < _LAZY).sum())} of {len(there)} cells (lazy). "
            f"It reaches from {fold(there.min())} ({_row(least)}) to {fold(there.max())} ({_row(most)}), with a "
            f"median of {fold(there.median())}."
        )
    together = study.association("path_kernel_change", "ntk_change", ["data", "model"])
    if together.groups:
        sentences.append(f"Within a data set and model the two change together with ρ = {together}.")
    return " ".join(sentences)


def of_widths(sweeps: Sequence[Sweep]) -> str:
    """The exponents of the width."""
    slopes = [sweep.slope[0] for sweep in sweeps]
    off = max(sweeps, key=lambda sweep: abs(sweep.slope[0] + 0.5))
    return (
        f"The distance to the infinite-width limit goes with the width to the power of {number(min(slopes))} to "
        f"{number(max(slopes))} (−1/2 is expected); furthest from it is {off.model} at density {off.density:g}."
    )


def _told(lead: str, parts: Sequence[str]) -> str:
    """What was found in each setting, a line for each where there are several."""
    if not parts:
        return _ABSENT
    return "\n".join([lead, *parts]) if len(parts) > 1 else f"{lead} {parts[0]}"


def _wins(study: Results) -> str:
    """How often the best method is best, and how often its lead is more than the seeds explain."""
    best, leads = [], 0
    for _, group in _pruned(study).groupby(_STRATA, sort=False):
        ordered = group.dropna(subset=["test_accuracy_mean"]).sort_values("test_accuracy_mean", ascending=False)
        if len(ordered) < 2:
            continue
        first, second = ordered.iloc[0], ordered.iloc[1]
        best.append(str(first["method"]))
        lead = first["test_accuracy_mean"] - second["test_accuracy_mean"]
        error = np.hypot(*(row["test_accuracy_std"] / np.sqrt(row["seeds"]) for row in (first, second)))
        leads += bool(lead > 2 * error)
    if not best:
        return "There are not two methods at one density to compare."
    counts = pd.Series(best).value_counts()
    names = listed([f"{method} ({count})" for method, count in counts.items()])
    words = f"Of {_count(len(best), 'comparison')} at one data set, model and density, the most accurate is {names}"
    if study.trials["seed"].nunique() == 1:
        return f"{words}; with one seed, no lead can be told from luck."
    return f"{words}; {leads} of the leads over the second exceed two standard errors over seeds."


def _strongest(study: Results) -> str:
    found = {name: study.association(name, "test_accuracy", _STRATA) for name in QUANTITIES}
    found = {name: one for name, one in found.items() if one.groups}
    if not found:
        return "Too few methods share a density to rank the quantities within one."
    best = max(found, key=lambda name: abs(found[name].rho))
    clear = [f"{QUANTITIES[name]} ({number(one.rho)})" for name, one in found.items() if one.clear]
    return (
        f"Among methods at one density, {QUANTITIES[best]} goes most with accuracy, ρ = {found[best]} over "
        f"{_count(found[best].groups, 'group')} of {found[best].cells} cells; intervals that leave out 0: "
        f"{listed(clear or ['none'])}."
    )


def _range(part: Results, column: str, words: Callable[[float], str]) -> str:
    """From the least to the most that a method has at the lowest density; nothing where none has a number."""
    if not part.densities:
        return ""
    there = part.at(part.densities[-1])
    there = there[np.isfinite(there[column])]
    if there.empty:
        return ""
    least, most = there.loc[there[column].idxmin()], there.loc[there[column].idxmax()]
    if least["method"] == most["method"]:
        return f"{words(least[column])} ({least['method']})"
    return f"from {words(least[column])} ({least['method']}) to {words(most[column])} ({most['method']})"


def _by_cell(part: Results, value: Callable[[pd.Series], float]) -> dict[tuple[str, float], float]:
    found = {}
    for (method, density), group in part.trials.groupby(["method", "density"], sort=False):
        values = np.array([value(trial) for _, trial in group.iterrows()])
        if np.isfinite(values).any():
            found[str(method), float(density)] = float(values[np.isfinite(values)].mean())
    return found


def _of_cells(part: Results, values: dict[tuple[str, float], float], shown: Callable[[float], str]) -> str:
    lowest = part.densities[-1] if part.densities else 1.0
    at = {method: value for (method, density), value in values.items() if density == lowest and method != DENSE}
    dense = values.get((DENSE, 1.0))
    words = [] if dense is None else [f"{shown(dense)} in the dense network"]
    if at:
        least, most = min(at, key=at.__getitem__), max(at, key=at.__getitem__)
        span = f"{shown(at[least])} ({least})"
        span += "" if least == most else f" to {shown(at[most])} ({most})"
        words.append(f"{span} at density {lowest:g}")
    return listed(words)


def _rank(trial: pd.Series) -> float:
    found = np.array(trial["log_ntk_eigenvalues"])
    return float(np.isfinite(found).sum()) if len(found) else np.nan


def _median(trial: pd.Series) -> float:
    """log₁₀ of the eigenvalue of Π that half of those that are not zero lie above."""
    nodes, weights = np.array(trial["log_path_kernel_nodes"]), np.array(trial["path_kernel_weights"])
    live = np.isfinite(nodes)
    if not live.any():
        return np.nan
    order = np.argsort(nodes[live])
    passed = np.cumsum(weights[live][order])
    return float(nodes[live][order][np.searchsorted(passed, passed[-1] / 2)] / np.log(10))


def _pruned(study: Results) -> pd.DataFrame:
    return study.cells[study.cells["method"] != DENSE]


def _cell(method: str, density: float) -> str:
    return DENSE if method == DENSE else f"{method} at {density:g}"


def _row(row: pd.Series) -> str:
    return f"{row['data']}, {row['model']}, {_cell(row['method'], row['density'])}"


def _cells(rows: pd.DataFrame) -> str:
    """The first few cells of a table by name, and how many more there are."""
    names = [_row(row) for _, row in rows.head(3).iterrows()]
    return "; ".join(names) + (f"; and {len(rows) - 3} more" if len(rows) > 3 else "")


def _accuracy(row: pd.Series) -> str:
    deviation = row["test_accuracy_std"]
    spread = "" if np.isnan(deviation) else f" ± {100 * deviation:.1f}"
    return f"{100 * row['test_accuracy_mean']:.1f}{spread}%"


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
