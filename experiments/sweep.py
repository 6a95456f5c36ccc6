"""The one loop that runs a study: every network of data × model × method × density × seed, each kept when finished."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.linalg.cython_lapack  # noqa: F401  # XLA's LAPACK; loaded now, so that the thread limit holds for it too
import threadpoolctl  # type: ignore[import-untyped]
from rich.table import Table

from experiments.base.errors import InputError
from experiments.data.loading import Dataset
from experiments.measure import kernel_pictures
from experiments.records import results_folder
from experiments.records.progress import Reporter
from experiments.records.results_folder import Claim, Folder, Unkept
from experiments.records.trial import Name, Trial
from experiments.study import Cell, Model, Study
from experiments.train import distributed
from experiments.workbench import Workbench

__all__ = ["Group", "best", "claim", "held", "missing_cells", "run"]


class Group(NamedTuple):
    """Cells of one data set and one model that are trained together."""

    data: str
    model: Model
    cells: tuple[Cell, ...]

    def names(self, seeds: int) -> list[Name]:
        """The trials of the group."""
        return [(self.data, self.model.name, *cell, seed) for cell in self.cells for seed in range(seeds)]


def claim(study: Study, out: Path, *, repair: bool) -> Claim:
    """What the study wants of its output folder."""
    options = json.loads(json.dumps(dataclasses.asdict(study)))  # as a folder gives them back
    del options["memory_gib"]
    for table in ("train", "measure"):
        options |= {f"{table}.{key}": value for key, value in options.pop(table).items()}
    parts = itertools.product(study.data, (model.name for model in study.model), study.cells, range(study.seeds))
    expected = {(name, model, *cell, seed) for name, model, cell, seed in parts}
    return Claim(out, options, expected, repair)


@contextlib.contextmanager
def held(claim: Claim) -> Iterator[Folder]:
    """The output folder of a study. Of several processes, the first holds it. Raises as `results_folder.claimed`."""
    with contextlib.ExitStack() as stack:
        with distributed.failing_together():
            if distributed.is_first():
                folder = stack.enter_context(results_folder.claimed(claim))
            else:
                folder = Unkept(claim.out, claim.options, [])
        yield folder


def run(study: Study, folder: Folder, reporter: Reporter, datasets: dict[str, Dataset]) -> None:
    """Compute the cells that the folder lacks, and keep each group of them as soon as it is finished."""
    missing = _agreed_missing_cells(study, folder)
    for data, model in itertools.product(study.data, study.model):
        cells = missing[data, model.name]
        if not cells:
            continue
        reporter.stage(f"{data} {model.name}: building")
        # matrices this small take one thread; on a shared machine several threads wait for each other
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            with distributed.failing_together():
                dataset = datasets[data].first(study.train_images, study.test_images)
                workbench = Workbench(study, model, dataset, folder.path / "checkpoints")
            for group in _groups(study, data, model, workbench.batch_size):
                if not cells.isdisjoint(group.cells):
                    _compute(workbench, group, study, folder, reporter)


def missing_cells(study: Study, folder: Folder) -> dict[tuple[str, str], set[Cell]]:
    """For each data set and model, the cells of which the folder lacks a trial or the numbers of its pictures."""
    kept = {trial.name: trial for trial in folder.trials()}
    missing: dict[tuple[str, str], set[Cell]] = {}
    for data, model in itertools.product(study.data, study.model):
        for_setting = missing.setdefault((data, model.name), set())
        for cell in study.cells:
            trials = [kept.get(name) for name in Group(data, model, (cell,)).names(study.seeds)]
            # a cell that failed may have none, and would have none again
            failed = any(trial is not None and trial.reason for trial in trials)
            pictures = kernel_pictures.file_of(folder.path, data, model.name, *cell)
            lacks_pictures = study.measure.kernel_pictures and not failed and not pictures.exists()
            if None in trials or lacks_pictures:
                for_setting.add(cell)
    return missing


def _agreed_missing_cells(study: Study, folder: Folder) -> dict[tuple[str, str], set[Cell]]:
    """`missing_cells` of the folder of process 0, in all processes."""
    ours = missing_cells(study, folder)
    flags = np.array([[cell in cells for cell in study.cells] for cells in ours.values()])
    agreed = distributed.broadcast_from_first(flags)
    return {setting: set(itertools.compress(study.cells, row)) for setting, row in zip(ours, agreed, strict=True)}


def _groups(study: Study, data: str, model: Model, batch_size: int) -> list[Group]:
    """The groups of one data set and one model. They depend on the study alone, not on what is kept of it."""
    size, cells = max(1, batch_size // study.seeds), study.cells
    return [Group(data, model, tuple(cells[at : at + size])) for at in range(0, len(cells), size)]


def _compute(workbench: Workbench, group: Group, study: Study, folder: Folder, reporter: Reporter) -> None:
    """Compute a whole group, since groups of other sizes round differently, and keep what is not kept yet."""
    kept = folder.names()
    pictures = folder.path if distributed.is_first() else None
    for trials in _computed(workbench, group, study.seeds, reporter, pictures):
        with distributed.failing_together():
            folder.add(trials)
        if any(trial.name not in kept for trial in trials):
            reporter.advance(_outcome(trials))


def _computed(
    workbench: Workbench, group: Group, seeds: int, reporter: Reporter, pictures: Path | None
) -> Iterator[list[Trial]]:
    """The trials of each cell of a group. Where several cells fail together, each is tried by itself."""
    try:
        with distributed.failing_together():
            trials = workbench.trials(group.cells, reporter, pictures)
    except InputError:
        raise
    except Exception as error:  # whatever fails, the rest of the study goes on
        if len(group.cells) > 1:
            for cell in group.cells:
                yield from _computed(workbench, group._replace(cells=(cell,)), seeds, reporter, pictures)
            return
        lines = str(error).strip().splitlines() or ["no message"]
        reason = f"{type(error).__name__}: {lines[0]}"
        yield [Trial.partial(name, reason=reason) for name in group.names(seeds)]
        return
    for start in range(0, len(trials), seeds):
        yield trials[start : start + seeds]


def _outcome(trials: Sequence[Trial]) -> str:
    first = trials[0]
    accuracy = np.mean([trial.test_accuracy for trial in trials])
    outcome = first.reason if first.reason else f"accuracy {100 * accuracy:.1f}%"
    return f"{first.data} {first.model} {first.method} {first.density:g}: {outcome}"


def best(trials: Sequence[Trial]) -> Table:
    """The best method so far for each data set, model and density, by the mean accuracy of its seeds."""
    by_cell: dict[tuple[str, str, float], dict[str, list[float]]] = {}
    for trial in trials:
        if not trial.reason:
            cell = by_cell.setdefault((trial.data, trial.model, trial.density), {})
            cell.setdefault(trial.method, []).append(trial.test_accuracy)
    table = Table("data", "model", "density", "best so far", "accuracy", "of", title="Best so far")
    for (data, model, density), accuracies in sorted(by_cell.items(), key=lambda item: (*item[0][:2], -item[0][2])):
        method = max(accuracies, key=lambda method: float(np.mean(accuracies[method])))
        accuracy = f"{100 * np.mean(accuracies[method]):.1f}%"
        table.add_row(data, model, f"{density:g}", method, accuracy, str(len(accuracies)))
    return table
