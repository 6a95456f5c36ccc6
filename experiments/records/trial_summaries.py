"""Numbers that follow from the lists and tables of a trial: its curves, its layers, its units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["CURVES", "PREDICTIONS", "SUMMARIES", "TOPS", "summarized"]

PREDICTIONS = {
    "data_free": "Π alone",
    "no_data": "Θ̄ without data",
    "moments": "Θ̄ of the data’s second moments",
    "inputs": "Θ̄ of the inputs",
    "low_rank": "the part of Θ in the leading modes of Π",
    "linearized": "Θ",
}
"""What predicts a loss curve, with words: from reading the least to reading the most."""

CURVES = ("real_loss", *(f"{name}_loss" for name in PREDICTIONS))

TOPS = {
    "data_free": "log_top_path_kernel",
    "no_data": "log_top_no_data",
    "moments": "log_top_moments",
    "inputs": "log_top_inputs",
}
"""The natural logarithm of λ_max of the kernel behind a prediction."""

_OF_CURVES = tuple(name.removesuffix("_loss") for name in CURVES)

SUMMARIES = (
    "final_train_loss",
    "dead_units_mean",
    "emptied_layers",
    "log_layer_density_mean",
    "log_layer_density_min",
    *(f"{name}_drop" for name in _OF_CURVES),
    *(f"{name}_halving" for name in _OF_CURVES),
    *(f"top_gap_{name}" for name in TOPS),
)
"""The names of all these numbers."""


def summarized(trial: Mapping[str, Any]) -> dict[str, float]:
    """The numbers by the names of `SUMMARIES`, of a trial that is given as `vars(trial)`. NaN where there is no number.

    `final_train_loss` is the last of `train_loss`, `dead_units_mean` the mean share of dead units. `emptied_layers` is
    how many kernels have lost every weight; `log_layer_density_mean` and `log_layer_density_min` are the mean and the
    least of the natural logarithms of the kept shares of the kernels. Of each loss curve, `NAME_drop` is by how many
    decades it falls, and `NAME_halving` the first step at which half of the loss is left, infinite where there is none.
    `top_gap_NAME` is the distance in decades between λ_max of the kernel behind a prediction and λ_max(Θ).

    >>> layers = {"hidden": 0.25, "dense": 1.0}
    >>> numbers = summarized({"layer_density": layers, "real_loss": [1.0, 0.4, 0.01], "train_loss": [2.3, 0.5]})
    >>> [numbers[name] for name in ("final_train_loss", "emptied_layers", "real_drop", "real_halving")]
    [0.5, 0.0, 2.0, 1.0]
    >>> round(numbers["log_layer_density_min"], 3), round(numbers["log_layer_density_mean"], 3)
    (-1.386, -0.693)
    """
    losses, units = trial.get("train_loss"), trial.get("dead_units")
    numbers = {
        "final_train_loss": losses[-1] if losses else math.nan,
        "dead_units_mean": float(np.mean([*units.values()])) if units else math.nan,
    }
    numbers |= _of_layers([*(trial.get("layer_density") or {}).values()])
    curves = {name: trial.get(f"{name}_loss") or [] for name in _OF_CURVES}
    numbers |= {f"{name}_drop": _drop(curve) for name, curve in curves.items()}
    numbers |= {f"{name}_halving": _halving(curve) for name, curve in curves.items()}
    log_top = float(trial.get("log_top_ntk", math.nan))
    gaps = {name: float(trial.get(top, math.nan)) - log_top for name, top in TOPS.items()}
    # a kernel that is 0 has the logarithm −∞, and two such kernels no distance
    return numbers | {f"top_gap_{name}": abs(gap) / math.log(10) for name, gap in gaps.items()}


def _of_layers(shares: Sequence[float]) -> dict[str, float]:
    if not shares:
        return dict.fromkeys(("emptied_layers", "log_layer_density_mean", "log_layer_density_min"), math.nan)
    logs = [math.log(share) if share > 0 else -math.inf for share in shares]
    return {
        "emptied_layers": float(sum(share == 0 for share in shares)),
        "log_layer_density_mean": sum(logs) / len(logs),
        "log_layer_density_min": min(logs),
    }


def _halving(losses: Sequence[float]) -> float:
    """The first step at which half of the loss at the first one is left, or less."""
    if not losses:
        return math.nan
    below = np.flatnonzero(np.array(losses) <= 0.5)
    return float(below[0]) if len(below) else math.inf


def _drop(losses: Sequence[float]) -> float:
    """Decades by which a loss falls from the first step to the last."""
    if not losses:
        return math.nan
    return -math.log10(max(losses[-1], float(np.finfo(np.float32).tiny)))
