"""What a user may ask for, and the sentences that say why not. Imports nothing heavy: `--help` stays quick."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from pathlib import Path

from tyro.conf import Positional

__all__ = [
    "DENSE",
    "METHODS",
    "MODELS",
    "PRECISIONS",
    "SCHEDULES",
    "Compare",
    "Figures",
    "InputError",
    "Recipe",
    "Sweep",
    "known",
    "validated",
]

METHODS = (
    "random",
    "magnitude",
    "snip",
    "grasp",
    "synflow",
    "synflow_l2",
    "synflow_data",
    "synflow_data_l2",
    "path_kernel_trace",
    "px",
    "ntk_sap",
)
MODELS = ("fc", "fc_residual", "conv", "conv_residual", "conv_pool", "conv_pool_residual")
DENSE = "dense"
"""The unpruned network's name in tables; measured with every comparison, so it is not an option."""


class InputError(ValueError):
    """Something a user gave cannot be used. The message is one sentence for the user, with the remedy."""


SCHEDULES = ("constant", "cosine", "step")
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How networks are trained, by SGD with momentum 0.9 on cross-entropy."""

    epochs: int = 30
    """Passes over the train set."""
    batch_size: int = 64
    """Images in a minibatch."""
    learning_rate: float = 0.05
    """Largest step size."""
    schedule: str = "constant"
    """The step size over time: constant; cosine, down to 0; or step, a tenth after half and again after 3/4."""
    warmup: float = 0.0
    """Epochs in which the step size rises to the largest."""
    weight_decay: float = 0.0
    """What is added to the gradient, times the weights, in kernels alone."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    augment: bool = False
    """Crop padded images at random, and flip them where a mirror image means the same."""
    precision: str = "float32"
    """What networks are computed in: float32 or bfloat16. Weights are float32."""
    checkpoint_every: int = 10
    """Epochs between checkpoints, where these are kept."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare prunings of one network, before and after training, on one data set.

    Every finished run is kept in the output folder: the same command continues where it stopped.
    """

    dataset: str = "digits"
    """Data set to train on: digits, made here; or mnist, fashion_mnist, cifar10, cifar100, svhn_cropped,
    imagenet_resized, tiny_imagenet where they are prepared."""
    model: str = "fc"
    """Network of three hidden ReLU layers with biases: fc (fully connected); conv (3 × 3 convolutions, flattened at the
    end) or conv_pool (averaged there); fc_residual, conv_residual, conv_pool_residual: the same with shortcuts."""
    density: tuple[float, ...] = (0.5, 0.1, 0.02)
    """Kept shares of the prunable weights, each in (0, 1]. The dense network is always measured too."""
    method: tuple[str, ...] = ("random", "magnitude", "snip", "synflow", "synflow_l2", "synflow_data")
    """Pruning methods: random, magnitude, snip, grasp, synflow, synflow_l2, synflow_data, synflow_data_l2,
    path_kernel_trace, px, ntk_sap."""
    seeds: int = 3
    """Number of seeds 0, 1, ...: each draws its own weights, random scores and order of minibatches."""
    out: Path = Path("runs/digits")
    """Folder for results.jsonl, summary.csv, figures/ and report.html."""
    width: int = 100
    """Units, or channels, in each hidden layer."""
    rounds: int = 100
    """Pruning rounds of the synflow family; the other methods prune in one round."""
    epochs: int = 30
    """Passes over the train set with SGD and momentum 0.9."""
    batch_size: int = 64
    """Images in a minibatch."""
    learning_rate: float = 0.05
    """Step size of SGD, constant through training."""
    loss_level: float = 0.3
    """Training loss (cross-entropy, nats) whose first crossing is reported in steps."""
    ntk_per_class: int = 5
    """Training images of each class in the fixed batch of the Neural Tangent Kernel."""
    curve_steps: int = 200
    """Steps of full-batch gradient descent that are held against the predicted loss curves."""
    data_dir: Path | None = None
    """Folder of prepared data sets; left out, the place where TFDS keeps them."""
    repair: bool = False
    """Set unreadable lines of results.jsonl aside in results.jsonl.broken and compute their runs again."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Draw the figures and the report of a study, finished or not, from the results in its folder."""

    folder: Positional[Path]
    """Folder that `sweep` writes to; the figures go to its figures/, the page is its report.html."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run a study: prune, measure and train all networks that a config names.

    Every finished network is kept in the output folder: the same command continues where it stopped.
    """

    config: Positional[str]
    """A TOML file, or the name of a ready one: digits, fashion-quick, cifar10-quick, paper."""
    out: Path | None = None
    """Folder for results.jsonl; left out, runs/ and the config's name."""
    data_dir: Path | None = None
    """Folder of prepared data sets; left out, the place where TFDS keeps them."""
    list: bool = False
    """Say what would run and about how long it would take, and stop."""
    repair: bool = False
    """Set unreadable lines of results.jsonl aside in results.jsonl.broken and compute their networks again."""
    coordinator: str | None = None
    """Where several processes train together, started with the same command: HOST:PORT of process 0, the port free;
    or auto, where JAX finds the processes itself: Slurm, Open MPI, TPU pods. Process 0 writes and shows the results; it
    alone needs the output folder."""
    processes: int | None = None
    """With HOST:PORT: how many processes there are."""
    process: int | None = None
    """With HOST:PORT: which of them this is, from 0."""


def validated(options: Compare, *, datasets: Sequence[str]) -> Compare:
    """The options in canonical order (methods as listed, densities from high to low).

    Raises InputError at the first name that does not exist and the first number that has no meaning.
    """
    known("data set", options.dataset, datasets)
    known("model", options.model, MODELS)
    for method in options.method:
        known("method", method, METHODS)
    _distinct("method", options.method)
    for density in options.density:
        if not 0.0 < density <= 1.0:
            raise InputError(f"Density {density:g} is outside (0, 1]: it is the share of weights that is kept.")
    _distinct("density", [f"{density:g}" for density in options.density])
    for name in ("seeds", "width", "rounds", "epochs", "batch_size", "ntk_per_class", "curve_steps"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}, but must be at least 1.")
    for name in ("learning_rate", "loss_level"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value > 0.0):
            raise InputError(f"--{name.replace('_', '-')} is {value:g}, but must be a positive number.")
    return dataclasses.replace(
        options,
        method=tuple(sorted(options.method, key=METHODS.index)),
        density=tuple(sorted(options.density, reverse=True)),
    )


def known(kind: str, name: str, existing: Sequence[str]) -> None:
    """Raise InputError where a name does not exist, with the nearest one that does."""
    if name in existing:
        return
    nearest = difflib.get_close_matches(name, existing, n=1)
    hint = f"; the nearest to it is {nearest[0]}" if nearest else ""
    verb = "there are" if len(existing) > 1 else "there is"
    raise InputError(f"There is no {kind} {name!r}{hint}: {verb} {', '.join(existing)}.")


def _distinct(kind: str, values: Sequence[str]) -> None:
    if not values:
        raise InputError(f"No {kind} is given; give at least one after --{kind}.")
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{kind.capitalize()} {value} is given more than once.")
