"""Studies whose cells are computed by other processes, which are killed in the middle."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import psutil
import pytest

from experiments import __main__ as command
from experiments.base import compile_cache
from experiments.data.loading import load
from experiments.study import Model
from experiments.train.checkpoints import checkpointed
from experiments.workers import pool
from experiments.workers.tasks import ATTEMPTS, Task
from tests.test_experiments.examples import compiled_once, plain, started, sweeping, trials_of

ROOT = Path(__file__).parents[2]
CONFIG = """
data = ["digits"]
method = ["random", "magnitude", "snip"]
density = [0.5, 0.2]
seeds = 2
train_images = 200
test_images = 100
[[model]]
name = "small"
network = "lenet_300_100"
factor = 0.03
[train]
epochs = 2
batch_size = 50
[measure]
rounds = 2
score_per_class = 1
kernel_pictures = true
changes = false
"""
PATIENCE = 300
"""Seconds after which a process counts as hanging."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with digits in `data`, a config, and what one process finds in `out`, not to be changed."""
    root = tmp_path_factory.mktemp("study")
    load("digits", data_dir=root / "data")
    (root / "small.toml").write_text(CONFIG)
    with compiled_once(root / "compiled"):
        assert command.main(sweeping(root, root / "out")) == 0
    return root


def begun(place, out, *more, config="small.toml"):
    """The command in a process of its own, which writes all that it says beside `out`."""
    return started(place, out, *more, config=config, log=out.with_suffix(".log"))


def wait_for_results(job, out, count):
    """Until the folder has that many lines; the process must still run then."""
    file = out / "results.jsonl"
    while not (file.exists() and file.read_bytes().count(b"\n") >= count):
        assert job.poll() is None, out.with_suffix(".log").read_text()
        time.sleep(0.01)


def assert_as_of_one_process(out, place):
    """What is kept is what one process finds, to the byte, once each; so are the pictures."""
    assert plain(out) == plain(place / "out")
    for pictures in (place / "out" / "kernels").iterdir():
        assert (out / "kernels" / pictures.name).read_bytes() == pictures.read_bytes()


def workers_of(job):
    """The processes that compute for a job."""
    workers = []
    for child in psutil.Process(job.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if any(name in " ".join(child.cmdline()) for name in ("spawn_main", "ray::_compute")):
                workers.append(child)
    return workers


ENGINES = [pytest.param(("--workers", "2"), id="workers"), pytest.param(("--ray", "local"), id="ray")]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_that_is_killed_changes_no_result(engine, place, tmp_path):
    out = tmp_path / "out"
    job = begun(place, out, *engine)
    wait_for_results(job, out, 2)
    worker = workers_of(job)[0]
    worker.send_signal(signal.SIGKILL)
    assert job.wait(PATIENCE) == 0, out.with_suffix(".log").read_text()
    assert_as_of_one_process(out, place)


def test_a_worker_that_is_killed_while_it_begins_changes_no_result(place, tmp_path):
    out = tmp_path / "out"
    job = begun(place, out, "--workers", "2")
    while not (workers := workers_of(job)):
        time.sleep(0.01)
    workers[0].kill()
    assert job.wait(PATIENCE) == 0
    assert "was lost; another one does." in out.with_suffix(".log").read_text()
    assert_as_of_one_process(out, place)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_driver_that_is_killed_takes_its_workers_along_and_goes_on_when_started_again(engine, place, tmp_path):
    out = tmp_path / "out"
    job = begun(place, out, *engine)
    wait_for_results(job, out, 2)
    workers = workers_of(job)
    assert workers
    job.kill()
    job.wait()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive
    before = (out / "results.jsonl").read_bytes()
    job = begun(place, out, *engine)
    assert job.wait(PATIENCE) == 0, out.with_suffix(".log").read_text()
    assert (out / "results.jsonl").read_bytes().startswith(before)
    assert_as_of_one_process(out, place)


def test_an_interruption_ends_driver_and_workers_in_one_sentence(place, tmp_path):
    out = tmp_path / "out"
    job = begun(place, out, "--workers", "2")
    wait_for_results(job, out, 2)
    workers = workers_of(job)
    job.send_signal(signal.SIGTERM)
    assert job.wait(PATIENCE) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive
    assert (
        out.with_suffix(".log")
        .read_text()
        .endswith("Terminated; every finished network is kept. The same command continues.\n")
    )


def test_a_cell_whose_workers_are_always_lost_fails_and_the_others_do_not(place, tmp_path):
    (tmp_path / "deadly.py").write_text(
        "import multiprocessing, os, signal\n"
        "from flax import linen as nn\n"
        "class Net(nn.Module):\n"
        "    outputs: int\n"
        "    @nn.compact\n"
        "    def __call__(self, x):\n"
        "        return nn.Dense(self.outputs)(x.reshape((len(x), -1)))\n"
        "def network(shape, outputs, **options):\n"
        "    if multiprocessing.parent_process() is not None:\n"  # not in the process that checks the study
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return Net(outputs)\n"
    )
    deadly = '[[model]]\nname = "deadly"\nnetwork = "deadly:network"\n[[model]]\nname = "small"'
    config = CONFIG.replace('[[model]]\nname = "small"', deadly).replace('"random", "magnitude", "snip"', '"random"')
    (tmp_path / "deadly.toml").write_text(config.replace("[0.5, 0.2]", "[0.5]").replace("seeds = 2", "seeds = 1"))
    out = tmp_path / "out"
    job = begun(place, out, "--workers", "2", config=tmp_path / "deadly.toml")
    assert job.wait(PATIENCE) == 1
    trials = trials_of(out)
    assert sorted((trial.model, trial.method) for trial in trials if not trial.reason) == [
        ("small", "dense"),
        ("small", "random"),
    ]
    reasons = {trial.reason for trial in trials if trial.model == "deadly"}
    assert reasons == {
        f"the process that computed it was lost {ATTEMPTS} times; where memory is short, fewer --workers help"
    }


def test_workers_begin_with_different_models_and_stay_with_theirs():
    def task(model, density):
        return Task("digits", Model(model, "fc"), ("snip", density), (0,))

    tasks = [task("a", 0.5), task("a", 0.2), task("b", 0.5), task("b", 0.2), task("b", 0.1)]
    queue = pool._Queue(tasks)
    assert queue.next(None, []) == task("b", 0.5)  # the most tasks
    assert queue.next(None, [("digits", "b")]) == task("a", 0.5)  # two of a, and two of b for two workers
    assert queue.next(("digits", "b"), [("digits", "a")]) == task("b", 0.2)
    queue.put_back(task("b", 0.5))
    assert queue.next(("digits", "b"), [("digits", "a")]) == task("b", 0.5)
    assert queue.next(("digits", "a"), [("digits", "b")]) == task("a", 0.2)
    assert queue.next(("digits", "a"), [("digits", "b")]) == task("b", 0.1)  # nothing of its own is left
    assert not queue


def test_a_worker_does_not_begin_where_others_end_before_it_has_begun():
    a, b = ("digits", "a"), ("digits", "b")
    tasks = [Task("digits", Model("b", "fc"), ("snip", 1 / number), (0,)) for number in (1, 2, 3, 4)]
    queue = pool._Queue(tasks)
    queue.took(b, 60.0, is_first=True)
    assert queue.next(a, [b]) == tasks[0]  # how long later tasks take is not known
    queue.took(b, 21.0, is_first=False)
    queue.took(b, 19.0, is_first=False)
    assert queue.next(a, [b]) == tasks[1]  # 3 tasks of 20 s are more than the 40 s of the beginning
    assert queue.next(a, [b]) is None  # 2 are not
    assert queue.next(b, [b]) == tasks[2]
    assert queue.next(a, []) == tasks[3]  # where nobody else is


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workers", "0"), "--workers is 0, but must be 1 or more."),
        (
            ("--workers", "2", "--ray", "local"),
            "--workers and --ray divide a study in different ways",
        ),
        (("--ray", "local", "--coordinator", "auto"), "--ray and --coordinator divide a study in different ways"),
        (("--gpus-per-trial", "1"), "--gpus-per-trial needs --ray"),
        (("--ray", "local", "--gpus-per-trial", "-1"), "--gpus-per-trial is -1, but must be"),
        (("--ray", "local", "--gpus-per-trial", "1.5"), "--gpus-per-trial is 1.5, but must be"),
        (("--ray", "local", "--gpus-per-trial", "nan"), "--gpus-per-trial is nan, but must be"),
        (("--ray", ""), "--ray is empty"),
        (("--ray", "127.0.0.1:1"), "No cluster of Ray is found at 127.0.0.1:1 ([Errno 111] Connection refused)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_make_no_sense_end_in_one_sentence(options, words, place, tmp_path, capsys):
    assert command.main(sweeping(place, tmp_path / "out", *options)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {words}") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_programs_are_kept_in_the_users_cache_and_half_a_program_is_removed(tmp_path):
    def compiling(**environment):
        code = (
            "from experiments.base import compile_cache\n"
            "import jax\n"
            "compile_cache.use()\n"
            "jax.jit(lambda x: jax.numpy.linalg.eigh(x @ x.T))(jax.numpy.ones((3, 3)))\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, check=True)

    cache = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    compiling(**cache)
    (folder,) = (tmp_path / "pathjax").iterdir()
    kept = sorted(path.name for path in folder.glob("*-cache"))
    assert any("lambda" in name for name in kept)
    half = folder / "jit_half-0123-cache"
    half.write_bytes(b"half")
    compiling(**cache)
    assert sorted(path.name for path in folder.glob("*-cache")) == kept
    compiling(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "chosen"), **cache)
    assert any("lambda" in path.name for path in (tmp_path / "chosen").iterdir())


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    before = jax.config.values["jax_compilation_cache_dir"]
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compile_cache.use()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    compile_cache.use()
    assert jax.config.values["jax_compilation_cache_dir"] == before and "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_half_of_a_removed_checkpoint_is_never_taken_for_a_whole(tmp_path, monkeypatch):
    def killed(path, **options):
        (step,) = (step for step in path.iterdir() if step.name.isdecimal())
        next(file for file in step.rglob("*") if file.is_file()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt), checkpointed(tmp_path, "a training") as kept:
        kept.save(1, {"w": 1.0})
    monkeypatch.undo()
    with checkpointed(tmp_path, "a training") as kept:
        assert kept.load({"w": 0.0}) == (0, {"w": 0.0})
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_of_two_processes_at_the_very_same_training_one_keeps_checkpoints(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from experiments.train.checkpoints import checkpointed\n"
        "with checkpointed(Path(sys.argv[1]), 'a training') as kept:\n"
        "    kept.save(1, {'w': 1.0})\n"
        "    print('saved', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "saved\n"
        with checkpointed(tmp_path, "a training") as ours:
            assert ours.load({"w": 0.0}) == (0, {"w": 0.0})
            ours.save(2, {"w": 2.0})
        assert len(list(tmp_path.glob("[!.]*"))) == 1  # that of the other one, which goes on
        other.communicate("\n")
    assert other.returncode == 0 and not list(tmp_path.glob("[!.]*"))
