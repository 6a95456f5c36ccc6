"""One run of the main job: what was measured of one (method, density, seed)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

__all__ = ["QUANTITIES", "Run"]

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

    FORMAT: ClassVar[int] = 2

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

    @property
    def title(self) -> str:
        """The name in words."""
        return f"{self.method} at density {self.density:g}, seed {self.seed}"
