"""The report of a comparison: tables, figures and findings in one HTML file, and the summary table on the console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from experiments.measure.kernel_pictures import Cell, Kernels
from experiments.records.runs import QUANTITIES
from experiments.records.summary import TARGETS, Ranking, chance_level, chance_within
from experiments.report import comparison_findings, drawing, kernel_figures, kernel_findings
from experiments.report.page import Illustration, document, drawn, illustrated, pairs, scrolled, text
from experiments.report.wording import rho

__all__ = ["console_table", "footer", "illustrations", "page"]

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
    "gap_data_free": ("gap Π", ".2f"),
    "linearization_error": ("outputs off linear", "%"),
    "kernel_distance": ("kernel distance", ".3f"),
}
_CONSOLE = (
    "test_accuracy",
    "steps_to_level",
    "log_path_norm_2",
    "log_trace_path_kernel",
    "log_top_ntk",
    "gap_linearized",
    "gap_data_free",
)


def footer(config: dict[str, Any]) -> str:
    """The line under every figure: data, network, seeds, training and versions."""
    options, versions = config["options"], config["versions"]
    return (
        f"{options['dataset']} · {options['model']}, width {options['width']} · {_range_of_seeds(options['seeds'])} · "
        f"{options['epochs']} epochs, learning rate {options['learning_rate']:g}, batch {options['batch_size']} · "
        f"pathjax {versions['pathjax']}, jax {versions['jax']}"
    )


def illustrations(
    runs: pd.DataFrame,
    table: pd.DataFrame,
    ranks: Sequence[Ranking],
    kernels: Mapping[Cell, Kernels],
    config: dict[str, Any],
) -> list[Illustration]:
    """All figures of a comparison, with captions computed from its results."""
    foot, level, seeds = footer(config), config["options"]["loss_level"], config["options"]["seeds"]
    over_seeds = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    return [
        Illustration(
            "accuracy",
            *drawn(drawing.accuracy_over_density(table, foot)),
            "Accuracy over density",
            f"Test accuracy after training ({over_seeds}; bands: one standard deviation). Dashed: the dense network.",
            comparison_findings.of_accuracy(table),
        ),
        Illustration(
            "training_loss",
            *drawn(drawing.training_loss(runs, level, foot)),
            "Training",
            f"Cross-entropy on the train set after each epoch ({over_seeds}). Dotted: the loss level of {level:g}.",
            comparison_findings.of_training(table, level),
        ),
        Illustration(
            "predicted_curves",
            *drawn(drawing.predicted_curves(runs, foot)),
            "Predicted and real loss curves",
            "Squared loss on a fixed batch under full-batch gradient descent at half the step size 1/λmax(Θ/n), "
            f"relative to its start ({over_seeds}), with two predictions made before the first step: from the NTK Θ, "
            "and from the spectrum of the Path Kernel Π alone, which reads no data. The gap is the mean distance of "
            "the logarithms (base 10) over all steps, in decades. How lazy the descent was is in the summary below: "
            "the relative distance of its last outputs to those of the linearized network, and the kernel distance "
            "1 − ⟨Θ, Θ₀⟩/(‖Θ‖‖Θ₀‖) of its last NTK to the first.",
            f"{comparison_findings.of_curves(table)} {comparison_findings.of_laziness(table)}",
        ),
        Illustration(
            "quantities",
            *drawn(drawing.quantity_against_accuracy(table, foot)),
            "What is known before training, against accuracy",
            f"One point for each method and density ({over_seeds}); larger points are denser networks.",
            comparison_findings.of_quantities(ranks),
        ),
        Illustration(
            "rank_correlations",
            *drawn(drawing.rank_correlations(ranks, foot)),
            "How well it ranks the networks",
            "Spearman's ρ of each quantity with what training decided. Density is the baseline: it is known without "
            "any kernel. Dotted: what unrelated rankings exceed once in twenty.",
            comparison_findings.of_rankings(ranks),
        ),
        Illustration(
            "layer_density",
            *drawn(drawing.layer_density(runs, foot)),
            "Where the weights are kept",
            f"Kept share of each layer's kernel ({over_seeds}). Dotted: the density over all layers.",
            comparison_findings.of_layers(runs),
        ),
        *_of_kernels(table, kernels, foot, over_seeds),
    ]


def _of_kernels(table: pd.DataFrame, kernels: Mapping[Cell, Kernels], foot: str, over_seeds: str) -> list[Illustration]:
    mapped = kernel_findings.best_and_worst(table)
    modes = max(len(of.shares) for of in kernels.values())
    return [
        Illustration(
            "density_of_states",
            *drawn(kernel_figures.density_of_states(kernels, foot)),
            "Density of states of the Path Kernel",
            "How the eigenvalues of Π, one for each kept weight and bias, spread over the decades, by stochastic "
            f"Lanczos quadrature ({over_seeds}; smoothed by 0.15 decades). What float32 cannot tell from "
            "zero, a hundred thousandth of the largest, is left out, rescaling symmetries and weights on no path among "
            "it. The wider a curve, the more rates of learning architecture and weights bring, before any data.",
            kernel_findings.of_density(kernels),
        ),
        Illustration(
            "eigenvalues",
            *drawn(kernel_figures.eigenvalues(kernels, foot)),
            "Eigenvalues of Θ over those of Π",
            f"The largest {modes} of each, in order and relative to the first (seed 0). On the dotted line the data "
            "would leave Π’s spectrum as it is; above it Θ falls more slowly, below it faster.",
            kernel_findings.of_eigenvalues(kernels),
        ),
        Illustration(
            "cumulative_shares",
            *drawn(kernel_figures.cumulative_shares(kernels, foot)),
            "How much of Θ the leading modes of Π carry",
            "Θ = Σ λᵢ bᵢ bᵢᵀ over the eigenpairs of Π: the share of Tr Θ in the first terms (seed 0). "
            "A line that starts high and flattens belongs to a network whose NTK the largest modes of Π decide; a line "
            "that stays low to one whose NTK is spread over many more.",
            kernel_findings.of_shares(kernels),
        ),
        Illustration(
            "heat_maps",
            *drawn(kernel_figures.heat_maps(kernels, mapped, foot)),
            "The kernels between examples",
            "Cosines between the examples of the fixed batch less their mean, ordered by class and summed over "
            f"outputs (seed 0): in Θ, in the part of it that the first {modes} modes of Π carry, and in the data Gram "
            "K_v, which knows the open paths but no weight on them. Red blocks on the diagonal are classes that a "
            "kernel holds together. Below the dense network: the best and the worst method at the lowest density.",
            kernel_findings.of_maps(kernels, mapped),
        ),
    ]


def console_table(table: pd.DataFrame) -> Table:
    """The summary for a terminal."""
    shown = Table(title=None, header_style="bold")
    for words in ("method", "density", "kept", *(_COLUMNS[name][0] for name in _CONSOLE)):
        shown.add_column(words, justify="left" if words == "method" else "right")
    for _, row in table.iterrows():
        numbers = [_entry(row, name, spread=name == "test_accuracy") for name in _CONSOLE]
        shown.add_row(row["method"], f"{row['density']:g}", f"{row['kept']:,}", *numbers)
    return shown


def page(
    table: pd.DataFrame,
    ranks: Sequence[Ranking],
    shown: Sequence[Illustration],
    config: dict[str, Any],
    factorization_error: float,
) -> str:
    """The whole report as one HTML page that needs no other file."""
    options = config["options"]
    title = f"Prunings of {options['model']} on {options['dataset']}, before and after training"
    parts = [
        f"<h1>{text(title)}</h1>",
        f'<p class="lead">{text(comparison_findings.summary(table, ranks, factorization_error))}</p>',
        _reasons(table),
        *(illustrated(number, picture) for number, picture in enumerate(shown, start=1)),
        "<h2>Summary</h2>",
        f"<p>Mean ± standard deviation over {options['seeds']} seeds. Logarithms are natural. Steps to level: "
        f"training steps until the training loss falls to {options['loss_level']:g}; “never” where a seed does not "
        "reach it. The condition number is cut off where the smallest eigenvalue is lost in the rounding of float32. "
        "Gaps in decades.</p>",
        _cells_table(table),
        "<h2>Rank correlations</h2>",
        _rankings_words(ranks),
        _rankings_table(ranks),
        "<h2>Checks</h2>",
        _checks(table, factorization_error),
        "<h2>Configuration</h2>",
        pairs({key: _words(value) for key, value in options.items()} | {"seeds used": _seeds(options["seeds"])}),
        "<h2>Versions</h2>",
        pairs(config["versions"]),
    ]
    return document(title, parts)


def _cells_table(table: pd.DataFrame) -> str:
    words = ("method", "density", "kept", *(words for words, _ in _COLUMNS.values()))
    head = "".join(f"<th>{text(word)}</th>" for word in words)
    rows = []
    for _, row in table.iterrows():
        numbers = "".join(f"<td>{text(_entry(row, name))}</td>" for name in _COLUMNS)
        name = f"<th>{text(row['method'])}</th><td>{row['density']:g}</td><td>{row['kept']:,}</td>"
        rows.append(f"<tr>{name}{numbers}</tr>")
    return scrolled(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def _rankings_words(ranks: Sequence[Ranking]) -> str:
    some = max(ranks, key=lambda rank: rank.densities)
    return (
        "<p>Spearman’s ρ between a quantity known before training and what training decided: over all "
        f"{some.cells} cells, and within each density ({some.densities} densities of {some.per_density} methods, mean "
        f"of ρ). Unrelated rankings exceed |ρ| = {chance_level(some.cells):.2f} over all cells, and "
        f"{chance_within(ranks):.2f} in the mean within densities, once in twenty; "
        f"with {len(QUANTITIES)} quantities tried, some will by luck.</p>"
    )


def _rankings_table(ranks: Sequence[Ranking]) -> str:
    head = "".join(f"<th>{text(w)}, all cells</th><th>{text(w)}, within a density</th>" for w in TARGETS.values())
    rows = []
    for quantity, words in QUANTITIES.items():
        chosen = [rank for target in TARGETS for rank in ranks if (rank.quantity, rank.target) == (quantity, target)]
        numbers = "".join(f"<td>{rho(rank.pooled)}</td><td>{rho(rank.within)}</td>" for rank in chosen)
        rows.append(f"<tr><th>{text(words)}</th>{numbers}</tr>")
    head = f"<thead><tr><th>quantity</th>{head}</tr></thead>"
    return scrolled(f"<table>{head}<tbody>{''.join(rows)}</tbody></table>")


def _checks(table: pd.DataFrame, factorization_error: float) -> str:
    dense = table.iloc[0]
    whole = "every pruned weight is exactly zero after training" if table["pruned_stay_zero"].all() else "FAILED"
    return pairs(
        {
            "Θ = J Π Jᵀ on listed paths, relative error (float64)": f"{factorization_error:.2e}",
            "dense NTK to its infinite-width limit, relative distance": _entry(dense, "infinite_distance", ".4f"),
            "masks under training": whole,
        }
    )


def _reasons(table: pd.DataFrame) -> str:
    rows = [row for _, row in table.iterrows() if row["reason"]]
    notes = [f"{row['method']} at density {row['density']:g}: {row['reason']}" for row in rows]
    return "".join(f'<p class="note">{text(note)}</p>' for note in notes)


def _entry(row: pd.Series, name: str, form: str | None = None, *, spread: bool = True) -> str:
    mean, deviation = row[f"{name}_mean"], row[f"{name}_std"]
    form = form or _COLUMNS[name][1]
    if math.isnan(mean):
        return "–"
    if math.isinf(mean):
        return "never" if name == "steps_to_level" else ("∞" if mean > 0 else "−∞")
    scale, form, unit = (100, ".1f", "%") if form == "%" else (1, form, "")
    around = f" ± {scale * deviation:{form}}" if spread and not math.isnan(deviation) else ""
    words = f"{scale * mean:{form}}"
    if not float(words):
        words = words.lstrip("-")
    return f"{words}{around}{unit}".replace("-", "−")


def _range_of_seeds(count: int) -> str:
    return "seed 0" if count == 1 else f"seeds 0–{count - 1}"


def _seeds(count: int) -> str:
    return ", ".join(map(str, range(count)))


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
