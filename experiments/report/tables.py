"""The tables of the report, as HTML and as CSV."""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.base.names import DENSE, QUANTITIES
from experiments.base.wording import number
from experiments.records.rank_association import Association
from experiments.records.study_table import OUTCOMES, StudyTable
from experiments.records.trial_summaries import PREDICTIONS, TOPS
from experiments.report.drawing import groups
from experiments.report.page import scrolled, text
from experiments.report.spread import half_width

__all__ = ["accuracies", "all_numbers", "associations", "associations_table", "predictions_table"]

_COLUMNS = {
    "test_accuracy": ("test accuracy", "%"),
    "final_train_loss": ("final training loss", ".3g"),
    "steps_to_level": ("steps to level", ".0f"),
    "log_path_count": ("log paths", ".1f"),
    "log_path_norm_1": ("log Σ|v|", ".2f"),
    "log_path_norm_2": ("log Σ v²", ".2f"),
    "log_trace_path_kernel": ("log Tr Π", ".2f"),
    "log_top_path_kernel": ("log λmax Π", ".2f"),
    "log_trace_ntk": ("log Tr Θ", ".2f"),
    "log_top_ntk": ("log λmax Θ", ".2f"),
    "log_condition_ntk": ("log cond Θ", ".2f"),
    "gap_linearized": ("gap Θ", ".2f"),
    "gap_low_rank": ("gap rank r", ".2f"),
    "gap_inputs": ("gap Θ̄, inputs", ".2f"),
    "gap_moments": ("gap Θ̄, moments", ".2f"),
    "gap_no_data": ("gap Θ̄, no data", ".2f"),
    "gap_data_free": ("gap Π", ".2f"),
    "linearization_error": ("outputs off linear", "%"),
    "kernel_distance": ("kernel distance", ".3f"),
    "ntk_change": ("change of Θ", "%"),
    "path_kernel_change": ("change of Π", "%"),
}
"""The columns of the table of all numbers, with their words and formats."""


def accuracies(study: StudyTable) -> str:
    """A row for each setting and method, a column for each density; the best of a density is bold."""
    densities = sorted(study.cells["density"].unique(), reverse=True)
    head = "".join(f"<th>density {density:g}</th>" for density in densities)
    rows = []
    for setting, part in study.parts():
        if len(study.settings) > 1:
            rows.append(f'<tr class="section"><th colspan="{len(densities) + 1}">{text(setting)}</th></tr>')
        best = part.cells.groupby("density")["test_accuracy_mean"].max()
        for method, group in groups(part.cells):
            entries = [
                _accuracy(group[group["density"] == density], best.get(density, np.nan)) for density in densities
            ]
            rows.append(f"<tr><th>{text(method)}</th>{''.join(entries)}</tr>")
    return scrolled(f"<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def _accuracy(cells: pd.DataFrame, best: float) -> str:
    if cells.empty:
        return "<td></td>"
    row = cells.iloc[0]
    words = text(_entry(row, "test_accuracy", "%"))
    words += " †" if row["untrained"] else ""
    strong = row["method"] != DENSE and row["test_accuracy_mean"] == best
    return f"<td><b>{words}</b></td>" if strong else f"<td>{words}</td>"


def all_numbers(study: StudyTable) -> str:
    """A row for each cell: means ± the `half_width` of seeds."""
    columns = {name: words for name, words in _COLUMNS.items() if study.cells[f"{name}_mean"].notna().any()}
    several = len(study.settings) > 1
    any_untrained = study.cells["untrained"].any()
    names = [
        *(("data", "model") if several else ()),
        "method",
        "density",
        "kept",
        *(["did not train"] if any_untrained else []),
        *(words for words, _ in columns.values()),
    ]
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    rows = []
    for _, row in study.cells.iterrows():
        setting = f"<th>{text(row['data'])}</th><td>{text(row['model'])}</td>" if several else ""
        method = f"<td>{text(row['method'])}</td>" if several else f"<th>{text(row['method'])}</th>"
        entries = "".join(f"<td>{text(_entry(row, name, form))}</td>" for name, (_, form) in columns.items())
        untrained = f"<td>{row['untrained']} of {row['seeds']}</td>" if any_untrained else ""
        rows.append(
            f"<tr>{setting}{method}<td>{row['density']:g}</td><td>{row['kept']:,}</td>{untrained}{entries}</tr>"
        )
    return scrolled(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def _entry(row: pd.Series, name: str, form: str) -> str:
    """Mean ± `half_width` of a number of a cell."""
    mean, half = row[f"{name}_mean"], half_width(row, name)
    if name == "steps_to_level" and np.isposinf(mean):
        return "never"
    scale, form, unit = (100.0, ".1f", "%") if form == "%" else (1.0, form, "")
    words = number(scale * mean, form)
    if not np.isfinite(mean):
        return words
    return words + ("" if np.isnan(half) else f" ± {number(scale * half, form)}") + unit


def associations(study: StudyTable) -> pd.DataFrame:
    """A row for each quantity, outcome and setting, or all settings, and whether it is within a density."""
    rows = []
    for setting, part in [*study.parts(), ("all together", study)]:
        for outcome in OUTCOMES:
            for quantity in QUANTITIES:
                for words, within in (("all cells", []), ("within a density", ["data", "model", "density"])):
                    names = {"quantity": quantity, "outcome": outcome, "setting": setting, "ranked": words}
                    rows.append(names | part.association(quantity, outcome, within)._asdict())
    return pd.DataFrame(rows)


def associations_table(study: StudyTable) -> str:
    """Spearman's ρ of each quantity with accuracy and with the steps to the loss level."""
    columns: dict[str, list[Association]] = {}
    for outcome, words in OUTCOMES.items():
        columns[f"{words}, all cells"] = _of_quantities(study, outcome, [])
        if len(study.settings) > 1:
            columns[f"{words}, within a data set and model"] = _of_quantities(study, outcome, ["data", "model"])
        columns[f"{words}, within a density"] = _of_quantities(study, outcome, ["data", "model", "density"])
    head = "".join(f"<th>{text(words)}</th>" for words in columns)
    rows = []
    for place, words in enumerate(QUANTITIES.values()):
        entries = "".join(f"<td>{text(str(column[place]))}</td>" for column in columns.values())
        rows.append(f"<tr><th>{text(words)}</th>{entries}</tr>")
    return scrolled(f"<table><thead><tr><th>quantity</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def predictions_table(study: StudyTable) -> str:
    """Gaps of the predicted loss curves and of λ_max, and how predicted falls and halvings rank with the real ones."""
    within = {"over all cells": [], "within a density": ["data", "model", "density"]}
    if len(study.settings) > 1:
        within = {"over all cells": [], "within a data set and model": ["data", "model"]} | within
    outcomes = {"drop": "fall", "halving": "halving"}
    columns = ["mean gap", "median gap", "gap of λmax"]
    columns += [f"ρ of the {words} {where}" for words in outcomes.values() for where in within]
    head = "".join(f"<th>{words}</th>" for words in columns)
    rows = []
    for name, words in {"density": "density", **PREDICTIONS}.items():
        gaps = pd.Series(dtype=float) if name == "density" else study.cells[f"gap_{name}_mean"].dropna()
        if name != "density" and gaps.empty:
            continue
        tops = study.cells[f"top_gap_{name}_mean"] if name in TOPS else pd.Series(dtype=float)
        entries = [number(value) for value in (gaps.mean(), gaps.median(), tops[np.isfinite(tops)].mean())]
        for outcome in outcomes:
            known = name if name == "density" else f"{name}_{outcome}"
            entries += [str(study.association(known, f"real_{outcome}", each)) for each in within.values()]
        rows.append(f"<tr><th>{text(words)}</th>{''.join(f'<td>{text(entry)}</td>' for entry in entries)}</tr>")
    return scrolled(f"<table><thead><tr><th>prediction</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def _of_quantities(study: StudyTable, outcome: str, within: list[str]) -> list[Association]:
    return [study.association(name, outcome, within) for name in QUANTITIES]
