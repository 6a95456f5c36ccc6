import dataclasses
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from experiments import sweep
from experiments.base.errors import InputError
from experiments.records import results_folder, stored_lines
from experiments.records.jsonl import encode
from experiments.records.results_folder import Claim
from tests.test_experiments.examples import example_trial

ROOT = Path(__file__).parents[2]
ORIGIN = {"versions": {"jax": "0.1"}, "device": "cpu", "commit": "a" * 40, "changed": False}
SETTING = {"train.epochs": 30}


def claim_of(out, seeds=range(3), setting=SETTING, origin=ORIGIN, **more):
    names = [("digits", "fc", "snip", 0.1, seed) for seed in seeds]
    return Claim(out, {"seeds": len(names)}, dict.fromkeys(names, setting), origin, f"study of {len(names)}", **more)


@pytest.fixture
def claim(tmp_path):
    return claim_of(tmp_path / "out")


def trial_of(seed, **changed):
    return example_trial(seed=seed, **{"setting": SETTING, "made": ORIGIN | {"study": "study of 3"}} | changed)


def filled(claim, seeds):
    with results_folder.claimed(claim) as folder:
        folder.add([trial_of(seed) for seed in seeds])
    return claim.results


def refusal(claim, opened=results_folder.claimed):
    """The words by which a run and `--list` refuse the folder, which stays as it was."""
    before = content(claim.out)
    with pytest.raises(InputError) as caught:
        results_folder.looked_at(claim)
    listed = str(caught.value)
    with pytest.raises(InputError) as caught, results_folder.claimed(claim):
        pass
    message = str(caught.value)
    assert message == listed and message.endswith(".") and "\n" not in message
    assert content(claim.out) == before
    return message


def content(out):
    return {file.name: file.read_bytes() for file in out.iterdir() if file.name != ".lock"} if out.is_dir() else {}


def opened(claim):
    with results_folder.claimed(claim) as folder:
        return folder


def seeds_of(names):
    return sorted(name[-1] for name in names)


def test_trials_are_found_again_and_the_rest_is_missing(claim):
    filled(claim, [0, 1])
    folder = opened(claim)
    assert folder.trials() == [trial_of(0), trial_of(1)] and folder.notes == []
    assert seeds_of(folder.missing) == [2] and seeds_of(folder.fresh) == [0, 1, 2]


def test_a_trial_is_kept_once_as_it_first_was(claim):
    path = filled(claim, [0])
    before = path.read_bytes()
    with results_folder.claimed(claim) as folder:
        assert folder.add([trial_of(0, test_accuracy=0.5), trial_of(2), trial_of(3)]) == [trial_of(2)]
        assert folder.trials() == [trial_of(0), trial_of(2)]
    assert path.read_bytes() == before + (encode(trial_of(2)) + "\n").encode()


def test_the_study_is_written_first_and_again_only_when_it_changes(claim):
    opened(claim)
    file = claim.out / "config.json"
    config = json.loads(file.read_text())
    assert config["options"] == claim.options and config["versions"] == ORIGIN["versions"]
    number = file.stat().st_ino
    opened(claim)
    assert file.stat().st_ino == number
    opened(claim_of(claim.out, seeds=range(2)))
    assert json.loads(file.read_text())["options"] == {"seeds": 2} and file.stat().st_ino != number


def test_a_study_gains_and_loses_trials_and_none_is_lost(claim):
    path = filled(claim, [0, 1, 2])
    before = path.read_bytes()
    fewer = opened(claim_of(claim.out, seeds=[2]))
    assert fewer.trials() == [trial_of(2)] and not fewer.missing and not fewer.fresh
    assert fewer.notes == [f"2 trials in {path} are not part of this study: they stay there and in no figure."]
    more = opened(claim_of(claim.out, seeds=range(5)))
    assert more.trials() == [trial_of(seed) for seed in range(3)]
    assert seeds_of(more.missing) == seeds_of(more.fresh) == [3, 4]
    assert path.read_bytes() == before


@pytest.mark.parametrize("setting", [{"train.epochs": 7}, SETTING | {"source of data": "ab"}])
def test_what_was_decided_by_something_else_is_refused_by_name(claim, setting):
    filled(claim, [0, 1])
    words = "train.epochs is 30 there and 7 here" if len(setting) == 1 else "source of data is absent there and ab here"
    assert refusal(claim_of(claim.out, setting=setting)) == (
        f"{claim.out} holds the results of another configuration: {words} (in digits, fc, snip at density 0.1, seed 0 "
        "and 1 more). Give another folder with --out, or the options of before."
    )
    # of trials that are not part of the study nothing is asked
    assert seeds_of(opened(claim_of(claim.out, seeds=[2], setting=setting)).missing) == [2]


def test_other_versions_are_refused_and_another_device_or_commit_is_said(claim):
    filled(claim, [0])
    newer = ORIGIN | {"versions": {"jax": "0.2"}}
    assert "jax is 0.1 there and 0.2 here" in refusal(claim_of(claim.out, origin=newer))
    elsewhere = ORIGIN | {"device": "TPU v4", "commit": "b" * 40, "changed": True}
    device, commit = opened(claim_of(claim.out, origin=elsewhere)).notes
    assert device.startswith("1 finished trial of this study came from cpu, and this is TPU v4: devices round")
    assert "came from commit aaaaaaaaaa of the program, and this is commit bbbbbbbbbb with changes: " in commit


def test_what_is_measured_in_addition_is_computed_where_it_lacks_and_kept_where_it_is_not_asked_for(claim):
    filled(claim, [0])
    fuller = claim_of(claim.out, setting=SETTING | {"measure.curves": True, "measure.rank": 3})
    folder = opened(fuller)
    assert seeds_of(folder.missing) == [0, 1, 2]
    assert folder.notes[0] == (
        "1 finished trial without measure.curves and measure.rank will be computed again, and measured in full."
    )
    with results_folder.claimed(fuller) as folder:
        folder.add([trial_of(0, setting=fuller.settings["digits", "fc", "snip", 0.1, 0])])
    assert seeds_of(opened(fuller).missing) == seeds_of(opened(claim).missing) == [1, 2]
    other = claim_of(claim.out, setting=SETTING | {"measure.curves": True, "measure.rank": 4})
    assert "measure.rank is 3 there and 4 here" in refusal(other)


def test_of_two_lines_of_one_name_the_later_counts(claim):
    path = filled(claim, [0, 1])
    with path.open("a") as file:
        file.write(encode(trial_of(0, test_accuracy=0.25)) + "\n")
    assert opened(claim).trials() == [trial_of(1), trial_of(0, test_accuracy=0.25)]


def test_a_failure_takes_no_results_place(claim):
    path = filled(claim, [0])
    with path.open("a") as file:
        file.write(encode(trial_of(0, reason="no memory")) + "\n")
    assert opened(claim).trials() == [trial_of(0)]


def test_failed_trials_count_until_they_are_asked_for_again(claim):
    path = filled(claim, [0])
    failed = trial_of(1, reason="no memory")
    with results_folder.claimed(claim) as folder:
        folder.add([failed])
    assert seeds_of(opened(claim).missing) == [2]
    before = path.read_bytes()
    with results_folder.claimed(dataclasses.replace(claim, retry_failed=True)) as folder:
        assert seeds_of(folder.missing) == [1, 2]
        folder.add([trial_of(1)])
    assert path.read_bytes() == before + (encode(trial_of(1)) + "\n").encode()
    assert opened(claim).trials() == [trial_of(0), trial_of(1)]


@pytest.mark.parametrize("reason", ["no memory", "UnsupportedPrimitive: none"])
def test_what_has_no_result_is_retried_though_something_else_decides_it_now(claim, reason):
    with results_folder.claimed(claim) as folder:
        folder.add([trial_of(seed, reason=reason) for seed in range(3)])
    mended = claim_of(claim.out, setting={"train.epochs": 31})
    assert "train.epochs is 30 there and 31 here" in refusal(mended)
    with results_folder.claimed(dataclasses.replace(mended, retry_failed=True)) as folder:
        assert seeds_of(folder.missing) == [0, 1, 2]


def test_what_is_not_defined_is_no_failure_and_is_not_tried_again(claim):
    undefined = trial_of(1, reason="UnsupportedPrimitive: No expectation in closed form for `max`.")
    assert undefined.is_undefined and not undefined.has_failed
    with results_folder.claimed(claim) as folder:
        folder.add([undefined])
    with results_folder.claimed(dataclasses.replace(claim, retry_failed=True)) as folder:
        assert undefined.name not in folder.missing
    (said,) = sweep.said_of_failures([undefined, trial_of(0)])
    assert said.startswith("1 of 2 trials have no result, since their method is not defined for their network")
    assert said.endswith("for `max`.")


TOO_LONG = re.sub(r'"test_accuracy": [^,]*', f'"test_accuracy": 1{"0" * 400}', encode(trial_of(1)))


@pytest.mark.parametrize("line", ["[" * 100_000, TOO_LONG], ids=["brackets", "digits"])
def test_lines_beyond_what_python_holds_are_broken_lines(claim, line):
    path = filled(claim, [0])
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    assert f"Line 2 of {path} cannot be read" in refusal(claim)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '"words"'])
def test_a_broken_configuration_is_refused(claim, content):
    filled(claim, [0])
    (claim.out / "config.json").write_text(content)
    assert "is not a configuration of this program" in refusal(claim)


def test_an_older_format_is_refused(claim):
    filled(claim, [0])
    config = claim.out / "config.json"
    config.write_text(config.read_text().replace('"format": 4', '"format": 3'))
    assert "format is 3 there and 4 here. Give another folder with --out" in refusal(claim)


def test_results_without_configuration_are_refused(claim):
    filled(claim, [0])
    (claim.out / "config.json").unlink()
    assert "no config.json" in refusal(claim)


@pytest.mark.parametrize("cut", [1, 20, 500])
def test_half_a_line_at_the_end_is_moved_aside_and_said(claim, cut):
    path = filled(claim, [0, 1])
    whole = path.read_bytes()
    path.write_bytes(whole[: -cut - 1])
    listed = results_folder.looked_at(claim)
    assert seeds_of(listed.missing) == [1, 2] and "the last line, of which a process that was killed" in listed.notes[0]
    assert path.read_bytes() == whole[: -cut - 1]
    with results_folder.claimed(claim) as folder:
        (note,) = folder.notes
        assert note.startswith(f"The last line of {path} was only written in part") and f"{path}.broken" in note
        assert folder.trials() == [trial_of(0)] and seeds_of(folder.missing) == [1, 2]
        folder.add([trial_of(1)])
    assert path.read_bytes() == whole
    assert path.with_name("results.jsonl.broken").read_bytes() == whole[whole.index(b"\n") + 1 : -cut - 1]


def test_a_process_killed_while_it_appends_loses_that_line_alone(claim):
    script = """
        import os, pickle, signal, sys
        from experiments.records import results_folder
        claim, trials = pickle.load(sys.stdin.buffer)
        write = os.write
        def in_part(descriptor, data):
            write(descriptor, data[: 3 * len(data) // 4])
            os.kill(os.getpid(), signal.SIGKILL)
        with results_folder.claimed(claim) as folder:
            folder.add(trials[:1])
            os.write = in_part
            folder.add(trials[1:])
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    given = pickle.dumps((claim, [trial_of(seed) for seed in range(3)]))
    assert subprocess.run(command, cwd=ROOT, input=given).returncode == -signal.SIGKILL
    folder = opened(claim)
    assert folder.trials() == [trial_of(0), trial_of(1)] and seeds_of(folder.missing) == [2]
    with results_folder.claimed(claim) as folder:
        folder.add([trial_of(2)])
    assert opened(claim).trials() == [trial_of(seed) for seed in range(3)]


def test_a_whole_line_that_lost_its_newline_is_read(claim):
    path = filled(claim, [0])
    path.write_bytes(path.read_bytes().rstrip())
    with results_folder.claimed(claim) as folder:
        folder.add([trial_of(1)])
        assert folder.trials() == [trial_of(0), trial_of(1)]
    assert opened(claim).trials() == [trial_of(0), trial_of(1)]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{}", "the line does not hold the fields of a trial"),
        (b"nonsense", "it is not JSON"),
        (b"\xff", "it is not UTF-8"),
        (b"", "it is not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_repair_moves_it_alone(claim, line, fault):
    path = filled(claim, [0, 1])
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(first + b"\n" + line + b"\n" + second + b"\n" + second[:9])
    assert refusal(claim).startswith(f"Line 2 of {path} cannot be read ({fault}); every other finished trial is kept. ")
    repair = dataclasses.replace(claim, repair=True)
    damaged = content(claim.out)
    assert results_folder.looked_at(repair).notes[0] == (
        f"A run would move line 2, which cannot be read ({fault}), to another file."
    )
    assert content(claim.out) == damaged
    half, moved = opened(repair).notes
    aside = path.with_name("results.jsonl.broken-2")
    assert moved.startswith(
        f"Moved line 2 of {path}, which cannot be read ({fault}), to {aside}; `cat {aside} >> {path}`"
    )
    assert "only written in part" in half and aside.read_bytes() == line + b"\n"
    assert path.read_bytes() == first + b"\n" + second + b"\n"
    assert opened(claim).trials() == [trial_of(0), trial_of(1)]


def test_repair_never_touches_what_it_refuses(claim):
    path = filled(claim, [0, 1])
    with path.open("ab") as file:
        file.write(b"nonsense\n" + b'{"da')
    other = claim_of(claim.out, setting={"train.epochs": 7}, repair=True)
    assert "train.epochs is 30 there and 7 here" in refusal(other)
    assert sorted(content(claim.out)) == ["config.json", "results.jsonl"]


def test_two_processes_in_one_folder_are_refused(claim):
    with results_folder.claimed(claim):
        with pytest.raises(InputError, match="Another process is writing"), results_folder.claimed(claim):
            pass
        assert seeds_of(results_folder.looked_at(claim).missing) == [0, 1, 2]
    opened(claim)


def test_a_folder_that_cannot_be_made_is_refused(claim, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match="Cannot write to"):
            opened(claim_of(out))
        with pytest.raises(InputError, match="Cannot write to"):
            results_folder.looked_at(claim_of(out))


def test_a_look_makes_nothing(claim):
    assert seeds_of(results_folder.looked_at(claim).missing) == [0, 1, 2]
    assert not claim.out.exists()


def test_a_failed_sync_leaves_the_old_file(claim, monkeypatch):
    path = filled(claim, [0])
    before = path.read_bytes()

    def no_room(descriptor):
        raise OSError(28, "No space left on device")

    with results_folder.claimed(claim) as folder:
        monkeypatch.setattr("os.fsync", no_room)
        with pytest.raises(InputError, match=r"No space left on device\. Every result written before is kept"):
            folder.add([trial_of(1)])
        assert folder.trials() == [trial_of(0)] and seeds_of(folder.missing) == [1, 2]
    assert path.read_bytes() == before
    assert sorted(file.name for file in claim.out.iterdir()) == [".lock", "config.json", "results.jsonl"]


def test_a_disk_that_fills_in_the_middle_of_a_line_leaves_whole_lines(claim):
    path = filled(claim, [0])
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with results_folder.claimed(claim) as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        try:
            with pytest.raises(InputError, match=rf"Cannot write {path}: .* Every result written before is kept"):
                folder.add([trial_of(1)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        folder.add([trial_of(1)])
    assert opened(claim).trials() == [trial_of(0), trial_of(1)]


def test_each_line_is_decoded_once_and_written_once_however_many_there_are(tmp_path, monkeypatch):
    claim = claim_of(tmp_path / "out", seeds=range(1800))
    with results_folder.claimed(claim) as folder:
        folder.add([trial_of(seed) for seed in range(1790)])
    counts = {"decoded": 0, "written": 0}

    def counted(module, name, key):
        function = getattr(module, name)

        def call(*arguments):
            counts[key] += len(arguments[1]) if key == "written" else 1
            return function(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(stored_lines, "decode", "decoded")
    counted(os, "write", "written")
    size = claim.results.stat().st_size
    with results_folder.claimed(claim) as folder:
        assert counts == {"decoded": 1790, "written": 0}
        for seed in range(1790, 1800):
            folder.add([trial_of(seed)])
            assert len(folder.trials()) == seed + 1
    assert counts == {"decoded": 1790, "written": claim.results.stat().st_size - size}
