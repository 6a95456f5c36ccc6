"""One network of a study: what was measured of one (data, model, method, density, seed).

A line of `results.jsonl` is one `Trial`; `jsonl.decode(line, Trial)` reads it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from experiments.base.wording import all_digits
from experiments.records.jsonl import ExactFloat

__all__ = ["Name", "Trial", "device_of", "tree_of"]

_UNDEFINED = "UnsupportedPrimitive:"
"""How the reason begins where pathjax refuses a network."""

Name = tuple[str, str, str, float, int]
"""Data set, model, method, density and seed of a trial."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One masked network before, during and after training.

    Logarithms are natural. `nan` says that a number does not exist or was not asked for. `-inf` in a logarithm says
    that the quantity is 0, as in a network without a path.

    A trial that failed has its name, a `reason`, and what was measured before it failed; its other numbers are `nan` or
    0, its lists and tables are empty. Every other trial has the reason "".

    Attributes:
        data, model, method, density, seed: its name. `model` is the name that the config gives it, `density` the share
            of prunable weights that is kept; the unpruned network is the method "dense" at density 1.
        kept, prunable: weights of kernels alone; `kept` of the `prunable` are left.
        layer_density: kept share of each kernel, by the layer's name, in the order of the network from the input on.
        dead_units: share of units that no kept path goes through, by the name of the units, in the same order.
        absent: what could not be measured of this network, and why; "" where all was. Of plain modules, `dead_units`.
        log_path_count … log_condition_ntk: the quantities known before training, under the mask: at the weights as they
            are drawn, or to which a lottery ticket is rewound. Θ is that of a small fixed batch of n images, as an
            (n·o, n·o) matrix; batch norm has the running statistics that its training begins with.
        infinite_distance: ‖Θ − Θ∞‖ / ‖Θ∞‖ of the dense network to its infinite-width limit, where that is known.
        log_ntk_eigenvalues: (n·o,) of Θ, descending; −inf below its rounding.
        log_path_kernel_nodes, path_kernel_weights: quadrature of Π's spectral density over the kept parameters: nodes,
            and the share of eigenvalues at each, which sum to 1.
        real_loss, linearized_loss, low_rank_loss, data_free_loss: (T + 1,) squared loss on the batch of Θ in steps of
            full-batch gradient descent, relative to step 0: what happened, and what Θ, its part of rank r in the
            eigenbasis of Π, and Π without data predict. Empty where the config asks for no curves of this cell.
        no_data_loss, moments_loss, inputs_loss: what Θ̄, the kernel of expected gates, predicts without data, from the
            data's mean and covariance, and from the inputs. Empty where the config does not ask for them, and where
            `why_not_expected` says why they do not exist.
        gap_linearized, gap_low_rank, gap_data_free, gap_no_data, gap_moments, gap_inputs: mean distance of each to
            `real_loss`, in decades.
        log_top_no_data, log_top_moments, log_top_inputs: λ_max(Θ̄) of the same three.
        regression_accuracy: share of test images that kernel regression with Θ̄, from the batch of Θ, gives their label.
        linearization_error: relative distance of the outputs after these steps to those of the linearized network.
        kernel_distance: 1 − ⟨Θ, Θ₀⟩ / (‖Θ‖ ‖Θ₀‖) of Θ after these steps to Θ before them.
        train_loss: (epochs + 1,) cross-entropy on training images without augmentation, before training and after each
            epoch, in evaluation mode. Of a lottery ticket that is rewound to the end of epoch k, the first k are those
            of the unpruned network that it is rewound to.
        steps_to_level: steps of training until `train_loss` first falls to the config's `measure.loss_level`, in nats;
            inf where it never does.
        test_loss, test_accuracy: on the full test set after training; accuracy is a share in [0, 1].
        pruned_stay_zero: whether every pruned weight is exactly 0 after training.
        ntk_change, path_kernel_change: ‖K − K₀‖ / ‖K₀‖ of Θ and of Π between the start and the end of training, in the
            Frobenius norm: near 0 is lazy.
        ntk_distance, path_kernel_distance: 1 − ⟨K, K₀⟩ / (‖K‖ ‖K₀‖): the part of the change that no scale undoes.
        did_not_train: why the training counts as none: its loss never fell below that of guessing, or its accuracy is
            that of always naming one class; "" where it learned something, and where the trial failed.
        setting: what decides the numbers beside the name and the versions, by the names of the config's keys: those
            that this trial reads, and hashes of source files that are not a part of pathjax.
        made: how it was computed: the versions of packages, the kind of the device, the commit of the source tree and
            whether its files were changed since, a hash of the study, seconds of computing (those of a group of
            networks in equal parts), and the time at which it was finished.
    """

    FORMAT: ClassVar[int] = 4
    READABLE: ClassVar[tuple[int, ...]] = (2, 3, 4)
    """Format 2 has none of the predictions from expected gates; formats 2 and 3 do not say what decides a trial."""

    MEASURED: ClassVar[frozenset[str]] = frozenset(
        {
            "measure.changes",
            "measure.curves",
            "measure.curve_steps",
            "measure.rank",
            "measure.expected",
            "measure.regression_images",
        }
    )
    """The keys of `setting` that say what is measured in addition, present where it is. They decide no other number."""

    data: str
    model: str
    method: str
    density: ExactFloat
    seed: int
    kept: int
    prunable: int
    layer_density: dict[str, float]
    dead_units: dict[str, float]
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
    log_ntk_eigenvalues: list[float]
    log_path_kernel_nodes: list[float]
    path_kernel_weights: list[float]
    real_loss: list[float]
    linearized_loss: list[float]
    low_rank_loss: list[float]
    data_free_loss: list[float]
    gap_linearized: float
    gap_low_rank: float
    gap_data_free: float
    linearization_error: float
    kernel_distance: float
    train_loss: list[float]
    steps_to_level: float
    test_loss: float
    test_accuracy: float
    pruned_stay_zero: bool
    ntk_change: float
    ntk_distance: float
    path_kernel_change: float
    path_kernel_distance: float
    reason: str = ""
    absent: str = ""
    no_data_loss: list[float] = dataclasses.field(default_factory=list)
    moments_loss: list[float] = dataclasses.field(default_factory=list)
    inputs_loss: list[float] = dataclasses.field(default_factory=list)
    gap_no_data: float = math.nan
    gap_moments: float = math.nan
    gap_inputs: float = math.nan
    log_top_no_data: float = math.nan
    log_top_moments: float = math.nan
    log_top_inputs: float = math.nan
    regression_accuracy: float = math.nan
    why_not_expected: str = ""
    did_not_train: str = ""
    setting: dict[str, Any] = dataclasses.field(default_factory=dict)
    made: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> Name:
        """What tells this trial from every other of its folder."""
        return self.data, self.model, self.method, self.density, self.seed

    @property
    def title(self) -> str:
        """The name in words."""
        return f"{self.data}, {self.model}, {self.method} at density {all_digits(self.density)}, seed {self.seed}"

    @property
    def is_undefined(self) -> bool:
        """Whether the method is not defined for the network, so that another try would end alike."""
        return self.reason.startswith(_UNDEFINED)

    @property
    def has_failed(self) -> bool:
        """Whether there is no result, though there could be one."""
        return bool(self.reason) and not self.is_undefined

    @classmethod
    def partial(cls, name: Name, **measured: Any) -> Trial:
        """The trial of this name with the fields that were measured; all others are absent."""
        absent = {"float": math.nan, "int": 0, "bool": False}
        empty = {"list[float]": list, "dict[str, float]": dict}
        fields: dict[str, Any] = {
            field.name: empty[str(field.type)]() if field.type in empty else absent[str(field.type)]
            for field in dataclasses.fields(cls)
            if str(field.type) in absent | empty
        }
        named = dict(zip(("data", "model", "method", "density", "seed"), name, strict=True))
        return cls(**fields | named | measured)


def device_of(made: Mapping[str, Any]) -> str:
    """The kind of device that computed a trial."""
    return str(made.get("device", "an unknown device"))


def tree_of(made: Mapping[str, Any]) -> str:
    """The state of the source tree that computed a trial.

    >>> tree_of({"commit": "0123456789abcdef", "changed": True}), tree_of({"commit": None})
    ('commit 0123456789 with changes', 'no commit')
    """
    commit = made.get("commit")
    return f"commit {commit[:10]}{' with changes' if made.get('changed') else ''}" if commit else "no commit"
