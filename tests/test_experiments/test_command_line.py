"""What the options of `report` make of configs/report.toml."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.__main__ import Report, main, report_study
from experiments.base.errors import InputError
from experiments.data import loading
from experiments.study import read

ROOT = Path(__file__).parents[2]
DATASETS = ("digits", "mnist")


def test_without_options_the_study_is_that_of_the_config():
    assert report_study(Report(), datasets=DATASETS) == read("report", datasets=DATASETS)[1]


def test_options_replace_what_the_config_says_and_nothing_else():
    options = Report(dataset="mnist", network="conv", density=(0.1, 0.3), method=("synflow", "random"), seeds=1)
    study = report_study(options, datasets=DATASETS)
    plain = report_study(Report(), datasets=DATASETS)
    assert study.data == ("mnist",) and [model.network for model in study.model] == ["conv"]
    assert study.method == ("random", "synflow") and study.density == (0.3, 0.1) and study.seeds == 1
    assert study.measure.curve_density == (0.3, 0.1)
    assert study.train == plain.train and study.measure.rounds == plain.measure.rounds


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            Report(method=("snipp",)),
            "There is no method 'snipp'; the nearest to it is snip: there are random,",
        ),
        (Report(method=("dense",)), "There is no method 'dense'"),
        (Report(method=()), "method must be a list of one entry or more"),
        (Report(method=("snip", "snip")), "method has snip more than once"),
        (Report(network="fcc"), "There is no network 'fcc'; the nearest to it is fc"),
        (
            Report(dataset="digit"),
            "There is no data set 'digit'; the nearest to it is digits: there are",
        ),
        (Report(density=(0.5, 0.0)), "Density 0 is outside (0, 1]"),
        (Report(density=(1.5,)), "Density 1.5 is outside (0, 1]"),
        (Report(density=(float("nan"),)), "Density nan is outside (0, 1]"),
        (Report(density=()), "density must be a list of one entry or more"),
        (Report(density=(0.5, 0.5)), "density has 0.5 more than once"),
        (Report(seeds=0), "seeds is 0, but must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(options, words):
    with pytest.raises(InputError) as caught:
        report_study(options, datasets=DATASETS)
    message = str(caught.value)
    assert words in message and message.endswith(".") and "\n" not in message


def test_bad_options_end_with_one_line_and_status_2(capsys, tmp_path):
    for arguments, words in (
        (("--method", "synflo"), "nearest to it is synflow"),
        (("--network", "resnet"), "There is no network"),
        (("--dataset", "mnist", "--data-dir", str(tmp_path)), "is not prepared in"),
    ):
        assert main(["report", "--out", str(tmp_path / "out"), *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
        assert words in printed.err
    assert not (tmp_path / "out").exists()


SMALL = """
data = ["cells.npz"]
method = ["random"]
density = [0.5]
[[model]]
name = "small"
network = "lenet_300_100"
[train]
batch_size = 20
[measure]
ntk_images = 4
score_per_class = 2
"""


@pytest.fixture
def config(tmp_path):
    """A config beside which lies its data: 24 vectors in two classes."""
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {"images": rng.normal(size=(24, 3)), "labels": np.arange(24) % 2}
    np.savez(tmp_path / "cells.npz", **parts, **{f"test_{name}": part[:6] for name, part in parts.items()})
    by_class = parts | {"labels": np.arange(24) // 12}
    np.savez(tmp_path / "sorted.npz", **by_class, **{f"test_{name}": part[6:18] for name, part in by_class.items()})
    (tmp_path / "small.toml").write_text(SMALL)
    return str(tmp_path / "small.toml")


def said(capsys, *arguments):
    """The one sentence with which a command ends that cannot be run."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--set", "train.batch_size=25"),
            "train.batch_size is 25, but the study has 24 train images of cells.npz; make",
        ),
        (
            ("--set", "train_images=10"),
            "train.batch_size is 20, but the study has 10 train images of cells.npz; make it 10",
        ),
        (("--set", "measure.ntk_images=25"), "measure.ntk_images is 25, but the study has 24 train images"),
        (
            ("--set", "measure.score_per_class=13"),
            "measure.score_per_class is too large for cells.npz: class 0 has 12 ex",
        ),
        (
            ("--set", "train_images=12", "--set", "data=['sorted.npz']", "--set", "train.batch_size=12"),
            "The 12 train images that the study takes of sorted.npz, the first ones, are all of one class",
        ),
        (("--set", "model.factor=1e6"), "model.factor is 1e+06, but must be a positive number, 1000 at most"),
        (("--set", "seed=3"), "There is no key seed; the nearest to it is seeds"),
        (("--set", "seeds=3", "--set", "train.epochs=0"), "train.epochs is 0, but must be at least 1"),
        (("--data-dir", "no/such/folder"), "There is no data directory no/such/folder; make the folder first"),
        (("--set", 'data=["digts"]', "--data-dir", "no/such/folder"), "There is no data directory no/such/folder"),
        (("--dataset", "mnist"), "sweep has no option --dataset, which is one of report: it has --out, --data-dir, "),
        (("--sed", "3"), "sweep has no option --sed; the nearest to it is --set: it has --out, --data-dir, "),
    ],
)
def test_a_sweep_that_makes_no_sense_ends_in_one_sentence(arguments, words, config, capsys, tmp_path):
    assert words in said(capsys, "sweep", config, "--out", str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


def test_options_of_another_command_are_refused_by_name(capsys):
    assert "figures has no option --repair, which is one of report and sweep: it has" in said(
        capsys, "figures", "runs", "--repair"
    )
    assert "report has no option --coordinator, which is one of sweep" in said(capsys, "report", "--coordinator=auto")


def test_report_sets_keys_that_are_no_options_of_its_own(capsys):
    study = report_study(Report(set=("train.epochs=1", "measure.rounds=2")), datasets=DATASETS)
    assert (study.train.epochs, study.measure.rounds) == (1, 2)
    for change, option in (("data=5", "--dataset"), ("model.factor=2", "--network"), ("seeds=5", "--seeds")):
        words = f"is not set by --set in report, which has the option {option} for it."
        assert words in said(capsys, "report", "--set", change)


def test_going_on_with_results_is_what_happens_and_can_be_refused(config, capsys, tmp_path):
    (tmp_path / "results.jsonl").touch()
    words = said(capsys, "sweep", config, "--out", str(tmp_path), "--no-resume")
    assert f"{tmp_path} has results of a study already; leave --no-resume out to go on, or give another --out." in words


def test_mistakes_in_ones_own_data_are_found_before_jax_is_imported(config):
    script = (
        "import sys; from experiments.__main__ import main\n"
        f"assert main(['sweep', {config!r}, '--set', 'train.batch_size=25']) == 2\n"
        "heavy = {'jax', 'flax', 'pandas', 'matplotlib', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_explains_every_option_and_bad_input_is_found_before_jax_is_imported():
    script = (
        "import sys; from experiments.__main__ import main\n"
        "assert main(['report', '--method', 'no such']) == 2\n"
        "heavy = {'jax', 'flax', 'pandas', 'matplotlib', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "main(['report', '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (
        "--density",
        "--resume, --no-resume",
        "--set",
        "(default: 3)",
        "--repair",
        "(0, 1]",
        *loading.DATASETS,
    ):
        assert words in done.stdout
