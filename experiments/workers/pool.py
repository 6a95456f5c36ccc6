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
import traceback
from collections.abc import Generator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from time import monotonic as clock
from typing import Any, NamedTuple

import jax

from experiments.base import origin
from experiments.base.errors import InputError
from experiments.records.progress import Reporter
from experiments.workbench import Measured
from experiments.workers.tasks import ATTEMPTS, Given, Task, compute, lost

__all__ = ["Pool", "at_hand"]


def at_hand(workers: int) -> Pool:
    """So many workers on this machine. Raises InputError where they would have to share an accelerator."""
    platform = jax.default_backend()
    if platform != "cpu":
        raise InputError(
            f"--workers would share one {platform}, and its memory: give --ray local --gpus-per-trial 1 instead, or "
            "set JAX_PLATFORMS=cpu."
        )
    return Pool(workers)


@dataclasses.dataclass(frozen=True)
class Pool:
    """So many workers on this machine."""

    workers: int

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
        queue, attempts = _Queue(tasks), collections.Counter[Task]()
        idle: list[_Worker] = []
        busy: dict[Any, _Worker] = {}
        try:
            while queue or busy:
                while queue and len(busy) < self.workers:
                    idle = [worker for worker in idle if worker.is_alive]
                    place = idle[-1].place if idle else None
                    task = queue.next(place, [other.place for other in busy.values() if other.place])
                    if task is None:
                        break
                    worker = idle.pop() if idle else _Worker(given)
                    attempts[task] += 1
                    busy[worker.connection] = worker
                    worker.begin(task)
                reporter.stage(f"{len(busy)} cells under way")
                for connection in multiprocessing.connection.wait(list(busy)):
                    worker = busy[connection]
                    try:
                        measured = worker.answer()
                    except (EOFError, OSError):  # it has ended, whatever it was about
                        del busy[connection]
                        worker.end()
                        task = worker.task
                        if attempts[task] < ATTEMPTS:
                            reporter.say(f"The worker that computed {task.title} was lost; another one does.")
                            queue.put_back(task)
                            continue
                        measured = lost(given.study, task, "where memory is short, fewer --workers help")
                    else:
                        if measured is None:
                            continue
                        idle.append(busy.pop(connection))
                        if isinstance(measured, _Raised):
                            raise measured.error
                        queue.took(worker.task.place, clock() - worker.begun, is_first=worker.is_first)
                    yield measured
        finally:
            for worker in (*idle, *busy.values()):
                worker.end()


class _Worker:
    """A process that computes, and this process's end of what connects the two.

    Nothing here waits for a process that may have ended: it is sent the large `Given` once it is there to read, and
    no other process holds its end of the connection, so that its death ends what is read or sent.

    Attributes:
        connection: has an answer to read when it is ready.
        task: its last task; `is_first` where the one before had other programs, and when it was `begun`.
        place: that of its last task, None before the first.
    """

    task: Task
    is_first: bool
    begun: float

    def __init__(self, given: Given) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process whose threads compute may hang
        self.connection, theirs = context.Pipe()
        self.place: tuple[str, str] | None = None
        self._given, self._is_there = given, False
        self._process = context.Process(target=_work, args=(theirs,))
        resource_tracker.ensure_running()  # which would let interruptions through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in its terminal: this process ends it
        try:
            self._process.start()
        except OSError as error:
            raise InputError(f"A worker cannot be begun: {error.strerror}; give fewer --workers.") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.is_alive()

    def begin(self, task: Task) -> None:
        """Let it compute a task, as soon as it is there."""
        self.is_first, self.begun = task.place != self.place, clock()
        self.task, self.place = task, task.place
        if self._is_there:
            with contextlib.suppress(OSError):  # where it has ended, `answer` says so
                self.connection.send(task)

    def answer(self) -> Measured | _Raised | None:
        """What was measured or raised; None where it was only there. Raises EOFError or OSError where it has ended."""
        answer = self.connection.recv()
        if not self._is_there:
            self._is_there = True
            self.connection.send(self._given)
            self.connection.send(self.task)
            return None
        return answer

    def end(self) -> None:
        """End the process at once, whatever it computes."""
        self._process.kill()
        self._process.join()
        self.connection.close()


class _Raised(NamedTuple):
    """What a worker answers whose task raised an error. Not the error itself, which no result can be taken for."""

    error: Exception


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


def _work(connection: Connection) -> None:
    """Be a worker, until the parent ends this process or has ended itself."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # of the connection: the parent has ended
        connection.send(None)  # there
        given = connection.recv()
        while True:
            task = connection.recv()
            try:
                connection.send(compute(given, task))
            except Exception as error:  # whatever was raised, also by what cannot be sent
                error.add_note(traceback.format_exc())
                connection.send(_Raised(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
