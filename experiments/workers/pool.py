"""Workers on this machine: processes that begin and end one by one, each with a cell at a time."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import statistics
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from time import monotonic as clock
from typing import Any, NamedTuple

import jax

from experiments.base import origin, own
from experiments.base.errors import InputError
from experiments.records.progress import Reporter
from experiments.workbench import Measured
from experiments.workers.tasks import ATTEMPTS, Given, Task, compute, lost

__all__ = ["Pool", "at_hand"]


def at_hand(workers: int, modules: Path | None) -> Pool:
    """So many workers on this machine. Raises InputError where they would have to share an accelerator."""
    platform = jax.default_backend()
    if platform != "cpu":
        raise InputError(
            f"--workers would share one {platform}, and its memory: give --ray local --gpus-per-trial 1 instead, or "
            "set JAX_PLATFORMS=cpu."
        )
    ignored = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{ignored},{_AT_THE_END}" if ignored else _AT_THE_END
    return Pool(workers, modules)


_AT_THE_END = "ignore::UserWarning:multiprocessing.resource_tracker"
"""What a process of Python's says of what it tidies up after this one was interrupted."""


@dataclasses.dataclass(frozen=True)
class Pool:
    """So many workers on this machine. `modules` is the file beside which modules of one's own are found, if any."""

    workers: int
    modules: Path | None = None

    @property
    def side_by_side(self) -> bool:
        """Whether each may compute several networks in one program: on CPUs none does."""
        return False

    @property
    def origin(self) -> dict[str, Any]:
        """What they compute with: what this process has."""
        return origin.here()

    def computed(self, given: Given, tasks: Sequence[Task], reporter: Reporter) -> Generator[Measured, None, None]:
        """As `driver.Workers.computed`; the workers end with the generator, or with this process."""
        queue = _Queue(tasks)
        idle = [self._started(given) for _ in range(min(self.workers, len(tasks)))]
        running: dict[Future[Measured], _Running] = {}
        attempts: collections.Counter[Task] = collections.Counter()
        try:
            while queue or running:
                for worker in reversed(idle.copy()):
                    task = queue.next(worker.place, [other.task.place for other in running.values()])
                    if task is None:
                        continue
                    idle.remove(worker)
                    attempts[task] += 1
                    try:
                        future = worker.executor.submit(_compute, task)
                    except BrokenProcessPool:  # it was lost while it had nothing to do
                        worker.executor.shutdown(wait=False)
                        worker = self._started(given)
                        future = worker.executor.submit(_compute, task)
                    is_first = worker.place != task.place
                    running[future] = _Running(worker._replace(place=task.place), task, is_first, clock())
                reporter.stage(f"{len(running)} cells under way")
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker, task, is_first, begin = running.pop(future)
                    try:
                        measured = future.result()
                    except BrokenProcessPool:
                        worker.executor.shutdown(wait=False)
                        idle.append(self._started(given))
                        if attempts[task] < ATTEMPTS:
                            reporter.say(
                                f"A worker was lost that computed {task.title}; another one computes it again."
                            )
                            queue.put_back(task)
                            continue
                        measured = lost(given.study, task, "where memory is short, fewer --workers help")
                    else:
                        idle.append(worker)
                        queue.took(task.place, clock() - begin, is_first=is_first)
                    yield measured
        finally:
            for worker in (*idle, *(each.worker for each in running.values())):
                worker.end()

    def _started(self, given: Given) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a fork of a process whose threads compute may hang
        executor = ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(given, self.modules))
        return _Worker(executor, executor.submit(os.getpid))


class _Worker(NamedTuple):
    """A process that computes, alone in its executor, so that to lose one is not to lose all.

    Attributes:
        executor: gives it tasks.
        process: its number, once it has started.
        place: the data set and the model of its last task.
    """

    executor: ProcessPoolExecutor
    process: Future[int]
    place: tuple[str, str] | None = None

    def end(self) -> None:
        """End the process at once, whatever it computes."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        if self.process.done() and not self.process.cancelled() and self.process.exception() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.result(), signal.SIGKILL)


class _Running(NamedTuple):
    """A task under way: who computes it, whether it is that one's first at its place, and when it began."""

    worker: _Worker
    task: Task
    is_first: bool
    begin: float


class _Queue:
    """Tasks that wait, and how long others took: by their places, the data sets and models that share programs."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = list(tasks)
        self._seconds: dict[tuple[tuple[str, str], bool], list[float]] = {}

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def took(self, place: tuple[str, str], seconds: float, *, is_first: bool) -> None:
        """Learn how long a task took, with the tracing and compiling of a worker's first one at a place, or without."""
        self._seconds.setdefault((place, is_first), []).append(seconds)

    def next(self, place: tuple[str, str] | None, others: Sequence[tuple[str, str]]) -> Task | None:
        """The next task for a worker whose programs are those of `place`, while others compute at the places `others`.

        Where nothing waits at its place, it goes to where the most tasks wait for each worker: what it compiles there
        serves the longest, and no two workers begin by compiling the same. It does not go where others finish all
        that waits before it would have begun; None where there is nothing else.
        """
        waiting = collections.Counter(task.place for task in self._tasks)
        if place not in waiting:
            open_places = [each for each in waiting if each not in others or self._is_worth(each, waiting[each])]
            if not open_places:
                return None
            place = max(open_places, key=lambda each: waiting[each] / (1 + others.count(each)))
        task = next(task for task in self._tasks if task.place == place)
        self._tasks.remove(task)
        return task

    def _is_worth(self, place: tuple[str, str], waiting: int) -> bool:
        """Whether what waits at a place takes longer than to begin there; taken for so where times are not known."""
        begun, steady = self._seconds.get((place, True)), self._seconds.get((place, False))
        if not begun or not steady:
            return True
        return waiting * statistics.mean(steady) > min(begun) - statistics.mean(steady)

    def put_back(self, task: Task) -> None:
        """Let a task come first again."""
        self._tasks.insert(0, task)


_given: list[Given] = []
"""What this worker was begun with."""


def _begin(given: Given, modules: Path | None) -> None:
    """Begin to be a worker. The end of its parent ends it; an interruption in its terminal, which the parent gets too,
    does not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if modules is not None:
        own.look_beside(modules)
    _given.append(given)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _compute(task: Task) -> Measured:
    (given,) = _given
    return compute(given, task)
