import dataclasses
import json

import pytest

from experiments.base.errors import InputError
from experiments.records import results_folder
from experiments.records.jsonl import encode
from experiments.records.results_folder import Claim
from tests.test_experiments.examples import example_trial


@pytest.fixture
def claim(tmp_path):
    names = {("digits", "fc", "snip", 0.1, seed) for seed in range(3)}
    return Claim(tmp_path / "out", {"density": [0.1], "train.epochs": 30, "seeds": 3}, names)


def trial_of(seed):
    return example_trial(seed=seed)


def filled(claim, seeds):
    with results_folder.claimed(claim) as folder:
        folder.add([trial_of(seed) for seed in seeds])
    return claim.out / "results.jsonl"


def changed(claim, **options):
    return dataclasses.replace(claim, options=claim.options | options)


def refusal(claim):
    with pytest.raises(InputError) as caught, results_folder.claimed(claim):
        pass
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_runs_are_found_again(claim):
    filled(claim, [0, 1])
    with results_folder.claimed(claim) as folder:
        assert folder.trials() == [trial_of(0), trial_of(1)]


def test_a_run_is_kept_once_as_it_first_was(claim):
    path = filled(claim, [0])
    before = path.read_bytes()
    with results_folder.claimed(claim) as folder:
        folder.add([dataclasses.replace(trial_of(0), test_accuracy=0.5), trial_of(2)])
    assert path.read_bytes() == before + (encode(trial_of(2)) + "\n").encode()


def test_the_configuration_is_written_first(claim):
    with results_folder.claimed(claim):
        config = json.loads((claim.out / "config.json").read_text())
    assert config["options"]["density"] == [0.1] and config["versions"]["jax"]


def test_another_configuration_is_refused_by_its_differences(claim):
    path = filled(claim, [0])
    message = refusal(changed(claim, density=[0.1, 0.05], **{"train.epochs": 7}))
    assert "another configuration" in message and "--out" in message
    assert "train.epochs is 30 there and 7 here" in message
    assert "density is 0.1 there and 0.1 0.05 here" in message
    assert "seeds" not in message
    assert path.read_text() == encode(trial_of(0)) + "\n"


def test_other_versions_are_another_configuration(claim):
    filled(claim, [0])
    config = claim.out / "config.json"
    config.write_text(config.read_text().replace('"jax": "', '"jax": "9.'))
    assert "jax is 9." in refusal(claim)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '"words"'])
def test_a_broken_configuration_is_refused(claim, content):
    filled(claim, [0])
    (claim.out / "config.json").write_text(content)
    assert "is not a configuration of this program" in refusal(claim)


def test_results_without_configuration_are_refused(claim):
    filled(claim, [0])
    (claim.out / "config.json").unlink()
    assert "no config.json" in refusal(claim)


@pytest.mark.parametrize("cut", [1, 20, 500])
def test_a_half_written_last_line_is_named_and_changes_nothing(claim, cut):
    path = filled(claim, [0, 1])
    damaged = path.read_bytes()[: -cut - 1]
    path.write_bytes(damaged)
    message = refusal(claim)
    assert f"Line 2 of {path}" in message and "only half of it was written" in message and "--repair" in message
    assert path.read_bytes() == damaged


def test_repair_sets_the_broken_line_aside_and_keeps_the_rest(claim):
    path = filled(claim, [0, 1])
    path.write_bytes(path.read_bytes()[:-30])
    half = path.read_bytes().splitlines()[1]
    with results_folder.claimed(dataclasses.replace(claim, repair=True)) as folder:
        assert folder.trials() == [trial_of(0)]
    assert path.read_text() == encode(trial_of(0)) + "\n"
    assert path.with_name("results.jsonl.broken").read_bytes() == half + b"\n"
    with results_folder.claimed(claim) as folder:
        assert folder.trials() == [trial_of(0)]


def test_a_whole_line_that_lost_its_newline_is_read(claim):
    path = filled(claim, [0])
    path.write_bytes(path.read_bytes().rstrip())
    with results_folder.claimed(claim) as folder:
        folder.add([trial_of(1)])
        assert folder.trials() == [trial_of(0), trial_of(1)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (encode(example_trial(seed=3)), "seed 3 is not part of this study"),
        (encode(example_trial(seed=0, method="magnitude")), "magnitude at density 0.1, seed 0 is not part"),
        (encode(example_trial(seed=0)), "is there twice"),
        ("{}", "does not hold the fields of a trial"),
        ("nonsense", "it is not JSON"),
    ],
)
def test_a_line_that_does_not_belong_is_named(claim, line, words):
    path = filled(claim, [0])
    with path.open("a") as file:
        file.write(line + "\n")
    assert words in refusal(claim)


def test_two_processes_in_one_folder_are_refused(claim):
    with results_folder.claimed(claim):
        assert "Another process is writing" in refusal(claim)
    with results_folder.claimed(claim):
        pass


def test_a_folder_that_cannot_be_made_is_refused(claim, tmp_path):
    (tmp_path / "file").write_text("")
    assert "Cannot write to" in refusal(dataclasses.replace(claim, out=tmp_path / "file" / "out"))


def test_a_failed_write_leaves_the_old_file(claim, monkeypatch):
    path = filled(claim, [0])
    before = path.read_bytes()

    def no_room(descriptor):
        raise OSError(28, "No space left on device")

    with results_folder.claimed(claim) as folder:
        monkeypatch.setattr("os.fsync", no_room)
        with pytest.raises(InputError, match=r"No space left on device\. Every result written before is kept"):
            folder.add([trial_of(1)])
    assert path.read_bytes() == before
    assert sorted(file.name for file in claim.out.iterdir()) == [".lock", "config.json", "results.jsonl"]
