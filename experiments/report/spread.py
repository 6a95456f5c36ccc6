"""How far the seeds of a cell lie apart, and the words for what is drawn or printed of it.

Two seeds have no standard deviation to speak of: of them the two values are given, as a mean ± half their distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.base.wording import counted
from experiments.records.study_table import StudyTable

__all__ = ["FEWEST", "half_width", "of_bands", "of_errors", "of_seeds"]

FEWEST = 3
"""Seeds from which on a standard deviation is given."""


def half_width(cells: Any, name: str) -> Any:
    """What stands behind the ± of a number: of a row of the cells' table, or of all of its rows.

    The standard deviation of three seeds or more, half the distance of two, NaN of one.
    """
    deviation = cells[f"{name}_std"]
    # the standard deviation of two numbers is their distance over √2
    return deviation * np.where(cells["seeds"] < FEWEST, np.sqrt(0.5), 1.0)


def of_seeds(study: StudyTable) -> str:
    """Of how many seeds the means are."""
    fewest, most = _seeds(study)
    if most == 1:
        return "one seed"
    return f"mean over {counted(most, 'seed')}" if fewest == most else f"mean over {fewest} to {most} seeds"


def of_bands(study: StudyTable) -> str:
    """Of how many seeds the means are, and what the bands around them are."""
    fewest, most = _seeds(study)
    if most == 1:
        return "one seed, so without bands"
    of_two = "from the lower to the higher of two seeds"
    if most < FEWEST:
        return f"{of_seeds(study)}; bands: {of_two}"
    also = f", or {of_two} where there are no more" if fewest < FEWEST else ""
    return f"{of_seeds(study)}; bands: one standard deviation{also}"


def of_errors(study: StudyTable) -> str:
    """What the numbers of a table are: the mean, and what stands behind ±."""
    fewest, most = _seeds(study)
    if most == 1:
        return "One seed."
    of_two = "half the distance of two seeds"
    if most < FEWEST:
        return f"Mean ± {of_two}."
    return f"Mean ± standard deviation over seeds{f', or {of_two}' if fewest < FEWEST else ''}."


def _seeds(study: StudyTable) -> tuple[int, int]:
    """The fewest and the most seeds of a cell."""
    return int(study.cells["seeds"].min()), int(study.cells["seeds"].max())
