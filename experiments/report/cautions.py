"""What a reader of a study has to know first, in sentences: networks that did not train, and mixed origins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from experiments.base.wording import enumerated
from experiments.records.study_table import StudyTable
from experiments.records.trial import device_of, tree_of
from experiments.report.ticks import clipped_accuracy

__all__ = ["axis", "origins", "untrained"]

_NAMED = 3
"""How many cells a sentence names."""


def axis(study: StudyTable) -> str:
    """What the axis of accuracies is, and whether any of them is drawn at its end."""
    words = (
        "Accuracies are on a logit axis, where 97 and 98% lie as far apart as 67 and 75%; on a linear one where all "
        "are close together."
    )
    accuracies = study.cells["test_accuracy_mean"].dropna()
    lowest, highest = clipped_accuracy(0.0), clipped_accuracy(1.0)
    ends = [f"below {100 * lowest:g}%"] if (accuracies < lowest).any() else []
    ends += [f"above {100 * highest:g}%"] if (accuracies > highest).any() else []
    return f"{words} Accuracies {' or '.join(ends)} are drawn there." if ends else words


def untrained(study: StudyTable) -> str:
    """How many networks did not train, by which sign, and in which cells; nothing where all did."""
    reasons = study.trials["did_not_train"]
    count = int(reasons.map(bool).sum())
    if not count:
        return ""
    by_loss = int(reasons.str.startswith("the training loss").sum())
    cells = study.cells[study.cells["untrained"] > 0]
    names = [f"{row['data']}, {row['model']}, {row['method']} at {row['density']:g}" for _, row in cells.iterrows()]
    more = [f"{len(names) - _NAMED} more cells"] if len(names) > _NAMED else []
    return (
        f"{count} of {len(study.trials)} networks did not train: {by_loss} by their training loss, which never fell "
        f"1% below that of a guess by the frequencies of the classes, and {count - by_loss} by their test accuracy, at "
        "most two standard errors above that of always naming one class. They count in all figures and means. They "
        f"are of {enumerated([*names[:_NAMED], *more])}."
    )


def origins(study: StudyTable) -> str:
    """On which kinds of devices and by which states of the program, where there are several; nothing otherwise."""
    devices, trees = (_counts(study, words) for words in (device_of, tree_of))
    parts = [f"on {enumerated(devices)}, which round differently"] if len(devices) > 1 else []
    parts += [f"by {enumerated(trees)} of the program, which may compute differently"] if len(trees) > 1 else []
    return f"The networks were computed {'; and '.join(parts)}." if parts else ""


def _counts(study: StudyTable, words: Callable[[dict[str, Any]], str]) -> list[str]:
    """Each origin in words, with the number of its networks; without those of formats that do not say it."""
    counts = pd.Series([words(made) for made in study.trials["made"] if made], dtype=object).value_counts(sort=False)
    return [f"{name} ({count})" for name, count in counts.items()]
