"""Runs made up for tests."""

import dataclasses
from typing import Any

import numpy as np

from experiments.kernels import Kernels
from experiments.runs import Run
from experiments.trials import Trial


def example(**changed: Any) -> Run:
    """A run of snip at density 0.1 in which every number is 1.5, with some fields changed."""
    fields: dict[str, Any] = {field.name: 1.5 for field in dataclasses.fields(Run) if field.type == "float"}
    fields |= {field.name: [1.0, 0.25] for field in dataclasses.fields(Run) if field.type == "list[float]"}
    fields |= {"method": "snip", "density": 0.1, "seed": 2, "kept": 7, "prunable": 70}
    fields |= {"layer_density": {"Dense_0": 0.1}, "pruned_stay_zero": True}
    return Run(**fields | changed)


def example_trial(**changed: Any) -> Trial:
    """A trial of snip at density 0.1 on digits in which every number is 1.5, with some fields changed."""
    fields: dict[str, Any] = {field.name: 1.5 for field in dataclasses.fields(Trial) if field.type == "float"}
    fields |= {field.name: [1.0, 0.25] for field in dataclasses.fields(Trial) if field.type == "list[float]"}
    fields |= {"data": "digits", "model": "fc", "method": "snip", "density": 0.1, "seed": 2, "kept": 7, "prunable": 70}
    fields |= {"layer_density": {"dense": 0.1}, "dead_units": {"hidden_0": 0.25}, "pruned_stay_zero": True}
    return Trial(**fields | changed)


def example_kernels(seed: int = 0, **changed: Any) -> Kernels:
    """Kernels of 3 seeds, 2 samples of 4 nodes, 5 modes, 6 examples of 2 classes, with some fields changed."""
    rng = np.random.default_rng(seed)
    fields: dict[str, Any] = {
        "log_nodes": np.log(rng.random((3, 2, 4))),
        "weights": np.full((3, 2, 4), 0.25),
        "log_eigenvalues": np.array([4.0, 3.0, 2.0, 1.0, -np.inf]),
        "shares": np.array([0.2, 0.1, 0.1, 0.05, 0.0]),
        "log_ntk_eigenvalues": np.append(-np.arange(11.0), -np.inf),
        "bounds": np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        "cosines": rng.uniform(-1, 1, (3, 6, 6)),
        "alignments": np.array([0.3, 0.2, 0.1]),
        "labels": np.array([1, 0, 1, 0, 1, 0]),
    }
    return Kernels(**fields | changed)
