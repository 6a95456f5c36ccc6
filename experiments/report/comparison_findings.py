"""What was found, in sentences. Every number in them is computed from the tables at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.options import DENSE
from experiments.records.runs import QUANTITIES
from experiments.records.summary import TARGETS, Ranking, chance_within, order_predicted
from experiments.report.wording import listed, percent, points, rho

__all__ = [
    "of_accuracy",
    "of_curves",
    "of_laziness",
    "of_layers",
    "of_quantities",
    "of_rankings",
    "of_training",
    "summary",
]


def summary(table: pd.DataFrame, ranks: Sequence[Ranking], factorization_error: float) -> str:
    """The paragraph that opens the report."""
    dense = table[table["method"] == DENSE].iloc[0]
    lowest = _lowest(table)
    best = lowest.loc[lowest["test_accuracy_mean"].idxmax()]
    worst = lowest.loc[lowest["test_accuracy_mean"].idxmin()]
    sentences = [
        f"The dense network reaches {_accuracy(dense)} test accuracy.",
        f"At density {best['density']:g}, {best['method']} keeps {_accuracy(best)}"
        + (f" and {worst['method']} {_accuracy(worst)}." if len(lowest) > 1 else "."),
        of_curves(table),
        _strongest(ranks, "test_accuracy"),
        f"Θ = J Π Jᵀ holds on listed paths with a relative error of {factorization_error:.1e}, and the dense network's "
        f"NTK is {percent(dense['infinite_distance_mean'])} away from its infinite-width limit.",
    ]
    return " ".join(sentences)


def of_accuracy(table: pd.DataFrame) -> str:
    """How far the methods lie apart, at the highest and at the lowest density."""
    pruned = table[table["method"] != DENSE]
    parts = []
    for density, group in pruned.groupby("density", sort=False):
        low, high = group["test_accuracy_mean"].min(), group["test_accuracy_mean"].max()
        best = group.loc[group["test_accuracy_mean"].idxmax(), "method"]
        noise = group["test_accuracy_std"].mean()
        over_seeds = "" if math.isnan(noise) else f"; over seeds ± {100 * noise:.1f}"
        parts.append(f"{points(high - low)} at density {density:g} (best: {best}, {percent(high)}{over_seeds})")
    return f"Between the best and the worst method lie {listed(parts)}."


def of_training(table: pd.DataFrame, level: float) -> str:
    """Which cells reach the loss level, and how fast."""
    reached = table[np.isfinite(table["steps_to_level_mean"])]
    words = f"{len(reached)} of {len(table)} cells reach a training loss of {level:g} with every seed"
    if reached.empty:
        return words + "."
    first = reached.loc[reached["steps_to_level_mean"].idxmin()]
    last = reached.loc[reached["steps_to_level_mean"].idxmax()]
    return (
        f"{words}; the fastest is {_cell(first)} after {first['steps_to_level_mean']:.0f} steps, the slowest of them "
        f"{_cell(last)} after {last['steps_to_level_mean']:.0f}."
    )


def of_curves(table: pd.DataFrame) -> str:
    """How close the two predictions come to gradient descent."""
    theta, pi = table["gap_linearized_mean"], table["gap_data_free_mean"]
    closer = int((theta < pi).sum())
    order = [rho(value) for value in order_predicted(table)]
    return (
        f"The loss curve predicted from Θ is off by {theta.mean():.2f} decades on average over the cells, the one from "
        f"Π alone by {pi.mean():.2f}; Θ is the closer one in {closer} of {len(table)} cells. Θ is furthest off for "
        f"{_cell(table.loc[theta.idxmax()])} ({theta.max():.2f}), Π for {_cell(table.loc[pi.idxmax()])} "
        f"({pi.max():.2f}). How far the losses fall is ordered over the cells with ρ = {order[0]} by Θ, {order[1]} by "
        f"Π and {order[2]} by density alone."
    )


def of_laziness(table: pd.DataFrame) -> str:
    """Where descent was closest to that of the linearized network, and where the NTK turned most."""
    error, distance = table["linearization_error_mean"], table["kernel_distance_mean"]
    if error.isna().any() or distance.isna().any():
        return "Not every cell's descent stayed finite, so they are not ranked by how lazy they were."
    closest, turned = table.loc[error.idxmin()], table.loc[distance.idxmax()]
    return (
        f"Closest to the linearized network descends {_cell(closest)}, whose outputs end {percent(error.min())} off "
        f"those predicted; the NTK turns most for {_cell(turned)} (kernel distance {distance.max():.2f}, on average "
        f"{distance.mean():.2f})."
    )


def of_quantities(ranks: Sequence[Ranking]) -> str:
    """Which quantities go with accuracy once density is the same."""
    chosen = [rank for rank in ranks if rank.target == "test_accuracy" and math.isfinite(rank.within)]
    if not chosen:
        return "There are too few methods at one density to compare them."
    chosen.sort(key=lambda rank: -abs(rank.within))
    parts = [f"{QUANTITIES[rank.quantity]} ({rho(rank.within)})" for rank in chosen[:3]]
    return f"Among methods at one density, accuracy goes most with {listed(parts)} by mean Spearman ρ."


def of_rankings(ranks: Sequence[Ranking]) -> str:
    """How the quantities do against density alone and against chance."""
    sentences = []
    for target, words in TARGETS.items():
        chosen = [rank for rank in ranks if rank.target == target]
        baseline = next(rank for rank in chosen if rank.quantity == "density")
        others = [rank for rank in chosen if rank.quantity != "density"]
        if math.isnan(baseline.pooled):
            sentences.append(f"Nothing can be ranked against {words}: it is the same everywhere.")
            continue
        better = [rank for rank in others if abs(rank.pooled) > abs(baseline.pooled)]
        sentences.append(
            f"Against {words}, density alone has ρ = {rho(baseline.pooled)} over all {baseline.cells} cells, and "
            f"{len(better)} of {len(others)} quantities rank the cells better than it. {_strongest(ranks, target)}"
        )
        level = chance_within(chosen)
        if math.isfinite(level):
            clear = [f"{QUANTITIES[r.quantity]} ({rho(r.within)})" for r in others if abs(r.within) > level]
            sentences.append(f"Within a density, beyond chance (|ρ| > {level:.2f}): {listed(clear or ['none'])}.")
    return " ".join(sentences)


def of_layers(runs: pd.DataFrame) -> str:
    """Where the lowest density leaves least."""
    lowest = runs[(runs["method"] != DENSE) & (runs["density"] == runs["density"].min())]
    parts = []
    for method, group in lowest.groupby("method", sort=False):
        kept = pd.DataFrame(group["layer_density"].tolist()).mean()
        parts.append(f"{method} {percent(kept.min())} of {kept.idxmin()}")
    emptied = [
        f"{method} at {density:g}"
        for (method, density), group in runs.groupby(["method", "density"], sort=False)
        if any(min(layers.values()) == 0.0 for layers in group["layer_density"])
    ]
    last = f" A layer is emptied by {listed(emptied)}." if emptied else " No layer is emptied."
    return f"At density {runs['density'].min():g} the most thinned layer keeps: {'; '.join(parts)}.{last}"


def _strongest(ranks: Sequence[Ranking], target: str) -> str:
    chosen = [r for r in ranks if r.target == target and r.quantity != "density" and math.isfinite(r.pooled)]
    if not chosen:
        return f"No quantity can be ranked against {TARGETS[target]}."
    best = max(chosen, key=lambda rank: abs(rank.pooled))
    within = [rank for rank in chosen if math.isfinite(rank.within)]
    words = (
        f"Of what is known before training, {QUANTITIES[best.quantity]} goes most with {TARGETS[target]} over all "
        f"cells (Spearman ρ = {rho(best.pooled)}, n = {best.cells})"
    )
    if not within:
        return words + "."
    inner = max(within, key=lambda rank: abs(rank.within))
    return (
        f"{words}; among methods at one density it is {QUANTITIES[inner.quantity]} (mean ρ = {rho(inner.within)} over "
        f"{inner.densities} densities of {inner.per_density} methods)."
    )


def _lowest(table: pd.DataFrame) -> pd.DataFrame:
    pruned = table[table["method"] != DENSE]
    return pruned[pruned["density"] == pruned["density"].min()]


def _cell(row: pd.Series) -> str:
    return DENSE if row["method"] == DENSE else f"{row['method']} at {row['density']:g}"


def _accuracy(row: pd.Series) -> str:
    deviation = row["test_accuracy_std"]
    spread = "" if math.isnan(deviation) else f" ± {100 * deviation:.1f}"
    return f"{100 * row['test_accuracy_mean']:.1f}{spread}%"
