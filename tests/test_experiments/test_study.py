import pytest

from experiments import study
from experiments.base.errors import InputError
from experiments.base.names import LOTTERY_TICKET, METHODS, NETWORKS, TWINS
from experiments.data.loading import DATASETS
from experiments.measure.pruning import METHODS as IMPLEMENTED
from experiments.networks.by_name import NETWORKS as BUILT
from experiments.networks.twins import TWINS as WITH_TWIN

PLAIN = """
data = ["digits"]
method = ["synflow", "random"]
density = [0.1, 0.5]
[[model]]
name = "small"
network = "lenet_300_100"
factor = 0.05
[train]
epochs = 2
[measure]
curve_density = [0.1]
"""


@pytest.fixture
def config(tmp_path):
    def written(text):
        path = tmp_path / "own.toml"
        path.write_text(text)
        return str(path)

    return written


def refusal(config):
    with pytest.raises(InputError) as caught:
        study.read(config, datasets=tuple(DATASETS))
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize("name", study.ready_configs())
def test_ready_configs_are_good_and_found_with_and_without_suffix(name):
    found = study.read(name, datasets=tuple(DATASETS))
    assert found == study.read(f"{name}.toml", datasets=tuple(DATASETS))
    assert found[0] == name


def test_the_digits_study_has_three_networks_and_all_methods():
    _, digits = study.read("digits", datasets=tuple(DATASETS))
    assert len(digits.model) == 3 and digits.method == METHODS


def test_the_listed_names_are_those_that_exist():
    assert tuple(BUILT) == NETWORKS and tuple(WITH_TWIN) == TWINS
    assert (*IMPLEMENTED, LOTTERY_TICKET) == METHODS


def test_the_order_of_methods_and_densities_does_not_matter(config):
    name, found = study.read(config(PLAIN), datasets=tuple(DATASETS))
    assert (name, found.method, found.density) == ("own", ("random", "synflow"), (0.5, 0.1))
    assert found.train.epochs == 2 and found.measure.rounds == study.Measures().rounds
    assert found.cells[:3] == [("dense", 1.0), ("random", 0.5), ("synflow", 0.5)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("density = [0.1, 0.5]", "densities = [0.1]", "There is no key densities; the nearest to it is density"),
        ("epochs = 2", "epoch = 2", "There is no key train.epoch; the nearest to it is train.epochs"),
        ("factor = 0.05", "faktor = 1", "There is no key model.faktor; the nearest to it is model.factor"),
        ('data = ["digits"]', "", "lacks the key data"),
        ('["digits"]', '["digit"]', "There is no data set 'digit'; the nearest to it is digits"),
        ('"synflow"', '"synflo"', "There is no method 'synflo'; the nearest to it is synflow"),
        ('"lenet_300_100"', '"lenet5"', "There is no network 'lenet5'; the nearest to it is lenet_5"),
        ("epochs = 2", 'epochs = "2"', "train.epochs must be a whole number; it is '2'"),
        ("epochs = 2", "epochs = true", "train.epochs must be a whole number; it is True"),
        ("epochs = 2", "epochs = 0", "train.epochs is 0, but must be at least 1"),
        ("epochs = 2", "learning_rate = nan", "train.learning_rate is nan, but must be a positive number"),
        ("epochs = 2", "warmup = 30", "train.warmup is 30 epochs, but there are 30 in all"),
        ("epochs = 2", 'schedule = "cosin"', "the nearest to it is cosine"),
        ("[0.1, 0.5]", "[0.1, 0.0]", "Density 0 is outside (0, 1]"),
        ("[0.1, 0.5]", "[0.1, 0.1]", "density has 0.1 more than once"),
        ("[0.1, 0.5]", "[0.1, 0.10000001]", "density has 0.1 and 0.10000001, which print alike, as 0.1: keep one"),
        ("[0.1, 0.5]", "0.1", "density must be a list"),
        ("curve_density = [0.1]", "curve_density = [0.3]", "0.3, which is not one of density"),
        ("[[model]]", "[[model", "is not TOML"),
        ("[[model]]", "[model]", "model must be a list of tables: begin each by [[model]], not by [model]."),
        ("factor = 0.05", "factor = 1e6", "model.factor is 1e+06, but must be a positive number, 1000 at most"),
        ("factor = 0.05", "factor = nan", "model.factor is nan, but must be a positive number"),
        ("density = [0.1, 0.5]", "density = [0.1, 0.5]\nsources = {a = 'b'}", "There is no key sources"),
        ('["digits"]', '["kmnist"]', "others of TFDS, by name or name/config, are there once they are prepared"),
        ('["digits"]', '["none.npz"]', "none.npz, which data names"),
        ('["digits"]', '["a:b", "a.b"]', "There is no data set 'a.b'"),
        ('["digits"]', '["a:b_c", "a:b-c"]', "whose results would have the same name a.b_c; give one of them another"),
        ('["digits"]', '["a:b", "a:b"]', "data has a.b more than once"),
        (
            'name = "small"',
            'name = "small/fc"',
            "The model name 'small/fc' has a slash; it becomes a part of file names",
        ),
        ('name = "small"', 'name = "small\\\\fc"', "has a backslash"),
        ('name = "small"', 'name = ".."', "begins with a dot"),
        ('name = "small"', 'name = ""', "The model name '' is empty"),
        ('name = "small"', 'name = "a\\nb"', "The model name 'a\\nb' has a character that cannot be printed"),
        ('name = "small"', f'name = "{"é" * 51}"', "is longer than 100 bytes"),
        ("epochs = 2", "epochs = 2\ntrain_images = 5", "train_images belongs above the first table of the config"),
        ("[measure]", "[measure]\nloss_level = inf", "measure.loss_level is inf, but must be a positive number"),
        ("[measure]", "[measure]\nscore_inputs = -1", "measure.score_inputs is -1, but must be at least 0"),
    ],
)
def test_what_means_nothing_is_refused_by_name(config, old, new, words):
    assert old in PLAIN
    assert words in refusal(config(PLAIN.replace(old, new)))


def test_data_of_ones_own_is_known_by_a_short_name_and_files_lie_beside_the_config(config, tmp_path):
    (tmp_path / "a folder").mkdir()
    file = tmp_path / "a folder" / "some-cells.npz"
    file.touch()
    path = config(PLAIN.replace('["digits"]', '["digits", "mine:cells", "a folder/some-cells.npz", "emnist/letters"]'))
    _, found = study.read(path, datasets=(*DATASETS, "emnist/letters"))
    assert found.data == ("digits", "mine.cells", "some_cells.npz", "emnist_letters")
    assert [found.source(name) for name in found.data] == ["digits", "mine:cells", str(file), "emnist/letters"]
    assert study.checked(found, datasets=(*DATASETS, "emnist/letters")) == found


def test_files_that_a_change_of_a_ready_config_names_lie_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "cells.npz").touch()
    monkeypatch.chdir(tmp_path)
    _, found = study.read("digits", datasets=tuple(DATASETS), changes=('data=["cells.npz"]',))
    assert found.source("cells.npz") == str(tmp_path / "cells.npz")


def changed(config, *changes):
    return study.read(config(PLAIN), datasets=tuple(DATASETS), changes=changes)[1]


def test_changes_put_toml_values_in_place_of_those_of_the_file(config):
    found = changed(
        config,
        "train.learning_rate=0.1",
        "seeds = 5",
        'method=["snip"]',
        "train.schedule=cosine",
        "measure.expected=true",
        "model.factor=0.5",
        "density=[0.1, 0.3]",
        "seeds=4",
    )
    assert (found.train.learning_rate, found.train.schedule, found.train.epochs) == (0.1, "cosine", 2)
    assert (found.seeds, found.method, found.density) == (4, ("snip",), (0.3, 0.1))
    assert found.measure.expected and found.measure.curve_density == (0.1,)
    assert [(model.name, model.factor) for model in found.model] == [("small", 0.5)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seeds", "'seeds' is no change of a config; write KEY=VALUE, as train.learning_rate=0.1 or seeds=5."),
        ("=5", "'=5' is no change of a config"),
        ("a.b.c=5", "'a.b.c=5' is no change of a config"),
        ("seed=5", "There is no key seed; the nearest to it is seeds"),
        ("train.epoch=5", "There is no key train.epoch; the nearest to it is train.epochs"),
        ("model.faktor=5", "There is no key model.faktor; the nearest to it is model.factor"),
        ("seeds.x=5", "seeds must be a whole number; it is {'x': 5}"),
        ("data.x=5", "data.x cannot be set; write data=VALUE."),
        ("seeds=0", "seeds is 0, but must be at least 1"),
        ("seeds=many", "seeds must be a whole number; it is 'many'"),
        ("seeds=", "The value of 'seeds=' is not TOML"),
        (
            "method=[snip]",
            "The value of 'method=[snip]' is not TOML; write numbers as 0.1, words as they are, and lists",
        ),
        ("seeds=3\ntrain_images=5", "is not TOML"),
        ("method=snip", "method must be a list of one entry or more; it is 'snip'"),
    ],
)
def test_a_change_that_means_nothing_is_refused_by_name(config, change, words):
    with pytest.raises(InputError) as caught:
        changed(config, change)
    message = str(caught.value)
    assert words in message and "\n" not in message and message.endswith(".")


def test_a_config_that_is_not_there_is_refused(tmp_path):
    assert "the nearest to it is digits" in refusal("digit")
    assert "ready configs are cifar10, digits" in refusal(str(tmp_path / "none.toml"))
