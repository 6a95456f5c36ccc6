"""Folders with parts of one study, joined into one."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.base.errors import InputError
from experiments.measure import kernel_pictures
from experiments.records import merging, results_folder, stored_lines, study_table, trial_table
from experiments.records.jsonl import encode
from experiments.records.results_folder import Claim
from tests.test_experiments.examples import example_kernels, example_trial

ROOT = Path(__file__).parents[2]
ORIGIN = {"versions": {"jax": "0.1"}, "device": "cpu", "commit": "a" * 40, "changed": False}
SETTING = {"train.epochs": 30, "jax_enable_x64": False}
METHODS = ("dense", "random", "snip")
OPTIONS = {
    "data": ["digits"],
    "model": [{"name": "fc", "network": "a_module_that_is_not_there:network"}],
    "method": ["random", "snip"],
    "density": [0.1],
    "seeds": 2,
    "train.epochs": 30,
}
"""A study of 3 cells with 2 seeds each."""


def trial_of(method, seed, **changed):
    made = ORIGIN | {"study": "a study", "finished": f"{method} {seed}"}
    named = {"method": method, "density": 1.0 if method == "dense" else 0.1, "seed": seed}
    return example_trial(**named | {"test_accuracy": 0.1 * seed, "setting": SETTING, "made": made} | changed)


def trials_of(*methods, seeds=(0, 1), **changed):
    return [trial_of(method, seed, **changed) for method in methods for seed in seeds]


def filled(folder, trials, options=OPTIONS, origin=ORIGIN):
    """A folder as a sweep leaves it: with these trials, and with pictures of the cells of which seed 0 has a result."""
    settings = {trial.name: trial.setting for trial in trials}
    with results_folder.claimed(Claim(folder, options, settings, origin, "a study")) as held:
        for trial in trials:
            if trial.seed == 0 and not trial.reason:
                pictures = example_kernels(METHODS.index(trial.method))
                kernel_pictures.save(kernel_pictures.file_of(folder, *trial.name[:4]), pictures)
            held.missing.add(trial.name)
            held.add([trial])
    return folder


@pytest.fixture
def parts(tmp_path):
    return [filled(tmp_path / "one", trials_of("dense", "snip")), filled(tmp_path / "two", trials_of("random"))]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def content(*folders):
    """All files but locks, with their bytes, and when each was written."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def lines(folder):
    return (folder / "results.jsonl").read_bytes()


def results_of(folder):
    """What counts of each trial, by what a study reads."""
    return stored_lines.newest(stored_lines.read(folder / "results.jsonl").trials)


def test_joined_parts_have_the_lines_the_pictures_and_the_table_of_one_folder(parts, out, tmp_path):
    whole = filled(tmp_path / "whole", trials_of(*METHODS))
    trial_table.write(whole, map(vars, results_of(whole).values()), OPTIONS)
    before = content(*parts)
    merging.merged(out, parts)
    assert content(*parts) == before
    assert lines(out) == lines(parts[0]) + lines(parts[1])
    assert sorted(lines(out).splitlines()) == sorted(lines(whole).splitlines())
    names = {path.relative_to(whole) for path in content(whole)} - {Path("results.jsonl")}
    assert names == {path.relative_to(out) for path in content(out)} - {Path("results.jsonl")}
    assert len(names) >= 3 + 2
    for name in names - {Path("trials.parquet")}:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert len(study_table.read(out).trials) == 6


def test_to_join_again_adds_what_is_new_and_touches_nothing_else(parts, out):
    told = merging.merged(out, parts[:1])
    assert f"{out}: 4 of 6 trials of the study" in told
    sweep = f"python -m experiments sweep CONFIG --out {out}"
    assert f"2 missing: join again when the parts have more, or compute them by `{sweep}`." in told
    before = content(out)
    assert any("4 trials, of which 4 are new" in sentence for sentence in told)
    told = merging.merged(out, parts)
    after = content(out)
    assert lines(out) == before[out / "results.jsonl"][0] + lines(parts[1])
    assert {path: after[path] for path in before if path.suffix not in (".jsonl", ".csv", ".parquet")} == {
        path: before[path] for path in before if path.suffix not in (".jsonl", ".csv", ".parquet")
    }
    assert told[0] == f"{parts[0]}: 4 trials, of which 0 are new in {out}"
    assert told[1] == f"{parts[1]}: 2 trials, of which 2 are new in {out}"
    assert told[-2:] == [
        f"{out}: 6 of 6 trials of the study",
        f"Figures: `python -m experiments figures {out}`",
    ]
    merging.merged(out, parts)
    assert content(out)[out / "results.jsonl"] == after[out / "results.jsonl"]


def test_the_joined_folder_is_the_first_of_its_parts_and_no_folder_counts_twice(parts, monkeypatch, tmp_path):
    first, second = parts
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(first)
    before = lines(first)
    told = merging.merged(first, [second, Path("two"), Path("one"), tmp_path / "link"])
    assert lines(first) == before + lines(second)
    assert [sentence for sentence in told if "of which" in sentence] == [
        f"{second}: 2 trials, of which 2 are new in {first}"
    ]
    with pytest.raises(InputError, match="There is nothing to join: name the folders of the parts after"):
        merging.merged(first, [tmp_path / "link"])
    with pytest.raises(InputError, match="There is nothing to join"):
        merging.merged(first, [])


def test_a_result_takes_the_place_of_a_failure_and_a_failure_of_nothing(out, tmp_path):
    whole = filled(tmp_path / "whole", trials_of(*METHODS))
    lost = filled(tmp_path / "lost", trials_of("dense", reason="no memory"))
    worse = filled(tmp_path / "worse", trials_of("dense", reason="no luck", setting={"train.epochs": 7}))
    merging.merged(out, [lost, worse])
    assert lines(out) == lines(lost)
    told = merging.merged(out, [whole, worse])
    assert lines(out).startswith(lines(lost)) and results_of(out) == results_of(whole)
    assert not any("failed" in sentence for sentence in told)
    for number, order in enumerate(([lost, whole], [whole, lost])):
        merging.merged(tmp_path / f"order {number}", order)
        assert sorted(lines(tmp_path / f"order {number}").splitlines()) == sorted(lines(whole).splitlines())
    told = merging.merged(tmp_path / "failed", [lost])
    assert "2 trials failed: `python -m experiments sweep CONFIG --out " in told[-2] and "--retry-failed" in told[-2]


def test_of_several_lines_of_one_name_in_a_folder_the_one_that_counts_is_taken(out, parts):
    later = trial_of("random", 1, test_accuracy=0.25)
    with (parts[1] / "results.jsonl").open("a") as file:
        file.write(encode(later) + "\n" + encode(trial_of("random", 0, reason="no memory")) + "\n")
    merging.merged(out, parts)
    assert results_of(out)[later.name] == later and not results_of(out)[trial_of("random", 0).name].reason
    assert lines(out).count(b"\n") == 6


def test_a_part_that_is_being_written_to_is_read_without_its_last_half_line(out, parts):
    settings = {trial.name: SETTING for trial in trials_of("random")}
    with results_folder.claimed(Claim(parts[1], OPTIONS, settings, ORIGIN, "a study")):
        whole = lines(parts[1])
        (parts[1] / "results.jsonl").write_bytes(whole[:-10])
        (parts[1] / "kernels" / "digits-fc-random-0.1.npz.tmp").write_bytes(b"half")
        told = merging.merged(out, parts)
    assert told[0].startswith(f"The last line of {parts[1] / 'results.jsonl'} is written only in part, by a process")
    assert told[0].endswith("it is left out.") and lines(parts[1]) == whole[:-10]
    assert len(results_of(out)) == 5 and not [*(out / "kernels").glob("*.tmp")]
    (parts[1] / "results.jsonl").write_bytes(whole[:-1])  # all of it but the newline
    told = merging.merged(out, parts)
    assert len(results_of(out)) == 6 and "written only in part" not in "".join(told)


def test_devices_states_of_the_program_and_trials_of_other_studies_are_told(out, parts, tmp_path):
    origin = ORIGIN | {"device": "TPU v4", "commit": "b" * 40}
    elsewhere = filled(tmp_path / "elsewhere", trials_of("random", made=origin) + [trial_of("dense", 2)], origin=origin)
    told = merging.merged(out, [parts[0], elsewhere])
    assert told[:2] == [
        "The study was computed on different devices, 4 trials by cpu and 2 trials by TPU v4: devices round "
        "differently.",
        "The study was computed by different states of the program, 4 trials by commit aaaaaaaaaa and 2 trials by "
        "commit bbbbbbbbbb: they are taken as they are, whatever changed in between.",
    ]
    assert f"1 trial in {out / 'results.jsonl'} is not part of this study: it stays there and in no figure." in told
    assert f"{out}: 6 of 6 trials of the study" in told and len(results_of(out)) == 7


def refusal(out, *folders):
    """The one sentence by which folders are not joined; all is then as it was."""
    before = content(out, *folders)
    was_there = out.exists()
    with pytest.raises(InputError) as caught:
        merging.merged(out, folders)
    assert content(out, *folders) == before and out.exists() == was_there
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


REMEDY = "Leave one of the folders out, or join them into different ones."


def changed_config(folder, table, key, value):
    config = json.loads((folder / "config.json").read_text())
    config[table][key] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("table", "key", "value", "words"),
    [
        ("options", "train.epochs", 7, "hold studies of different configs: train.epochs is 30 in {} and 7 in {}"),
        ("options", "new", "word", "hold studies of different configs: new is absent in {} and word in {}"),
        ("versions", "jax", "0.2", "hold results of different versions: jax is 0.1 in {} and 0.2 in {}"),
    ],
)
def test_other_configs_and_versions_are_refused_by_name(table, key, value, words, out, parts):
    changed_config(parts[1], table, key, value)
    before = "Sweep the same config in both, leave" if table == "options" else "Leave"
    said = f"{parts[0]} and {parts[1]} {words.format(*parts)}. {before}{REMEDY.removeprefix('Leave')}"
    assert refusal(out, *parts) == refusal(*parts) == said


def test_folders_that_hold_no_results_or_cannot_be_read_are_refused(out, parts, tmp_path):
    none, begun, empty = (tmp_path / name for name in ("none", "begun", "empty"))
    assert f"{none} has no results of a study (config.json: No such file or directory); give the folder" in refusal(
        out, *parts, none
    )
    for folder in (begun, empty):
        filled(folder, [])
    (empty / "results.jsonl").write_text("")
    assert refusal(out, begun, empty) == (
        f"There is nothing to join: no network of {begun} and {empty} is finished yet."
    )
    assert f"{begun} has no finished network yet." in merging.merged(tmp_path / "some", [*parts, begun])
    (begun / "config.json").write_text("{")
    assert f"{begun / 'config.json'} is not a configuration of this program." == refusal(out, begun)
    config = json.loads((parts[1] / "config.json").read_text())
    (parts[1] / "config.json").write_text(json.dumps(config | {"format": 3}))
    assert f"{parts[1]} has results of format 3, and only those of format 4 say what decides them" in refusal(
        out, *parts
    )


def test_a_broken_line_is_named_with_its_folder_and_fault(out, parts):
    path = parts[1] / "results.jsonl"
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    words = f"Line 1 of {path} is not a trial of a study (it is not JSON); `sweep` with --repair moves a broken line"
    assert refusal(out, *parts).startswith(words)
    assert refusal(parts[1], parts[0]).startswith(words)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"test_accuracy": 0.25}, "test_accuracy"),
        ({"kept": 8, "train_loss": [], "absent": "much"}, "kept; train_loss; absent"),
        ({"setting": SETTING | {"train.epochs": 7}}, "train.epochs is 30 in {} and 7 in {}"),
        ({"setting": SETTING | {"measure.curves": True}}, "measure.curves is absent in {} and true in {}"),
    ],
)
def test_one_trial_with_two_results_is_refused_by_what_differs(changed, words, out, parts, tmp_path):
    other = filled(tmp_path / "other", [trial_of("snip", 1, **changed)])
    for into, folders in ((out, [*parts, other]), (parts[0], [other])):
        assert refusal(into, *folders) == (
            f"digits, fc, snip at density 0.1, seed 1 has different results in {parts[0]} and {other}, which differ in "
            f"{words.format(parts[0], other)}. {REMEDY}"
        )


def test_a_trial_that_differs_only_in_when_and_where_it_was_made_is_one(out, parts, tmp_path):
    other = filled(tmp_path / "other", trials_of("snip", made=ORIGIN | {"seconds": 3.0, "device": "TPU v4"}))
    merging.merged(out, [*parts, other])
    assert lines(out) == lines(parts[0]) + lines(parts[1])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"setting": SETTING | {"source of model.network": "ab"}}, "source of model.network is {} in {} and {} in {}"),
        ({"setting": SETTING | {"jax_enable_x64": True}}, "jax_enable_x64 is {} in {} and {} in {}"),
        ({"made": ORIGIN | {"versions": {"jax": "0.3"}}}, "jax is {} in {} and {} in {}"),
    ],
)
def test_different_trials_that_no_one_sweep_would_have_accepted_are_refused(changed, words, out, parts, tmp_path):
    other = filled(tmp_path / "other", trials_of("random", **changed))
    values = {"source": ("absent", "ab"), "jax_enable_x64": ("false", "true"), "jax": ("0.1", "0.3")}[words.split()[0]]
    for one, two, (first, second) in ((parts[0], other, values), (other, parts[0], values[::-1])):
        said = refusal(out, one, two)
        assert words.format(first, one, second, two) in said and said.endswith(f"). {REMEDY}")
    # a failure has no numbers that could be mixed with others
    failed = filled(tmp_path / "failed", trials_of("random", reason="no memory", **changed))
    merging.merged(out, [parts[0], failed])
    assert len(results_of(out)) == 6


def test_pictures_with_other_numbers_are_refused(out, parts, tmp_path):
    path = kernel_pictures.file_of(parts[0], "digits", "fc", "snip", 0.1)
    other = filled(tmp_path / "other", trials_of("snip"))
    kernel_pictures.save(other / path.relative_to(parts[0]), example_kernels(17))
    said = f"{path} and {other / path.relative_to(parts[0])} do not hold the same numbers. {REMEDY}"
    assert refusal(out, *parts, other) == refusal(parts[0], other) == said


def test_a_joined_folder_that_cannot_be_written_or_is_held_is_refused(out, parts, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        assert f"Cannot write to {place}" in refusal(place, *parts)
    settings = {trial.name: SETTING for trial in trials_of("dense", "snip")}
    with results_folder.claimed(Claim(parts[0], OPTIONS, settings, ORIGIN, "a study")):
        assert refusal(parts[0], parts[1]).startswith(f"Another process is writing to {parts[0]}; wait for its end")
    (parts[0] / "config.json").unlink()
    assert f"{parts[0]} has no results of a study (config.json: No such" in refusal(parts[0], parts[1])


def test_a_full_disk_leaves_whole_lines_and_the_same_call_goes_on(out, parts, monkeypatch):
    merging.merged(out, parts[:1])
    before = lines(out)
    fsync = os.fsync

    def full(descriptor):
        if os.path.samestat(os.fstat(descriptor), os.stat(out / "results.jsonl")):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=rf"Cannot write {out / 'results.jsonl'}: No space left on device"):
        merging.merged(out, parts)
    assert lines(out) == before
    monkeypatch.undo()
    merging.merged(out, parts)
    assert lines(out) == before + lines(parts[1])


def test_a_kill_at_any_moment_loses_nothing_and_the_same_call_goes_on(parts, tmp_path):
    """Killed at the first, the second, … write or rename, in the middle of what is written."""
    script = """
        import os, signal, sys
        from pathlib import Path
        from experiments.records import merging, stored_lines, study_table
        root, *parts = map(Path, sys.argv[1:])
        write, replace, left = os.write, os.replace, [0]
        def at_last(in_part):
            left[0] -= 1
            if not left[0]:
                in_part()
                os.kill(os.getpid(), signal.SIGKILL)
        def writing(descriptor, data):
            at_last(lambda: write(descriptor, data[: 3 * len(data) // 4]))
            return write(descriptor, data)
        def replacing(*names):
            at_last(lambda: None)
            return replace(*names)
        os.write, os.replace = writing, replacing
        whole = (parts[0] / "results.jsonl").read_bytes() + (parts[1] / "results.jsonl").read_bytes()
        for moment in range(1, 30):
            out = root / str(moment)
            child = os.fork()
            if not child:
                left[0] = moment
                merging.merged(out, parts)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if not status:
                break
            left[0] = 0
            if (out / "results.jsonl").exists():
                study_table.config_of(out)
                lines, half = (out / "results.jsonl").read_bytes().rpartition(b"\\n")[::2]
                assert whole.startswith(lines)
                pictures = {path.name for path in (out / "kernels").iterdir()}
                assert pictures >= {path.name for part in parts for path in (part / "kernels").iterdir()}
            merging.merged(out, parts)
            assert (out / "results.jsonl").read_bytes() == whole
            assert {path.name for path in out.iterdir()} >= {"trials.csv", "config.json"}
            assert not [*out.rglob("*.tmp")]
        assert "jax" not in sys.modules
        print(moment - 1)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "killed"), *map(str, parts)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # config, three files of pictures, results and the table, in one form or two
    assert int(done.stdout) >= 1 + 3 + 1 + 1


def test_the_command_says_what_there_is_and_refuses_in_one_sentence(out, parts, capsys):
    assert main(["merge", str(out), *map(str, parts)]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.endswith(f"Figures: `python -m experiments figures {out}`\n")
    assert main(["merge", str(out)]) == 2
    assert main(["merge", str(out), str(out / "nowhere")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("error: ") == printed.err.count("\n") == 2
    assert main(["merge", str(out), "--repair"]) == 2
    assert "merge has no option --repair, which is one of report and sweep: it has --help." in capsys.readouterr().err
