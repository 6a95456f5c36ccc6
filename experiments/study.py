"""What a study compares, read from a TOML file. Imports nothing heavy: a wrong key is found at once."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.options import DENSE, METHODS, PRECISIONS, SCHEDULES, InputError, Recipe, known

__all__ = ["NETWORKS", "Measures", "Model", "Name", "Study", "cells_of", "read", "ready"]

NETWORKS = (
    "lenet_300_100",
    "lenet_5",
    "vgg_11",
    "vgg_16",
    "resnet_20",
    "resnet_32",
    "resnet_56",
    "resnet_18",
    "wrn_16_8",
    "wrn_28_10",
)

Name = tuple[str, str, str, float, int]
"""Data set, model, method, density and seed of a trial."""

_CONFIGS = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class Model:
    """A network of the study: its name in results, which of `networks.NETWORKS` it is, and how it differs from that."""

    name: str
    """What results call it."""
    network: str
    """Which network it is: one of NETWORKS, or "module:function" for one of your own."""
    factor: float = 1.0
    """By which all its widths but the outputs are multiplied, rounded up."""
    batch_norm: bool | None = None
    """Left out, as the network has it."""
    activation: str = "relu"
    """relu, leaky_relu or linear."""
    init: str = "kaiming"
    """kaiming, orthogonal, delta_orthogonal or ntk."""
    depth: int = 0
    """Of networks of several depths; 0 is the network's own."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured beside training."""

    rounds: int = 100
    """Pruning rounds of the methods that score again."""
    ntk_images: int = 10
    """Training images in the batch of Θ, equally many of each class or one of each of the first classes."""
    score_per_class: int = 10
    """Training images of each class that data-driven scores read."""
    curve_steps: int = 50
    """Steps of gradient descent that are held against predictions."""
    curve_density: tuple[float, ...] = ()
    """Densities whose cells get these curves; the dense network does where there are any."""
    rank: int = 16
    """Of the part of Θ in Π's eigenbasis."""
    changes: bool = True
    """Whether Θ and Π are compared before and after training."""


@dataclasses.dataclass(frozen=True)
class Study:
    """All networks of data × model × method × density × seed, and how they are trained and measured."""

    data: tuple[str, ...]
    """Data sets."""
    model: tuple[Model, ...]
    """Networks."""
    method: tuple[str, ...]
    """Pruning methods; the dense network is always there too."""
    density: tuple[float, ...]
    """Kept shares of the prunable weights, each in (0, 1]."""
    seeds: int = 3
    """Number of seeds 0, 1, ...."""
    train_images: int = 0
    """How many train images are used, the first ones; 0 is all."""
    test_images: int = 0
    """How many test images are used; 0 is all."""
    memory_gib: float = 4.0
    """What the networks trained side by side may take; decides how many there are, not what is found."""
    train: Recipe = dataclasses.field(default_factory=Recipe)
    """How networks are trained."""
    measure: Measures = dataclasses.field(default_factory=Measures)
    """What is measured beside training."""


def ready() -> tuple[str, ...]:
    """The names of the configs that come with the experiments."""
    return tuple(sorted(path.stem for path in _CONFIGS.glob("*.toml")))


def read(config: str, *, datasets: Sequence[str]) -> tuple[str, Study]:
    """The name of a study and what it compares; `config` is a TOML file or the name of a ready one.

    Raises InputError, in one sentence, where there is no such file, it is not TOML, or holds a key or a value that
    means nothing.
    """
    path = Path(config)
    if not path.suffix and not path.is_file():
        known("config", config, ready())
        path = _CONFIGS / f"{config}.toml"
    elif not path.exists() and path.parent == Path() and (_CONFIGS / path.name).exists():
        path = _CONFIGS / path.name
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}; ready configs are {', '.join(ready())}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {str(error).rstrip('.')}.") from error
    study = _built(Study, found, "")
    _check(study, datasets)
    return path.stem, dataclasses.replace(
        study,
        method=tuple(sorted(study.method, key=METHODS.index)),
        density=tuple(sorted(study.density, reverse=True)),
    )


def cells_of(study: Study) -> list[tuple[str, float]]:
    """Methods and densities of one data set and one model, the dense network first."""
    return [(DENSE, 1.0), *((method, density) for density in study.density for method in study.method)]


def _built(kind: type, found: Mapping[str, Any], where: str) -> Any:
    """A dataclass of a TOML table, checked field by field."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in found:
        if key not in fields:
            nearest = difflib.get_close_matches(key, fields, n=1)
            hint = f"; the nearest to it is {where}{nearest[0]}" if nearest else ""
            raise InputError(f"There is no key {where}{key}{hint}: there are {', '.join(fields)}.")
    for name, field in fields.items():
        absent = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if absent and name not in found:
            raise InputError(f"The config lacks the key {where}{name}.")
    return kind(**{key: _value(str(fields[key].type), value, f"{where}{key}") for key, value in found.items()})


_TABLES: dict[str, type] = {"Recipe": Recipe, "Measures": Measures, "Model": Model}
_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
_WORDS = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}


def _value(kind: str, value: Any, where: str) -> Any:
    kind = kind.removesuffix(" | None")
    if kind in _TABLES:
        if not isinstance(value, dict):
            raise InputError(f"{where} must be a table, as [{where}]; it is {value!r}.")
        return _built(_TABLES[kind], value, f"{where}.")
    if kind.startswith("tuple["):
        if not isinstance(value, list) or not value:
            raise InputError(f"{where} must be a list of one entry or more; it is {value!r}.")
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_value(inner, entry, where) for entry in value)
    if type(value) not in _PLAIN[kind]:
        raise InputError(f"{where} must be {_WORDS[kind]}; it is {value!r}.")
    return float(value) if kind == "float" else value


def _check(study: Study, datasets: Sequence[str]) -> None:
    for name in study.data:
        known("data set", name, datasets)
    for method in study.method:
        known("method", method, METHODS)
    for model in study.model:
        if ":" not in model.network:
            known("network", model.network, NETWORKS)
        known("activation", model.activation, ("relu", "leaky_relu", "linear"))
        known("init", model.init, ("kaiming", "orthogonal", "delta_orthogonal", "ntk"))
        if not model.factor > 0.0:
            raise InputError(f"model.factor is {model.factor:g}, but must be a positive number.")
    known("schedule", study.train.schedule, SCHEDULES)
    known("precision", study.train.precision, PRECISIONS)
    names = [model.name for model in study.model]
    for key, values in (("data", study.data), ("method", study.method), ("density", study.density), ("model", names)):
        for value in values:
            if list(values).count(value) > 1:
                raise InputError(f"{key} has {value} more than once.")
    for density in (*study.density, *study.measure.curve_density):
        if not 0.0 < density <= 1.0:
            raise InputError(f"Density {density:g} is outside (0, 1]: it is the share of weights that is kept.")
    for density in study.measure.curve_density:
        if density not in study.density:
            raise InputError(f"measure.curve_density has {density:g}, which is not one of density.")
    _check_numbers(study)


def _check_numbers(study: Study) -> None:
    least = {
        ("seeds", study.seeds): 1,
        ("train_images", study.train_images): 0,
        ("test_images", study.test_images): 0,
        ("train.epochs", study.train.epochs): 1,
        ("train.batch_size", study.train.batch_size): 1,
        ("train.checkpoint_every", study.train.checkpoint_every): 1,
        ("measure.rounds", study.measure.rounds): 1,
        ("measure.ntk_images", study.measure.ntk_images): 1,
        ("measure.score_per_class", study.measure.score_per_class): 1,
        ("measure.curve_steps", study.measure.curve_steps): 1,
        ("measure.rank", study.measure.rank): 1,
    }
    for (name, number), lowest in least.items():
        if number < lowest:
            raise InputError(f"{name} is {number}, but must be at least {lowest}.")
    positive = {"train.learning_rate": study.train.learning_rate, "memory_gib": study.memory_gib}
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0.0):
            raise InputError(f"{name} is {value:g}, but must be a positive number.")
    shares = {"train.warmup": study.train.warmup, "train.weight_decay": study.train.weight_decay}
    for name, value in shares.items():
        if not (math.isfinite(value) and value >= 0.0):
            raise InputError(f"{name} is {value:g}, but must be 0 or more.")
    if not 0.0 <= study.train.label_smoothing < 1.0:
        raise InputError(f"train.label_smoothing is {study.train.label_smoothing:g}, but must be in [0, 1).")
    if study.train.warmup >= study.train.epochs:
        raise InputError(f"train.warmup is {study.train.warmup:g} epochs, but there are {study.train.epochs} in all.")
