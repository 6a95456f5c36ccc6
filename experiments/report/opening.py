"""The sentences that open the report: what was done, what came out, and how far to trust the predictions."""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.base.names import DENSE, QUANTITIES
from experiments.base.wording import correlation, counted, enumerated, factor
from experiments.records import study_table
from experiments.records.study_table import StudyTable
from experiments.report.spread import half_width

__all__ = ["accuracy_words", "how_far", "title", "what_came_out", "what_to_trust", "what_was_done"]

_STRATA = ["data", "model", "density"]


def title(study: StudyTable) -> str:
    """What the report is about."""
    data, models = _names(study)
    return f"Prunings of {models} on {data}"


def what_was_done(study: StudyTable) -> str:
    """The comparison in one sentence."""
    data, models = _names(study)
    methods = [method for method in study.cells["method"].unique() if method != DENSE]
    epochs = max((len(losses) - 1 for losses in study.trials["train_loss"]), default=0)
    return (
        f"Before training, this study pruned {models} on {data} by {counted(len(methods), 'method')} to "
        f"{counted(len(study.densities), 'density', 'densities')}; then it trained the pruned and the unpruned "
        f"networks with {counted(study.seeds, 'seed')}, {len(study.trials)} networks in all, for "
        f"{counted(epochs, 'epoch')}."
    )


def what_came_out(study: StudyTable) -> str:
    """The accuracies in one sentence: of one setting in full, of several by who is best how often."""
    pruned = study.cells[(study.cells["method"] != DENSE) & study.cells["test_accuracy_mean"].notna()]
    if pruned.empty:
        return "No pruned network has come to its end yet."
    if len(study.settings) > 1:
        return _most_accurate(pruned)
    lowest = pruned[pruned["density"] == pruned["density"].min()].sort_values("test_accuracy_mean")
    best, worst = lowest.iloc[-1], lowest.iloc[0]
    dense = study.cells[study.cells["method"] == DENSE]
    before = (
        f"Unpruned, {study.settings[0][1]} classifies {accuracy_words(dense.iloc[0])} of the test images right; "
        if len(dense)
        else ""
    )
    apart = f", and {worst['method']} is the least accurate with {accuracy_words(worst)}" if len(lowest) > 1 else ""
    words = (
        f"at the lowest density, {best['density']:g}, {best['method']} "
        f"{'is the most accurate method with' if apart else 'reaches'} {accuracy_words(best)}{apart}."
    )
    return before + words if before else words[0].upper() + words[1:]


def _most_accurate(pruned: pd.DataFrame) -> str:
    """How often each method is the most accurate one at a data set, model and density."""
    groups = [group for _, group in pruned.groupby(_STRATA, sort=False) if len(group) > 1]
    if not groups:
        return "No two methods share a data set, a model and a density, so none can be called the best."
    best = pd.Series([group.loc[group["test_accuracy_mean"].idxmax(), "method"] for group in groups]).value_counts()
    names = enumerated([f"{method} ({counted(count, 'time')})" for method, count in best.items()])
    return f"In {counted(len(groups), 'comparison')} of methods at one density, the most accurate were {names}."


def what_to_trust(study: StudyTable) -> str:
    """How far what is known before training may be trusted, in one sentence."""
    parts = [part for part in (_of_curves(study), _of_ranks(study)) if part]
    if not parts:
        return "These results do not say how far the predictions made before training are to be trusted."
    return f"Of the predictions made before training, {'; '.join(parts)}."


def _of_curves(study: StudyTable) -> str:
    """By which factor the predicted loss curves miss the real ones, and what that makes of them."""
    ntk, data_free = (study.cells[f"gap_{name}_mean"].dropna() for name in ("linearized", "data_free"))
    gates = study.cells["gap_no_data_mean"].dropna()
    if ntk.empty or data_free.empty:
        return ""
    expected = ""
    if len(gates):
        expected = (
            f"; those from expected gates, which read no data either, are {_verdict(gates)}, off by a factor of "
            f"{factor(gates.median())}"
        )
    return (
        f"the loss curves from the Neural Tangent Kernel are {_verdict(ntk)}, off by a factor of "
        f"{factor(ntk.median())} in the median and {factor(ntk.max())} at most, and those from the Path Kernel, which "
        f"reads no data, are {_verdict(data_free)}, off by a factor of {factor(data_free.median())}"
        f"{expected}"
    )


def _verdict(gaps: pd.Series) -> str:
    """How far predictions are to be trusted, from the decades by which nine of ten of them are off at most."""
    most = float(np.quantile(gaps, 0.9))
    if most < 0.2:
        return "close"
    return "a rough guide" if most < 0.7 else "not to be trusted as numbers"


def _of_ranks(study: StudyTable) -> str:
    """Which quantity ranks methods at one density best, with its interval."""
    associations = {name: study.association(name, "test_accuracy", _STRATA) for name in QUANTITIES}
    ranked = {name: one for name, one in associations.items() if one.groups}
    if not ranked:
        return ""
    best = max(ranked, key=lambda name: abs(ranked[name].rho))
    one = ranked[best]
    return (
        f"of {counted(len(ranked), 'quantity', 'quantities')}, {QUANTITIES[best]} ranks the accuracies at one density "
        f"best, with Spearman's ρ = {correlation(one.rho)} (95% interval {correlation(one.low)} to "
        f"{correlation(one.high)}; the best of several owes a part of its lead to luck)"
    )


def accuracy_words(row: pd.Series) -> str:
    """Test accuracy of a cell in per cent, with the `half_width` of its seeds where there are several."""
    half = half_width(row, "test_accuracy")
    spread = "" if np.isnan(half) else f" ± {100 * half:.1f}"
    return f"{100 * row['test_accuracy_mean']:.1f}{spread}%"


def how_far(study: StudyTable) -> str:
    """How many of the trials that its config asks for an unfinished study has; nothing where it has all of them."""
    wanted = study_table.wanted(study.config["options"])
    there = len(study.trials) + len(study.failed)
    return "" if there >= wanted else f"{there} of {wanted} trials"


def _names(study: StudyTable) -> tuple[str, str]:
    """The data sets and the models, each in a row."""
    data, models = (enumerated(list(dict.fromkeys(names))) for names in zip(*study.settings, strict=True))
    return data, models
