"""The main job at the size of seconds, as a user runs it."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import jax
import pandas as pd
import pytest

from experiments import __main__ as command
from experiments.data import loading
from experiments.records.jsonl import decode
from experiments.records.runs import Run

ROOT = Path(__file__).parents[2]
SMALL = ["compare", "--method", "random", "synflow", "--density", "0.3", "--seeds", "2", "--width", "8"]
SMALL += ["--rounds", "3", "--epochs", "2", "--ntk-per-class", "1", "--curve-steps", "5", "--loss-level", "2"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that all processes of one test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="module", autouse=True)
def compiled_once(shared):
    """What one run of the job has compiled, the next takes from there."""
    folder = shared / "compiled"
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    loading.load("digits", data_dir=root)
    return root


def run(data_dir, out, *more):
    return command.main([*SMALL, "--data-dir", str(data_dir), "--out", str(out), *more])


@pytest.fixture(scope="module")
def finished(data_dir, shared):
    """The output folder of an uninterrupted job, not to be changed. The first process that needs it makes it."""
    out = shared / "finished" / "out"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "report.html").exists():
            assert run(data_dir, out) == 0
    return out


@pytest.fixture
def own_copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "out"))


def runs_of(out):
    return [decode(line, Run) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_run_is_there_once(finished):
    assert sorted(run.name for run in runs_of(finished)) == [
        (method, density, seed)
        for method, density in (("dense", 1.0), ("random", 0.3), ("synflow", 0.3))
        for seed in (0, 1)
    ]


def test_masks_keep_the_exact_count_and_hold_through_training(finished):
    weights = 64 * 8 + 8 * 8 + 8 * 8 + 8 * 10
    for run_ in runs_of(finished):
        assert run_.prunable == weights
        assert run_.kept == round(run_.density * weights)
        assert run_.pruned_stay_zero


def test_curves_and_quantities_are_whole(finished):
    for run_ in runs_of(finished):
        assert len(run_.train_loss) == 3
        assert len(run_.real_loss) == len(run_.linearized_loss) == len(run_.data_free_loss) == 6
        assert (run_.real_loss[0], run_.data_free_loss[0]) == pytest.approx((1, 1))
        assert run_.log_top_path_kernel <= run_.log_trace_path_kernel
        assert run_.log_top_ntk <= run_.log_trace_ntk
        assert 1 <= run_.effective_rank_path_kernel <= run_.kept + 34
        assert (run_.infinite_distance > 0) == (run_.method == "dense")


def test_pruned_networks_have_fewer_paths(finished):
    dense, *pruned = sorted(runs_of(finished), key=lambda run_: -run_.density)[1:]
    assert all(run_.log_path_count < dense.log_path_count for run_ in pruned)


def test_the_summary_has_a_row_for_each_cell(finished):
    table = pd.read_csv(finished / "summary.csv")
    assert table[["method", "density", "seeds"]].to_numpy().tolist() == [
        ["dense", 1.0, 2],
        ["random", 0.3, 2],
        ["synflow", 0.3, 2],
    ]
    assert table["test_accuracy_mean"].between(0, 1).all() and table["test_accuracy_std"].notna().all()


def test_figures_are_pictures_in_two_formats(finished):
    figures = sorted(path.name for path in (finished / "figures").iterdir())
    assert len(figures) == 20
    for name in figures:
        content = (finished / "figures" / name).read_bytes()
        assert content.startswith(b"\x89PNG" if name.endswith(".png") else b"<?xml")


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.names = [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.found.append(value)
            if name == "id":
                self.names.append(value)


def test_the_report_needs_no_other_file(finished):
    page = (finished / "report.html").read_text()
    links = _Links()
    links.feed(page)
    drawn = [link for link in links.found if link.startswith("data:image/png;base64,")]
    within = [link for link in links.found if link.startswith("#")]
    assert len(drawn) + len(within) == len(links.found)
    assert {link[1:] for link in within} <= set(links.names)
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)
    assert page.count("<figcaption>") == 10
    for words in ("prefers-color-scheme: dark", 'name="viewport"', "Rank correlations", "Configuration", "seeds used"):
        assert words in page


def test_no_clock_and_no_path_gets_into_the_results(finished):
    for name in ("summary.csv", "rankings.csv", "report.html", "results.jsonl", "config.json"):
        content = (finished / name).read_text()
        assert str(finished) not in content and str(Path.home()) not in content


def test_the_same_command_again_computes_nothing_and_writes_the_same(own_copy, data_dir, capsys):
    before = {path: path.read_bytes() for path in sorted(own_copy.rglob("*")) if path.is_file()}
    assert run(data_dir, own_copy) == 0
    after = {path: path.read_bytes() for path in sorted(own_copy.rglob("*")) if path.is_file()}
    assert before.keys() == after.keys()
    assert [path.name for path in before if before[path] != after[path]] == []
    printed = capsys.readouterr().out
    assert printed.startswith("[4/4] report\n") and "report.html" in printed and "synflow" in printed


@pytest.mark.parametrize("left", [None, b"PK half a file"])
def test_kernels_that_are_lost_are_made_again_and_broken_ones_named(own_copy, data_dir, capsys, left):
    file = own_copy / "kernels" / "synflow-0.3.npz"
    before, runs = file.read_bytes(), (own_copy / "results.jsonl").read_bytes()
    if left is None:
        file.unlink()
        assert run(data_dir, own_copy) == 0
        assert file.read_bytes() == before
    else:
        file.write_bytes(left)
        assert run(data_dir, own_copy) == 2
        assert f"{file} cannot be read" in capsys.readouterr().err
    assert (own_copy / "results.jsonl").read_bytes() == runs


def started(data_dir, out, **environment):
    """The job in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *SMALL, "--data-dir", str(data_dir), "--out", str(out)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for(path, job):
    while not path.exists() and job.poll() is None:
        time.sleep(0.01)


def test_a_killed_job_continues_to_the_same_results_even_from_part_of_a_cell(
    finished, data_dir, tmp_path, compiled_once
):
    out = tmp_path / "out"
    results = out / "results.jsonl"
    job = started(
        data_dir,
        out,
        JAX_ENABLE_X64="1",  # as in the tests
        JAX_COMPILATION_CACHE_DIR=str(compiled_once),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    wait_for(results, job)
    job.kill()
    _, errors = job.communicate()
    assert job.returncode == -signal.SIGKILL, errors.decode()
    survived = results.read_text().splitlines()
    assert 2 <= len(survived) <= 6 and [json.loads(line) for line in survived]
    results.write_text(survived[1] + "\n")
    assert run(data_dir, out) == 0
    assert results.read_text().splitlines()[0] == survived[1]
    assert sorted(results.read_text().splitlines()) == sorted((finished / "results.jsonl").read_text().splitlines())
    for file in (finished / "kernels").iterdir():
        assert (out / "kernels" / file.name).read_bytes() == file.read_bytes()
    for name in ("summary.csv", "rankings.csv", "report.html"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


def refused(capsys, *arguments):
    assert command.main(["compare", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


def test_bad_names_and_numbers_end_in_one_sentence(capsys, tmp_path):
    out = tmp_path / "out"
    assert "nearest to it is synflow" in refused(capsys, "--out", out, "--method", "synflo")
    assert "There is no model" in refused(capsys, "--out", out, "--model", "resnet")
    assert "there are digits, mnist" in refused(capsys, "--out", out, "--dataset", "imagenet")
    assert "outside (0, 1]" in refused(capsys, "--out", out, "--density", 0.5, 1.01)
    assert "at least 1" in refused(capsys, "--out", out, "--seeds", 0)
    assert not out.exists()


def test_data_that_are_not_there_end_in_one_sentence(capsys, tmp_path, data_dir):
    assert "not prepared" in refused(capsys, "--out", tmp_path / "out", "--dataset", "mnist", "--data-dir", tmp_path)
    (tmp_path / "digits" / "1.0.0").mkdir(parents=True)
    assert "not a complete data set" in refused(capsys, "--out", tmp_path / "out", "--data-dir", tmp_path)
    wanted = refused(capsys, "--out", tmp_path / "out", "--data-dir", data_dir, "--ntk-per-class", 1000)
    assert "1000 of every class were asked for" in wanted


def test_a_folder_that_cannot_be_used_ends_in_one_sentence(capsys, own_copy, data_dir, tmp_path):
    arguments = [*SMALL[1:], "--data-dir", data_dir, "--out", own_copy]
    assert "--epochs is 2 there and 3 here" in refused(capsys, *arguments, "--epochs", 3)
    kept = (own_copy / "results.jsonl").read_bytes()
    (own_copy / "results.jsonl").write_bytes(kept[:-40])
    assert "Line 6 of" in refused(capsys, *arguments)
    assert (own_copy / "results.jsonl").read_bytes() == kept[:-40]
    (tmp_path / "file").write_text("")
    assert "Cannot write to" in refused(capsys, "--data-dir", data_dir, "--out", tmp_path / "file" / "out")


def test_a_density_that_keeps_nothing_is_refused_before_any_work(capsys, data_dir, tmp_path):
    message = refused(capsys, *SMALL[1:], "--data-dir", data_dir, "--out", tmp_path, "--density", 0.3, 1e-5)
    assert "Density 1e-05 cannot be had" in message and "keeps none" in message


def test_an_interrupt_ends_in_one_sentence(data_dir, tmp_path):
    job = started(data_dir, tmp_path / "out")
    wait_for(tmp_path / "out" / "config.json", job)
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate()
    assert job.returncode == 130
    assert errors.decode() == "Interrupted; every finished run is kept. The same command continues.\n"


def test_help_explains_every_option_and_bad_input_is_found_before_jax_is_imported():
    script = (
        "import sys; from experiments.__main__ import main\n"
        "assert main(['compare', '--method', 'no such']) == 2\n"
        "heavy = {'jax', 'flax', 'pandas', 'matplotlib', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "main(['compare', '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ("--loss-level FLOAT", "(default: 0.3)", "nats", "--repair", "(0, 1]", *loading.DATASETS):
        assert words in done.stdout
