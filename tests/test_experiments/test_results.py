import dataclasses
import json
import pathlib

import pytest

from experiments.command_line import Compare
from experiments.base.errors import InputError
from experiments.records import results_folder
from experiments.records.jsonl import encode
from tests.test_experiments.examples import example


@pytest.fixture
def options(tmp_path):
    return Compare(method=("snip",), density=(0.1,), seeds=3, out=tmp_path / "out")


def run_of(seed):
    return example(seed=seed)


def filled(options, seeds):
    with results_folder.claimed(results_folder.comparison(options)) as folder:
        folder.add([run_of(seed) for seed in seeds])
    return options.out / "results.jsonl"


def refusal(options):
    with pytest.raises(InputError) as caught, results_folder.claimed(results_folder.comparison(options)):
        pass
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_runs_are_found_again(options):
    filled(options, [0, 1])
    with results_folder.claimed(results_folder.comparison(options)) as folder:
        assert folder.runs() == [run_of(0), run_of(1)]


def test_a_run_is_kept_once_as_it_first_was(options):
    path = filled(options, [0])
    before = path.read_bytes()
    with results_folder.claimed(results_folder.comparison(options)) as folder:
        folder.add([dataclasses.replace(run_of(0), test_accuracy=0.5), run_of(2)])
    assert path.read_bytes() == before + (encode(run_of(2)) + "\n").encode()


def test_the_configuration_is_written_first(options):
    with results_folder.claimed(results_folder.comparison(options)):
        config = json.loads((options.out / "config.json").read_text())
    assert config["options"]["density"] == [0.1] and config["versions"]["jax"]
    assert "out" not in config["options"]


@pytest.mark.parametrize("elsewhere", [{"repair": True}, {"data_dir": pathlib.Path("elsewhere")}])
def test_options_that_change_no_number_may_change(options, elsewhere):
    filled(options, [0])
    with results_folder.claimed(results_folder.comparison(dataclasses.replace(options, **elsewhere))) as folder:
        assert folder.runs() == [run_of(0)]


def test_another_configuration_is_refused_by_its_differences(options):
    path = filled(options, [0])
    message = refusal(dataclasses.replace(options, epochs=7, density=(0.1, 0.05)))
    assert "another configuration" in message and "--out" in message
    assert "--epochs is 30 there and 7 here" in message
    assert "--density is 0.1 there and 0.1 0.05 here" in message
    assert "--seeds" not in message
    assert path.read_text() == encode(run_of(0)) + "\n"


def test_other_versions_are_another_configuration(options):
    filled(options, [0])
    config = options.out / "config.json"
    config.write_text(config.read_text().replace('"jax": "', '"jax": "9.'))
    assert "jax is 9." in refusal(options)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '"words"'])
def test_a_broken_configuration_is_refused(options, content):
    filled(options, [0])
    (options.out / "config.json").write_text(content)
    assert "is not a configuration of this program" in refusal(options)


def test_results_without_configuration_are_refused(options):
    filled(options, [0])
    (options.out / "config.json").unlink()
    assert "no config.json" in refusal(options)


@pytest.mark.parametrize("cut", [1, 20, 500])
def test_a_half_written_last_line_is_named_and_changes_nothing(options, cut):
    path = filled(options, [0, 1])
    damaged = path.read_bytes()[: -cut - 1]
    path.write_bytes(damaged)
    message = refusal(options)
    assert f"Line 2 of {path}" in message and "written half" in message and "--repair" in message
    assert path.read_bytes() == damaged


def test_repair_sets_the_broken_line_aside_and_keeps_the_rest(options):
    path = filled(options, [0, 1])
    path.write_bytes(path.read_bytes()[:-30])
    half = path.read_bytes().splitlines()[1]
    with results_folder.claimed(results_folder.comparison(dataclasses.replace(options, repair=True))) as folder:
        assert folder.runs() == [run_of(0)]
    assert path.read_text() == encode(run_of(0)) + "\n"
    assert path.with_name("results.jsonl.broken").read_bytes() == half + b"\n"
    with results_folder.claimed(results_folder.comparison(options)) as folder:
        assert folder.runs() == [run_of(0)]


def test_a_whole_line_that_lost_its_newline_is_read(options):
    path = filled(options, [0])
    path.write_bytes(path.read_bytes().rstrip())
    with results_folder.claimed(results_folder.comparison(options)) as folder:
        folder.add([run_of(1)])
        assert folder.runs() == [run_of(0), run_of(1)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (encode(example(seed=3)), "seed 3 is not part of this job"),
        (encode(example(seed=0, method="magnitude")), "magnitude at density 0.1, seed 0 is not part"),
        (encode(example(seed=0)), "is there twice"),
        ("{}", "does not hold the fields of a run"),
        ("nonsense", "it is not JSON"),
    ],
)
def test_a_line_that_does_not_belong_is_named(options, line, words):
    path = filled(options, [0])
    with path.open("a") as file:
        file.write(line + "\n")
    assert words in refusal(options)


def test_two_jobs_in_one_folder_are_refused(options):
    with results_folder.claimed(results_folder.comparison(options)):
        assert "Another job is writing" in refusal(options)
    with results_folder.claimed(results_folder.comparison(options)):
        pass


def test_a_folder_that_cannot_be_made_is_refused(options, tmp_path):
    (tmp_path / "file").write_text("")
    assert "Cannot write to" in refusal(dataclasses.replace(options, out=tmp_path / "file" / "out"))


def test_a_failed_write_leaves_the_old_file(options, monkeypatch):
    path = filled(options, [0])
    before = path.read_bytes()

    def no_room(descriptor):
        raise OSError(28, "No space left on device")

    with results_folder.claimed(results_folder.comparison(options)) as folder:
        monkeypatch.setattr("os.fsync", no_room)
        with pytest.raises(InputError, match=r"No space left on device\. Every run finished before is kept"):
            folder.add([run_of(1)])
    assert path.read_bytes() == before
    assert sorted(file.name for file in options.out.iterdir()) == [".lock", "config.json", "results.jsonl"]
