"""What the figures of a study show, in sentences. Every number in them is computed from the results at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from experiments.base.names import DENSE, QUANTITIES
from experiments.base.wording import counted, enumerated, number, percent, points, share_or_times
from experiments.measure.widths import WidthSweep
from experiments.records.study_table import CHANGES, StudyTable
from experiments.records.trial_summaries import PREDICTIONS
from experiments.report.figures import shown_curves
from experiments.report.opening import accuracy_words
from experiments.report.spread import FEWEST, half_width

__all__ = [
    *("failures", "of_accuracy", "of_associations", "of_change", "of_curves", "of_gaps", "of_laziness", "of_layers"),
    *("of_path_kernel", "of_quantities", "of_spectra", "of_training", "of_widths"),
]

_ABSENT = "It is not in these results."

_LAZY = 0.1
"""A kernel that training changes by less than this share of its norm counts as kept."""

_STRATA = ["data", "model", "density"]

_GRADIENTS = ("snip", "grasp")
"""Methods that read the gradient on labelled data."""


def failures(study: StudyTable) -> str:
    """How many trials have no result, and why most of them; nothing where all have one."""
    if not study.failed:
        return ""
    reasons = pd.Series([trial.reason for trial in study.failed]).value_counts()
    return (
        f"{len(study.failed)} of {len(study.failed) + len(study.trials)} trials have no result and are in no figure, "
        f"{reasons.iloc[0]} of them with: {reasons.index[0]}."
    )


def of_accuracy(study: StudyTable) -> str:
    """Which method is best most often, and how far the methods lie apart at the lowest density."""
    parts = []
    for setting, part in study.parts():
        known = _pruned(part).dropna(subset=["test_accuracy_mean"])
        if known.empty:
            continue
        lowest = known[known["density"] == known["density"].min()]
        best, worst = (lowest.loc[pick(lowest["test_accuracy_mean"])] for pick in (pd.Series.idxmax, pd.Series.idxmin))
        dense = part.cells.loc[part.cells["method"] == DENSE, "test_accuracy_mean"]
        words = f"{best['method']} {accuracy_words(best)}"
        if len(lowest) > 1:
            apart = best["test_accuracy_mean"] - worst["test_accuracy_mean"]
            words += f", {points(apart)} above {worst['method']}"
        if len(dense):
            lost = dense.iloc[0] - best["test_accuracy_mean"]
            words += f" and {points(abs(lost))} {'below' if lost >= 0 else 'above'} the dense network"
        parts.append((setting, f"{words} (density {best['density']:g})."))
    return _told(f"{_wins(study)} At the lowest density:", parts)


def of_training(study: StudyTable) -> str:
    """Which cells reach the loss level, and how fast."""
    parts = []
    for setting, part in study.parts():
        reached = part.cells[np.isfinite(part.cells["steps_to_level_mean"])]
        words = f"{len(reached)} of {counted(len(part.cells), 'cell')}"
        if len(reached):
            first, last = (
                reached.loc[pick(reached["steps_to_level_mean"])] for pick in (pd.Series.idxmin, pd.Series.idxmax)
            )
            words += (
                f", {_cell(first['method'], first['density'])} first, after {first['steps_to_level_mean']:.0f} steps"
            )
            if len(reached) > 1:
                words += f", and {_cell(last['method'], last['density'])} last, after {last['steps_to_level_mean']:.0f}"
        parts.append((setting, f"{words}."))
    return _told("Cells that reach the loss level with every seed:", parts)


def of_laziness(study: StudyTable) -> str:
    """Where descent was closest to that of the linearized network, and where Θ turned most."""
    there = study.cells[study.cells["linearization_error_mean"].notna() & study.cells["kernel_distance_mean"].notna()]
    if there.empty:
        return "How lazy the descent was is not in these results."
    closest = there.loc[there["linearization_error_mean"].idxmin()]
    turned = there.loc[there["kernel_distance_mean"].idxmax()]
    return (
        f"{_row(closest)} descends closest to its linearized network, its outputs ending "
        f"{share_or_times(closest['linearization_error_mean'])} off; Θ turns most for {_row(turned)}, to a kernel "
        f"distance of {number(turned['kernel_distance_mean'])}."
    )


def of_curves(study: StudyTable) -> str:
    """Which cells are drawn, and how far the loss really falls in them."""
    parts = []
    for setting, part in study.parts():
        cells = part.cells.set_index(["method", "density"])["real_drop_mean"]
        falls = [f"{_cell(*cell)} {number(cells[cell])}" for cell in shown_curves(part)]
        parts += [(setting, f"{', '.join(falls)}.")] if falls else []
    return _told("The real loss falls, in decades:", parts)


def of_gaps(study: StudyTable) -> str:
    """How close each prediction comes to the real curve, and how it ranks the cells."""
    gaps = {name: study.cells[f"gap_{name}_mean"].dropna() for name in PREDICTIONS}
    means = [f"{number(gap.mean())} from {PREDICTIONS[name]}" for name, gap in gaps.items() if len(gap)]
    if not means:
        return "No predicted loss curve is in these results."
    both = study.cells[["gap_linearized_mean", "gap_data_free_mean"]].dropna()
    closer = int((both["gap_linearized_mean"] < both["gap_data_free_mean"]).sum())
    words = f"Predictions miss the real loss curves by this many decades, in the mean over cells: {enumerated(means)}"
    words += f". Θ is closer than Π in {closer} of {len(both)} cells." if len(both) else "."
    return "\n".join([words, *_orders(study), *_worst_by_expected_gates(study)])


def _orders(study: StudyTable) -> list[str]:
    """How the predicted falls of the loss rank with the real ones, over all densities and within one."""
    lines = []
    for where, within in (
        ("among the cells of one data set and model", ["data", "model"]),
        ("among the methods at one density", _STRATA),
    ):
        orders = {name: study.association(f"{name}_drop", "real_drop", within) for name in PREDICTIONS}
        ordered = [f"{order} from {PREDICTIONS[name]}" for name, order in orders.items() if order.groups]
        baseline = study.association("density", "real_drop", within)
        known = [f"{baseline} from density alone"] if baseline.groups else []
        if ordered:
            lines.append(
                f"How far the loss falls ranks with how far it was predicted to fall, {where}, by ρ = "
                f"{enumerated(ordered + known)}."
            )
    return lines


def _worst_by_expected_gates(study: StudyTable) -> list[str]:
    """The method whose loss curves expected gates miss most even with the inputs, and the order without it."""
    gaps = _pruned(study).groupby("method", sort=False)["gap_inputs_mean"].mean().dropna()
    if len(gaps) < 2:
        return []
    worst = str(gaps.idxmax())
    cells = study.cells[(study.cells["method"] == worst) & study.cells["inputs_drop_mean"].notna()]
    further = int((cells["real_drop_mean"] > cells["inputs_drop_mean"]).sum())
    why = (
        ": it keeps weights by their gradients on the data, which expected gates do not see"
        if worst in _GRADIENTS
        else ""
    )
    others = study._replace(cells=study.cells[study.cells["method"] != worst])
    orders = {name: others.association(f"{name}_drop", "real_drop", _STRATA) for name in PREDICTIONS}
    ordered = [f"{number(order.rho)} from {PREDICTIONS[name]}" for name, order in orders.items() if order.groups]
    words = (
        f"Of the pruning methods, expected gates miss {worst} most: even with the inputs by {number(gaps[worst])} "
        f"decades in the mean over its cells, and the others by {number(gaps.drop(worst).mean())}{why}. The loss of "
        f"{worst} falls further than so predicted in {further} of {counted(len(cells), 'cell')}."
    )
    return [words + (f" Of the others at one density, ρ is {enumerated(ordered)}." if ordered else "")]


def of_path_kernel(study: StudyTable) -> str:
    """Between which methods the quantities range at the lowest density, and where no path is left."""
    parts = []
    for setting, part in study.parts():
        ranges = [
            f"{QUANTITIES[name]} {span}"
            for name in ("log_trace_path_kernel", "effective_rank_path_kernel")
            if (span := _range(part, f"{name}_mean", lambda value: number(value, ".1f")))
        ]
        parts += [(setting, f"{', '.join(ranges)} (density {part.densities[-1]:g}).")] if ranges else []
    cut = study.cells[np.isneginf(study.cells["log_path_norm_1_mean"])]
    last = f"No path is left, and no point drawn, for {_cells(cut)}." if len(cut) else "Every network has a path left."
    return _told(f"{last} Of the pruned networks, at the lowest density:", parts)


def of_spectra(study: StudyTable) -> str:
    """How many eigenvalues Θ has above its rounding, and where the median of Π lies."""
    parts = []
    for setting, part in study.parts():
        ranks, medians, words = _by_cell(part, _rank), _by_cell(part, _median), []
        if ranks:
            size = max(map(len, part.trials["log_ntk_eigenvalues"]))
            span = _of_cells(part, ranks, lambda count: number(count, ".0f"))
            words.append(f"of {size} eigenvalues of Θ, those above rounding are {span}")
        if medians:
            span = _of_cells(part, medians, lambda exponent: f"10^{number(exponent, '.1f')}")
            words.append(f"the median eigenvalue of Π above zero is {span}")
        parts += [(setting, f"{'; '.join(words)}.")] if words else []
    return _told("Dense and at the lowest density:", parts)


def of_quantities(study: StudyTable) -> str:
    """Which quantity goes most with accuracy over the cells drawn, and how many do clearly."""
    associations = {name: study.association(name, "test_accuracy", []) for name in QUANTITIES}
    ranked = {name: one for name, one in associations.items() if name != "density" and one.groups}
    if not ranked:
        return "There are too few cells to rank them."
    best = max(ranked, key=lambda name: abs(ranked[name].rho))
    clear = sum(one.excludes_zero for one in ranked.values())
    return (
        f"{QUANTITIES[best]} goes most with accuracy, ρ = {ranked[best]} over {ranked[best].cells} cells; "
        f"{clear} of {len(ranked)} intervals leave out 0. Density alone has {associations['density']}."
    )


def of_associations(study: StudyTable) -> str:
    """Which quantities go with accuracy, over all cells of a setting and within densities."""
    parts = [(setting, of_quantities(part)) for setting, part in study.parts()]
    return _told(f"{_strongest(study)} Over all cells:", parts)


def of_layers(study: StudyTable) -> str:
    """The most thinned layer and the dead units by method at the lowest density; layers that are emptied."""
    parts = []
    for setting, part in study.parts():
        at = part.trials[part.trials["density"] == (part.densities or [1.0])[-1]]
        at = at[(at["method"] != DENSE) & at["layer_density"].map(bool)]
        least = {method: pd.DataFrame(group["layer_density"].tolist()).mean() for method, group in at.groupby("method")}
        if not least:
            continue
        method = min(least, key=lambda name: least[name].min())
        words = f"{method} thins a layer most, {least[method].idxmin()} to {percent(least[method].min())}"
        dead = _range(part, "dead_units_mean_mean", percent)
        without = "; ".join(part.trials["absent"].unique()) or "dead units are not in these results"
        units = f"the share of dead units is {dead}" if dead else without
        parts.append((setting, f"{words}; {units}."))
    empty = study.trials["layer_density"].map(lambda layers: bool(layers) and min(layers.values()) == 0.0)
    emptied = study.trials[empty].drop_duplicates([*_STRATA, "method"])
    last = f"A layer is emptied in {_cells(emptied)}." if len(emptied) else "No layer is emptied."
    return _told(f"{last} At the lowest density:", parts)


def of_change(study: StudyTable) -> str:
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
            f"It reaches from {share_or_times(there.min())} ({_row(least)}) to {share_or_times(there.max())} "
            f"({_row(most)}), with a median of {share_or_times(there.median())}."
        )
    if lacking := [setting for setting, part in study.parts() if part.trials["absent"].str.contains("Π").any()]:
        sentences.append(f"That of Π is not measured of {enumerated(lacking)}: a plain module with batch norm.")
    together = study.association("path_kernel_change", "ntk_change", ["data", "model"])
    if together.groups:
        sentences.append(f"Within a data set and model the two change together with ρ = {together}.")
    return " ".join(sentences)


def of_widths(sweeps: Sequence[WidthSweep]) -> str:
    """The exponents of the width."""
    slopes = [sweep.slope.mean for sweep in sweeps]
    off = max(sweeps, key=lambda sweep: abs(sweep.slope.mean + 0.5))
    return (
        f"The distance to the infinite-width limit goes with the width to the power of {number(min(slopes))} to "
        f"{number(max(slopes))} (−1/2 is expected); furthest from it is {off.model} at density {off.density:g}."
    )


def _told(lead: str, parts: Sequence[tuple[str, str]]) -> str:
    """What each setting shows, given by its name and words: a line for each where there are several."""
    if not parts:
        return _ABSENT
    if len(parts) == 1:
        return f"{lead} {parts[0][1]}"
    return "\n".join([lead, *(f"{setting}: {words}" for setting, words in parts)])


def _wins(study: StudyTable) -> str:
    """How often the best method is best, and how often its lead is more than the seeds explain."""
    best, leads, told, apart = [], 0, 0, 0
    for _, group in _pruned(study).groupby(_STRATA, sort=False):
        ordered = group.dropna(subset=["test_accuracy_mean"]).sort_values("test_accuracy_mean", ascending=False)
        if len(ordered) < 2:
            continue
        first, second = ordered.iloc[0], ordered.iloc[1]
        best.append(str(first["method"]))
        lead = first["test_accuracy_mean"] - second["test_accuracy_mean"]
        apart += bool(lead > sum(half_width(row, "test_accuracy") for row in (first, second)))
        if min(first["seeds"], second["seeds"]) >= FEWEST:
            told += 1
            error = np.hypot(*(row["test_accuracy_std"] / np.sqrt(row["seeds"]) for row in (first, second)))
            leads += bool(lead > 2 * error)
    if not best:
        return "There are not two methods at one density to compare."
    counts = pd.Series(best).value_counts()
    names = enumerated([f"{method} ({count})" for method, count in counts.items()])
    words = f"Of {counted(len(best), 'comparison')} at one data set, model and density, the most accurate is {names}"
    if study.seeds == 1:
        return f"{words}; with one seed, no lead can be told from luck."
    if not told:
        alone = f"in {apart or 'none'} do all its seeds lie above those of the second"
        return f"{words}; {alone}, which two seeds may do by luck."
    of_those = "" if told == len(best) else f" of {told} with {FEWEST} seeds or more"
    return f"{words}; {leads} of the leads over the second{of_those} exceed two standard errors over seeds."


def _strongest(study: StudyTable) -> str:
    associations = {name: study.association(name, "test_accuracy", _STRATA) for name in QUANTITIES}
    ranked = {name: one for name, one in associations.items() if one.groups}
    if not ranked:
        return "Too few methods share a density to rank the quantities within one."
    best = max(ranked, key=lambda name: abs(ranked[name].rho))
    clear = [f"{QUANTITIES[name]} ({number(one.rho)})" for name, one in ranked.items() if one.excludes_zero]
    return (
        f"Among methods at one density, {QUANTITIES[best]} goes most with accuracy, ρ = {ranked[best]} over "
        f"{counted(ranked[best].groups, 'group')} of {ranked[best].cells} cells; intervals that leave out 0: "
        f"{enumerated(clear or ['none'])}."
    )


def _range(part: StudyTable, column: str, words: Callable[[float], str]) -> str:
    """From the least to the most that a method has at the lowest density; nothing where none has a number."""
    if not part.densities:
        return ""
    there = part.pruned_at(part.densities[-1])
    there = there[np.isfinite(there[column])]
    if there.empty:
        return ""
    least, most = there.loc[there[column].idxmin()], there.loc[there[column].idxmax()]
    if least["method"] == most["method"]:
        return f"{words(least[column])} ({least['method']})"
    return f"from {words(least[column])} ({least['method']}) to {words(most[column])} ({most['method']})"


def _by_cell(part: StudyTable, value: Callable[[pd.Series], float]) -> dict[tuple[str, float], float]:
    means = {}
    for (method, density), group in part.trials.groupby(["method", "density"], sort=False):
        values = np.array([value(trial) for _, trial in group.iterrows()])
        if np.isfinite(values).any():
            means[str(method), float(density)] = float(values[np.isfinite(values)].mean())
    return means


def _of_cells(part: StudyTable, values: dict[tuple[str, float], float], shown: Callable[[float], str]) -> str:
    lowest = part.densities[-1] if part.densities else 1.0
    at = {method: value for (method, density), value in values.items() if density == lowest and method != DENSE}
    dense = values.get((DENSE, 1.0))
    words = [] if dense is None else [f"{shown(dense)} in the dense network"]
    if at:
        least, most = min(at, key=at.__getitem__), max(at, key=at.__getitem__)
        span = f"{shown(at[least])} ({least})"
        span += "" if least == most else f" to {shown(at[most])} ({most})"
        words.append(f"{span} at density {lowest:g}")
    return enumerated(words)


def _rank(trial: pd.Series) -> float:
    eigenvalues = np.array(trial["log_ntk_eigenvalues"])
    return float(np.isfinite(eigenvalues).sum()) if len(eigenvalues) else np.nan


def _median(trial: pd.Series) -> float:
    """log₁₀ of the eigenvalue of Π that half of those that are not zero lie above."""
    nodes, weights = np.array(trial["log_path_kernel_nodes"]), np.array(trial["path_kernel_weights"])
    above_zero = np.isfinite(nodes)
    if not above_zero.any():
        return np.nan
    order = np.argsort(nodes[above_zero])
    cumulated = np.cumsum(weights[above_zero][order])
    return float(nodes[above_zero][order][np.searchsorted(cumulated, cumulated[-1] / 2)] / np.log(10))


def _pruned(study: StudyTable) -> pd.DataFrame:
    return study.cells[study.cells["method"] != DENSE]


def _cell(method: str, density: float) -> str:
    return DENSE if method == DENSE else f"{method} at {density:g}"


def _row(row: pd.Series) -> str:
    return f"{row['data']}, {row['model']}, {_cell(row['method'], row['density'])}"


def _cells(rows: pd.DataFrame) -> str:
    """The first few cells of a table by name, and how many more there are."""
    names = [_row(row) for _, row in rows.head(3).iterrows()]
    return "; ".join(names) + (f"; and {len(rows) - 3} more" if len(rows) > 3 else "")
