"""The figures of a study: drawn whatever is there, and told in sentences that follow the numbers."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import __main__ as command
from experiments import widths
from experiments.base.names import METHODS
from experiments.base.errors import InputError
from experiments.records import rank_association, reading
from experiments.records.jsonl import encode
from experiments.records.trial import Trial
from experiments.report import drawing, figures, report
from experiments.report import findings as findings
from pathjax import scores
from tests.test_experiments.examples import example_study

CONFIG = {
    "format": Trial.FORMAT,
    "options": {
        "model": [{"name": "fc", "width": 8}, {"name": "resnet20"}],
        "method": ["random", "snip"],
        "train": {"epochs": 10, "learning_rate": 0.1},
    },
    "versions": {"pathjax": "0.1.0", "jax": "0.10.2"},
}
FAILED = Trial.of(("digits", "fc", "random", 0.02, 1), reason="the training loss is not finite from epoch 1 on")
ONE: Any = {"data": ("digits",), "models": ("fc",)}


def made(trials):
    return reading.made_of(trials, CONFIG, Path("here"))


def changed(trials, where, **fields):
    """The trials, with other fields in those whose name begins with `where` after data and model."""
    return [
        dataclasses.replace(trial, **fields) if trial.name[2 : 2 + len(where)] == where else trial for trial in trials
    ]


def kept_in(folder, trials, **config):
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(encode(trial) + "\n" for trial in trials), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with two data sets, two models, three methods, three densities and two seeds, one of which failed."""
    trials = [FAILED if trial.name == FAILED.name else trial for trial in example_study()]
    folder = kept_in(tmp_path_factory.mktemp("study"), trials)
    sweep = widths.Sweep("fc", 0.25, (4, 16, 64), np.stack([np.array([4.0, 16.0, 64.0]) ** -0.5] * 2, axis=1))
    (folder / "widths").mkdir()
    (folder / "widths" / "widths.csv").write_text(widths._table([sweep]))
    assert command.main(["figures", str(folder)]) == 0
    return folder


class Tags(HTMLParser):
    """Every tag is closed in the order in which it was opened; figures and their labels are kept."""

    VOID = ("meta", "br", "img", "input", "link", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.labels, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag == "svg":
            self.labels.append(named.get("aria-label"))
        self.ids += [named["id"]] if "id" in named else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [dict(attrs)["id"]] if "id" in dict(attrs) else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_command_draws_every_figure_as_png_and_svg(drawn):
    names = ["accuracy", "associations", "change", "curves", "gaps", "layers", "path_kernel", "quantities", "spectra"]
    names += [f"quantities-{data}-{model}" for data in ("digits", "mnist") for model in ("fc", "resnet20")]
    names += ["widths"]
    assert {path.name for path in (drawn / "figures").iterdir()} == {f"{n}.{s}" for n in names for s in ("png", "svg")}
    for name in names:
        assert (drawn / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (drawn / "figures" / f"{name}.svg").read_bytes().startswith(b"<?xml")
    assert len((drawn / "summary.csv").read_text().splitlines()) == 1 + 4 * 10


def test_the_page_is_whole_and_needs_no_other_file(drawn):
    page = (drawn / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.labels) == 14 and all(tags.labels) and len({*tags.labels}) == 14
    assert len(tags.ids) == len({*tags.ids})
    assert "http" not in page and "@import" not in page and not re.search(r"\b(nan|inf)\b", page)
    assert all(f"<b>Figure {number}.</b>" in page for number in range(1, 15))
    assert "1 of 80 trials failed" in page and "digits, fc, random at density 0.02, seed 1" in page
    assert "power of −0.50 to −0.50" in page
    assert "<th>model.fc.width</th><td>8</td>" in page and "<th>train.epochs</th><td>10</td>" in page


def test_the_same_results_give_the_same_page(drawn):
    before = (drawn / "figures" / "gaps.svg").read_bytes()
    found = reading.read(drawn)
    assert drawing.svg(figures.gaps(found, report.footer(found))) == before


def test_every_figure_says_seeds_configuration_and_versions():
    foot = report.footer(made(example_study()))
    assert (
        foot == "digits, mnist · fc, resnet20 · 2 seeds, 0–1 · epochs 10, learning rate 0.1 · pathjax 0.1.0, jax 0.10.2"
    )
    assert " · seed 0 · " in report.footer(made(example_study(seeds=1)))


SCARCE: dict[str, Any] = dict.fromkeys(
    ("log_ntk_eigenvalues", "log_path_kernel_nodes", "path_kernel_weights", *reading.CURVES), []
)
SCARCE |= dict.fromkeys(("gap_linearized", "gap_low_rank", "gap_data_free", *reading.CHANGES), math.nan)
SCARCE |= {"layer_density": {}, "dead_units": {}}


def test_one_seed_one_density_one_method_and_no_measurements_are_drawn(tmp_path):
    trials = changed(example_study(**ONE, methods=("snip",), densities=(0.1,), seeds=1), (), **SCARCE)
    folder = kept_in(tmp_path / "study", trials)
    said = report.write(reading.read(folder), folder)
    absent = [line.rpartition(": ")[0] for line in said[:-2]]
    assert absent == [
        "Predicted and real training curves",
        "From finite to infinite width: Not measured here",
        "Where the weights are kept, and dead units",
        "Lazy or rich: the change of the kernels",
    ]
    page = (folder / "report.html").read_text()
    assert "one seed, so without bands" in page and f"--out {folder / 'widths'}" in page
    assert "There are not two methods at one density to compare." in page
    assert "not in these results" in (folder / "figures" / "spectra.svg").read_text()
    assert not re.search(r"\b(nan|inf)\b", page)


BROKEN = {
    "log_trace_path_kernel": -math.inf,
    "log_path_norm_1": -math.inf,
    "log_condition_ntk": math.nan,
    "effective_rank_path_kernel": math.nan,
    "test_accuracy": 0.0,
    "real_loss": [1.0, math.inf, math.nan],
    "data_free_loss": [1.0, 0.0, 0.0],
    "gap_linearized": math.inf,
    "log_ntk_eigenvalues": [-math.inf] * 40,
    "log_path_kernel_nodes": [-math.inf] * 21,
    "layer_density": {"layer_0": 0.0, "layer_1": 0.1},
    "ntk_change": 0.0,
}


def test_numbers_that_do_not_exist_are_drawn_around():
    trials = changed(example_study(**ONE), ("random", 0.02), **BROKEN)
    trials = [trial for trial in trials if trial.name[2:4] != ("snip", 0.1)]
    found = made(changed(trials, ("dense",), ntk_change=math.nan, data_free_loss=[]))
    for name in figures.__all__:
        if name not in ("LOWEST_GAP", "shown_curves"):
            drawing.png(getattr(figures, name)(found, "footer"))
    assert "No path is left, and no point drawn, for digits, fc, random at 0.02." in findings.of_path_kernel(found)
    assert "A layer is emptied in digits, fc, random at 0.02." in findings.of_layers(found)
    for told in (
        findings.summary,
        findings.of_accuracy,
        findings.of_spectra,
        findings.of_change,
    ):
        assert "nan" not in told(found)


def captions(trials):
    found = made(trials)
    names = [name for name in findings.__all__ if name not in ("of_widths", "failures")]
    return {name: getattr(findings, name)(found) for name in names}


@pytest.mark.parametrize(
    ("field", "value", "moved"),
    [
        ("test_accuracy", 0.31, {"summary", "of_accuracy", "of_curves", "of_quantities", "of_associations"}),
        ("gap_data_free", 0.001, {"summary", "of_gaps"}),
        ("real_loss", [1.0, 0.01], {"summary", "of_gaps", "of_curves"}),
        ("log_trace_path_kernel", -40.0, {"summary", "of_path_kernel", "of_associations"}),
        ("log_path_kernel_nodes", [-5.0] * 21, {"of_spectra"}),
        ("log_ntk_eigenvalues", [1.0] * 3 + [-math.inf] * 37, {"of_spectra"}),
        ("layer_density", {"layer_0": 0.0, "layer_1": 0.1}, {"of_layers"}),
        ("dead_units", {"layer_0": 0.9}, {"of_layers"}),
        ("ntk_change", 0.0123, {"of_change"}),
    ],
)
def test_captions_change_with_the_numbers_that_they_tell_and_with_no_others(field, value, moved):
    trials = example_study(**ONE, methods=("grasp", "random", "snip", "synflow", "synflow_l2"))
    before = captions(trials)
    # the most accurate method falls to the worst, the least of all becomes the most
    after = captions(changed(trials, ("synflow_l2", 0.02), **{field: value}))
    assert {name for name in before if before[name] != after[name]} == moved


def test_accuracy_is_told_as_it_is():
    trials = example_study(**ONE, densities=(0.02,))
    for method, accuracy in (("dense", 0.98), ("random", 0.5), ("snip", 0.6), ("synflow", 0.75)):
        trials = changed(trials, (method,), test_accuracy=accuracy)
    told = findings.of_accuracy(made(trials))
    assert told == (
        "Of 1 comparison at one data set, model and density, the most accurate is synflow (1); 1 of the leads over the "
        "second exceed two standard errors over seeds. At the lowest density: digits, fc: synflow 75.0 ± 0.0%, 25.0 "
        "points above random and 23.0 points below the dense network (density 0.02)."
    )
    alone = findings.of_accuracy(made([trial for trial in trials if trial.seed == 0]))
    assert "with one seed, no lead can be told from luck" in alone and "±" not in alone


def test_shown_are_the_best_the_median_and_the_worst_of_the_lowest_density_with_curves():
    trials = changed(example_study(**ONE), (), gap_linearized=math.nan)
    kept = changed(trials, ("random", 0.1), gap_linearized=0.1)
    bare = [dataclasses.replace(trial, real_loss=[]) if trial.density == 0.02 else trial for trial in kept]
    found = made(bare)
    assert figures.shown_curves(found) == [("dense", 1.0), ("synflow", 0.1), ("snip", 0.1), ("random", 0.1)]


def test_quantities_are_ranked_within_densities_and_settings():
    # among methods of one density the trace falls with accuracy, over densities it rises
    trials = example_study(methods=("grasp", "random", "snip", "synflow"), seeds=1)
    places = {"grasp": 0, "random": 1, "snip": 2, "synflow": 3, "dense": 4}
    trials = [
        dataclasses.replace(
            trial,
            test_accuracy=0.5 + 0.1 * math.log10(trial.density) + 0.01 * places[trial.method],
            log_trace_path_kernel=10 * math.log10(trial.density) - 0.1 * places[trial.method],
        )
        for trial in trials
    ]
    found = made(trials)
    everything = found.association("log_trace_path_kernel", "test_accuracy", [])
    within = found.association("log_trace_path_kernel", "test_accuracy", ["data", "model", "density"])
    assert everything.rho > 0.7 and (everything.cells, everything.groups) == (4 * 13, 1)
    # dense networks are alone at their density
    assert within.rho == pytest.approx(-1) and (within.cells, within.groups) == (4 * 12, 12)
    assert not found.association("density", "test_accuracy", ["data", "model", "density"]).groups
    assert "log Tr Π (−1.00)" in findings.of_associations(found)


@pytest.mark.parametrize(("correlation", "groups"), [(0.0, 1), (0.6, 1), (0.6, 4)])
def test_intervals_cover_the_true_correlation_as_often_as_they_say(correlation, groups):
    rng = np.random.default_rng(0)
    true = 6 / np.pi * np.arcsin(correlation / 2)  # Spearman's ρ of a normal pair
    covered = []
    for _ in range(500):
        first, noise = rng.normal(size=(2, 24 * groups))
        second = correlation * first + np.sqrt(1 - correlation**2) * noise
        places = np.split(np.arange(24 * groups), groups)
        found = rank_association.of(first, second, places)
        covered.append(found.low <= true <= found.high)
    assert 0.92 < np.mean(covered) < 0.98


def test_perfect_order_of_few_cells_proves_little():
    four = rank_association.of(np.arange(4.0), np.arange(4.0), [np.arange(4)])
    assert four.rho == pytest.approx(1) and four.low < 0 and four.high == pytest.approx(1)
    assert not four.clear and str(four).startswith("+1.00 [−")
    assert str(rank_association.of(np.arange(3.0), np.arange(3.0), [np.arange(3)])) == "–"
    constant = rank_association.of(np.ones(9), np.arange(9.0), [np.arange(9)])
    assert constant.groups == 0 and np.isnan(constant.rho)


def test_every_method_has_a_color_and_a_marker_of_its_own():
    named = ("dense", *METHODS, *(name for name in scores.__all__ if name.islower() and "loss" not in name))
    styles = [drawing.style_of(method) for method in dict.fromkeys(named) if method not in ("cross_entropy",)]
    assert len({colour for colour, _ in styles}) == len({marker for _, marker in styles}) == len(styles)


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path, capsys):
    def said(folder):
        assert command.main(["figures", str(folder)]) == 2
        return capsys.readouterr().err

    assert "config.json: No such file or directory" in said(tmp_path / "nowhere")
    assert "format 0 and this program reads 1: draw them with pathjax 0.1.0" in said(
        kept_in(tmp_path / "old", example_study(**ONE), format=0)
    )
    assert "all 1 failed, the first with: the training loss" in said(kept_in(tmp_path / "failed", [FAILED]))
    assert "there are none" in said(kept_in(tmp_path / "none", []))
    folder = kept_in(tmp_path / "half", example_study(**ONE))
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"data": "dig')
    assert "Line 21 of" in said(folder)
    (folder / "config.json").write_text("[]")
    assert "is not a configuration of this program" in said(folder)


def test_widths_are_read_as_they_were_written(tmp_path):
    sweeps = [widths.Sweep("fc", d, (4, 8), np.arange(1.0, 7).reshape(2, 3) / d) for d in (1.0, 0.25)]
    (tmp_path / "widths.csv").write_text(widths._table(sweeps))
    for found, expected in zip(widths.read(tmp_path / "widths.csv"), sweeps, strict=True):
        assert found[:3] == expected[:3]
        np.testing.assert_allclose(found.distances, expected.distances)
    (tmp_path / "widths.csv").write_text("model,density\nfc,1\n")
    with pytest.raises(InputError, match="cannot be read"):
        widths.read(tmp_path / "widths.csv")
