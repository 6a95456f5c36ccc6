"""Finished trials as runs of TensorBoard or of Weights & Biases, which need not be installed otherwise."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.base.errors import InputError, check_known
from experiments.records.trial import Trial
from experiments.records.trial_table import configured

__all__ = ["TRACKERS", "Finished", "tracker"]

Finished = Callable[[Sequence[Trial]], None]
"""Is called with trials as soon as they are finished and kept."""

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}

_DIGITS = 12
"""Hexadecimal digits by which Weights & Biases knows a trial of a project."""

TRACKERS = tuple(_PACKAGES)
"""What trials can be sent to."""


def tracker(name: str, out: Path, options: Mapping[str, Any]) -> Finished:
    """A function that sends finished trials to one of `TRACKERS`, each trial as a run of its own.

    A run has the config of its trial, the training loss by epoch, and the numbers of its row in the table of trials.
    TensorBoard reads the folder `out`/tensorboard. Weights & Biases gets a project with the name of `out`, and takes
    its settings from its own environment variables, as WANDB_MODE=offline. A trial that is sent again goes on under its
    identity there, and replaces what TensorBoard had. Raises InputError where there is no such tracker, or its package
    is not installed.
    """
    check_known("tracker", name, TRACKERS)
    try:
        package = importlib.import_module(_PACKAGES[name])
    except ImportError as error:
        raise InputError(
            f"--track {name} needs the package {_PACKAGES[name]}; install it by pip install 'pathjax[{name}]'."
        ) from error
    return {"tensorboard": _to_tensorboard, "wandb": _to_wandb}[name](package, out, options)


def _to_tensorboard(package: Any, out: Path, options: Mapping[str, Any]) -> Finished:
    def finished(trials: Sequence[Trial]) -> None:
        for trial in trials:
            data, model, method, density, seed = trial.name
            folder = out / "tensorboard" / f"{data}-{model}-{method}-{density!r}-{seed}"
            for old in folder.glob("events.*"):
                old.unlink()
            with package.SummaryWriter(str(folder)) as writer:
                for epoch, loss in enumerate(trial.train_loss):
                    writer.add_scalar("train_loss", loss, epoch)
                for name, value in _numbers(trial).items():
                    writer.add_scalar(name, value, 0)
                lines = [f"    {key} = {value}" for key, value in _config(trial, options).items()]
                writer.add_text("config", "\n".join(lines))

    return finished


def _to_wandb(package: Any, out: Path, options: Mapping[str, Any]) -> Finished:
    def finished(trials: Sequence[Trial]) -> None:
        for trial in trials:
            run = package.init(
                project=out.resolve().name,
                id=_identity(trial),
                name=trial.title,
                config=_config(trial, options),
                dir=str(out),
                resume="allow",
                reinit=True,
            )
            for epoch, loss in enumerate(trial.train_loss):
                run.log({"train_loss": loss}, step=epoch)
            run.summary.update(_numbers(trial))
            run.finish()

    return finished


def _identity(trial: Trial) -> str:
    """What tells a trial from all others of a project, which studies of other settings may share."""
    return hashlib.sha256(repr((trial.name, sorted(trial.setting.items()))).encode()).hexdigest()[:_DIGITS]


def _config(trial: Trial, options: Mapping[str, Any]) -> dict[str, Any]:
    named = dict(zip(("data", "model", "method", "density", "seed"), trial.name, strict=True))
    return named | configured(vars(trial), options)


def _numbers(trial: Trial) -> dict[str, float]:
    """The numbers of the trial that exist, but for those that name it."""
    numbers = {name: value for name, value in vars(trial).items() if isinstance(value, bool | int | float)}
    return {
        name: float(value)
        for name, value in numbers.items()
        if name not in ("density", "seed") and math.isfinite(value)
    }
