"""The process that holds the folder of a study, gives its cells to workers, and alone keeps what they compute."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from experiments import sweep
from experiments.data.loading import Dataset
from experiments.records.progress import Reporter
from experiments.records.results_folder import Folder
from experiments.records.trackers import Finished
from experiments.setting import numeric_options
from experiments.study import Study
from experiments.workbench import Measured
from experiments.workers.tasks import Given, Task, tasks_of

__all__ = ["Workers", "run"]


class Workers(Protocol):
    """Processes that compute, each a cell at a time."""

    @property
    def origin(self) -> dict[str, Any]:
        """What they compute with, as `origin.here()`."""

    @property
    def side_by_side(self) -> bool:
        """Whether each may compute several networks in one program, which then round differently."""

    def computed(self, given: Given, tasks: Sequence[Task], reporter: Reporter) -> Generator[Measured, None, None]:
        """What is measured of each task, as it is finished; to close the generator ends what is under way.

        A task whose worker is lost is tried again, `tasks.ATTEMPTS` times in all; then its trials have failed. Raises
        InputError where a network cannot be built.
        """


def run(
    study: Study,
    folder: Folder,
    reporter: Reporter,
    datasets: Mapping[str, Dataset],
    modules: Path | None,
    workers: Workers,
    finished: Finished | None = None,
) -> None:
    """Let workers compute what the folder lacks, and keep each part as soon as it is finished, as `sweep.keep_all`.

    `modules` is the file beside which workers find modules of one's own, if any.
    """
    given = Given(study, datasets, modules, (folder.path / "checkpoints").absolute(), numeric_options())
    tasks = tasks_of(study, folder, whole_cells=workers.side_by_side)
    with contextlib.closing(workers.computed(given, tasks, reporter)) as computed:
        sweep.keep_all(folder, computed, reporter, finished)
