"""What the options of `report` make of configs/report.toml."""

import subprocess
import sys
from pathlib import Path

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
    for words in ("--density", "(default: 3)", "--repair", "(0, 1]", *loading.DATASETS):
        assert words in done.stdout
