"""From runs to tables: means and deviations over seeds, and how well what is known before training ranks the cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.options import DENSE
from experiments.records.runs import QUANTITIES, Run

__all__ = [
    "TARGETS",
    "Ranking",
    "by_run",
    "cells",
    "chance_level",
    "chance_within",
    "order_predicted",
    "rankings",
    "rankings_table",
    "spearman",
]

TARGETS = {"test_accuracy": "test accuracy", "steps_to_level": "steps to the loss level"}
"""What training decides, with the words for it."""

_OUTCOMES = ("test_accuracy", "final_train_loss", "steps_to_level")
_GAPS = ("gap_linearized", "gap_data_free")
_LAZINESS = ("linearization_error", "kernel_distance")
_DROPS = ("real_drop", "linearized_drop", "data_free_drop")
_AVERAGED = (
    *_OUTCOMES,
    *(name for name in QUANTITIES if name != "density"),
    "infinite_distance",
    *_GAPS,
    *_LAZINESS,
    *_DROPS,
)


class Ranking(NamedTuple):
    """How one quantity, known before training, ranks the cells against one outcome, by Spearman's ρ.

    `pooled` is over all `cells` cells, `within` the mean over densities of ρ among the methods at one density, where
    `per_density` tells how many cells each of the `densities` had. NaN where a side is constant.
    """

    quantity: str
    target: str
    pooled: float
    cells: int
    within: float
    densities: int
    per_density: int


def by_run(runs: Sequence[Run], config: dict[str, Any]) -> pd.DataFrame:
    """One row for each run: dense first, then methods as listed, densities from high to low, seeds upward.

    The drops are the decades by which a squared loss, real or predicted, falls in all steps of gradient descent.
    """
    order = [DENSE, *config["options"]["method"]]
    runs = sorted(runs, key=lambda run: (order.index(run.method), -run.density, run.seed))
    table = pd.DataFrame([vars(run) for run in runs])
    table["final_train_loss"] = [run.train_loss[-1] for run in runs]
    for name in _DROPS:
        last = np.array([getattr(run, name.replace("_drop", "_loss"))[-1] for run in runs])
        table[name] = -np.log10(np.maximum(last, np.finfo(np.float32).tiny))
    return table


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each (method, density): the mean and the standard deviation over seeds of every number.

    A deviation of one seed, or of values that are not all finite, is NaN.
    """
    rows = []
    for (method, density), group in table.groupby(["method", "density"], sort=False):
        row: dict[str, Any] = {"method": method, "density": density, "seeds": len(group)}
        row |= {"kept": int(group["kept"].iloc[0]), "prunable": int(group["prunable"].iloc[0])}
        for name in _AVERAGED:
            values = group[name].to_numpy(float)
            row[f"{name}_mean"] = values.mean()
            row[f"{name}_std"] = values.std(ddof=1) if len(values) > 1 and np.isfinite(values).all() else np.nan
        row["pruned_stay_zero"] = bool(group["pruned_stay_zero"].all())
        row["reason"] = "; ".join(sorted(set(filter(None, group["reason"]))))
        rows.append(row)
    return pd.DataFrame(rows)


def rankings(table: pd.DataFrame) -> list[Ranking]:
    """Every quantity against every target, on the table of `cells`."""
    found = []
    for target in TARGETS:
        outcome = table[f"{target}_mean"].to_numpy()
        for quantity in QUANTITIES:
            known = table["density" if quantity == "density" else f"{quantity}_mean"].to_numpy()
            groups = [np.flatnonzero(table["density"] == density) for density in table["density"].unique()]
            groups = [group for group in groups if len(group) >= 3]
            each = [spearman(known[group], outcome[group]) for group in groups]
            finite = [rho for rho in each if np.isfinite(rho)]
            found.append(
                Ranking(
                    quantity,
                    target,
                    pooled=spearman(known, outcome),
                    cells=int(np.sum(~np.isnan(known) & ~np.isnan(outcome))),
                    within=float(np.mean(finite)) if finite else float("nan"),
                    densities=len(finite),
                    per_density=min((len(group) for group in groups), default=0),
                )
            )
    return found


def order_predicted(table: pd.DataFrame) -> tuple[float, float, float]:
    """Spearman's ρ over cells of the real drop of the squared loss with the predicted ones and with density."""
    real, theta, pi = (table[f"{name}_mean"].to_numpy() for name in _DROPS)
    return spearman(theta, real), spearman(pi, real), spearman(table["density"].to_numpy(), real)


def rankings_table(ranks: Sequence[Ranking]) -> pd.DataFrame:
    """The rankings as rows, for a file."""
    return pd.DataFrame([rank._asdict() for rank in ranks])


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation; ties share their mean rank, infinities rank last, NaN pairs are left out.

    NaN where fewer than three pairs are left or one side is constant.
    """
    there = ~(np.isnan(first) | np.isnan(second))
    if there.sum() < 3:
        return float("nan")
    ranks = [pd.Series(side[there]).rank().to_numpy() for side in (first, second)]
    centred = [side - side.mean() for side in ranks]
    scale = np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1]))
    return float(centred[0] @ centred[1] / scale) if scale > 0 else float("nan")


def chance_within(ranks: Sequence[Ranking]) -> float:
    """`chance_level` of the mean of ρ within densities, for as many densities as the best known quantity has."""
    most = max(ranks, key=lambda rank: rank.densities)
    return chance_level(most.per_density, repeats=most.densities)


def chance_level(size: int, *, repeats: int = 1, draws: int = 4000) -> float:
    """The |ρ| that unrelated rankings of `size` cells exceed once in twenty; for a mean over `repeats` such ρ likewise.

    By drawing random rankings from a fixed seed; without ties.
    """
    if size < 3 or repeats < 1:
        return float("nan")
    shuffled = np.random.default_rng(0).permuted(np.tile(np.arange(size), (draws * repeats, 1)), axis=1)
    centred = shuffled - (size - 1) / 2
    rho = centred @ (np.arange(size) - (size - 1) / 2) / np.sum((np.arange(size) - (size - 1) / 2) ** 2)
    return float(np.quantile(np.abs(rho.reshape(draws, repeats).mean(axis=1)), 0.95))
