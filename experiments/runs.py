"""One run: what was measured of one (method, density, seed), and the line of JSON that keeps it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

__all__ = ["QUANTITIES", "Run", "decode", "encode"]

QUANTITIES = {
    "density": "density",
    "log_path_count": "log path count",
    "log_path_norm_1": "log Σ|v|",
    "log_path_norm_2": "log Σ v²",
    "log_trace_path_kernel": "log Tr Π",
    "log_top_path_kernel": "log λmax(Π)",
    "effective_rank_path_kernel": "effective rank of Π",
    "log_trace_ntk": "log Tr Θ",
    "log_top_ntk": "log λmax(Θ)",
    "effective_rank_ntk": "effective rank of Θ",
    "log_condition_ntk": "log condition number of Θ",
}
"""What is known of a network before training, with the words for it in tables and figures. Density is the baseline."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One masked network before and after training.

    Logarithms are natural. `inf` in `steps_to_level` says that the level was never reached, `-inf` in a log path
    norm that no path is left; `nan` says that the number does not exist, and `reason` says why. The three loss
    curves are relative to the loss at step 0. How lazy the same descent was, at its end, say `linearization_error`, of
    its outputs, and `kernel_distance`, of its NTK.
    """

    method: str
    density: float
    seed: int
    kept: int
    prunable: int
    layer_density: dict[str, float]
    log_path_count: float
    log_path_norm_1: float
    log_path_norm_2: float
    log_trace_path_kernel: float
    log_top_path_kernel: float
    effective_rank_path_kernel: float
    log_trace_ntk: float
    log_top_ntk: float
    effective_rank_ntk: float
    log_condition_ntk: float
    infinite_distance: float
    train_loss: list[float]
    test_accuracy: float
    steps_to_level: float
    pruned_stay_zero: bool
    real_loss: list[float]
    linearized_loss: list[float]
    data_free_loss: list[float]
    gap_linearized: float
    gap_data_free: float
    linearization_error: float
    kernel_distance: float
    reason: str = ""

    @property
    def name(self) -> tuple[str, float, int]:
        """Method, density and seed: what tells this run from every other of its folder."""
        return self.method, self.density, self.seed


def encode(run: Run) -> str:
    """One line of strict JSON, without its newline: NaN is null, and the infinities are "inf" and "-inf"."""
    return json.dumps({key: _plain(value) for key, value in vars(run).items()}, allow_nan=False, ensure_ascii=False)


def decode(line: str) -> Run:
    """The run of one line. Raises ValueError where the line is not one that `encode` wrote."""
    record = json.loads(line)
    fields = {field.name: field.type for field in dataclasses.fields(Run)}
    if not isinstance(record, dict) or set(record) != set(fields):
        raise ValueError("the line does not hold the fields of a run")
    return Run(**{key: _typed(record[key], str(fields[key])) for key in fields})


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    # eight digits hold a float32 exactly enough to rank, and keep the curves short
    return float(f"{value:.8g}") if math.isfinite(value) else str(value)


def _typed(value: Any, kind: str) -> Any:
    if kind == "float":
        return _number(value)
    if kind == "list[float]" and isinstance(value, list):
        return [_number(entry) for entry in value]
    if kind == "dict[str, float]" and isinstance(value, dict):
        return {key: _number(entry) for key, entry in value.items()}
    if {"str": str, "int": int, "bool": bool}.get(kind) is type(value):
        return value
    raise ValueError(f"{value!r} is not of type {kind}")


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{value!r} is not a number")
