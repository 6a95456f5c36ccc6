"""The report of a study: its figures with captions computed from its results, tables, and one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments import widths
from experiments.options import DENSE
from experiments.records import results_folder
from experiments.records.reading import CHANGES, CURVES, PREDICTIONS, Results
from experiments.records.runs import QUANTITIES
from experiments.report import drawing, figures, findings
from experiments.report.page import Illustration, document, drawn, illustrated, pairs, scrolled, text

__all__ = ["footer", "illustrations", "page", "write"]

_RECIPE = ("epochs", "learning_rate", "batch_size", "schedule", "rounds", "rank")
"""Options that the line under a figure names where the study has them."""


class Absent(NamedTuple):
    """A figure that cannot be drawn, and why, in a sentence."""

    title: str
    why: str


def write(study: Results, folder: Path) -> list[str]:
    """Draw everything into the folder; gives what the console shows. Raises InputError where it cannot be written."""
    shown = list(illustrations(study, folder))
    pictures = [picture for picture in shown if isinstance(picture, Illustration)]
    for picture in pictures:
        results_folder.write(_within(folder, f"{picture.name}.png"), picture.png)
        results_folder.write(_within(folder, f"{picture.name}.svg"), picture.svg)
    results_folder.write(folder / "summary.csv", study.cells.to_csv(index=False, na_rep="nan"))
    results_folder.write(folder / "associations.csv", _associations(study).to_csv(index=False, na_rep="nan"))
    results_folder.write(folder / "report.html", page(study, shown))
    absent = [f"{picture.title}: {picture.why}" for picture in shown if isinstance(picture, Absent)]
    return [*absent, f"{len(pictures)} figures: {folder / 'figures'}", f"Report: {folder / 'report.html'}"]


def footer(study: Results) -> str:
    """The line under every figure: data, models, seeds, configuration and versions."""
    options, versions = _flat(study.config["options"]), study.config["versions"]
    data, models = (", ".join(dict.fromkeys(names)) for names in zip(*study.settings, strict=True))
    last = {name.rpartition(".")[2]: value for name, value in options.items()}
    recipe = [f"{name.replace('_', ' ')} {_words(last[name])}" for name in _RECIPE if name in last]
    packages = [f"{name} {versions[name]}" for name in ("pathjax", "jax") if name in versions]
    return " · ".join([data, models, _seeds(study), *([", ".join(recipe)] if recipe else []), ", ".join(packages)])


def illustrations(study: Results, folder: Path) -> Iterator[Illustration | Absent]:
    """All figures of a study, with captions computed from its results, or why one is not there."""
    foot, seeds = footer(study), study.trials["seed"].nunique()
    over_seeds = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    bands = f"{over_seeds}; bands: one standard deviation over seeds" if seeds > 1 else "one seed, so without bands"

    def figure(name: str, draw: Callable[[Results, str], Figure], title: str, caption: str, found: str) -> Illustration:
        return Illustration(name, *drawn(draw(study, foot)), title, caption, found)

    yield figure(
        "accuracy",
        figures.accuracy,
        "Accuracy over density",
        f"Accuracy on the full test set after training ({bands}). Dashed: the dense network.",
        " ".join(filter(None, [findings.failures(study), findings.of_accuracy(study)])),
    )
    if _has_lists(study, CURVES):
        yield figure(
            "curves",
            figures.curves,
            "Predicted and real training curves",
            f"Squared loss on the batch of Θ under full-batch gradient descent, relative to its start ({over_seeds}), "
            "and what was predicted before the first step: from Θ, from its part of rank r in the leading modes of the "
            "Path Kernel Π, and from the spectrum of Π without data. Shown are the dense network and, of the lowest "
            "density that has curves, the methods of the highest, the median and the lowest accuracy.",
            findings.of_curves(study),
        )
    else:
        yield Absent(
            "Predicted and real training curves", "No trial has loss curves; let the sweep's config ask for them."
        )
    if _has(study, [f"gap_{name}_mean" for name in PREDICTIONS]):
        yield figure(
            "gaps",
            figures.gaps,
            "How far predictions are off",
            f"The mean distance of each predicted curve to the real one, in decades of the loss: a point for each cell "
            f"({over_seeds}), a line for the median. Below {figures.LOWEST_GAP:g} points lie on the edge.",
            findings.of_gaps(study),
        )
    yield figure(
        "path_kernel",
        figures.path_kernel,
        "The Path Kernel and the path norms",
        f"Before training and without data ({bands}); logarithms are natural. Dashed: the dense network.",
        findings.of_path_kernel(study),
    )
    yield figure(
        "spectra",
        figures.spectra,
        "Spectra of Θ and of Π",
        f"Left, the eigenvalues of Θ on a fixed batch in order ({over_seeds}, of their logarithms), where they are "
        "above rounding; right, how those of Π that are not zero spread over the decades, by Lanczos quadrature, "
        "smoothed by 0.15 decades. At the highest and the lowest density; dashed, the dense network.",
        findings.of_spectra(study),
    )
    yield from _quantities(study, foot, over_seeds)
    yield figure(
        "associations",
        figures.associations,
        "How well it ranks the networks",
        "Spearman’s ρ of each quantity with test accuracy: over all cells, and among the methods at one density of one "
        "data set and model, since density alone explains much of the rest. Bars: Fisher’s 95% interval with the "
        "variance of Bonett and Wright, which takes cells as independent; neighboring densities of one method are "
        f"not, so the intervals are too narrow. With {len(QUANTITIES)} quantities tried, some leave out 0 by luck.",
        findings.of_associations(study),
    )
    yield _widths(folder)
    if _has_lists(study, ("layer_density", "dead_units")):
        yield figure(
            "layers",
            figures.layers,
            "Where the weights are kept, and dead units",
            f"Kept share of each layer’s kernel and share of its units that no kept path goes through, at the lowest "
            f"density ({over_seeds}), layers numbered from the input on; right, the mean of the dead shares over the "
            "layers. Dotted: the density over all layers. Layers without a weight lie at the bottom.",
            findings.of_layers(study),
        )
    else:
        yield Absent("Where the weights are kept, and dead units", "No trial has densities of layers.")
    if _has(study, [f"{name}_mean" for name in CHANGES]):
        yield figure(
            "change",
            figures.change,
            "Lazy or rich: the change of the kernels",
            f"Between initialization and the end of training ({bands}): change, ‖K − K₀‖/‖K₀‖, and turn, "
            "1 − ⟨K, K₀⟩/(‖K‖‖K₀‖), which leaves out growth in scale. Near 0 training was lazy. Values below "
            f"{figures.LOWEST_GAP:g} lie on the edge.",
            findings.of_change(study),
        )
    else:
        yield Absent("Lazy or rich: the change of the kernels", "No trial has its kernels after training.")


def _quantities(study: Results, foot: str, over_seeds: str) -> Iterator[Illustration]:
    parts = list(study.parts())
    together = [("all together", study)] if len(parts) > 1 else []
    for setting, part in parts + together:
        found = {name: part.association(name, "test_accuracy", []) for name in QUANTITIES}
        titles = {name: f"ρ = {one}" for name, one in found.items()}
        mixed = " Data sets and models differ in accuracy whatever is pruned." if part is study else ""
        yield Illustration(
            "quantities" + ("" if part is study else "-" + setting.replace(", ", "-")),
            *drawn(drawing.quantity_against_accuracy(part.cells, foot, titles=titles)),
            f"Before training against accuracy: {setting}",
            f"A point for each method and density ({over_seeds}); larger points are denser networks. Above each panel, "
            f"Spearman’s ρ over its cells with Fisher’s 95% interval.{mixed}",
            findings.of_quantities(part),
        )


def _widths(folder: Path) -> Illustration | Absent:
    title = "From finite to infinite width"
    table = folder / "widths" / "widths.csv"
    if not table.exists():
        return Absent(title, f"Not measured here: `python -m experiments.widths --out {table.parent}` makes it.")
    sweeps = widths.read(table)
    return Illustration(
        "widths",
        *drawn(widths.figure(sweeps, widths.footer(sweeps))),
        title,
        "Relative distance of Θ of networks of growing width to its infinite-width limit, dense and with random masks, "
        "on a few images of noise; bars: one standard deviation over seeds.",
        findings.of_widths(sweeps),
    )


def page(study: Results, shown: list[Illustration | Absent]) -> str:
    """The whole report as one HTML page that needs no other file."""
    data, models = (", ".join(dict.fromkeys(names)) for names in zip(*study.settings, strict=True))
    parts = [
        f"<h1>{text(f'Prunings of {models} on {data}, before and after training')}</h1>",
        f'<p class="lead">{text(findings.summary(study))}</p>',
    ]
    number = 0
    for picture in shown:
        if isinstance(picture, Illustration):
            number += 1
            parts.append(illustrated(number, picture))
        else:
            parts.append(f'<h2>{text(picture.title)}</h2><p class="note">{text(picture.why)}</p>')
    parts += ["<h2>Test accuracy</h2>", "<p>Mean ± standard deviation over seeds, in per cent.</p>"]
    parts += [_accuracies(setting, part) for setting, part in study.parts()]
    parts += ["<h2>Rank correlations with accuracy</h2>", _associations_table(study)]
    if study.failed:
        parts += ["<h2>Failed trials</h2>", pairs({trial.title: trial.reason for trial in study.failed})]
    zero = "every pruned weight is exactly zero after training"
    broken = study.trials[~study.trials["pruned_stay_zero"]]
    parts += [
        "<h2>Checks</h2>",
        pairs({"masks under training": f"FAILED in {len(broken)} trials" if len(broken) else zero}),
    ]
    options = {name: _words(value) for name, value in _flat(study.config["options"]).items()}
    parts += ["<h2>Configuration</h2>", pairs(options | {"seeds used": _seeds(study)})]
    parts += ["<h2>Versions</h2>", pairs(study.config["versions"])]
    return document(f"Prunings of {models} on {data}", parts)


def _accuracies(setting: str, part: Results) -> str:
    """A row for each method, a column for each density; the best of a density is bold."""
    densities = sorted(part.cells["density"].unique(), reverse=True)
    head = "".join(f"<th>{density:g}</th>" for density in densities)
    best = part.cells.groupby("density")["test_accuracy_mean"].max()
    rows = []
    for method, group in drawing.groups(part.cells):
        entries = []
        for density in densities:
            here = group[group["density"] == density]
            words = "" if here.empty else _accuracy(here.iloc[0])
            strong = not here.empty and method != DENSE and here["test_accuracy_mean"].iloc[0] == best[density]
            entries.append(f"<td>{f'<b>{text(words)}</b>' if strong else text(words)}</td>")
        rows.append(f"<tr><th>{text(method)}</th>{''.join(entries)}</tr>")
    head = f"<thead><tr><th>{text(setting)}</th>{head}</tr></thead>"
    return scrolled(f"<table>{head}<tbody>{''.join(rows)}</tbody></table>")


def _accuracy(row: pd.Series) -> str:
    mean, deviation = 100 * row["test_accuracy_mean"], 100 * row["test_accuracy_std"]
    return "–" if np.isnan(mean) else f"{mean:.1f}" + ("" if np.isnan(deviation) else f" ± {deviation:.1f}")


def _associations(study: Results) -> pd.DataFrame:
    """A row for each quantity, setting or all of them, and whether it is within a density."""
    rows = []
    for setting, part in [*study.parts(), ("all together", study)]:
        for quantity in QUANTITIES:
            for words, within in (("all cells", []), ("within a density", ["data", "model", "density"])):
                found = part.association(quantity, "test_accuracy", within)
                rows.append({"quantity": quantity, "setting": setting, "ranked": words} | found._asdict())
    return pd.DataFrame(rows)


def _associations_table(study: Results) -> str:
    columns = {
        "all cells": (study, []),
        "all cells of one data set and model": (study, ["data", "model"]),
        "within a density": (study, ["data", "model", "density"]),
    } | {f"{setting}, within a density": (part, ["density"]) for setting, part in study.parts()}
    head = "".join(f"<th>{text(words)}</th>" for words in columns)
    rows = [
        f"<tr><th>{text(words)}</th>"
        + "".join(f"<td>{text(str(part.association(name, 'test_accuracy', by)))}</td>" for part, by in columns.values())
        + "</tr>"
        for name, words in QUANTITIES.items()
    ]
    return scrolled(f"<table><thead><tr><th>quantity</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def _has(study: Results, columns: list[str]) -> bool:
    return bool(study.cells[columns].notna().any(axis=None))


def _has_lists(study: Results, columns: tuple[str, ...]) -> bool:
    return any(study.trials[name].map(bool).any() for name in columns)


def _within(folder: Path, name: str) -> Path:
    (folder / "figures").mkdir(exist_ok=True)
    return folder / "figures" / name


def _seeds(study: Results) -> str:
    seeds = sorted(study.trials["seed"].unique())
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds, {seeds[0]}–{seeds[-1]}"


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options of tables of a config under their dotted names; of a list of tables, each is under its own name."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            value = {str(entry.get("name", place)): entry for place, entry in enumerate(value)}
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
