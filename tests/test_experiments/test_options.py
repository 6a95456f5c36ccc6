import dataclasses

import pytest

from experiments.measure import pruning
from experiments.networks import twins
from experiments.base.names import METHODS, TWINS
from experiments.command_line import Compare, validated
from experiments.base.errors import InputError

DATASETS = ("digits", "mnist")


def refusal(**changed):
    with pytest.raises(InputError) as caught:
        validated(dataclasses.replace(Compare(), **changed), datasets=DATASETS)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_defaults_are_valid():
    assert validated(Compare(), datasets=DATASETS) == Compare()


def test_the_listed_names_are_those_that_exist():
    assert tuple(pruning.METHODS) == METHODS
    assert tuple(twins.MODELS) == MODELS


def test_the_order_of_methods_and_densities_does_not_matter():
    first = validated(Compare(method=("synflow", "random"), density=(0.1, 0.5)), datasets=DATASETS)
    second = validated(Compare(method=("random", "synflow"), density=(0.5, 0.1)), datasets=DATASETS)
    assert first == second
    assert first.method == ("random", "synflow") and first.density == (0.5, 0.1)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"method": ("snipp",)}, "There is no method 'snipp'; the nearest to it is snip: there are random, magnitude,"),
        ({"method": ("dense",)}, "There is no method 'dense'"),
        ({"model": "fcc"}, "There is no model 'fcc'; the nearest to it is fc"),
        ({"dataset": "digit"}, "There is no data set 'digit'; the nearest to it is digits: there are digits, mnist."),
        ({"density": (0.5, 0.0)}, "Density 0 is outside (0, 1]"),
        ({"density": (1.5,)}, "Density 1.5 is outside (0, 1]"),
        ({"density": (float("nan"),)}, "Density nan is outside (0, 1]"),
        ({"density": ()}, "No density is given"),
        ({"density": (0.5, 0.5)}, "Density 0.5 is given more than once"),
        ({"method": ("snip", "snip")}, "Method snip is given more than once"),
        ({"seeds": 0}, "--seeds is 0, but must be at least 1"),
        ({"batch_size": -1}, "--batch-size is -1, but must be at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate is 0, but must be a positive number"),
        ({"loss_level": float("inf")}, "--loss-level is inf, but must be a positive number"),
    ],
)
def test_the_refusal_says_what_is_wrong(changed, words):
    assert words in refusal(**changed)
