"""What others have published of SNIP and SynFlow, and our errors in the same cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from experiments.base.names import DENSE
from experiments.evidence.kept import Kept
from experiments.evidence.statistics import Interval, mean_interval

__all__ = ["ACCOUNTS", "CLOSE", "SYNFLOW", "SYNFLOW_DENSITIES", "Account", "less_theirs", "our_errors"]

CLOSE = 0.3
"""An error is reproduced where it is less than this many points from the published one."""


class Account(NamedTuple):
    """What somebody has published of SNIP on MNIST.

    Attributes:
        studies: the configs that train as they did, one network each or both together.
        who: who they are, for a sentence.
        column: who they are, for a table.
        source: where the numbers stand.
        setting: how they train, in words that begin with "SGD".
        learning_rate: the learning rate that they begin with.
        first_cut: the number of steps after which they first cut it, None where they do not.
        rounding: half a unit of the last digit that they print, in points.
        errors: test error in per cent by network and density, 1 being the unpruned network.
    """

    studies: tuple[str, ...]
    who: str
    column: str
    source: str
    setting: str
    learning_rate: float
    first_cut: int | None
    rounding: float
    errors: Mapping[tuple[str, float], float]


ACCOUNTS = (
    Account(
        ("mnist-snip", "mnist-snip-lenet-5"),
        "SNIP’s authors",
        "SNIP, Table 1",
        "Lee, Ajanthan and Torr, “SNIP: Single-shot network pruning based on connection sensitivity”, ICLR 2019, Table "
        "1",
        "SGD with momentum 0.9, learning rate 0.1, cut tenfold every 25,000 steps, batches of 100, weight decay "
        "0.0005, 90% of the training images",
        0.1,
        25_000,
        0.05,
        {
            ("lenet_300_100", 1.0): 1.7,
            ("lenet_300_100", 0.05): 1.6,
            ("lenet_300_100", 0.02): 2.4,
            ("lenet_5", 1.0): 0.9,
            ("lenet_5", 0.02): 0.8,
            ("lenet_5", 0.01): 1.1,
        },
    ),
    Account(
        ("mnist-sgd",),
        "the other group",
        "other group",
        "a reproduction of SNIP by another group over 10 seeds, whose numbers have come to us without their source",
        "SGD without momentum, learning rate 0.1, constant, batches of 100, 10,000 steps",
        0.1,
        None,
        0.005,
        {
            ("lenet_300_100", 1.0): 1.33,
            ("lenet_300_100", 0.5): 1.45,
            ("lenet_300_100", 0.3): 1.64,
            ("lenet_300_100", 0.2): 1.92,
            ("lenet_300_100", 0.1): 2.37,
            ("lenet_5", 1.0): 0.94,
            ("lenet_5", 0.5): 1.01,
            ("lenet_5", 0.3): 1.09,
            ("lenet_5", 0.2): 1.09,
            ("lenet_5", 0.1): 1.25,
        },
    ),
)
"""The two published accounts of SNIP on MNIST."""

SYNFLOW = {
    "VGG-16, CIFAR-10": (93.5, 93.3, 90.1, 80.4),
    "ResNet-18, CIFAR-10": (94.8, 94.1, 90.4, 79.9),
    "VGG-16, CIFAR-100": (72.9, 72.1, 63.5, 41.4),
    "ResNet-18, Tiny ImageNet": (63.5, 58.9, 44.5, 14.4),
}
"""Test accuracy in per cent of SynFlow at the densities of `SYNFLOW_DENSITIES` (Tanaka et al., NeurIPS 2020)."""

SYNFLOW_DENSITIES = (1.0, 0.1, 0.01, 0.001)


def our_errors(study: Kept, model: str, density: float) -> pd.Series:
    """Test errors in per cent, by seed; NaN where a network has no result."""
    table = study.table
    method = DENSE if density == 1 else "snip"
    rows = table[(table["model"] == model) & (table["density"] == density) & (table["method"] == method)]
    return 100 * (1 - rows.set_index("seed")["test_accuracy"])


def less_theirs(errors: pd.Series, account: Account, cell: tuple[str, float], level: float) -> Interval:
    """Our errors less the published one, with an interval that is wider by the rounding of theirs."""
    off = mean_interval(errors.to_numpy() - account.errors[cell], level)
    return Interval(off.value, off.low - account.rounding, off.high + account.rounding)
