"""The one loop that runs a study: every network of data × model × method × density × seed, each kept when finished.

What computes and what keeps are apart. `workbench_of` and `compute_cell` need no folder, so that other processes can
compute; `keep` writes what they give, in the one process that holds the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg.cython_lapack  # noqa: F401  # XLA's LAPACK; loaded now, so that the thread limit holds for it too
import threadpoolctl  # type: ignore[import-untyped]
from rich.table import Table

from experiments.base import origin
from experiments.base.errors import InputError
from experiments.base.files import cannot_write, is_of_the_disk
from experiments.base.shards import WHOLE, Shard
from experiments.base.wording import all_digits, counted, first_line
from experiments.data.loading import Dataset
from experiments.measure import kernel_pictures
from experiments.records import results_folder
from experiments.records.progress import SILENT, Reporter
from experiments.records.results_folder import Claim, Folder, Unkept
from experiments.records.trackers import Finished
from experiments.records.trial import Name, Trial
from experiments.setting import options_of, setting_of, settings_of, study_hash
from experiments.study import Cell, Model, Study
from experiments.train import distributed
from experiments.workbench import Measured, Workbench

__all__ = [
    "Group",
    "Work",
    "best",
    "claim",
    "compute_cell",
    "failed",
    "held",
    "keep",
    "keep_all",
    "missing_work",
    "run",
    "said_of_failures",
    "workbench_of",
]


class Group(NamedTuple):
    """Cells of one data set and one model, and seeds of each of them, that are trained together."""

    data: str
    model: Model
    cells: tuple[Cell, ...]

    def names(self, seeds: Sequence[int]) -> list[Name]:
        """The trials of the group with these seeds."""
        return [(self.data, self.model.name, *cell, seed) for cell in self.cells for seed in seeds]


class Work(NamedTuple):
    """What is to be computed of one data set and one model: seeds by cell, in the order of the study.

    `missing` are those of which a trial or its pictures are not there; `fresh` those that were not there when the study
    was first run as it is now.
    """

    missing: dict[Cell, tuple[int, ...]]
    fresh: dict[Cell, tuple[int, ...]]


def claim(
    study: Study,
    out: Path,
    *,
    repair: bool = False,
    retry_failed: bool = False,
    shard: Shard = WHOLE,
    computed_by: dict[str, Any] | None = None,
) -> Claim:
    """What a part of the study wants of its output folder; `computed_by` is the origin of workers elsewhere.

    Raises InputError where a network of one's own cannot be found.
    """
    groups = (Group(data, model, tuple(study.cells)) for data, model in itertools.product(study.data, study.model))
    return Claim(
        out,
        options_of(study),
        settings_of(study, shard),
        computed_by or origin.here(),
        study_hash(study),
        names=frozenset(name for group in groups for name in group.names(range(study.seeds))),
        repair=repair,
        retry_failed=retry_failed,
    )


@contextlib.contextmanager
def held(claim: Claim) -> Iterator[Folder]:
    """The output folder of a study. Of several processes, the first holds it. Raises as `results_folder.claimed`."""
    with contextlib.ExitStack() as stack:
        with distributed.failing_together():
            if distributed.is_first():
                folder = stack.enter_context(results_folder.claimed(claim))
            else:
                folder = Unkept(claim.out, {}, set(claim.settings), frozenset(claim.settings), [])
        yield folder


def run(
    study: Study, folder: Folder, reporter: Reporter, datasets: dict[str, Dataset], finished: Finished | None = None
) -> None:
    """Compute the trials that the folder lacks, and keep each as soon as it is finished, as `keep_all`."""
    keep_all(folder, _one_after_the_other(study, folder, reporter, datasets), reporter, finished)


def keep_all(
    folder: Folder, computed: Iterable[Measured], reporter: Reporter, finished: Finished | None = None
) -> None:
    """Keep what is computed, each part as soon as it is finished.

    In the first process `finished` is then called with the new trials.
    """
    for measured in computed:
        trials = [trial for trial in measured.trials if trial.name in folder.missing]
        with distributed.failing_together():
            new = keep(folder, measured)
        if new:
            reporter.advance(_outcome(measured.trials))
        if finished is not None and distributed.is_first():
            try:
                finished(trials)
            except Exception as error:  # another program's failure must not end the study
                finished = None
                reporter.say(
                    f"Trials are no longer sent to the tracker ({type(error).__name__}: {error}). All are kept: "
                    f"`python -m experiments figures {folder.path} --track …` sends them later."
                )


def _one_after_the_other(
    study: Study, folder: Folder, reporter: Reporter, datasets: Mapping[str, Dataset]
) -> Iterator[Measured]:
    """What is measured of all that the folder lacks, computed by this process."""
    work = _agreed_work(study, folder)
    for data, model in itertools.product(study.data, study.model):
        here = work[data, model.name]
        if not here.missing:
            continue
        reporter.stage(f"{data} {model.name}: building")
        with distributed.failing_together():
            bench = workbench_of(study, data, model, datasets, folder.path / "checkpoints")
        for group, seeds in _groups(data, model, here, bench.batch_size):
            yield from _computed(bench, group, seeds, reporter, may_halve=True)


def workbench_of(
    study: Study, data: str, model: Model, datasets: Mapping[str, Dataset], checkpoints: Path | None = None
) -> Workbench:
    """What measures and trains the networks of one data set and one model; its programs are compiled as they are used.

    `datasets[data]` is the whole data set. `checkpoints` is a folder for checkpoints of long trainings, which this
    process alone writes to. Raises InputError where the network cannot be built.
    """
    with _one_thread():
        return Workbench(study, model, datasets[data].first(study.train_images, study.test_images), checkpoints)


def compute_cell(bench: Workbench, cell: Cell, seeds: Sequence[int], reporter: Reporter = SILENT) -> Measured:
    """The finished trials of some seeds of a cell, and the numbers of its pictures where seed 0 is among them.

    Nothing is read from or written to an output folder, so any process may compute, and one that holds the folder then
    gives the result to `keep`. Where networks run one at a time, as on CPUs, every trial has the same bytes in
    results.jsonl as if one process had run the whole study, but for `made`, whatever other cells and seeds were
    computed before. Elsewhere trials agree to rounding.

    A trial that fails is returned with its reason: whatever fails is tried again by itself, first of all with half as
    many networks side by side where memory was short. Raises InputError alone.
    """
    trials: list[Trial] = []
    pictures: dict[Cell, kernel_pictures.KernelPictures] = {}
    group = Group(bench.data, bench.model, (cell,))
    for measured in _computed(bench, group, tuple(seeds), reporter, may_halve=True):
        trials += measured.trials
        pictures |= measured.pictures
    return Measured(trials, pictures)


def keep(folder: Folder, measured: Measured) -> bool:
    """Keep what the folder lacks of the trials and pictures; gives whether there was anything. Raises as `Folder.add`.

    Pictures come first, so that a kept trial has its pictures.
    """
    if isinstance(folder, Unkept):
        return False
    is_new = False
    for cell, pictures in measured.pictures.items():
        data, model = measured.trials[0].name[:2]
        file = kernel_pictures.file_of(folder.path, data, model, *cell)
        if not file.exists() or (data, model, *cell, 0) in folder.missing:
            kernel_pictures.save(file, pictures)
            is_new = True
    return bool(folder.add(measured.trials)) or is_new


def missing_work(study: Study, folder: Folder) -> dict[tuple[str, str], Work]:
    """For each data set and model, what is still to be computed."""
    work: dict[tuple[str, str], Work] = {}
    for data, model in itertools.product(study.data, study.model):
        missing: dict[Cell, tuple[int, ...]] = {}
        fresh: dict[Cell, tuple[int, ...]] = {}
        for cell in study.cells:
            names = Group(data, model, (cell,)).names(range(study.seeds))
            lacks_pictures = study.measure.kernel_pictures and _lacks_pictures(folder, data, model, cell)
            seeds = tuple(name[-1] for name in names if name in folder.missing or (name[-1] == 0 and lacks_pictures))
            missing |= {cell: seeds} if seeds else {}
            seeds = tuple(name[-1] for name in names if name in folder.fresh)
            fresh |= {cell: seeds} if seeds else {}
        work[data, model.name] = Work(missing, fresh)
    return work


def _lacks_pictures(folder: Folder, data: str, model: Model, cell: Cell) -> bool:
    """Whether the trial that gives a cell its pictures is there without them; one that failed may have none."""
    first = folder.kept.get((data, model.name, *cell, 0))
    file = kernel_pictures.file_of(folder.path, data, model.name, *cell)
    return first is not None and not first.reason and not file.exists()


def _agreed_work(study: Study, folder: Folder) -> dict[tuple[str, str], Work]:
    """`missing_work` of the folder of process 0, in all processes."""
    ours = missing_work(study, folder)
    seeds = range(study.seeds)
    flags = np.array(
        [
            [[[seed in part.get(cell, ()) for seed in seeds] for cell in study.cells] for part in work]
            for work in ours.values()
        ]
    )
    agreed = np.asarray(distributed.broadcast_from_first(flags))

    def chosen(rows: np.ndarray) -> dict[Cell, tuple[int, ...]]:
        by_cell = {cell: tuple(itertools.compress(seeds, row)) for cell, row in zip(study.cells, rows, strict=True)}
        return {cell: seeds for cell, seeds in by_cell.items() if seeds}

    return {setting: Work(*map(chosen, parts)) for setting, parts in zip(ours, agreed, strict=True)}


def _groups(data: str, model: Model, work: Work, batch_size: int) -> Iterator[tuple[Group, tuple[int, ...]]]:
    """Cells that are trained together, each group with its seeds.

    Where networks run one at a time, only what is missing is computed. Elsewhere groups of other sizes round
    differently: they are those of when the study was first run as it is now, and are computed whole, so that an
    interruption changes nothing.
    """
    if batch_size == 1:
        yield from ((Group(data, model, (cell,)), seeds) for cell, seeds in work.missing.items())
        return
    cells = dict.fromkeys([*work.fresh, *work.missing])
    by_seeds: dict[tuple[int, ...], list[Cell]] = {}
    for cell in cells:
        seeds = tuple(sorted({*work.fresh.get(cell, ()), *work.missing.get(cell, ())}))
        by_seeds.setdefault(seeds, []).append(cell)
    for seeds, alike in by_seeds.items():
        size = max(1, batch_size // len(seeds))
        for at in range(0, len(alike), size):
            group = Group(data, model, tuple(alike[at : at + size]))
            if not work.missing.keys().isdisjoint(group.cells):
                yield group, seeds


class _Failure(NamedTuple):
    """Why a group could not be computed. Not the error itself, which holds on to the arrays of then."""

    reason: str
    out_of_memory: bool
    seconds: float


def _computed(
    bench: Workbench, group: Group, seeds: tuple[int, ...], reporter: Reporter, *, may_halve: bool
) -> Iterator[Measured]:
    """What is measured of each cell of a group. Where networks fail together, each is tried by itself."""
    outcome = _attempt(bench, group, seeds, reporter)
    networks = min(bench.batch_size, len(group.names(seeds)))
    if isinstance(outcome, _Failure) and outcome.out_of_memory and may_halve and networks > 1:
        bench.batch_size, may_halve = networks // 2, False
        reporter.say(f"Out of memory with {networks} networks side by side; going on with {bench.batch_size}.")
        outcome = _attempt(bench, group, seeds, reporter)
    if not isinstance(outcome, _Failure):
        yield from outcome
    elif len(group.cells) > 1:
        for cell in group.cells:
            yield from _computed(bench, group._replace(cells=(cell,)), seeds, reporter, may_halve=may_halve)
    elif len(seeds) > 1:
        for seed in seeds:
            yield from _computed(bench, group, (seed,), reporter, may_halve=may_halve)
    else:
        yield failed(bench.study, group, seeds, outcome.reason, outcome.seconds)


def failed(study: Study, group: Group, seeds: Sequence[int], reason: str, seconds: float = 0.0) -> Measured:
    """The trials of one cell that failed, for a reason that all have."""
    (cell,) = group.cells
    trials = [Trial.partial(name, reason=reason) for name in group.names(seeds)]
    return Measured(_with_origin(study, group, cell, trials, seconds), {})


def _attempt(bench: Workbench, group: Group, seeds: tuple[int, ...], reporter: Reporter) -> list[Measured] | _Failure:
    """What is measured of each cell, or why it could not be."""
    begin = time.perf_counter()
    try:
        with distributed.failing_together(), _one_thread():
            measured = bench.measured(group.cells, seeds, reporter)
    except InputError:
        raise
    except Exception as error:  # whatever fails, the rest of the study goes on, unless there is no place to keep it
        if isinstance(error, OSError) and is_of_the_disk(error):
            raise cannot_write(error.filename or "to the output folder", error) from error
        reason = f"{type(error).__name__}: {first_line(error)}"
        out_of_memory = any(words in reason for words in ("RESOURCE_EXHAUSTED", "MemoryError"))
        return _Failure(reason, out_of_memory, time.perf_counter() - begin)
    seconds = (time.perf_counter() - begin) / len(measured.trials)
    parts = []
    for number, cell in enumerate(group.cells):
        trials = measured.trials[number * len(seeds) : (number + 1) * len(seeds)]
        pictures = {cell: measured.pictures[cell]} if cell in measured.pictures else {}
        parts.append(Measured(_with_origin(bench.study, group, cell, trials, seconds), pictures))
    return parts


def _one_thread() -> contextlib.AbstractContextManager:
    """Matrices this small take one thread; on a shared machine several threads wait for each other."""
    return threadpoolctl.threadpool_limits(1, user_api="blas")


def _with_origin(study: Study, group: Group, cell: Cell, trials: Sequence[Trial], seconds: float) -> list[Trial]:
    """The trials of a cell of a group with what decided them, and with how they were computed."""
    setting = setting_of(study, group.data, group.model, cell)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    made = origin.here() | {"study": study_hash(study), "seconds": round(seconds, 3), "finished": now}
    return [dataclasses.replace(trial, setting=setting, made=made) for trial in trials]


def _outcome(trials: Sequence[Trial]) -> str:
    first = trials[0]
    failed = [trial for trial in trials if trial.reason]
    untrained = sum(bool(trial.did_not_train) for trial in trials)
    accuracy = np.mean([trial.test_accuracy for trial in trials])
    outcome = failed[0].reason if failed else f"accuracy {100 * accuracy:.1f}%"
    outcome += f", {untrained} of {len(trials)} did not train" if untrained and not failed else ""
    return f"{first.data} {first.model} {first.method} {all_digits(first.density)}: {outcome}"


def said_of_failures(trials: Sequence[Trial]) -> list[str]:
    """How many of the trials have no result, and what to do, a sentence each; nothing where all have one."""
    sentences = []
    undefined = [trial for trial in trials if trial.is_undefined]
    if undefined:
        sentences.append(
            f"{len(undefined)} of {counted(len(trials), 'trial')} have no result, since their method is not defined "
            f"for their network; the first: {_told(undefined[0])}."
        )
    failed = [trial for trial in trials if trial.has_failed]
    if failed:
        sentences.append(
            f"{len(failed)} of {counted(len(trials), 'trial')} failed; the first: {_told(failed[0])}. "
            "The same command with --retry-failed computes them again."
        )
    return sentences


def _told(trial: Trial) -> str:
    return f"{trial.title}: {trial.reason.rstrip('.')}"


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
