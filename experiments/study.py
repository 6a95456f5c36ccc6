"""What a study compares, read from a TOML file. Imports nothing heavy, so that a wrong key is reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.base import own, variants
from experiments.base.errors import InputError, check_known
from experiments.base.names import DENSE, NETWORKS, why_no_file_name
from experiments.base.wording import all_digits, enumerated
from experiments.train.recipe import PRECISIONS, SCHEDULES, Recipe

__all__ = ["MOST_FACTOR", "Cell", "Measures", "Model", "Study", "checked", "config_file", "read", "ready_configs"]

Cell = tuple[str, float]
"""A method and a density."""

MOST_FACTOR = 1000.0
"""The largest factor of widths: whatever is larger is a slip, since kernels grow with its square."""

_CONFIGS = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class Model:
    """A network of the study: its name in results, which of `names.NETWORKS` it is, and the differences to that one."""

    name: str
    """Its name in results."""
    network: str
    """The name of a network that is there, such as `resnet_20`, or "module:function" for one of your own."""
    factor: float = 1.0
    """All widths but the outputs are multiplied by this and rounded up; at most 1,000."""
    batch_norm: bool | None = None
    """Whether it has batch norm; left out, as published."""
    activation: str = "relu"
    """relu, leaky_relu or linear."""
    init: str = "kaiming"
    """kaiming, lecun, orthogonal, delta_orthogonal or ntk."""
    depth: int = 0
    """Its depth, where the network exists in several; 0 is the published one."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured beside training."""

    rounds: int = 100
    """Pruning rounds of the methods that score again in each round."""
    training_mode_scores: bool = True
    """Whether SNIP, GraSP, NTK-SAP and ProsPr score a network with batch norm in training mode, with the statistics of
    the scored batch, as their authors do. False scores it in evaluation mode, with the statistics it begins with. It
    decides no result of other methods, or of networks without batch norm."""
    rewind_epochs: int = 0
    """Epochs of dense training to whose end a lottery ticket is rewound; 0 is to the weights as they were drawn."""
    ntk_images: int = 10
    """Training images in the batch of Θ, equally many of each class or one of each of the first classes."""
    score_per_class: int = 10
    """Training images of each class in a batch that scores read with its labels; ProsPr reads four batches."""
    score_inputs: int = 1000
    """Training images, the first ones, that scores read without labels; 0 is all."""
    curve_steps: int = 50
    """Steps of gradient descent in the loss curves that are compared with predictions."""
    curve_density: tuple[float, ...] = ()
    """Densities whose networks get loss curves, predicted ones and real ones; with any, the dense network gets them
    too."""
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


_NO_KEY = {"no key": True}
"""Marks fields that a config does not have."""


@dataclasses.dataclass(frozen=True)
class Study:
    """All networks of data × model × method × density × seed, and how they are trained and measured."""

    data: tuple[str, ...]
    """Data sets: `digits`, which needs no files, the name of any data set that TFDS has prepared, such as `mnist` or
    `cifar10`, or one of your own: "module:function", or a .npz file, whose folder begins at the config's."""
    model: tuple[Model, ...]
    """Networks."""
    method: tuple[str, ...]
    """Pruning methods, each alone, as "snip", or as a sanity check, "snip+shuffled", "snip+reinitialized" or
    "snip+inverted", or with two of every four weights, "snip+2of4"; the dense network is always there too."""
    density: tuple[float, ...]
    """Kept shares of the prunable weights, each in (0, 1]."""
    seeds: int = 3
    """Number of seeds. The seeds are 0, 1, 2 and so on."""
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
    sources: dict[str, str] = dataclasses.field(default_factory=dict, metadata=_NO_KEY)
    """The function or the file of each data set of one's own, by its name in results."""

    @property
    def cells(self) -> list[Cell]:
        """Methods and densities of one data set and one model, the dense network first."""
        return [(DENSE, 1.0), *((method, density) for density in self.density for method in self.method)]

    def source(self, data: str) -> str:
        """Where one of its data sets comes from, as `data.loading.load` takes it."""
        return self.sources.get(data, data)


def ready_configs() -> tuple[str, ...]:
    """The names of the configs that come with the experiments."""
    return tuple(sorted(path.stem for path in _CONFIGS.glob("*.toml")))


def read(config: str, *, datasets: Sequence[str], changes: Sequence[str] = ()) -> tuple[str, Study]:
    """The name of a study and what it compares; `config` is a TOML file or the name of a ready one.

    Each of the `changes`, as "train.learning_rate=0.1", puts another value in place of that of the file. Raises
    InputError, in one sentence, where there is no such file, it is not TOML, or holds a key or a value that means
    nothing.
    """
    path = config_file(config)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {error.strerror}; ready configs are {', '.join(ready_configs())}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {str(error).rstrip('.')}.") from error
    for change in changes:
        _change(values, change)
    study = _built(Study, values, "")
    # a ready config has no files of its own: those that changes name begin at the current folder
    return path.stem, checked(study, datasets=datasets, beside=Path() if path.parent == _CONFIGS else path.parent)


def config_file(config: str) -> Path:
    """The TOML file of a config; a file goes before a ready one of the same name.

    Raises InputError where a name without suffix is neither.
    """
    path = Path(config)
    if not path.suffix and not path.is_file():
        check_known("config", config, ready_configs())
        return _CONFIGS / f"{config}.toml"
    if not path.exists() and path.parent == Path() and (_CONFIGS / path.name).exists():
        return _CONFIGS / path.name
    return path


def checked(study: Study, *, datasets: Sequence[str], beside: Path = Path()) -> Study:
    """The study with methods in the order of `variants.place`, densities from high to low, and the sources of its data.

    `datasets` are the names of data sets that are not one's own; relative paths begin at the folder `beside`. Raises
    InputError, in one sentence, at the first name that does not exist and the first number that makes no sense.
    """
    study = _with_sources(study, datasets, beside)
    _check_names(study)
    _check_densities(study)
    _check_numbers(study)
    return dataclasses.replace(
        study,
        method=tuple(sorted(study.method, key=variants.place)),
        density=tuple(sorted(study.density, reverse=True)),
        measure=dataclasses.replace(
            study.measure, curve_density=tuple(sorted(study.measure.curve_density, reverse=True))
        ),
    )


_WORD = re.compile(r"[A-Za-z_][\w:./-]*")
"""A string that a change may give without quotes."""


def _change(values: dict[str, Any], change: str) -> None:
    """Put the value of a change "key=value" in its place; one of "model.…" is that of every model."""
    key, equals, text = change.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"\w+(\.\w+)?", key):
        raise InputError(
            f"{change!r} is no change of a config; write KEY=VALUE, as train.learning_rate=0.1 or seeds=5."
        )
    try:
        parsed = tomllib.loads(f"value = {text}")
        if list(parsed) != ["value"]:
            raise ValueError("it is more than one line")
        value = parsed["value"]
    except ValueError as error:  # TOMLDecodeError is one
        value = text.strip()
        if not _WORD.fullmatch(value):
            raise InputError(
                f"The value of {change!r} is not TOML; write numbers as 0.1, words as they are, and lists as "
                f'\'{key}=["snip", "synflow"]\'.'
            ) from error
    table, dot, name = key.partition(".")
    if not dot:
        values[key] = value
    elif isinstance(values.get(table), list):
        for each in values[table]:
            if not isinstance(each, dict):
                raise InputError(f"{table} has no tables, so {key} cannot be set; write {table}=VALUE.")
            each[name] = value
    else:
        inner = values.setdefault(table, {})
        if not isinstance(inner, dict):
            raise InputError(f"{table} is no table, so {key} cannot be set; write {table}=VALUE.")
        inner[name] = value


def _built(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass `kind` from a TOML table, whose name is `where`; checked field by field."""
    fields = {field.name: field for field in dataclasses.fields(kind) if "no key" not in field.metadata}
    for key in values:
        if key not in fields:
            nearest = difflib.get_close_matches(key, fields, n=1)
            hint = f"; the nearest to it is {where}{nearest[0]}" if nearest else ""
            if where and key in Study.__dataclass_fields__:
                hint = f"; {key} belongs above the first table of the config"
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
        if kind == "tuple[Model, ...]" and isinstance(value, dict):
            raise InputError(f"{where} must be a list of tables: begin each by [[{where}]], not by [{where}].")
        if not isinstance(value, list) or not value:
            raise InputError(f"{where} must be a list of one entry or more; it is {value!r}.")
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_value(inner, entry, where) for entry in value)
    if type(value) not in _ACCEPTED[kind]:
        raise InputError(f"{where} must be {_DESCRIBED[kind]}; it is {value!r}.")
    return float(value) if kind == "float" else value


def _with_sources(study: Study, datasets: Sequence[str], beside: Path) -> Study:
    """The study with its data sets by their names in results, and the sources of one's own."""
    sources: dict[str, str] = {}
    names: list[str] = []
    for given in study.data:
        source, name = study.source(given), given if given in study.sources else own.short_name(given)
        if own.is_file(source):
            source = str((beside / Path(source).expanduser()).resolve())
            if not Path(source).is_file():
                raise InputError(f"There is no file {source}, which data names.")
        elif not own.is_function(source):
            check_known("data set", source, datasets, others=own.OTHER_DATA)
        if name in names and source != sources.get(name, name):
            raise InputError(
                f"data has {given} and {sources.get(name, name)}, whose results would have the same name {name}; give "
                "one of them another name."
            )
        if source != name:
            sources[name] = source
        names.append(name)
    return dataclasses.replace(study, data=tuple(names), sources=sources)


def _check_names(study: Study) -> None:
    for method in study.method:
        variants.check_method(method, study.density)
    for model in study.model:
        if ":" not in model.network:
            check_known("network", model.network, NETWORKS)
        check_known("activation", model.activation, ("relu", "leaky_relu", "linear"))
        check_known("init", model.init, ("kaiming", "lecun", "orthogonal", "delta_orthogonal", "ntk"))
        if not 0.0 < model.factor <= MOST_FACTOR:
            raise InputError(
                f"model.factor is {model.factor:g}, but must be a positive number, {MOST_FACTOR:g} at most: all widths "
                "are multiplied by it."
            )
        if why := why_no_file_name(model.name):
            raise InputError(f"The model name {model.name!r} {why}; it becomes a part of file names.")
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
        ("measure.rewind_epochs", study.measure.rewind_epochs): 0,
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
    shares = {"train.momentum": study.train.momentum, "train.label_smoothing": study.train.label_smoothing}
    for name, value in shares.items():
        if not 0.0 <= value < 1.0:
            raise InputError(f"{name} is {value:g}, but must be in [0, 1).")
    if study.train.warmup >= study.train.epochs:
        raise InputError(f"train.warmup is {study.train.warmup:g} epochs, but there are {study.train.epochs} in all.")
    if study.measure.rewind_epochs >= study.train.epochs:
        raise InputError(
            f"measure.rewind_epochs is {study.measure.rewind_epochs}, but there are {study.train.epochs} epochs in all."
        )
