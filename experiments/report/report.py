"""The report of a study: its figures with captions computed from its results, tables, and one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments.base.errors import InputError
from experiments.base.files import write_atomically
from experiments.base.names import DENSE, QUANTITIES
from experiments.base.wording import percent
from experiments.measure import kernel_pictures, widths
from experiments.measure.factorization_check import factorization_error
from experiments.records import trial_table
from experiments.records.study_table import CHANGES, StudyTable
from experiments.records.trial_summaries import CURVES, PREDICTIONS
from experiments.report import (
    cautions,
    figures,
    findings,
    kernel_figures,
    kernel_findings,
    layer_order,
    opening,
    quantity_figures,
    spread,
    tables,
    width_figure,
)
from experiments.report.page import Illustration, document, drawn, illustrated, note, pairs, paragraph, section, text

__all__ = ["footer", "illustrations", "page", "write"]

_RECIPE = ("epochs", "learning_rate", "batch_size", "schedule", "rounds", "rank")
"""Options that the line under a figure names where the study has them."""


class Absent(NamedTuple):
    """A figure that cannot be drawn, and why, in a sentence."""

    title: str
    why: str


def write(study: StudyTable, folder: Path, out: Path | None = None) -> list[str]:
    """Draw everything of the study in a folder; gives the lines that the console shows.

    Figures, tables and the page go to `out`, by default the folder of the study, which is only read otherwise. Raises
    InputError where `out` cannot be written to, or the numbers of a picture cannot be read.
    """
    shown = list(illustrations(study, folder))
    folder = folder if out is None else out
    pictures = [picture for picture in shown if isinstance(picture, Illustration)]
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot write to {folder}: {error.strerror}; `figures --out FOLDER` writes to another folder."
        ) from error
    for picture in pictures:
        write_atomically(folder / "figures" / f"{picture.name}.png", picture.png)
        write_atomically(folder / "figures" / f"{picture.name}.svg", picture.svg)
    write_atomically(folder / "summary.csv", study.cells.to_csv(index=False, na_rep="nan"))
    write_atomically(folder / "associations.csv", tables.associations(study).to_csv(index=False, na_rep="nan"))
    rows = map(vars, [*study.failed, *study.finished()])
    table_of_trials = trial_table.write(folder, rows, study.config["options"])
    of_listed_paths = factorization_error()
    write_atomically(folder / "report.html", page(study, shown, of_listed_paths))
    return [
        *(f"{picture.title}: {picture.why}" for picture in shown if isinstance(picture, Absent)),
        f"Θ = J Π Jᵀ on listed paths: relative error {of_listed_paths:.1e}, in float64",
        f"{len(pictures)} figures: {folder / 'figures'}",
        table_of_trials,
        f"Report: {folder / 'report.html'}",
    ]


def footer(study: StudyTable) -> str:
    """The line under every figure: data, models, seeds, configuration and versions."""
    options, versions = _flat(study.config["options"]), study.config["versions"]
    data, models = (", ".join(dict.fromkeys(names)) for names in zip(*study.settings, strict=True))
    by_last_name = {name.rpartition(".")[2]: value for name, value in options.items()}
    recipe = [f"{name.replace('_', ' ')} {_spelled(by_last_name[name])}" for name in _RECIPE if name in by_last_name]
    packages = [f"{name} {versions[name]}" for name in ("pathjax", "jax") if name in versions]
    far = opening.how_far(study)
    parts = [data, models, _seeds(study), far and f"unfinished: {far}", ", ".join(recipe), ", ".join(packages)]
    return " · ".join(part for part in parts if part)


def illustrations(study: StudyTable, folder: Path) -> Iterator[Illustration | Absent]:
    """All figures of a study, with captions computed from its results, or why one is not there."""
    foot = footer(study)
    over_seeds, bands = spread.of_seeds(study), spread.of_bands(study)
    own_limits = " Each panel has limits of its own." if len(study.settings) > 1 else ""

    def figure(
        name: str, draw: Callable[[StudyTable, str], Figure], title: str, caption: str, finding: str
    ) -> Illustration:
        return Illustration(name, *drawn(draw(study, foot)), title, caption, finding)

    yield figure(
        "accuracy",
        figures.accuracy,
        "Accuracy over density",
        f"Accuracy on the test set after training ({bands}). Dashed: the dense network. {cautions.axis(study)}"
        + (own_limits or figures.KNOWN_WORDS)
        + (" Crosses: cells in which a network did not train." if study.cells["untrained"].any() else ""),
        findings.of_accuracy(study),
    )
    yield figure(
        "training",
        figures.training,
        "Training",
        f"Cross-entropy on the train set after each epoch ({over_seeds}). Dashed: the dense network; dotted: the loss "
        "level whose first crossing is counted in steps. The panels of a row share their limits.",
        findings.of_training(study),
    )
    yield from _of_curves(study, figure, over_seeds)
    yield figure(
        "path_kernel",
        quantity_figures.path_kernel,
        "The Path Kernel and the path norms",
        f"Before training and without data ({bands}); logarithms are natural. Dashed: the dense network. Each "
        "panel has limits of its own.",
        findings.of_path_kernel(study),
    )
    yield figure(
        "spectra",
        quantity_figures.spectra,
        "Spectra of Θ and of Π",
        f"Left, the eigenvalues of Θ on a fixed batch, in order ({over_seeds}, of their logarithms), where they are "
        "above rounding. Right, how the eigenvalues of Π that are not zero spread over the decades, by Lanczos "
        "quadrature, smoothed by 0.15 decades. Dashed: the dense network. The two panels of one kernel share their "
        "limits.",
        findings.of_spectra(study),
    )
    yield from _of_kernels(study, folder, foot)
    yield from _of_quantities(study, foot, over_seeds)
    yield figure(
        "associations",
        quantity_figures.associations,
        "How well the quantities rank the networks",
        "Spearman’s ρ of each quantity with test accuracy, over all cells and among the methods at one density, with "
        "95% intervals. The intervals take cells as independent, which neighboring densities of one method are not, so "
        f"they are too narrow; of {len(QUANTITIES)} quantities, some leave out 0 by luck.",
        findings.of_associations(study),
    )
    yield _of_widths(folder)
    if _has_lists(study, ("layer_density", "dead_units")):
        yield figure(
            "layers",
            quantity_figures.layers,
            "Where the weights are kept, and dead units",
            f"Kept share of each layer’s kernel and share of its units that no kept path goes through, at the lowest "
            f"density ({over_seeds}). {layer_order.numbered(study)} Dotted: the density over all layers; a share of 0 "
            f"is drawn at the bottom. Right, the mean of the dead shares over the layers ({bands}).{own_limits}",
            findings.of_layers(study),
        )
    else:
        yield Absent("Where the weights are kept, and dead units", "No trial has densities of layers.")
    if _has(study, [f"{name}_mean" for name in CHANGES]):
        yield figure(
            "change",
            quantity_figures.change,
            "How far training moves the kernels",
            f"Between initialization and the end of training ({bands}): change, ‖K − K₀‖/‖K₀‖, and turn, "
            "1 − ⟨K, K₀⟩/(‖K‖‖K₀‖), which no change of scale affects. Near 0 training was lazy. Values below 0.001 are "
            "drawn at 0.001. Each panel has limits of its own.",
            findings.of_change(study),
        )
    else:
        without = "No trial has its kernels after training. Set `measure.changes = true` in the config."
        yield Absent("How far training moves the kernels", without)


def _of_curves(study: StudyTable, figure: Callable[..., Illustration], over_seeds: str) -> Iterator[Any]:
    """The loss curves of gradient descent, and how far their predictions are off."""
    title = "Predicted and real loss curves"
    if not _has_lists(study, CURVES):
        yield Absent(title, "No trial has loss curves. Give densities for them, as `measure.curve_density = [0.05]`.")
        return
    yield figure(
        "curves",
        figures.curves,
        title,
        f"Squared loss on the batch of Θ under full-batch gradient descent, relative to its start ({over_seeds}), and "
        "what was predicted before the first step: from the spectrum of the Path Kernel Π, where every gate is open; "
        "from Θ̄, where each gate counts for as often as it is open over random signs of the weights, without data, for "
        "normal images of the data’s mean and covariance, and for the images; from the part of Θ of rank r in the "
        "leading modes of Π; and from Θ. Shown are the dense network and, at the lowest density with curves, the "
        "methods of the highest, the median and the lowest accuracy. Each panel has limits of its own, which enclose "
        "the real curve and the prediction from Θ; other predictions may leave it.",
        f"{findings.of_curves(study)}\n{findings.of_laziness(study)}",
    )
    if _has(study, [f"gap_{name}_mean" for name in PREDICTIONS]):
        yield figure(
            "gaps",
            figures.gaps,
            "How far the predicted curves are off",
            "Mean distance of each predicted curve to the real one, in decades of the loss: a point for each cell "
            f"({over_seeds}); above, and as a line, the mean over cells. From left to right more is known: Π alone "
            "knows the architecture and the weights, with every gate open; then each gate counts for as often as it is "
            "open, for standard normal images (no data), for normal images with the data’s mean and covariance "
            "(moments), and for the images (inputs); Θ knows the gates themselves. Values below 0.001 are drawn at "
            "0.001. All panels share their limits.",
            findings.of_gaps(study),
        )
    yield from _without_expected_gates(study)


def _without_expected_gates(study: StudyTable) -> Iterator[Absent]:
    """Where there are no predictions from expected gates, and why."""
    for setting, part in study.parts():
        if not _has(part, ["gap_no_data_mean"]):
            reasons = [reason for reason in part.trials["why_not_expected"] if reason]
            why = reasons[0] if reasons else "The study does not ask for them: set measure.expected."
            yield Absent(f"Loss curves predicted from expected gates: {setting}", why)


def _of_kernels(study: StudyTable, folder: Path, foot: str) -> Iterator[Illustration]:
    """The pictures of kernels of each setting whose numbers are kept."""
    for setting, part in study.parts():
        ((data, model),) = part.settings
        files = {
            (str(method), float(density)): kernel_pictures.file_of(folder, data, model, method, density)
            for method, density in part.cells[["method", "density"]].itertuples(index=False)
        }
        kernels = {cell: kernel_pictures.load(file) for cell, file in files.items() if file.exists()}
        if (DENSE, 1.0) not in kernels or len(kernels) < 2:
            continue
        ending = "" if len(study.settings) == 1 else f": {setting}"
        suffix = "" if len(study.settings) == 1 else f"-{data}-{model}"
        mapped = [cell for cell in kernel_findings.best_and_worst(part.cells) if cell in kernels]
        modes = max(len(pictures.shares) for pictures in kernels.values())
        yield Illustration(
            f"eigenvalues{suffix}",
            *drawn(kernel_figures.eigenvalues(kernels, foot)),
            f"Eigenvalues of Θ over those of Π{ending}",
            f"The largest {modes} of each, in order and relative to the first (seed 0). On the dotted line the data "
            "would leave Π’s spectrum as it is; above it Θ falls more slowly, below it faster.",
            kernel_findings.of_eigenvalues(kernels),
        )
        yield Illustration(
            f"cumulative_shares{suffix}",
            *drawn(kernel_figures.cumulative_shares(kernels, foot)),
            f"How much of Θ the leading modes of Π carry{ending}",
            "The share of Tr Θ in the first terms of Θ = Σ λᵢ bᵢ bᵢᵀ over the eigenpairs of Π (seed 0).",
            kernel_findings.of_shares(kernels),
        )
        yield Illustration(
            f"heat_maps{suffix}",
            *drawn(kernel_figures.heat_maps(kernels, mapped, foot)),
            f"The kernels between examples{ending}",
            "Cosines between the examples of the batch of Θ less their mean, ordered by class and summed over outputs "
            f"(seed 0): in Θ, in the part of it that the first {modes} modes of Π carry, and in the data Gram K_v, "
            "which knows the open paths but no weight on them. Red blocks on the diagonal are classes that a kernel "
            "holds together. Below the dense network: the best and the worst method at the lowest density.",
            kernel_findings.of_maps(kernels, mapped),
        )


def _of_quantities(study: StudyTable, foot: str, over_seeds: str) -> Iterator[Illustration]:
    parts = list(study.parts())
    together = [("all together", study)] if len(parts) > 1 else []
    for setting, part in parts + together:
        associations = {name: part.association(name, "test_accuracy", []) for name in QUANTITIES}
        titles = {name: f"ρ = {association}" for name, association in associations.items()}
        mixed = " Data sets and models differ in accuracy whatever is pruned." if part is study else ""
        yield Illustration(
            "quantities" + ("" if part is study else "-" + setting.replace(", ", "-")),
            *drawn(quantity_figures.quantities(part.cells, foot, titles=titles)),
            f"Before training against accuracy: {setting}",
            f"A point for each method and density ({over_seeds}); larger points are denser networks. Above each panel, "
            f"Spearman’s ρ over its cells with its 95% interval. {cautions.axis(part)}{mixed}",
            findings.of_quantities(part),
        )


def _of_widths(folder: Path) -> Illustration | Absent:
    title = "From finite to infinite width"
    table = folder / "widths" / "widths.csv"
    if not table.exists():
        return Absent(title, f"Not measured here: `python -m experiments.widths --out {table.parent}` makes it.")
    sweeps = widths.read(table)
    return Illustration(
        "widths",
        *drawn(width_figure.figure(sweeps, width_figure.footer(sweeps))),
        title,
        "Relative distance of Θ of networks of growing width to its infinite-width limit, dense and with random masks, "
        f"on a few images of noise; {width_figure.bars(sweeps)}.",
        findings.of_widths(sweeps),
    )


def page(study: StudyTable, shown: list[Illustration | Absent], listed_paths_error: float) -> str:
    """The whole report as one HTML page that needs no other file."""
    title = opening.title(study)
    sentences = (opening.what_was_done(study), opening.what_came_out(study), opening.what_to_trust(study))
    parts = [f"<h1>{text(title)}</h1>", *(paragraph(sentence, "lead") for sentence in sentences)]
    if far := opening.how_far(study):
        parts += [note(f"This study is not finished: {far} are there, and every figure and number is of these.")]
    parts += [
        note(words) for tell in (findings.failures, cautions.untrained, cautions.origins) if (words := tell(study))
    ]
    parts += [
        section("Test accuracy"),
        tables.accuracies(study),
        paragraph(
            f"{spread.of_errors(study)} Bold: the largest mean of a density, which may be luck."
            + (" †: some of its networks did not train." if study.cells["untrained"].any() else ""),
            "caption",
        ),
    ]
    unfinished = f"Unfinished, {far}. " if far else ""
    pictures = [
        picture._replace(caption=unfinished + picture.caption) for picture in shown if isinstance(picture, Illustration)
    ]
    parts += [illustrated(number, picture) for number, picture in enumerate(pictures, start=1)]
    parts += [
        section("All numbers"),
        paragraph(
            f"{spread.of_errors(study)} Logarithms are natural, gaps in decades. Steps to level: training "
            "steps until the training loss first falls to measure.loss_level; “never” where a seed does not reach it. "
            "The condition number is cut off where the smallest eigenvalue is lost in the rounding of float32."
        ),
        tables.all_numbers(study),
        section("Rank correlations"),
        paragraph("Spearman’s ρ of what is known before training with what training decides, and its 95% interval."),
        tables.associations_table(study),
    ]
    if _has(study, [f"gap_{name}_mean" for name in PREDICTIONS]):
        parts += [
            section("Predicted loss curves"),
            paragraph(
                "Gaps of the predicted curves, and between λmax of the kernel behind a prediction and λmax(Θ), in "
                "decades; the critical learning rate, 2/λmax, is off by as much. Spearman’s ρ, with its 95% interval, "
                "of how far the loss was predicted to fall with how far it fell, and of the step at which half of it "
                "was predicted to be left with the step at which it was (halving). Θ̄: the kernel of expected gates."
            ),
            tables.predictions_table(study),
        ]
    if study.failed:
        parts += [section("Trials without a result"), pairs({trial.title: trial.reason for trial in study.failed})]
    absent = {picture.title: picture.why for picture in shown if isinstance(picture, Absent)}
    parts += [section("Not shown"), pairs(absent)] if absent else []
    parts += [section("Checks"), pairs(_checks(study, listed_paths_error))]
    options = {name: _spelled(value) for name, value in _flat(study.config["options"]).items()}
    parts += [section("Configuration"), pairs(options | {"seeds used": _seeds(study)})]
    parts += [section("Versions"), pairs(study.config["versions"])]
    return document(title, parts)


def _checks(study: StudyTable, listed_paths_error: float) -> dict[str, str]:
    """What was checked, and how it came out."""
    broken = study.trials[~study.trials["pruned_stay_zero"]]
    checks = {
        "Θ = J Π Jᵀ on listed paths of a small network, relative error (float64)": f"{listed_paths_error:.1e}",
        "weights that are not exactly zero though pruned, after training": (
            f"FAILED in {len(broken)} trials" if len(broken) else "none"
        ),
    }
    for setting, part in study.parts():
        distance = part.cells.loc[part.cells["method"] == DENSE, "infinite_distance_mean"].dropna()
        if len(distance):
            checks[f"{setting}: distance of the dense network’s Θ to its infinite-width limit"] = percent(
                float(distance.iloc[0])
            )
    return checks


def _has(study: StudyTable, columns: list[str]) -> bool:
    return bool(study.cells[columns].notna().any(axis=None))


def _has_lists(study: StudyTable, columns: tuple[str, ...]) -> bool:
    return any(study.trials[name].map(bool).any() for name in columns)


def _seeds(study: StudyTable) -> str:
    seeds = sorted(study.trials["seed"].unique())
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds, {seeds[0]}–{seeds[-1]}"


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options of nested tables under their dotted names; the tables of a list are named by their `name`."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            value = {str(entry.get("name", place)): entry for place, entry in enumerate(value)}
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _spelled(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
