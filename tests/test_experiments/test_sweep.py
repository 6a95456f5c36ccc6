"""Studies at the size of seconds, as a user runs them."""

import contextlib
import dataclasses
import math
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import __main__ as command
from experiments import models, study, sweep, workbench
from experiments.data.loading import DATASETS, load
from experiments.measure import kernel_pictures
from experiments.measure.changes import with_statistics_of
from experiments.networks import architectures
from experiments.records import results_folder
from experiments.records.jsonl import decode, encode
from experiments.records.progress import SILENT, _Lines
from experiments.records.study_table import CHANGES
from experiments.records.trial import Trial
from experiments.records.trial_summaries import CURVES, PREDICTIONS
from pathjax import ntk
from tests.test_experiments.examples import compiled_once, plain, started, sweeping, trials_of

ROOT = Path(__file__).parents[2]
CONFIG = """
data = ["digits"]
method = ["random", "synflow"]
density = [0.2]
seeds = 2
train_images = 200
test_images = 100
[[model]]
name = "small"
network = "lenet_300_100"
factor = 0.03
batch_norm = true
[train]
epochs = 2
batch_size = 50
[measure]
rounds = 2
score_per_class = 1
curve_density = [0.2]
curve_steps = 3
rank = 3
kernel_pictures = true
expected = true
regression_images = 20
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with digits in `data`, a config, and what its study finds in `out`, not to be changed."""
    root = tmp_path_factory.mktemp("study")
    load("digits", data_dir=root / "data")
    (root / "small.toml").write_text(CONFIG)
    with compiled_once(root / "compiled"):
        assert run(root, root / "out") == 0
        yield root


def run(place, out, *more, config="small.toml"):
    return command.main(sweeping(place, out, *more, config=config))


@contextlib.contextmanager
def two_started(place, out, config):
    """Two processes of one study; both have ended after the context. `logs` has what they say, in files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    out.parent.mkdir(exist_ok=True)
    logs = [out.parent / f"{number}.log" for number in range(2)]
    jobs = [
        started(
            place, out, "--coordinator", address, "--processes", "2", "--process", str(number), config=config, log=log
        )
        for number, log in enumerate(logs)
    ]
    try:
        yield jobs, logs
    finally:
        for job in jobs:
            job.kill()
            job.wait()


def said(log):
    """What a process says, but for what Gloo says of itself."""
    return [line for line in log.read_text().splitlines() if not line.startswith("[Gloo]")]


def same_but_for_rounding(one, other):
    """Whether trials agree: exactly in what is found before training, to rounding in what is found after."""
    assert [trial.name for trial in one] == [trial.name for trial in other]
    for pair in zip(one, other, strict=True):
        for field in dataclasses.fields(Trial):
            first, second = (getattr(trial, field.name) for trial in pair)
            if field.name == "made":
                continue
            if field.name in AFTER:
                np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)
            else:
                np.testing.assert_equal(first, second)


AFTER = {"train_loss", "test_loss", "test_accuracy"} | {
    f"{kernel}_{how}" for kernel in ("ntk", "path_kernel") for how in ("change", "distance")
}


def test_every_trial_is_there_once_and_whole(place):
    trials = trials_of(place / "out")
    assert [trial.name for trial in trials] == [
        ("digits", "small", method, density, seed)
        for method, density in (("dense", 1.0), ("random", 0.2), ("synflow", 0.2))
        for seed in (0, 1)
    ]
    for trial in trials:
        assert trial.reason == "" and trial.pruned_stay_zero
        assert trial.kept == round(trial.density * trial.prunable)
        assert len(trial.train_loss) == 3 and 0 <= trial.test_accuracy <= 1
        assert len(trial.real_loss) == len(trial.low_rank_loss) == len(trial.data_free_loss) == 4
        assert len(trial.no_data_loss) == len(trial.moments_loss) == len(trial.inputs_loss) == 4
        assert 0 <= trial.gap_no_data < 1 and trial.why_not_expected == ""
        assert trial.regression_accuracy in np.arange(21) / 20
        assert len(trial.log_ntk_eigenvalues) == 100
        assert math.isclose(sum(trial.path_kernel_weights), 1, rel_tol=1e-4)
        assert trial.log_path_kernel_nodes == sorted(trial.log_path_kernel_nodes, reverse=True)
        assert list(trial.layer_density) == ["hidden_0", "hidden_1", "dense"]
        assert list(trial.dead_units) == ["hidden_0", "hidden_1"]
        assert trial.linearization_error > 0 and 0 <= trial.kernel_distance < 1
        assert trial.log_top_path_kernel <= trial.log_trace_path_kernel and trial.log_top_ntk <= trial.log_trace_ntk
        assert math.isnan(trial.infinite_distance)  # batch norm: the limit is not known
        file = kernel_pictures.file_of(place / "out", *trial.name[:4])
        assert kernel_pictures.load(file).cosines.shape == (3, 10, 10)
        assert trial.ntk_change > 0 and trial.path_kernel_change > 0
        assert 0 < trial.ntk_distance < 1 and -1e-3 < trial.path_kernel_distance < 1
    assert all(share == 0 for share in trials[0].dead_units.values())


def test_the_same_command_again_computes_nothing(place, capsys):
    before = (place / "out" / "results.jsonl").read_bytes()
    assert run(place, place / "out") == 0
    assert (place / "out" / "results.jsonl").read_bytes() == before
    assert "[" not in capsys.readouterr().out.split("Best so far")[0]


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
def test_a_signal_ends_a_study_in_one_sentence(number, status, word, place, tmp_path):
    log, config = tmp_path / "log", tmp_path / "out" / "config.json"
    # a process that is started in the background ignores interrupts, and so do its children
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        job = started(place, tmp_path / "out", log=log)
    finally:
        signal.signal(signal.SIGINT, ignored)
    while not config.exists() and job.poll() is None:
        time.sleep(0.01)
    job.send_signal(number)
    assert job.wait() == status
    assert log.read_text().endswith(f"{word}; every finished network is kept. The same command continues.\n")


def test_nothing_is_said_after_the_sentence_that_ends_a_command(tmp_path):
    talking = "from experiments.base import ending; ending.end_at_signals()\nwhile True: print('a line', flush=True)"
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen([sys.executable, "-c", talking], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    while not (tmp_path / "log").stat().st_size:
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    assert job.wait() == 143
    # where Python does not buffer, a line may be cut in its middle
    assert (
        (tmp_path / "log")
        .read_text()
        .endswith("Terminated; every finished network is kept. The same command continues.\n")
    )


def test_a_killed_study_continues_to_the_same_numbers(place, tmp_path):
    out = tmp_path / "out"
    file = out / "results.jsonl"
    job = started(place, out)
    while not (file.exists() and b"\n" in file.read_bytes()) and job.poll() is None:
        time.sleep(0.01)
    assert run(place, out) == 2  # two at once are refused
    job.kill()
    assert job.wait() == -signal.SIGKILL
    survived = file.read_text().splitlines()
    assert 2 <= len(survived) <= 6
    file.write_text(survived[1] + "\n")
    assert run(place, out) == 0
    assert file.read_text().splitlines()[0] == survived[1]
    assert plain(out) == plain(place / "out")
    for pictures in (place / "out" / "kernels").iterdir():
        assert (out / "kernels" / pictures.name).read_bytes() == pictures.read_bytes()


@pytest.fixture(scope="module")
def brief(place):
    """The results of one process for `brief.toml`, whose training keeps checkpoints; not to be changed."""
    (place / "brief.toml").write_text(
        CONFIG.replace('"random", "synflow"', '"random"')
        .replace("seeds = 2", "seeds = 1")
        .replace('"lenet_300_100"', '"fc"')
        .replace("batch_norm = true", "")
        .replace("kernel_pictures = true", "")
        .replace("epochs = 2", "epochs = 2\ncheckpoint_every = 1")
        .replace("curve_density = [0.2]\n", "")
    )
    assert run(place, place / "brief", config="brief.toml") == 0
    return place / "brief"


def test_the_dense_network_is_held_against_its_infinite_width_limit(brief):
    dense, pruned = trials_of(brief)
    assert 0 < dense.infinite_distance < 2 and math.isnan(pruned.infinite_distance)
    assert dense.prunable == 64 * 3 + 3 * 3 + 3 * 3 + 3 * 10
    assert math.isnan(dense.gap_linearized) and dense.real_loss == []


def test_without_neural_tangents_a_dense_network_lacks_its_limit_and_nothing_else(place, brief, monkeypatch):
    def refused(*arguments, **options):
        raise ModuleNotFoundError("neural_tangents")

    monkeypatch.setattr(ntk, "infinite", refused)
    monkeypatch.setattr(workbench, "_HAS_LIMITS", False)
    _, small = study.read(str(place / "brief.toml"), datasets=("digits",))
    bench = sweep.workbench_of(small, "digits", small.model[0], {"digits": load("digits", data_dir=place / "data")})
    (trial,) = sweep.compute_cell(bench, ("dense", 1.0), (0,)).trials
    assert trial.reason == "" and math.isnan(trial.infinite_distance)
    assert trial.absent.endswith("as neural-tangents is not installed")
    assert trial.test_accuracy == trials_of(brief)[0].test_accuracy


def test_two_processes_continue_to_the_numbers_of_one(place, brief, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(brief / "config.json", out)
    dense, _ = (brief / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text(dense + "\n")
    with two_started(place, out, "brief.toml") as (jobs, logs):
        assert [job.wait(timeout=600) for job in jobs] == [0, 0]
    assert (out / "results.jsonl").read_text().startswith(dense + "\n")
    same_but_for_rounding(trials_of(out), trials_of(brief))
    assert not list((out / "checkpoints").glob("[!.]*"))
    assert said(logs[0])[0].startswith("[2/2] digits small random 0.2: accuracy") and said(logs[1]) == []


def test_bad_input_in_one_process_ends_both(place, brief, tmp_path):
    shutil.copytree(place / "out", tmp_path / "out")
    with two_started(place, tmp_path / "out", "brief.toml") as (jobs, logs):
        assert [job.wait(timeout=600) for job in jobs] == [2, 2]
    (own,), (others,) = map(said, logs)
    assert own.startswith(f"error: {tmp_path / 'out'} holds the results of another configuration: ")
    assert others.startswith(f"error: Process 0 cannot go on: {tmp_path / 'out'} holds the results of another")


@pytest.mark.long
def test_a_killed_process_ends_the_others_and_nothing_kept_is_lost(place, tmp_path):
    out = tmp_path / "out"
    with two_started(place, out, "small.toml") as (jobs, _):
        while not (out / "results.jsonl").exists():
            assert [job.poll() for job in jobs] == [None, None]
            time.sleep(0.01)
        jobs[1].kill()
        assert jobs[0].wait(timeout=600) != 0
    survived = (out / "results.jsonl").read_text()
    assert all(not trial.reason for trial in trials_of(out))
    with two_started(place, out, "small.toml") as (jobs, _):
        assert [job.wait(timeout=600) for job in jobs] == [0, 0]
    assert (out / "results.jsonl").read_text().startswith(survived)
    same_but_for_rounding(trials_of(out), trials_of(place / "out"))


def test_another_study_is_refused_by_its_differences(place, capsys):
    (place / "other.toml").write_text(CONFIG.replace("seeds = 2", "seeds = 3").replace("epochs = 2", "epochs = 4"))
    before = {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()}
    for options in ((), ("--list",), ("--list", "--repair"), ("--repair",)):
        assert run(place, place / "out", *options, config="other.toml") == 2
        said = capsys.readouterr().err
        assert (
            "another configuration: train.epochs is 2 there and 4 here (in digits, small, dense at density 1," in said
        )
    assert {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()} == before


def test_what_would_run_is_listed_and_nothing_is_made(place, tmp_path, capsys):
    assert run(place, tmp_path / "out", "--list") == 0
    printed = capsys.readouterr().out
    assert "What would run" in printed and "small" in printed and "min" in printed
    assert not (tmp_path / "out").exists()


def test_to_list_what_would_run_changes_nothing_anywhere(place, tmp_path, capsys):
    out = Path(shutil.copytree(place / "out", tmp_path / "out"))
    with (out / "results.jsonl").open("ab") as file:
        file.write(b"nonsense\n" + b'{"data": "dig')
    (tmp_path / "home").mkdir()
    before = {path: path.read_bytes() if path.is_file() else b"" for path in tmp_path.rglob("*")}
    arguments = ["sweep", str(place / "small.toml"), "--data-dir", str(tmp_path / "home")]
    assert command.main([*arguments, "--out", str(tmp_path / "new"), "--list"]) == 0
    assert command.main([*arguments, "--out", str(out), "--list"]) == 2
    assert "Line 7 of" in capsys.readouterr().err
    assert command.main([*arguments, "--out", str(out), "--list", "--repair"]) == 0
    said = capsys.readouterr().out
    assert "A run would move line 7, which cannot be read (it is not JSON), to another file." in said
    assert "A run would move the last line, of which a process that was killed had written only a part" in said
    assert {path: path.read_bytes() if path.is_file() else b"" for path in tmp_path.rglob("*")} == before


def test_bad_configs_end_in_one_sentence(place, tmp_path, capsys):
    for old, new, words in (
        ("epochs = 2", "epoch = 2", "train.epochs"),
        ('"lenet_300_100"', '"lenet_5"', "The model small cannot be built: LeNet-5 needs images of 16 × 16"),
        ("[0.2]\nseeds", "[0.2, 1e-6]\nseeds", "cannot be had of small"),
        ('["digits"]', '["mnist"]', "is not prepared"),
    ):
        assert old in CONFIG
        (place / "bad.toml").write_text(CONFIG.replace(old, new))
        assert run(place, tmp_path / "out", config="bad.toml") == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1


def test_a_network_of_ones_own_is_named_by_its_module(place, tmp_path, capsys, monkeypatch):
    (tmp_path / "own_of_sweep.py").write_text(
        "from experiments.networks.layers import IMAGE, OUTPUTS, Layer, Options, build\n"
        "def tiny(shape, outputs, *, widths=None, **options):\n"
        '    steps = (Layer("conv", IMAGE, "conv", window=3), "mean", Layer("dense", "conv", OUTPUTS, normed=False))\n'
        '    return build(shape, steps, {"conv": 8, OUTPUTS: outputs}, widths or {}, Options(**options))\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = models.network_of(study.Model("own", "own_of_sweep:tiny", factor=0.5), (8, 8, 1), 3)
    assert network.widths == {"conv": 4, "outputs": 3}
    for name, words in (
        ("own_of_sweep:huge", f"{tmp_path / 'own_of_sweep.py'} has no function huge."),
        ("yours:tiny", "No module named 'yours'"),
        ("math:dist", "cannot be made"),
        ("builtins:dict", "cannot be made"),
    ):
        (place / "own.toml").write_text(CONFIG.replace('"lenet_300_100"', f'"{name}"'))
        assert run(place, tmp_path / "out", config="own.toml") == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1


class _Failing:
    """A workbench that fails with a seed of a cell, and with more networks side by side than it has room for."""

    def __init__(self, batch_size=8, room=8, error="kept [0] weights\nand more"):
        self.study = study.Study(("digits",), (MODEL,), ("snip", "synflow"), (0.1,), seeds=2)
        self.data, self.model, self.batch_size = "digits", MODEL, batch_size
        self.room, self.error, self.calls = room, error, []

    def measured(self, cells, seeds, reporter):
        self.calls.append((len(cells), tuple(seeds), self.batch_size))
        if min(self.batch_size, len(cells) * len(seeds)) > self.room:
            raise MemoryError("RESOURCE_EXHAUSTED: no memory\nand more")
        if ("snip", 0.1) in cells and 1 in seeds:
            raise ValueError(self.error)
        names = [("digits", "small", *cell, seed) for cell in cells for seed in seeds]
        return workbench.Measured([Trial.partial(name, test_accuracy=0.5) for name in names], {})


MODEL = study.Model("small", "lenet_5")
BOTH = sweep.Group("digits", MODEL, (("snip", 0.1), ("synflow", 0.1)))


def computed(bench, capsys):
    parts = sweep._computed(bench, BOTH, (0, 1), _Lines(Console(), 0, 0), may_halve=True)
    trials = [trial for part in parts for trial in part.trials]
    assert [trial.name for trial in trials] == BOTH.names((0, 1))
    return [trial.reason for trial in trials], capsys.readouterr().out


def test_networks_that_fail_are_kept_with_their_reason_and_the_rest_goes_on(capsys):
    bench = _Failing()
    reasons, said = computed(bench, capsys)
    assert reasons == ["", "ValueError: kept [0] weights", "", ""] and said == ""
    assert bench.calls == [(2, (0, 1), 8), (1, (0, 1), 8), (1, (0,), 8), (1, (1,), 8), (1, (0, 1), 8)]


def test_out_of_memory_halves_the_networks_side_by_side_once(capsys):
    bench = _Failing(room=2, error="other")
    reasons, said = computed(bench, capsys)
    assert bench.calls[:2] == [(2, (0, 1), 8), (2, (0, 1), 2)]
    assert said == "Out of memory with 4 networks side by side; going on with 2.\n"
    assert reasons == ["", "ValueError: other", "", ""]
    bench = _Failing(room=1, error="other")
    reasons, said = computed(bench, capsys)
    # alone, a network has room
    assert said.count("going on with") == 1 and reasons == ["", "ValueError: other", "", ""]
    bench = _Failing(batch_size=1, room=0)
    reasons, said = computed(bench, capsys)
    assert reasons == ["MemoryError: RESOURCE_EXHAUSTED: no memory"] * 4 and said == ""


def test_training_that_breaks_is_kept_with_its_reason_until_it_is_tried_again(place, tmp_path, capsys):
    (place / "broken.toml").write_text(
        CONFIG.replace("epochs = 2", "epochs = 2\nlearning_rate = 1e30").replace('"random", "synflow"', '"random"')
    )
    out = tmp_path / "out"
    assert run(place, out, config="broken.toml") == 1
    trials = trials_of(out)
    assert len(trials) == 4 and all(trial.reason and not trial.did_not_train for trial in trials)
    assert all("not finite" in trial.reason for trial in trials)
    capsys.readouterr()
    assert run(place, out, config="broken.toml") == 1  # and computes nothing
    said = capsys.readouterr().out
    assert "4 of 4 trials failed; the first: digits, small, dense at density 1, seed 0: the training loss" in said
    assert "--retry-failed computes them again." in said and trials_of(out) == trials
    assert run(place, out, "--retry-failed", config="broken.toml") == 1
    assert [trial.name for trial in trials_of(out)] == 2 * [trial.name for trial in trials]


# what is not asked for where networks are compared side by side
UNMEASURED = {*CURVES, *CHANGES, *(f"gap_{name}" for name in PREDICTIONS), "linearization_error", "kernel_distance"}
UNMEASURED |= {"regression_accuracy", "log_top_no_data", "log_top_moments", "log_top_inputs"}


def test_networks_side_by_side_are_those_one_by_one(place, monkeypatch):
    small = small_study(place)
    brief = dataclasses.replace(small.measure, changes=False, curve_density=(), kernel_pictures=False)
    dataset = load("digits", data_dir=place / "data").first(small.train_images, small.test_images)
    monkeypatch.setattr(workbench, "_networks_at_a_time", lambda *_: 4)
    bench = workbench.Workbench(dataclasses.replace(small, measure=brief), small.model[0], dataset)
    together = bench.measured([("dense", 1.0), ("random", 0.2)], (0, 1), SILENT).trials
    for trial, alone in zip(together, trials_of(place / "out"), strict=False):
        assert trial.name == alone.name
        for field in dataclasses.fields(Trial):
            one, other = (getattr(decode(encode(each), Trial), field.name) for each in (trial, alone))
            if field.type == "dict[str, float]":
                assert one == other
            elif field.type in ("float", "list[float]") and field.name not in UNMEASURED:
                # nodes that are equal but for rounding may change places, and their weights with them
                if field.name == "path_kernel_weights":
                    one, other = np.sort(one), np.sort(other)
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=field.name)


def test_a_cell_alone_is_that_of_the_whole_study_and_of_a_larger_one(place, tmp_path):
    small = small_study(place)
    larger = dataclasses.replace(
        small, seeds=3, method=("random", "snip", "synflow"), density=(0.5, 0.2), memory_gib=1.0
    )
    bench = sweep.workbench_of(larger, "digits", small.model[0], {"digits": load("digits", data_dir=place / "data")})
    measured = sweep.compute_cell(bench, ("synflow", 0.2), (1,))
    (alone,) = measured.trials
    (kept,) = [trial for trial in trials_of(place / "out") if trial.name == alone.name]
    assert encode(dataclasses.replace(alone, made={})) == encode(dataclasses.replace(kept, made={}))
    (sent,) = pickle.loads(pickle.dumps(measured)).trials  # to another process
    assert measured.pictures == {} and encode(sent) == encode(alone)
    made = alone.made
    assert made["versions"]["jax"] == jax.__version__ and made["device"] == "cpu" and made["seconds"] > 0
    assert made["study"] != kept.made["study"] and made["finished"].endswith("+00:00")
    measured = sweep.compute_cell(bench, ("synflow", 0.2), (2, 0))
    assert [trial.seed for trial in measured.trials] == [2, 0]
    with sweep.held(sweep.claim(larger, tmp_path)) as folder:
        assert sweep.keep(folder, measured) and not sweep.keep(folder, measured)
    file = kernel_pictures.file_of(tmp_path, "digits", "small", "synflow", 0.2)
    assert file.read_bytes() == kernel_pictures.file_of(place / "out", "digits", "small", "synflow", 0.2).read_bytes()


def test_the_best_so_far_is_the_best_mean():
    trials = [
        Trial.partial(("digits", "fc", method, 0.1, seed), test_accuracy=accuracy)
        for method, accuracies in (("snip", (0.9, 0.1)), ("synflow", (0.6, 0.6)))
        for seed, accuracy in enumerate(accuracies)
    ]
    table = sweep.best(trials)
    assert list(table.columns[3].cells) == ["synflow"] and list(table.columns[4].cells) == ["60.0%"]


def test_statistics_moved_into_the_norms_give_the_same_function():
    network = architectures.resnet((8, 8, 1), 3, depth=8, widths={"stage_0": 2, "stage_1": 3, "stage_2": 3})
    params, begun = network.init(jax.random.key(0))
    state = jax.tree.map(lambda leaf: leaf + 0.5 * jnp.arange(1, leaf.size + 1), begun)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1), jnp.float32)
    folded = with_statistics_of(begun, params, state)
    np.testing.assert_allclose(network.apply(folded, begun, x), network.apply(params, state, x), rtol=1e-4, atol=1e-5)


def test_a_factor_multiplies_all_widths_but_the_outputs():
    model = study.Model("narrow", "resnet_20", factor=0.3)
    network = models.network_of(model, (8, 8, 1), 10)
    assert (
        network.widths["stage_0"] == 5 and network.widths["stage_2_block_1"] == 20 and network.widths["outputs"] == 10
    )


def small_study(place):
    return study.read(str(place / "small.toml"), datasets=tuple(DATASETS))[1]


def test_records_are_read_without_holding_the_folder(place):
    claim = sweep.claim(small_study(place), place / "out")
    folder = results_folder.looked_at(claim)
    assert set(folder.kept) == set(claim.settings) and not folder.missing


def test_cells_whose_pictures_are_lost_are_missing_but_for_those_that_failed(place, tmp_path):
    out = Path(shutil.copytree(place / "out", tmp_path / "out"))
    small = small_study(place)
    with sweep.held(sweep.claim(small, out)) as folder:
        (work,) = sweep.missing_work(small, folder).values()
        assert work.missing == {} and work.fresh == dict.fromkeys(small.cells, (0, 1))
        kernel_pictures.file_of(out, "digits", "small", "synflow", 0.2).unlink()
        assert sweep.missing_work(small, folder)["digits", "small"].missing == {("synflow", 0.2): (0,)}
        first = folder.kept["digits", "small", "synflow", 0.2, 0]
        folder.kept[first.name] = dataclasses.replace(first, reason="no memory")
        assert sweep.missing_work(small, folder)["digits", "small"].missing == {}


def test_the_report_command_runs_its_study_and_draws_it(place, tmp_path, monkeypatch, capsys):
    out = Path(shutil.copytree(place / "out", tmp_path / "out"))
    before = (out / "results.jsonl").read_bytes()
    monkeypatch.setattr(command, "report_study", lambda options, datasets: small_study(place))
    arguments = ["report", "--out", str(out), "--data-dir", str(place / "data")]
    assert command.main(arguments) == 0
    assert "listed paths: relative error" in capsys.readouterr().out
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert files[out / "results.jsonl"] == before
    page = files[out / "report.html"].decode()
    for words in (
        "The kernels between examples",
        "prefers-color-scheme: dark",
        'name="viewport"',
        "seeds used",
        "Checks",
    ):
        assert words in page
    for name in ("summary.csv", "associations.csv", "report.html", "results.jsonl", "config.json"):
        assert str(Path.home()) not in files[out / name].decode()
        if name != "report.html":  # which names the command for the missing figure
            assert str(out) not in files[out / name].decode()
    assert command.main(arguments) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
