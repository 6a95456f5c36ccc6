import pytest

from experiments import study
from experiments.base.errors import InputError
from experiments.base.names import METHODS, NETWORKS, TWINS
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


@pytest.mark.parametrize("name", ("digits", "fashion-quick", "cifar10-quick", "paper", "report"))
def test_ready_configs_are_good_and_found_with_and_without_suffix(name):
    found = study.read(name, datasets=tuple(DATASETS))
    assert found == study.read(f"{name}.toml", datasets=tuple(DATASETS))
    assert found[0] == name


def test_the_digits_study_has_three_networks_and_all_methods():
    _, digits = study.read("digits", datasets=tuple(DATASETS))
    assert len(digits.model) == 3 and digits.method == METHODS


def test_the_listed_names_are_those_that_exist():
    assert tuple(BUILT) == NETWORKS and tuple(WITH_TWIN) == TWINS
    assert tuple(IMPLEMENTED) == METHODS


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
        ('name = "small"', 'name = "small/fc"', "has a slash"),
        ("[measure]", "[measure]\nloss_level = inf", "measure.loss_level is inf, but must be a positive number"),
        ("[measure]", "[measure]\nscore_inputs = -1", "measure.score_inputs is -1, but must be at least 0"),
    ],
)
def test_what_means_nothing_is_refused_by_name(config, old, new, words):
    assert old in PLAIN
    assert words in refusal(config(PLAIN.replace(old, new)))


def test_a_config_that_is_not_there_is_refused(tmp_path):
    assert "the nearest to it is digits" in refusal("digit")
    assert "ready configs are cifar10-quick, digits" in refusal(str(tmp_path / "none.toml"))
