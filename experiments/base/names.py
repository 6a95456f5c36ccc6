"""The names that configs, results and pages share. Imports nothing heavy."""

from __future__ import annotations

__all__ = [
    "BATCHES",
    "DENSE",
    "LOTTERY_TICKET",
    "METHODS",
    "NETWORKS",
    "QUANTITIES",
    "RANDOM",
    "TWINS",
    "why_no_file_name",
]

DENSE = "dense"
"""The unpruned network's name in tables. Every study measures it, so it is not an option."""

LOTTERY_TICKET = "lottery_ticket"
"""The method that trains before it prunes: what pruning before training is measured against."""

RANDOM = "random"
"""Random pruning: the baseline of all other methods."""

METHODS = (
    RANDOM,
    "magnitude",
    "snip",
    "snip_iterative",
    "grasp",
    "prospr",
    "synflow",
    "synflow_l2",
    "synflow_l2_absolute",
    "synflow_data",
    "synflow_data_l2",
    "path_kernel_trace",
    "mean_field_trace",
    "px",
    "ntk_sap",
    LOTTERY_TICKET,
)
"""The pruning methods, in the order in which tables list them.

`measure.pruning` has the scores of all but the lottery ticket, which `train.tickets` finds. A study may also ask for
variants of them, of `base.variants`.
"""

BATCHES = {"snip": 1, "snip_iterative": 1, "grasp": 1, "prospr": 4, "px": 1, "ntk_sap": 1}
"""The methods whose scores read labelled images, and how many batches of them each reads."""

TWINS = ("fc", "fc_residual", "conv", "conv_residual", "conv_pool", "conv_pool_residual")
"""The networks of `networks.twins`, whose infinite-width limit is known."""

NETWORKS = (
    *TWINS,
    "lenet_300_100",
    "lenet_5",
    "lenet_5_caffe",
    "vgg_11",
    "vgg_16",
    "resnet_20",
    "resnet_32",
    "resnet_56",
    "resnet_18",
    "wrn_16_8",
    "wrn_28_10",
)
"""The networks that a config can name: those with a twin, then those of `networks.architectures`."""

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
    "regression_accuracy": "accuracy of regression by Θ̄",
}
"""The quantities measured before training, each with its label in tables and figures. Density is the baseline."""

_LONGEST = 100
"""Bytes of a name that becomes a part of file names, beside a data set, a method and a density; systems allow 255."""


def why_no_file_name(name: str) -> str:
    """Why the name cannot be a part of file names; "" where it can.

    >>> why_no_file_name("resnet_20"), why_no_file_name("a/b"), why_no_file_name("")
    ('', 'has a slash', 'is empty')
    """
    if not name.strip():
        return "is empty"
    if "/" in name or "\\" in name:
        return "has a slash" if "/" in name else "has a backslash"
    if not name.isprintable():
        return "has a character that cannot be printed"
    if name != name.strip() or name.startswith("."):
        return "begins with a dot or a blank, or ends with a blank"
    if len(name.encode("utf-8", "replace")) > _LONGEST:
        return f"is longer than {_LONGEST} bytes"
    return ""
