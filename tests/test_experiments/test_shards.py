"""Parts of a study, each computed by a job of its own and joined afterwards."""

import dataclasses
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as command
from experiments import sweep
from experiments.base.shards import WHOLE, Shard
from experiments.data.loading import load
from experiments.measure.kernel_pictures import file_of
from experiments.records import results_folder, study_table
from experiments.records.trial import Trial
from experiments.report import opening
from experiments.setting import settings_of
from experiments.study import Model, Study
from tests.test_experiments.examples import compiled_once, plain, trials_of

ROOT = Path(__file__).parents[2]
STUDY = Study(
    data=("digits", "even_digits"),
    model=(Model("small", "fc"), Model("other", "lenet_300_100")),
    method=("random", "snip", "synflow"),
    density=(0.5, 0.1),
    seeds=2,
)
"""A study of 2 · 2 · 7 = 28 cells."""

PRUNED = [(method, density) for density in (0.5, 0.1) for method in ("random", "snip", "synflow")]
CELLS = [
    (data, model, *cell)
    for data in ("digits", "even_digits")
    for model in ("small", "other")
    for cell in [("dense", 1.0), *PRUNED]
]


@pytest.mark.parametrize("parts", [1, 2, 5, 8, 28, 30])
def test_parts_have_every_cell_once_in_turn_with_all_its_seeds(parts):
    found = [list(settings_of(STUDY, Shard(number, parts))) for number in range(1, parts + 1)]
    for number, names in enumerate(found):
        assert names == [(*cell, seed) for cell in CELLS[number::parts] for seed in (0, 1)]
    whole = settings_of(STUDY)
    assert list(whole) == [(*cell, seed) for cell in CELLS for seed in (0, 1)]
    assert all(settings_of(STUDY, Shard(1, parts))[name] == whole[name] for name in found[0])


def test_a_part_is_that_of_the_study_whatever_the_folder_holds(tmp_path):
    whole, part = sweep.claim(STUDY, tmp_path), sweep.claim(STUDY, tmp_path, shard=Shard(2, 3))
    assert (part.options, part.study) == (whole.options, whole.study)
    others = [name for name in whole.settings if name not in part.settings]
    with sweep.held(whole) as folder:
        made = whole.origin | {"study": whole.study}
        for name in (others[0], others[5], list(part.settings)[0]):
            folder.add([Trial.partial(name, setting=whole.settings[name], made=made)])
    looked = results_folder.looked_at(part)
    assert list(looked.kept) == list(part.settings)[:1] and looked.missing == {*part.settings} - {*looked.kept}
    assert looked.notes == []  # of trials of other parts nothing is said
    work = sweep.missing_work(STUDY, looked)
    cells = {(*place, *cell) for place, each in work.items() for cell in each.missing}
    assert cells == {name[:4] for name in looked.missing}
    fewer = dataclasses.replace(STUDY, data=("digits",), seeds=1)
    foreign = {others[0], others[5], list(part.settings)[0]} - {*settings_of(fewer)}
    (note,) = results_folder.looked_at(sweep.claim(fewer, tmp_path, shard=Shard(2, 3))).notes
    assert len(foreign) == 1 and note.startswith("1 trial in") and "not part of this study" in note


CONFIG = """
data = ["digits"]
method = ["random"]
density = [0.5, 0.2]
seeds = 2
train_images = 100
test_images = 50
[[model]]
name = "small"
network = "fc"
factor = 0.03
[train]
epochs = 1
batch_size = 50
[measure]
rounds = 2
score_per_class = 1
changes = false
kernel_pictures = true
"""
"""A study of 3 cells with 2 seeds each."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a config, the digits in `data`, and what one process finds of the study in `whole`."""
    root = tmp_path_factory.mktemp("study")
    load("digits", data_dir=root / "data")
    (root / "small.toml").write_text(CONFIG)
    with compiled_once(root / "compiled"):
        assert run(root, "--out", str(root / "whole")) == 0
        yield root


def run(place, *more):
    return command.main(["sweep", str(place / "small.toml"), "--data-dir", str(place / "data"), *more])


def rows(printed):
    """Data set, model, cells, networks and those that are kept, of each line of a plan."""
    lines = [re.split(r"\s*│\s*", line.strip("│ ")) for line in printed.splitlines() if "│ digits" in line]
    return [tuple(line[:5]) for line in lines]


def test_parts_join_to_the_lines_of_one_process_and_all_is_kept(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    whole = place / "whole"
    assert run(place, "--shard", "1/2", "--list") == 0
    assert rows(capsys.readouterr().out) == [("digits", "small", "2", "4", "0")] and not [*tmp_path.iterdir()]
    for part, cells in (("1/2", ["dense 1", "random 0.2"]), ("2/2", ["random 0.5"])):
        assert run(place, "--shard", part) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
        for number, (line, cell) in enumerate(itertools.zip_longest(said, cells), start=1):
            assert line.startswith(f"[{number}/{len(cells)}] digits small {cell}: accuracy")
    first, second = (tmp_path / "runs" / f"small-shard-{number}-of-2" for number in (1, 2))
    assert len(plain(first)) == 4 and len(plain(second)) == 2
    assert (first / "config.json").read_bytes() == (whole / "config.json").read_bytes()
    assert {trial.made["study"] for trial in trials_of(first)} == {trial.made["study"] for trial in trials_of(whole)}
    assert opening.how_far(study_table.read(first)) == "4 of 6 trials"
    # what a part has is not computed again
    before = (first / "results.jsonl").read_bytes()
    assert run(place, "--shard", "1/2") == 0 and (first / "results.jsonl").read_bytes() == before
    assert command.main(["merge", "runs/small", str(first), str(second)]) == 0
    joined = tmp_path / "runs" / "small"
    assert plain(joined) == plain(whole)
    for cell in (("dense", 1.0), ("random", 0.5), ("random", 0.2)):
        pictures = [file_of(folder, "digits", "small", *cell).read_bytes() for folder in (joined, whole)]
        assert pictures[0] == pictures[1]
    capsys.readouterr()
    assert run(place, "--list") == 0
    printed = capsys.readouterr().out
    assert rows(printed) == [("digits", "small", "3", "6", "6")] and "not part of this study" not in printed


def test_a_part_without_cells_is_said_and_nothing_is_made(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--list",)):
        assert run(place, "--shard", "4/5", *more) == 0
        assert capsys.readouterr().out == (
            "Part 4/5 has no cells, since the study has 3: there is nothing to compute.\n"
        )
    assert not [*tmp_path.iterdir()]


BAD = (
    ("0/4", "--shard is 0/4, but the parts are counted from 1 to 4: give 1/4 to 4/4, as Slurm does with --array=1-4."),
    ("5/4", "--shard is 5/4, but the parts are counted from 1 to 4: give 1/4 to 4/4"),
    ("1/0", "--shard is 1/0, but a study is divided into 1 part or more, as 1/8."),
    ("a/b", "--shard is 'a/b', but must be the number of a part and how many parts there are, as 2/8."),
    ("2", "--shard is '2', but must be"),
    ("", "--shard is '', but must be"),
    ("/8", "--shard is '/8', but must be"),
    ("-1/4", "--shard is '-1/4', but must be"),
    ("1/2/3", "--shard is '1/2/3', but must be"),
    ("1.0/4", "--shard is '1.0/4', but must be"),
)


def test_what_is_no_part_ends_in_one_sentence_before_anything_heavy_is_imported():
    script = (
        "import sys; from experiments.__main__ import main\n"
        f"for words in {[words for words, _ in BAD]!r}:\n"
        "    assert main(['sweep', 'digits', '--shard', words]) == 2\n"
        "assert main(['sweep', 'digits', '--shard', '1/2', '--coordinator', 'auto']) == 2\n"
        "heavy = {'jax', 'flax', 'numpy', 'pandas', 'matplotlib', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    *bad, coordinator = done.stderr.splitlines()
    for line, (_, words) in zip(bad, BAD, strict=True):
        assert line.startswith(f"error: {words}") and line.endswith(".")
    assert coordinator.startswith("error: --shard is for jobs that do not know of each other, and --coordinator for")


def test_the_whole_study_is_its_one_part():
    assert Shard.read("1/1") == WHOLE and str(Shard.read("08/010")) == "8/10"


def as_job(task, tasks, *arguments, path):
    """What docs/sweep.sbatch prints as one of so many jobs of Slurm, where programs are first looked for in `path`."""
    slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(tasks)}
    environment = os.environ | slurm | {"PATH": f"{path}:{os.environ['PATH']}", "JAX_ENABLE_X64": "1"}
    command = ["bash", "docs/sweep.sbatch", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_jobs_of_the_documented_array_are_the_parts_of_the_study(place, tmp_path):
    file = (ROOT / "docs" / "sweep.sbatch").read_text()
    header, commands = file.split("\n\n")
    directives = re.findall(r"^#SBATCH --([\w-]+)=(.+)$", header, re.MULTILINE)  # Slurm reads none after a command
    assert dict(directives)["array"] == "1-8" and {"time", "cpus-per-task", "mem"} <= dict(directives).keys()
    assert "#SBATCH" not in commands
    stub = tmp_path / "python"
    stub.write_text("#!/bin/bash\nprintf '%q ' \"$@\"\n")
    stub.chmod(0o755)
    for task in range(1, 9):
        words = shlex.split(as_job(task, 8, "my study.toml", "--set", "seeds=5", path=tmp_path))
        assert words == ["-m", "experiments", "sweep", "my study.toml", "--set", "seeds=5", "--shard", f"{task}/8"]
    arguments = [str(place / "small.toml"), "--data-dir", str(place / "data"), "--list"]
    printed = as_job(2, 2, *arguments, path=Path(sys.executable).parent)
    assert rows(printed) == [("digits", "small", "1", "2", "0")]


def test_the_documented_files_are_there():
    page = (ROOT / "docs" / "many-jobs.md").read_text()
    assert "](many-jobs.md)" in (ROOT / "docs" / "studies.md").read_text()
    for file in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / file).exists()
