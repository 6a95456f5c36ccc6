"""Studies that gain and lose seeds, methods, densities, networks and data sets in one folder."""

import dataclasses
import errno
import json
import sys

import jax
import numpy as np
import pytest

from experiments import __main__ as command
from experiments import setting, study, sweep, workbench
from experiments.base import sources
from experiments.base.errors import InputError
from experiments.base.names import LOTTERY_TICKET, METHODS
from experiments.data import loading
from experiments.measure.pruning import METHODS as IMPLEMENTED
from experiments.measure.pruning import Evidence
from experiments.networks.architectures import fully_connected
from experiments.networks.layers import bind
from experiments.records import results_folder, study_table
from experiments.records.jsonl import decode, encode
from experiments.records.progress import SILENT
from experiments.records.trial import Trial
from experiments.train.recipe import Recipe
from tests.test_experiments.examples import compiled_once

ODD = 0.8**10
"""A density of 17 digits."""

SMALL = study.Model("small", "fc", factor=0.03)
SMALLER = study.Model("smaller", "fc", factor=0.02)
FIRST = study.Study(
    data=("digits",),
    model=(SMALL,),
    method=("random",),
    density=(0.5,),
    seeds=1,
    train_images=100,
    test_images=50,
    train=Recipe(epochs=1, batch_size=50),
    measure=study.Measures(rounds=2, score_per_class=1, curve_steps=3, rank=3, changes=False),
)
LARGER = dataclasses.replace(
    FIRST,
    data=("digits", "even_digits"),
    model=(SMALL, SMALLER),
    method=("random", "magnitude"),
    density=(0.5, ODD),
    seeds=2,
)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The digits, and their even half as another data set."""
    digits = loading.load("digits", data_dir=tmp_path_factory.mktemp("data"))
    half = {name: getattr(digits, name)[::2] for name in ("train_images", "train_labels", "test_images", "test_labels")}
    return {"digits": digits, "even_digits": dataclasses.replace(digits, name="even_digits", **half)}


class _Fake:
    """Stands for a workbench: its trials are made up from their names, and it remembers what it was asked for."""

    asked: list = []

    def __init__(self, of_study, model, dataset, batch_size):
        self.study, self.model, self.data, self.batch_size = of_study, model, dataset.name, batch_size

    def measured(self, cells, seeds, reporter):
        _Fake.asked.append((self.data, self.model.name, tuple(cells), tuple(seeds)))
        names = [(self.data, self.model.name, *cell, seed) for cell in cells for seed in seeds]
        return workbench.Measured(
            [Trial.partial(name, test_accuracy=0.5 + hash_of(name), train_loss=[2.0, 1.0]) for name in names], {}
        )


def hash_of(name):
    return (sum(repr(name).encode()) % 1000) / 3000


@pytest.fixture
def faked(monkeypatch, datasets):
    """Runs a study without computing; gives the names of what was computed."""

    def run(of_study, out, batch_size=1, **options):
        _Fake.asked = []
        monkeypatch.setattr(sweep, "Workbench", lambda s, m, d, _: _Fake(s, m, d, batch_size))
        with sweep.held(sweep.claim(of_study, out, **options)) as folder:
            sweep.run(of_study, folder, SILENT, datasets)
            assert not folder.missing
        return [
            (data, model, *cell, seed) for data, model, cells, seeds in _Fake.asked for cell in cells for seed in seeds
        ]

    return run


def names_of(of_study):
    return list(setting.settings_of(of_study))


def plain(out):
    """The lines of results.jsonl in order, without what tells when and where they were computed."""
    lines = (out / "results.jsonl").read_text().splitlines()
    return sorted(encode(dataclasses.replace(decode(line, Trial), made={})) for line in lines)


@pytest.mark.parametrize(
    "gained",
    [
        {"seeds": 3},
        {"method": ("random", "magnitude", "synflow")},
        {"density": (0.5, ODD)},
        {"model": (SMALL, SMALLER)},
        {"data": ("digits", "even_digits")},
        {field.name: getattr(LARGER, field.name) for field in dataclasses.fields(study.Study)},
    ],
    ids=["seeds", "methods", "densities", "networks", "data sets", "all"],
)
def test_what_a_study_gains_is_computed_and_what_it_loses_stays(gained, faked, tmp_path):
    larger = dataclasses.replace(FIRST, **gained)
    assert faked(FIRST, tmp_path) == names_of(FIRST)
    new = [name for name in names_of(larger) if name not in names_of(FIRST)]
    assert faked(larger, tmp_path) == new
    whole = (tmp_path / "results.jsonl").read_bytes()
    assert faked(FIRST, tmp_path) == faked(larger, tmp_path) == []
    assert faked(larger, tmp_path / "at once") == names_of(larger)
    assert plain(tmp_path) == plain(tmp_path / "at once")
    assert (tmp_path / "results.jsonl").read_bytes() == whole
    # figures show the study as last run
    assert len(study_table.read(tmp_path).trials) == len(names_of(larger))
    faked(FIRST, tmp_path)
    shown = study_table.read(tmp_path)
    assert len(shown.trials) == len(names_of(FIRST)) and shown.config["options"]["method"] == ["random"]


def test_side_by_side_only_what_was_missing_at_first_is_computed_and_interruptions_change_no_group(faked, tmp_path):
    larger = dataclasses.replace(FIRST, method=("random", "magnitude"), density=(0.5, ODD), seeds=2)
    faked(FIRST, tmp_path, batch_size=4)
    new = {name for name in names_of(larger) if name not in names_of(FIRST)}
    assert set(faked(larger, tmp_path, batch_size=4)) == new
    groups = list(_Fake.asked)
    # seed 1 of what was there, then both seeds of the rest
    dense, random, magnitude = ("dense", 1.0), ("random", 0.5), ("magnitude", 0.5)
    assert [group[2:] for group in groups] == [
        ((dense, random), (1,)),
        ((magnitude, ("random", ODD)), (0, 1)),
        ((("magnitude", ODD),), (0, 1)),
    ]
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    for cut in range(2, len(lines)):
        (tmp_path / "results.jsonl").write_text("".join(lines[:cut]))
        faked(larger, tmp_path, batch_size=4)
        assert set(_Fake.asked) <= set(groups) and _Fake.asked == groups[-len(_Fake.asked) :]
        assert len(plain(tmp_path)) == len(lines)


def test_an_extended_study_has_the_bytes_of_one_that_ran_at_once(datasets, tmp_path, monkeypatch, capsys):
    """As a user runs it, from seeds, methods, densities and networks to more of each."""
    monkeypatch.setattr(loading, "load", lambda name, **_: datasets[name])
    config = """
data = ["digits"]
method = ["random"{method}]
density = [0.5{density}]
seeds = {seeds}
train_images = 100
test_images = 50
[[model]]
name = "small"
network = "fc"
factor = 0.03
{model}
[train]
epochs = 1
batch_size = 50
[measure]
rounds = 2
score_per_class = 1
changes = false
"""
    first = {"method": "", "density": "", "seeds": 1, "model": ""}
    more = {
        "method": ', "magnitude"',
        "density": f", {ODD}",
        "seeds": 2,
        "model": '[[model]]\nname = "smaller"\nnetwork = "fc"\nfactor = 0.02',
    }

    def run(out, options, *more):
        file = tmp_path / "config.toml"
        file.write_text(config.format(**options))
        return command.main(["sweep", str(file), "--out", str(tmp_path / out), *more])

    with compiled_once(tmp_path / "compiled"):
        assert run("extended", first) == 0 and len(plain(tmp_path / "extended")) == 2
        assert run("extended", more) == 0 and run("at once", more) == 0
    assert plain(tmp_path / "extended") == plain(tmp_path / "at once")
    assert len(plain(tmp_path / "at once")) == 2 * (1 + 2 * 2) * 2
    before = {path: path.read_bytes() for path in (tmp_path / "extended").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run("extended", more) == 0
    assert "accuracy" not in capsys.readouterr().out.split("Best so far")[0]
    assert {path: path.read_bytes() for path in (tmp_path / "extended").rglob("*") if path.is_file()} == before
    assert len(study_table.read(tmp_path / "extended").cells) == 2 * 5
    assert {each["density"] for each in lines_of(tmp_path / "extended")} == {1.0, 0.5, ODD}


def lines_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_each_method_reads_the_keys_that_its_setting_names_and_no_others():
    network = fully_connected((4, 1, 1), 3, depth=1, widths={"hidden_0": 5})
    params, state = network.init(jax.random.key(0))
    apply = bind(network, state)
    images, others = jax.random.normal(jax.random.key(1), (2, 12, 4, 1, 1))
    labels = jax.numpy.arange(12) % 3

    def scores(name, inputs, batch):
        batches = tuple(zip(jax.numpy.split(batch, 4), jax.numpy.split(labels[: len(batch)], 4), strict=True))
        evidence = Evidence(inputs, batches, lambda key: network.init(key)[0])
        return jax.tree.leaves(IMPLEMENTED[name].score(apply, params, jax.random.key(2), evidence))

    assert (*IMPLEMENTED, LOTTERY_TICKET) == METHODS
    for name, method in IMPLEMENTED.items():
        decides = setting.setting_of(dataclasses.replace(FIRST, method=METHODS), "digits", SMALL, (name, 0.5))
        assert ("measure.rounds" in decides) == method.iterative
        plain = scores(name, images, images)
        for key, changed in (("score_inputs", (others, images)), ("score_per_class", (images, others[:8]))):
            is_read = any(not np.array_equal(*pair) for pair in zip(plain, scores(name, *changed), strict=True))
            # PX weighs outputs by their data, and those of a dense layer alike
            assert (f"measure.{key}" in decides) == (is_read or (name, key) == ("px", "score_per_class")), name


def test_the_setting_of_a_trial_has_what_it_reads_of_the_config_and_nothing_of_other_trials():
    dense = setting.setting_of(FIRST, "digits", SMALL, ("dense", 1.0))
    assert dense == setting.setting_of(
        dataclasses.replace(LARGER, memory_gib=1.0, train=dataclasses.replace(FIRST.train, checkpoint_every=2)),
        "digits",
        SMALL,
        ("dense", 1.0),
    )
    assert dense["train.epochs"] == 1 and dense["model.factor"] == 0.03 and dense["train_images"] == 100
    assert not Trial.MEASURED & dense.keys() and "measure.rounds" not in dense
    fuller = dataclasses.replace(
        LARGER,
        measure=dataclasses.replace(
            FIRST.measure, changes=True, expected=True, regression_images=20, curve_density=(0.5,)
        ),
    )
    for cell, extra in (
        (("dense", 1.0), Trial.MEASURED),
        (("random", 0.5), Trial.MEASURED),
        (("random", ODD), {"measure.changes"}),
    ):
        found = setting.setting_of(fuller, "digits", SMALL, cell)
        assert found.keys() - setting.setting_of(FIRST, "digits", SMALL, ("random", 0.5)).keys() == extra
    assert json.loads(json.dumps(dense, allow_nan=False)) == dense


def test_a_changed_network_of_ones_own_is_another_setting(tmp_path, monkeypatch, faked):
    (tmp_path / "blocks.py").write_text("WIDTH = 16\n")
    (tmp_path / "mine.py").write_text(
        "from blocks import WIDTH\nimport json\nfrom experiments.networks.architectures import fully_connected as net\n"
    )
    (tmp_path / "unrelated.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    own = dataclasses.replace(FIRST, model=(study.Model("own", "mine:net"),))
    assert len(faked(own, tmp_path / "out")) == 2
    for file, text, differs in (
        ("unrelated.py", "x = 1\n", False),
        ("blocks.py", "WIDTH = 24\n", True),
        ("mine.py", "import blocks\nfrom experiments.networks.architectures import fully_connected as net\n", True),
    ):
        before = (tmp_path / file).read_text()
        (tmp_path / file).write_text(text)
        sources.source_hash.cache_clear()
        if differs:
            with pytest.raises(InputError, match=r"source of model\.network is \w{16} there and \w{16} here"):
                faked(own, tmp_path / "out")
        else:
            assert faked(own, tmp_path / "out") == []
        (tmp_path / file).write_text(before)
        sources.source_hash.cache_clear()
    assert faked(own, tmp_path / "out") == []
    sys.modules.pop("mine")
    sys.modules.pop("blocks")


def test_sources_are_followed_within_a_package_and_not_into_others(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages"
    for file, text in {
        "pack/__init__.py": "",
        "pack/nets/__init__.py": "",
        "pack/nets/deep.py": "import other\nfrom ..parts import blocks\nfrom . import near\n",
        "pack/nets/near.py": "",
        "pack/parts/__init__.py": "",
        "pack/parts/blocks.py": "",
        "pack/parts/far.py": "",
        "other.py": "",
    }.items():
        (installed / file).parent.mkdir(parents=True, exist_ok=True)
        (installed / file).write_text(text)
    monkeypatch.syspath_prepend(installed)

    def hashed():
        sources.source_hash.cache_clear()
        return sources.source_hash("pack.nets.deep")

    before = hashed()
    for file, differs in (
        ("pack/nets/deep.py", True),
        ("pack/nets/near.py", True),
        ("pack/parts/blocks.py", True),
        ("pack/parts/__init__.py", True),
        ("pack/__init__.py", True),
        ("pack/parts/far.py", False),
        ("other.py", False),
    ):
        text = (installed / file).read_text()
        (installed / file).write_text(text + "# changed\n")
        assert (hashed() != before) == differs, file
        (installed / file).write_text(text)
    for module in [name for name in sys.modules if name.partition(".")[0] == "pack"]:
        sys.modules.pop(module)


@pytest.mark.parametrize("key, value", [("jax_default_prng_impl", "rbg"), ("jax_default_matmul_precision", "float32")])
def test_options_of_jax_that_decide_numbers_are_a_part_of_the_setting_where_they_are_not_usual(monkeypatch, key, value):
    usual = setting.setting_of(FIRST, "digits", SMALL, ("random", 0.5))
    assert key not in usual
    before = getattr(jax.config, key)
    jax.config.update(key, value)
    try:
        assert setting.setting_of(FIRST, "digits", SMALL, ("random", 0.5)) == usual | {key: value}
    finally:
        jax.config.update(key, before)


class _Said:
    """A reporter that keeps what it is told to say."""

    def __init__(self):
        self.sentences: list[str] = []
        self.say = self.sentences.append

    def stage(self, words, share=0.0):
        pass

    def advance(self, figures):
        pass


def run_with(fake, faked, monkeypatch, datasets, out, finished=None):
    """What a study says of which `fake` takes the place of what is measured."""
    reporter = _Said()
    faked(FIRST, out)  # takes the workbench's place
    larger = dataclasses.replace(FIRST, seeds=3)
    if fake is not None:
        monkeypatch.setattr(_Fake, "measured", fake)
    with sweep.held(sweep.claim(larger, out)) as folder:
        sweep.run(larger, folder, reporter, datasets, finished)
    return reporter.sentences, folder


def test_a_tracker_that_fails_does_not_end_the_study(faked, monkeypatch, datasets, tmp_path):
    def lost(trials):
        raise ConnectionError("no network")

    said, folder = run_with(None, faked, monkeypatch, datasets, tmp_path, lost)
    assert not folder.missing
    (sentence,) = said
    assert sentence.startswith("Trials are no longer sent to the tracker (ConnectionError: no network).")


def test_a_full_disk_ends_the_study_and_makes_no_network_fail(faked, monkeypatch, datasets, tmp_path):
    def full(self, cells, seeds, reporter):
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoints")

    with pytest.raises(InputError, match="Cannot write checkpoints: No space left on device"):
        run_with(full, faked, monkeypatch, datasets, tmp_path)
    assert not any(trial.reason for trial in results_folder.looked_at(sweep.claim(FIRST, tmp_path)).trials())
