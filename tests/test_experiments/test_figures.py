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
from scipy import stats

from experiments import __main__ as command
from experiments.base.errors import InputError
from experiments.base.names import METHODS
from experiments.measure import kernel_pictures, widths
from experiments.networks import by_name
from experiments.records import study_table, trial_summaries
from experiments.records.jsonl import encode
from experiments.records.rank_association import associate, spearman
from experiments.records.trial import Trial
from experiments.report import (
    cautions,
    drawing,
    figures,
    findings,
    layer_order,
    opening,
    quantity_figures,
    report,
    spread,
    tables,
    ticks,
)
from experiments.report.page import Illustration
from pathjax import scores
from tests.test_experiments.examples import example_kernels, example_study

CONFIG: dict[str, Any] = {
    "format": Trial.FORMAT,
    "options": {
        "model": [{"name": "fc", "width": 8}, {"name": "resnet20"}],
        "method": ["random", "snip", "synflow"],
        "train": {"epochs": 10, "learning_rate": 0.1},
    },
    "versions": {"pathjax": "0.1.0", "jax": "0.10.2"},
}
FAILED = Trial.partial(("digits", "fc", "random", 0.02, 1), reason="the training loss is not finite from epoch 1 on")
ONE: Any = {"data": ("digits",), "models": ("fc",)}


def made(trials):
    return study_table.tabulated(trials, CONFIG, Path("here"))


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
    for seed, cell in enumerate((("dense", 1.0), ("snip", 0.5), ("synflow", 0.02), ("random", 0.02))):
        kernel_pictures.save(kernel_pictures.file_of(folder, "digits", "fc", *cell), example_kernels(seed))
    sweep = widths.WidthSweep("fc", 0.25, (4, 16, 64), np.stack([np.array([4.0, 16.0, 64.0]) ** -0.5] * 2, axis=1))
    (folder / "widths").mkdir()
    (folder / "widths" / "widths.csv").write_text(widths.table([sweep]))
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
    names += ["training", *(f"{name}-digits-fc" for name in ("eigenvalues", "cumulative_shares", "heat_maps"))]
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
    assert len(tags.labels) == 18 and all(tags.labels) and len({*tags.labels}) == 18
    assert len(tags.ids) == len({*tags.ids})
    assert "http" not in page and "@import" not in page and not re.search(r"\b(nan|inf)\b", page)
    assert all(f"<b>Figure {number}.</b>" in page for number in range(1, 19))
    assert "1 of 80 trials have no result" in page and "digits, fc, random at density 0.02, seed 1" in page
    assert "power of −0.50 to −0.50" in page
    assert "<th>model.fc.width</th><td>8</td>" in page and "<th>train.epochs</th><td>10</td>" in page


def test_the_same_results_give_the_same_page(drawn):
    before = (drawn / "figures" / "gaps.svg").read_bytes()
    study = study_table.read(drawn)
    assert drawing.svg(figures.gaps(study, report.footer(study))) == before


def test_every_figure_says_seeds_configuration_and_versions():
    foot = report.footer(made(example_study()))
    assert (
        foot == "digits, mnist · fc, resnet20 · 2 seeds, 0–1 · epochs 10, learning rate 0.1 · pathjax 0.1.0, jax 0.10.2"
    )
    assert " · seed 0 · " in report.footer(made(example_study(seeds=1)))


SCARCE: dict[str, Any] = dict.fromkeys(
    ("log_ntk_eigenvalues", "log_path_kernel_nodes", "path_kernel_weights", *trial_summaries.CURVES), []
)
SCARCE |= dict.fromkeys((*(f"gap_{name}" for name in trial_summaries.PREDICTIONS), *study_table.CHANGES), math.nan)
SCARCE |= {"layer_density": {}, "dead_units": {}}


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_study_is_drawn_into_another_folder_and_its_own_is_only_read(tmp_path):
    trials = changed(example_study(**ONE, methods=("snip",), densities=(0.1,), seeds=1), (), **SCARCE)
    absent = "dead units are not counted; the change of Π is not"
    there: dict[str, Any] = {"absent": absent, "layer_density": {"a": 0.5}, "ntk_change": 0.1, "ntk_distance": 0.1}
    trials = [dataclasses.replace(trial, **there) for trial in trials]
    folder, out = kept_in(tmp_path / "study", trials), tmp_path / "deep" / "out"
    before = contents(folder)
    assert command.main(["figures", str(folder), "--out", str(out)]) == 0
    assert contents(folder) == before
    names = {file.name for file in out.iterdir()}
    assert names == {"figures", "report.html", *(f"{name}.csv" for name in ("summary", "associations", "trials"))} | {
        "trials.parquet"
    }
    page = (out / "report.html").read_text()
    assert "dead units are not counted; the change of Π is not." in page
    assert "That of Π is not measured of digits, fc: a plain module with batch norm." in page


def test_a_folder_that_cannot_be_written_to_is_said_with_the_remedy(tmp_path, capsys):
    folder = kept_in(tmp_path / "study", changed(example_study(**ONE, methods=("snip",), seeds=1), (), **SCARCE))
    (folder / "figures").write_text("")
    assert command.main(["figures", str(folder)]) == 2
    words = f"error: Cannot write to {folder}: File exists; `figures --out FOLDER` writes to another folder.\n"
    assert capsys.readouterr().err == words


def test_one_seed_one_density_one_method_and_no_measurements_are_drawn(tmp_path):
    trials = changed(example_study(**ONE, methods=("snip",), densities=(0.1,), seeds=1), (), **SCARCE)
    folder = kept_in(tmp_path / "study", trials)
    said = report.write(study_table.read(folder), folder)
    absent = [line.rpartition(": ")[0] for line in said[:-4]]
    assert absent == [
        "Predicted and real loss curves",
        "From finite to infinite width: Not measured here",
        "Where the weights are kept, and dead units",
        "How far training moves the kernels",
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
    for module in (figures, quantity_figures):
        for name in module.__all__:
            if name not in ("KNOWN_WORDS", "mean_rows", "shown_curves", "quantities"):
                drawing.png(getattr(module, name)(found, "footer"))
    drawing.png(quantity_figures.quantities(found.cells, "footer"))
    assert "No path is left, and no point drawn, for digits, fc, random at 0.02." in findings.of_path_kernel(found)
    assert "A layer is emptied in digits, fc, random at 0.02." in findings.of_layers(found)
    for told in (
        opening.what_came_out,
        opening.what_to_trust,
        findings.of_accuracy,
        findings.of_training,
        findings.of_laziness,
        findings.of_spectra,
        findings.of_change,
    ):
        assert "nan" not in told(found)


def captions(trials):
    found = made(trials)
    told = {name: getattr(findings, name) for name in findings.__all__ if name not in ("of_widths", "failures")}
    told |= {name: getattr(opening, name) for name in ("what_was_done", "what_came_out", "what_to_trust")}
    return {name: tell(found) for name, tell in told.items()}


@pytest.mark.parametrize(
    ("field", "value", "moved"),
    [
        (
            "test_accuracy",
            0.31,
            {"what_came_out", "what_to_trust", "of_accuracy", "of_curves", "of_quantities", "of_associations"},
        ),
        ("gap_linearized", 3.0, {"what_to_trust", "of_gaps"}),
        ("gap_data_free", 0.001, {"of_gaps"}),
        ("gap_inputs", 0.001, {"of_gaps"}),
        ("no_data_loss", [1.0, 0.01], {"of_gaps"}),
        ("real_loss", [1.0, 0.01], {"of_gaps", "of_curves"}),
        ("steps_to_level", math.inf, {"of_training"}),
        ("kernel_distance", 0.9, {"of_laziness"}),
        ("log_trace_path_kernel", -40.0, {"of_path_kernel", "of_associations"}),
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


def test_accuracy_of_one_network_is_drawn_beside_what_was_known_before_training():
    ranks = {0.1: 300.0, 0.02: 20.0}
    trials = example_study(**ONE, methods=("snip",), densities=tuple(ranks))
    for density, rank in ranks.items():
        trials = changed(trials, ("snip", density), effective_rank_path_kernel=rank, test_accuracy=0.5 + density)
    trials = changed(trials, ("dense",), effective_rank_path_kernel=math.nan)
    _, beside = figures.accuracy(made(trials), "footer").axes
    drawn = np.concatenate([points.get_offsets() for points in beside.collections])
    np.testing.assert_allclose(sorted(map(tuple, drawn)), [(20.0, 0.52), (300.0, 0.6)])
    assert len(figures.accuracy(made(example_study()), "footer").axes) == 4  # of several, a panel each


def test_accuracy_is_told_as_it_is():
    trials = example_study(**ONE, densities=(0.02,), seeds=3)
    for method, accuracy in (("dense", 0.98), ("random", 0.5), ("snip", 0.6), ("synflow", 0.75)):
        trials = changed(trials, (method,), test_accuracy=accuracy)
    told = findings.of_accuracy(made(trials))
    assert told == (
        "Of 1 comparison at one data set, model and density, the most accurate is synflow (1); 1 of the leads over the "
        "second exceed two standard errors over seeds. At the lowest density: synflow 75.0 ± 0.0%, 25.0 points above "
        "random and 23.0 points below the dense network (density 0.02)."
    )
    alone = findings.of_accuracy(made([trial for trial in trials if trial.seed == 0]))
    assert "with one seed, no lead can be told from luck" in alone and "±" not in alone


def test_two_seeds_are_given_by_their_range_and_no_standard_error_is_claimed_of_them():
    trials = changed(example_study(**ONE, methods=("random", "snip"), densities=(0.1,)), (), test_accuracy=0.5)
    for seed, accuracy in ((0, 0.7), (1, 0.8)):
        trials = changed(trials, ("snip", 0.1, seed), test_accuracy=accuracy)
    found = made(trials)
    (snip,) = (row for _, row in found.cells.iterrows() if row["method"] == "snip")
    assert spread.half_width(snip, "test_accuracy") == pytest.approx(0.05)
    told = findings.of_accuracy(found)
    assert "snip (1); in 1 do all its seeds lie above those of the second, which two seeds may do by luck" in told
    assert "snip 75.0 ± 5.0%" in told and "standard" not in told
    assert spread.of_bands(found) == "mean over 2 seeds; bands: from the lower to the higher of two seeds"
    assert spread.of_errors(found) == "Mean ± half the distance of two seeds."
    axis = drawing.blank(3, 3, "")[1][0][0]
    drawing.accuracy_panel(axis, found.cells[found.cells["method"] == "snip"])
    (band,) = axis.collections
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(0.7)
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(0.8)


def test_cells_of_two_seeds_beside_cells_of_three_are_told_apart():
    whole = example_study(**ONE, methods=("random", "snip"), seeds=3)
    trials = [trial for trial in whole if (trial.method, trial.seed) != ("random", 2)]
    found = made(trials)
    assert spread.of_seeds(found) == "mean over 2 to 3 seeds"
    assert spread.of_bands(found).endswith(
        "standard deviation, or from the lower to the higher of two seeds where there are no more"
    )
    assert "Of 3 comparisons" in findings.of_accuracy(found) and "standard error" not in findings.of_accuracy(found)


PLANNED = {
    "data": ["digits"],
    "model": [{"name": "fc"}],
    "method": ["random", "snip"],
    "density": [0.5, 0.1],
    "seeds": 2,
}


def test_an_unfinished_study_says_so_on_the_page_in_captions_and_under_figures(tmp_path):
    trials = example_study(**ONE, methods=("random", "snip"), densities=(0.5, 0.1))
    options = CONFIG["options"] | PLANNED
    whole = kept_in(tmp_path / "whole", trials, options=options)
    assert opening.how_far(study_table.read(whole)) == ""
    half = kept_in(tmp_path / "half", trials[:7], options=options)
    found = study_table.read(half)
    assert opening.how_far(found) == "7 of 10 trials"
    assert "unfinished: 7 of 10 trials" in report.footer(found)
    report.write(found, half)
    page = (half / "report.html").read_text()
    assert "This study is not finished: 7 of 10 trials are there" in page
    captions = re.findall(r"<b>Figure \d+\.</b> (\S+ \S+ \S+ \S+ \S+)", page)
    assert captions and all(words == "Unfinished, 7 of 10 trials." for words in captions)


@pytest.mark.parametrize("network", ["lenet_300_100", "resnet_20", "fc", "wrn_16_8"])
def test_layers_are_drawn_in_the_order_of_the_network_whatever_the_results_say(network):
    built = by_name.NETWORKS[network]((32, 32, 3), 10)
    names = [layer.name for layer in built.layers]
    # results of older versions have the layers in the alphabet's order
    densities = {name: (1 + names.index(name)) / 1000 for name in sorted(names)}
    dead = dict.fromkeys(sorted(built.units), 0.5)
    trials = changed(example_study(**ONE, seeds=1), (), layer_density=densities, dead_units=dead)
    model = {"name": "fc", "network": network, "depth": 0}
    config = CONFIG | {"options": CONFIG["options"] | {"model": [model]}}
    found = study_table.tabulated(trials, config, Path("here"))
    assert layer_order.layer_order(found).layers == tuple(names) and names != sorted(names) or network == "fc"
    assert layer_order.layer_order(found).units == built.units
    lines = quantity_figures.layers(found, "footer").axes[0].get_lines()
    drawn = [line for line in lines if line.get_label() == "snip"][0]
    np.testing.assert_allclose(np.asarray(drawn.get_ydata(), float), (1 + np.arange(len(names))) / 1000)
    assert "numbered from the input on" in layer_order.numbered(found)


def test_eleven_layers_of_a_network_of_ones_own_keep_the_order_of_the_results():
    names = [f"layer_{place}" for place in range(11)]
    own = [{"name": "fc", "network": "mine:deep"}]
    config = CONFIG | {"options": CONFIG["options"] | {"model": own}}
    for order, written in ((names, 4), (sorted(names), 3)):
        trials = changed(example_study(**ONE, seeds=1), (), layer_density=dict.fromkeys(order, 0.1))
        found = study_table.tabulated(trials, config | {"format": written}, Path("here"))
        assert layer_order.layer_order(found).layers == tuple(order)
        assert ("in the order of their names" in layer_order.numbered(found)) == (written == 3)


def positions_outside_ticks(figure):
    """What is drawn beyond the labelled ticks of an axis: the panel's title and the numbers."""
    figure.canvas.draw()
    for axis in figure.axes:
        if axis.get_title() == "" and axis.get_ylabel() == "centered cosine" or not axis.axison:
            continue
        low_x, high_x = axis.dataLim.intervalx
        low_y, high_y = axis.dataLim.intervaly
        for low, high, side in ((low_x, high_x, axis.xaxis), (low_y, high_y, axis.yaxis)):
            ticks = np.sort(side.get_majorticklocs())
            if np.isfinite([low, high]).all() and not (ticks[0] <= low + SLACK and high - SLACK <= ticks[-1]):
                yield axis.get_title(), low, high, ticks


SLACK = 1e-9


@pytest.mark.parametrize("densities", [(0.1,), (0.5, 0.45, 0.4, 0.1, 0.02, 0.019)])
@pytest.mark.parametrize("methods", [("snip",), ("random", "snip", "synflow")])
def test_nothing_lies_outside_the_labelled_ticks(methods, densities):
    trials = example_study(**ONE, methods=methods, densities=densities)
    trials = changed(trials, ("snip", densities[-1]), test_accuracy=0.058)
    found = made(trials)
    for draw in (figures.accuracy, figures.training, quantity_figures.path_kernel, quantity_figures.spectra):
        assert not list(positions_outside_ticks(draw(found, "footer")))
    for draw in (quantity_figures.change, figures.gaps):
        assert not [
            found for found in positions_outside_ticks(draw(found, "footer")) if found[0] not in ("digits, fc",)
        ]
    assert not list(positions_outside_ticks(quantity_figures.quantities(found.cells, "footer")))


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.3, 9.2), (5.0, 5.0), (0.0, 0.0), (-3.2, 6.9), (1e-12, 3e-12), (0.97, 0.98), (1e-40, 1e30), (1.02, 1.05)],
)
def test_ticks_enclose_what_is_drawn(low, high):
    for ticks_of in (ticks.linear_ticks, ticks.log_ticks):
        if ticks_of is ticks.log_ticks and low <= 0:
            continue
        found = ticks_of(low, high)
        assert found == sorted(found) and 2 <= len(found) <= 8
        assert found[0] <= low * (1 + 1e-9) and high * (1 - 1e-9) <= found[-1] or high == low == 0


@pytest.mark.parametrize("count", range(1, 60))
def test_the_first_and_the_last_layer_are_labelled(count):
    axis = drawing.blank(3, 3, "")[1][0][0]
    ticks.index_axis(axis, count)
    shown = axis.get_xticks()
    assert shown[0] == 1 and shown[-1] == count and len(shown) <= 9 and (np.diff(shown) > 0).all()


def test_the_highest_and_the_lowest_density_are_labelled_whatever_lies_between():
    densities = np.sort(np.append(np.geomspace(0.01, 0.8, 9), [0.0101, 0.79]))
    shown = ticks.spaced(densities, np.log(densities), 6)
    assert shown[0] == 0.01 and shown[-1] == 0.8 and shown == sorted(shown)
    assert min(np.diff(np.log(shown))) > 0.99 * np.log(80) / 6
    assert ticks.spaced(np.array([0.1]), np.log([0.1]), 6) == [0.1]


def test_captions_say_the_logit_axis_the_limits_and_what_is_drawn_at_the_end(drawn):
    page = (drawn / "report.html").read_text()
    assert page.count("Accuracies are on a logit axis") == 6
    assert "Each panel has limits of its own." in page and "All panels share their limits." in page
    assert "are drawn there" not in page
    trials = changed(example_study(**ONE, seeds=1), ("snip", 0.5), test_accuracy=1.0)
    assert cautions.axis(made(trials)).endswith(" Accuracies above 99.5% are drawn there.")


def test_panels_that_share_limits_do():
    found = made(changed(example_study(), ("snip",), gap_linearized=0.001, train_loss=[5.0, 0.1, 0.01]))
    assert len({axis.get_ylim() for axis in figures.gaps(found, "footer").axes}) == 1
    first_row = figures.training(found, "footer").axes[:3]
    assert len({axis.get_ylim() for axis in first_row}) == 1
    ntk_high, ntk_low, pi_high, pi_low = quantity_figures.spectra(found, "footer").axes[:4]
    assert ntk_high.get_ylim() == ntk_low.get_ylim() and ntk_high.get_xlim() == ntk_low.get_xlim()
    assert pi_high.get_ylim() == pi_low.get_ylim() and pi_high.get_xlim() == pi_low.get_xlim()


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
        found = associate(first, second, places)
        covered.append(found.low <= true <= found.high)
    assert 0.92 < np.mean(covered) < 0.98


def test_perfect_order_of_few_cells_proves_little():
    four = associate(np.arange(4.0), np.arange(4.0), [np.arange(4)])
    assert four.rho == pytest.approx(1) and four.low < 0 and four.high == pytest.approx(1)
    assert not four.excludes_zero and str(four).startswith("+1.00 [−")
    assert str(associate(np.arange(3.0), np.arange(3.0), [np.arange(3)])) == "–"
    constant = associate(np.ones(9), np.arange(9.0), [np.arange(9)])
    assert constant.groups == 0 and np.isnan(constant.rho)


def test_every_method_has_a_color_and_a_marker_of_its_own():
    named = ("dense", *METHODS, *(name for name in scores.__all__ if name.islower() and "loss" not in name))
    styles = [drawing.style_of(method) for method in dict.fromkeys(named) if method not in ("cross_entropy",)]
    assert len({colour for colour, _ in styles}) == len({marker for _, marker in styles}) == len(styles)
    # points are drawn without edges, so that a marker of lines alone would not be seen
    assert not {marker for _, marker in styles} & set("+x|_1234")


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path, capsys):
    def said(folder):
        assert command.main(["figures", str(folder)]) == 2
        return capsys.readouterr().err

    assert "config.json: No such file or directory" in said(tmp_path / "nowhere")
    assert "format 0 and this program reads 2, 3 and 4: draw them with pathjax 0.1.0" in said(
        kept_in(tmp_path / "old", example_study(**ONE), format=0)
    )
    assert "all 1 failed, the first with: the training loss" in said(kept_in(tmp_path / "failed", [FAILED]))
    assert "there are none" in said(kept_in(tmp_path / "none", []))
    folder = kept_in(tmp_path / "half", example_study(**ONE))
    with (folder / "results.jsonl").open("ab") as file:
        file.write(b"\xff\n" + b'{"data": "dig')
    assert "Line 21 of" in (told := said(folder)) and "is not a trial of a study (it is not UTF-8)" in told
    (folder / "config.json").write_text("[]")
    assert "is not a configuration of this program" in said(folder)


def test_half_a_line_at_the_end_is_not_read_and_of_two_of_one_name_the_later_counts(tmp_path):
    folder = kept_in(tmp_path / "half", example_study(**ONE))
    again = dataclasses.replace(example_study(**ONE)[0], test_accuracy=0.25)
    with (folder / "results.jsonl").open("a") as file:
        file.write(encode(again) + "\n" + '{"data": "dig')
    accuracies = study_table.read(folder).trials.set_index(["method", "density", "seed"])["test_accuracy"]
    assert len(accuracies) == 20 and accuracies["dense", 1.0, 0] == 0.25


def test_what_is_not_part_of_the_study_as_last_run_is_not_shown(tmp_path):
    options = {"data": ["digits"], "model": [{"name": "fc"}], "method": ["snip"], "density": [0.5, 0.1], "seeds": 1}
    folder = kept_in(tmp_path / "study", example_study(), options=options)
    assert study_table.read(folder).trials[["data", "model", "method", "density", "seed"]].to_numpy().tolist() == [
        ["digits", "fc", "dense", 1.0, 0],
        ["digits", "fc", "snip", 0.5, 0],
        ["digits", "fc", "snip", 0.1, 0],
    ]


BY_LOSS = "the training loss never fell below 2.280 nats, a guess by the frequencies of the classes"
BY_ACCURACY = "the test accuracy is 0.110, and up to 0.119 is chance"


def test_networks_that_did_not_train_are_marked_and_counted(tmp_path):
    trials = changed(example_study(**ONE), ("random", 0.02), did_not_train=BY_LOSS)
    trials = changed(trials, ("snip", 0.02, 1), did_not_train=BY_ACCURACY)
    folder = kept_in(tmp_path / "study", trials)
    found = study_table.read(folder)
    assert found.cells["untrained"].tolist() == [0, 0, 0, 2, 0, 0, 1, 0, 0, 0]
    page = report.page(found, [], 1e-16)
    assert (
        "3 of 20 networks did not train: 2 by their training loss, which never fell 1% below that of a guess by the "
        "frequencies of the classes, and 1 by their test accuracy, at most two standard errors above that of always "
        "naming one class. They count in all figures and means. They are of digits, fc, random at 0.02 and digits, fc, "
        "snip at 0.02."
    ) in page
    assert page.count(" †</td>") == 2 and "†: some of its networks did not train" in page
    assert "<td>2 of 2</td>" in page and "<td>1 of 2</td>" in page and "<th>did not train</th>" in page
    accuracy = next(report.illustrations(found, folder))
    assert isinstance(accuracy, Illustration)
    assert "Crosses: cells in which a network did not train." in accuracy.caption
    axis = figures.accuracy(found, "footer").axes[0]
    (crosses,) = [drawn for drawn in axis.collections if drawn.get_label() == "did not train"]
    np.testing.assert_allclose(np.asarray(crosses.get_offsets())[:, 0], [0.02, 0.02])
    assert cautions.untrained(made(example_study(**ONE))) == ""


def test_several_devices_or_commits_are_said_on_the_page():
    trials = changed(example_study(**ONE), (), made={"device": "cpu", "commit": "a" * 40, "changed": False})
    assert cautions.origins(made(trials)) == cautions.origins(made(example_study(**ONE))) == ""
    trials = changed(trials, ("snip",), made={"device": "TPU v4", "commit": "a" * 40, "changed": True})
    assert cautions.origins(made(trials)) == (
        "The networks were computed on cpu (14) and TPU v4 (6), which round differently; and by commit aaaaaaaaaa (14) "
        "and commit aaaaaaaaaa with changes (6) of the program, which may compute differently."
    )


NEWER = {
    "did_not_train",
    "setting",
    "made",
    "no_data_loss",
    "moments_loss",
    "inputs_loss",
    "gap_no_data",
    "gap_moments",
    "gap_inputs",
}
NEWER |= {"log_top_no_data", "log_top_moments", "log_top_inputs", "regression_accuracy", "why_not_expected"}


def test_results_of_an_older_format_are_drawn_without_what_they_lack(tmp_path):
    folder = kept_in(tmp_path / "old", example_study(**ONE), format=2)
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert set(lines[0]) > NEWER
    older = [{name: value for name, value in line.items() if name not in NEWER} for line in lines]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
    assert command.main(["figures", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "The study does not ask for them: set measure.expected." in page
    assert "from Π alone" in page and "Θ̄ without data" not in page and not re.search(r"\b(nan|inf)\b", page)


def test_why_there_are_no_expected_gates_stands_on_the_page(tmp_path):
    nothing: dict[str, Any] = dict.fromkeys(("no_data_loss", "moments_loss", "inputs_loss"), [])
    nothing |= dict.fromkeys(("gap_no_data", "gap_moments", "gap_inputs"), math.nan)
    trials = changed(example_study(**ONE), (), **nothing, why_not_expected="Max pooling has no closed form.")
    folder = kept_in(tmp_path / "pooled", trials)
    said = report.write(study_table.read(folder), folder)
    assert "Loss curves predicted from expected gates: digits, fc: Max pooling has no closed form." in said
    assert "<td>Max pooling has no closed form.</td>" in (folder / "report.html").read_text()


def test_the_ladder_gives_the_mean_gaps_and_the_orders_over_all_cells_and_within_a_density():
    trials = example_study(**ONE, methods=("grasp", "random", "snip", "synflow"), seeds=1)
    trials = changed(trials, (), gap_no_data=0.2, gap_inputs=0.2, gap_linearized=0.125, log_top_ntk=0.0)
    trials = changed(trials, (), log_top_no_data=-0.3 * math.log(10))
    trials = changed(trials, ("snip",), gap_no_data=0.9, gap_inputs=0.9)
    found = made(trials)
    first, *more = findings.of_gaps(found).split("\n")
    mean = (10 * 0.2 + 3 * 0.9) / 13
    assert "in the mean over cells: " in first and f"{mean:.2f} from Θ̄ without data" in first
    assert first.endswith("0.12 from Θ. Θ is closer than Π in 13 of 13 cells.")
    # all example curves are powers of the real one
    assert more[0].startswith("How far the loss falls ranks with") and more[0].count("+1.00 [") >= 6
    assert "at one density" in more[1] and "density alone" in more[0] and "density alone" not in more[1]
    assert more[2].startswith("Of the pruning methods, expected gates miss snip most: even with the inputs by 0.90 dec")
    assert "the others by 0.20: it keeps weights by their gradients" in more[2]
    assert "falls further than so predicted in 3 of 3 cells." in more[2]
    table = tables.predictions_table(found)
    assert f"<th>Θ̄ without data</th><td>{mean:.2f}</td><td>0.20</td><td>0.30</td><td>+1.00 [" in table
    assert "<th>density</th><td>–</td><td>–</td><td>–</td>" in table
    halvings = found.cells["real_halving_mean"]
    curve = np.array(found.trials["real_loss"].iloc[0])
    assert halvings.iloc[0] == np.argmax(curve <= 0.5) > 0 and (np.isinf(halvings) == (halvings > 100)).all()


def test_widths_are_read_as_they_were_written(tmp_path):
    sweeps = [widths.WidthSweep("fc", d, (4, 8), np.arange(1.0, 7).reshape(2, 3) / d) for d in (1.0, 0.25)]
    (tmp_path / "widths.csv").write_text(widths.table(sweeps))
    for found, expected in zip(widths.read(tmp_path / "widths.csv"), sweeps, strict=True):
        assert found[:3] == expected[:3]
        np.testing.assert_allclose(found.distances, expected.distances)
    (tmp_path / "widths.csv").write_text("model,density\nfc,1\n")
    with pytest.raises(InputError, match="cannot be read"):
        widths.read(tmp_path / "widths.csv")


def test_the_page_opens_with_three_sentences_from_the_results():
    trials = example_study(**ONE, densities=(0.02,))
    for method, accuracy in (("dense", 0.98), ("random", 0.5), ("snip", 0.6), ("synflow", 0.75)):
        trials = changed(trials, (method,), test_accuracy=accuracy)
    trials = changed(trials, (), gap_linearized=0.05, gap_data_free=3.7, gap_no_data=0.3)
    study = made(trials)
    assert opening.what_was_done(study) == (
        "Before training, this study pruned fc on digits by 3 methods to 1 density; then it trained the pruned and the "
        "unpruned networks with 2 seeds, 8 networks in all, for 2 epochs."
    )
    assert opening.what_came_out(study) == (
        "Unpruned, fc classifies 98.0 ± 0.0% of the test images right; at the lowest density, 0.02, synflow is the "
        "most accurate method with 75.0 ± 0.0%, and random is the least accurate with 50.0 ± 0.0%."
    )
    assert opening.what_to_trust(study) == (
        "Of the predictions made before training, the loss curves from the Neural Tangent Kernel are close, off by a "
        "factor of 1.1 in the median and 1.1 at most, and those from the Path Kernel, which reads no data, are not to "
        "be trusted as numbers, off by a factor of 5,000; those from expected gates, which read no data either, are a "
        "rough guide, off by a factor of 2.0."
    )
    page = report.page(study, [], 1e-16)
    assert page.index('class="lead"') < page.index("<table") < page.index("All numbers")
    assert page.count('class="lead"') == 3 and "1.0e-16" in page and "digits, fc: distance of the dense" in page


@pytest.mark.parametrize("seed", range(3))
def test_spearman_agrees_with_scipy_ties_included(seed):
    first, second = np.random.default_rng(seed).integers(0, 5, (2, 12)).astype(float)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)


def test_infinities_rank_last_and_nan_is_left_out():
    known = np.array([1.0, 2.0, 3.0, np.nan, -np.inf])
    outcome = np.array([2.0, 3.0, np.inf, 0.0, 1.0])
    assert spearman(known, outcome) == pytest.approx(1.0)
    assert math.isnan(spearman(known[:2], outcome[:2]))


def test_cells_hold_means_and_deviations_over_seeds_in_any_order():
    trials = [
        dataclasses.replace(trial, test_accuracy=0.35 + (0.01 if trial.seed else -0.01))
        for trial in example_study(**ONE)
    ]
    cells = made(trials).cells
    assert cells["method"].tolist() == ["dense", *["random"] * 3, *["snip"] * 3, *["synflow"] * 3]
    assert cells["density"].tolist() == [1.0, *[0.5, 0.1, 0.02] * 3]
    assert cells["test_accuracy_mean"].to_numpy() == pytest.approx(0.35)
    assert cells["test_accuracy_std"].to_numpy() == pytest.approx(0.01 * math.sqrt(2))
    assert (cells["seeds"] == 2).all()
    assert made(trials[::-1]).cells.to_csv() == cells.to_csv()


def test_a_level_that_a_seed_never_reached_is_infinite_without_a_deviation():
    trials = example_study(**ONE)
    trials[0] = dataclasses.replace(trials[0], steps_to_level=math.inf)
    dense = made(trials).cells.iloc[0]
    assert dense["steps_to_level_mean"] == math.inf and math.isnan(dense["steps_to_level_std"])
    assert "never" in tables.all_numbers(made(trials))
