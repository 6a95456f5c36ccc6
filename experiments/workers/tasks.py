"""What a worker is given, a cell at a time, and how it computes that: the same for every kind of workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import sweep
from experiments.base import own
from experiments.base.wording import all_digits
from experiments.data.loading import Dataset
from experiments.records.results_folder import Folder
from experiments.study import Cell, Model, Study
from experiments.workbench import Measured, Workbench

__all__ = ["ATTEMPTS", "Given", "Task", "compute", "lost", "tasks_of"]

ATTEMPTS = 3
"""How often a task is begun whose workers are lost, before it counts as failed."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What all workers of a study need, the same for every task.

    Attributes:
        study: the study.
        datasets: its data sets, whole, by their names in results.
        modules: the file beside which modules of one's own are found, if any.
        checkpoints: the folder for checkpoints of long trainings, used where a worker sees the output folder.
        numeric_options: the options of JAX that decide numbers, as they are in the process that read the study.
    """

    study: Study
    datasets: Mapping[str, Dataset]
    modules: Path | None
    checkpoints: Path
    numeric_options: Mapping[str, Any]


class Task(NamedTuple):
    """Seeds of one cell of one data set and model, which one worker computes."""

    data: str
    model: Model
    cell: Cell
    seeds: tuple[int, ...]

    @property
    def place(self) -> tuple[str, str]:
        """The data set and the model, which share their compiled programs."""
        return self.data, self.model.name

    @property
    def title(self) -> str:
        """The cell in words."""
        method, density = self.cell
        return f"{self.data} {self.model.name} {method} {all_digits(density)}"


def tasks_of(study: Study, folder: Folder, *, whole_cells: bool) -> list[Task]:
    """What the folder lacks, in the order of the study.

    With `whole_cells` a cell that was begun is computed with all seeds that it had then: where several networks are
    computed in one program, each rounds differently when others are beside it.
    """
    models = {model.name: model for model in study.model}
    tasks = []
    for (data, name), work in sweep.missing_work(study, folder).items():
        for cell, seeds in work.missing.items():
            begun = work.fresh.get(cell, ()) if whole_cells else ()
            tasks.append(Task(data, models[name], cell, tuple(sorted({*seeds, *begun}))))
    return tasks


def compute(given: Given, task: Task) -> Measured:
    """The finished trials of a task, as `sweep.compute_cell`, in a process that does nothing else meanwhile.

    The programs of the last data set and model stay compiled for the next task. Raises InputError where the network
    cannot be built.
    """
    return sweep.compute_cell(_workbench(given, task), task.cell, task.seeds)


def lost(study: Study, task: Task, hint: str) -> Measured:
    """The trials of a task whose workers were lost `ATTEMPTS` times; all have failed."""
    group = sweep.Group(task.data, task.model, (task.cell,))
    return sweep.failed(study, group, task.seeds, f"the process that computed it was lost {ATTEMPTS} times; {hint}")


_LAST: dict[str, tuple[Study, tuple[str, str], Workbench]] = {}
"""The workbench that this process used last, with its study and its place, under the one key "workbench"."""


def _workbench(given: Given, task: Task) -> Workbench:
    if "workbench" in _LAST:
        study, place, bench = _LAST["workbench"]
        if (study, place) == (given.study, task.place):
            return bench
        _LAST.clear()  # before the next one needs the memory
        del bench
    if given.modules is not None:
        own.look_beside(given.modules)
    for name, value in given.numeric_options.items():
        jax.config.update(name, value)
    checkpoints = given.checkpoints if given.checkpoints.parent.is_dir() else None
    bench = sweep.workbench_of(given.study, task.data, task.model, given.datasets, checkpoints)
    _LAST["workbench"] = given.study, task.place, bench
    return bench
