"""Runs made up for tests."""

import dataclasses
from typing import Any

from experiments.runs import Run


def example(**changed: Any) -> Run:
    """A run of snip at density 0.1 in which every number is 1.5, with some fields changed."""
    fields: dict[str, Any] = {field.name: 1.5 for field in dataclasses.fields(Run) if field.type == "float"}
    fields |= {field.name: [1.0, 0.25] for field in dataclasses.fields(Run) if field.type == "list[float]"}
    fields |= {"method": "snip", "density": 0.1, "seed": 2, "kept": 7, "prunable": 70}
    fields |= {"layer_density": {"Dense_0": 0.1}, "pruned_stay_zero": True}
    return Run(**fields | changed)
