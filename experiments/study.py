"""What a study compares, read from a TOML file. Imports nothing heavy, so that a wrong key is reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.base.errors import InputError, check_known
from experiments.base.names import DENSE, METHODS, NETWORKS
from experiments.base.wording import all_digits, enumerated
from experiments.train.recipe import PRECISIONS, SCHEDULES, Recipe

__all__ = ["Cell", "Measures", "Model", "Study", "checked", "read", "ready_configs"]

Cell = tuple[str, float]
"""A method and a density."""

_CONFIGS = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class Model:
    """A network of the study: its name in results, which of `names.NETWORKS` it is, and the differences to that one."""

    name: str
    """Its name in results."""
    network: str
    """One of `names.NETWORKS`, or "module:function" for one of your own."""
    factor: float = 1.0
    """All widths but the outputs are multiplied by this and rounded up."""
    batch_norm: bool | None = None
    """Whether it has batch norm; left out, as published."""
    activation: str = "relu"
    """relu, leaky_relu or linear."""
    init: str = "kaiming"
    """kaiming, orthogonal, delta_orthogonal or ntk."""
    depth: int = 0
    """Its depth, where the network exists in several; 0 is the published one."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured beside training."""

    rounds: int = 100
    """Pruning rounds of the methods that score again in each round."""
    ntk_images: int = 10
    """Training images in the batch of Θ, equally many of each class or one of each of the first classes."""
    score_per_class: int = 10
    """Training images of each class that data-driven scores read with their labels."""
    score_inputs: int = 1000
    """Training images, the first ones, that scores read without labels; 0 is all."""
    curve_steps: int = 50
    """Steps of gradient descent in the loss curves that are compared with predictions."""
    curve_density: tuple[float, ...] = ()
    """Densities whose networks get loss curves; with any, the dense network gets them too."""
    rank: int = 16
    """Rank of the part of Θ in Π's eigenbasis that predicts a loss curve."""
    expected: bool = False
    """Whether these curves are also predicted from the kernel of expected gates, with and without data."""
    regression_images: int = 0
    """Test images, the first ones, on which regression with that kernel is tested before training; 0 is none."""
    loss_level: float = 0.3
    """Training loss (cross-entropy, nats) whose first crossing is reported in steps."""
    changes: bool = True
    """Whether Θ and Π are compared before and after training."""
    kernel_pictures: bool = False
    """Whether the numbers of the pictures of kernels are kept, for each cell of seed 0."""


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
    """Memory of the networks that are trained side by side on a GPU. It decides their number, not the results."""
    train: Recipe = dataclasses.field(default_factory=Recipe)
    """How networks are trained."""
    measure: Measures = dataclasses.field(default_factory=Measures)
    """What is measured beside training."""

    @property
    def cells(self) -> list[Cell]:
        """Methods and densities of one data set and one model, the dense network first."""
        return [(DENSE, 1.0), *((method, density) for density in self.density for method in self.method)]


def ready_configs() -> tuple[str, ...]:
    """The names of the configs that come with the experiments."""
    return tuple(sorted(path.stem for path in _CONFIGS.glob("*.toml")))


def read(config: str, *, datasets: Sequence[str]) -> tuple[str, Study]:
    """The name of a study and what it compares; `config` is a TOML file or the name of a ready one.

    Raises InputError, in one sentence, where there is no such file, it is not TOML, or holds a key or a value that
    means nothing.
    """
    path = Path(config)
    if not path.suffix and not path.is_file():
        check_known("config", config, ready_configs())
        path = _CONFIGS / f"{config}.toml"
    elif not path.exists() and path.parent == Path() and (_CONFIGS / path.name).exists():
        path = _CONFIGS / path.name
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {error.strerror}; ready configs are {', '.join(ready_configs())}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {str(error).rstrip('.')}.") from error
    study = _built(Study, values, "")
    return path.stem, checked(study, datasets=datasets)


def checked(study: Study, *, datasets: Sequence[str]) -> Study:
    """The study with methods in the order of `names.METHODS` and densities from high to low.

    Raises InputError, in one sentence, at the first name that does not exist and the first number that makes no sense.
    """
    _check_names(study, datasets)
    _check_densities(study)
    _check_numbers(study)
    return dataclasses.replace(
        study,
        method=tuple(sorted(study.method, key=METHODS.index)),
        density=tuple(sorted(study.density, reverse=True)),
        measure=dataclasses.replace(
            study.measure, curve_density=tuple(sorted(study.measure.curve_density, reverse=True))
        ),
    )


def _built(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass `kind` from a TOML table, whose name is `where`; checked field by field."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            nearest = difflib.get_close_matches(key, fields, n=1)
            hint = f"; the nearest to it is {where}{nearest[0]}" if nearest else ""
            raise InputError(f"There is no key {where}{key}{hint}: there are {', '.join(fields)}.")
    for name, field in fields.items():
        absent = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if absent and name not in values:
            raise InputError(f"The config lacks the key {where}{name}.")
    return kind(**{key: _value(str(fields[key].type), value, f"{where}{key}") for key, value in values.items()})


_TABLES: dict[str, type] = {"Recipe": Recipe, "Measures": Measures, "Model": Model}
_ACCEPTED: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
_DESCRIBED = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}


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
    if type(value) not in _ACCEPTED[kind]:
        raise InputError(f"{where} must be {_DESCRIBED[kind]}; it is {value!r}.")
    return float(value) if kind == "float" else value


def _check_names(study: Study, datasets: Sequence[str]) -> None:
    for name in study.data:
        check_known("data set", name, datasets)
    for method in study.method:
        check_known("method", method, METHODS)
    for model in study.model:
        if ":" not in model.network:
            check_known("network", model.network, NETWORKS)
        check_known("activation", model.activation, ("relu", "leaky_relu", "linear"))
        check_known("init", model.init, ("kaiming", "orthogonal", "delta_orthogonal", "ntk"))
        if not model.factor > 0.0:
            raise InputError(f"model.factor is {model.factor:g}, but must be a positive number.")
        if "/" in model.name:
            raise InputError(f"The model name {model.name} has a slash; it becomes a part of file names.")
    check_known("schedule", study.train.schedule, SCHEDULES)
    check_known("precision", study.train.precision, PRECISIONS)
    names = [model.name for model in study.model]
    for key, values in (("data", study.data), ("method", study.method), ("density", study.density), ("model", names)):
        if not values:
            raise InputError(f"{key} must be a list of one entry or more.")
        for value in values:
            if list(values).count(value) > 1:
                raise InputError(f"{key} has {value} more than once.")


def _check_densities(study: Study) -> None:
    for density in (*study.density, *study.measure.curve_density):
        if not 0.0 < density <= 1.0:
            raise InputError(f"Density {density:g} is outside (0, 1]: it is the share of weights that is kept.")
    words = [f"{density:g}" for density in study.density]
    for word in words:
        if words.count(word) > 1:
            alike = [all_digits(density) for density in study.density if f"{density:g}" == word]
            raise InputError(f"density has {enumerated(alike)}, which print alike, as {word}: keep one of them.")
    for density in study.measure.curve_density:
        if density not in study.density:
            raise InputError(f"measure.curve_density has {density:g}, which is not one of density.")


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
        ("measure.score_inputs", study.measure.score_inputs): 0,
        ("measure.curve_steps", study.measure.curve_steps): 1,
        ("measure.rank", study.measure.rank): 1,
        ("measure.regression_images", study.measure.regression_images): 0,
    }
    for (name, number), lowest in least.items():
        if number < lowest:
            raise InputError(f"{name} is {number}, but must be at least {lowest}.")
    positive = {
        "train.learning_rate": study.train.learning_rate,
        "measure.loss_level": study.measure.loss_level,
        "memory_gib": study.memory_gib,
    }
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0.0):
            raise InputError(f"{name} is {value:g}, but must be a positive number.")
    not_negative = {"train.warmup": study.train.warmup, "train.weight_decay": study.train.weight_decay}
    for name, value in not_negative.items():
        if not (math.isfinite(value) and value >= 0.0):
            raise InputError(f"{name} is {value:g}, but must be 0 or more.")
    if not 0.0 <= study.train.label_smoothing < 1.0:
        raise InputError(f"train.label_smoothing is {study.train.label_smoothing:g}, but must be in [0, 1).")
    if study.train.warmup >= study.train.epochs:
        raise InputError(f"train.warmup is {study.train.warmup:g} epochs, but there are {study.train.epochs} in all.")
