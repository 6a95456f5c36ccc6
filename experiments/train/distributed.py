"""Several processes that compute one study together: how they find each other, and how they stay in step.

All make the same calls. Process 0 keeps and says what is found; its word decides where theirs might differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from experiments.data.loading import DataError
from experiments.options import InputError

if TYPE_CHECKING:
    from experiments.data.loading import Dataset
    from experiments.study import Study

__all__ = ["check_alike", "first", "in_step", "joined", "word"]

_AUTO = "auto"

_PATIENCE = 1800
"""Seconds that a process waits for the slowest to come to the same place."""

_LENGTH = 400
"""Bytes of what a process says to the others."""

_MEETINGS = itertools.count()
"""Numbers the places where processes wait for each other, which need a name each."""

Tree = TypeVar("Tree")


class _Lost(InputError):
    """Another process has ended: there is nobody left to stay in step with."""


@contextlib.contextmanager
def joined(coordinator: str | None, *, processes: int | None, process: int | None) -> Iterator[None]:
    """What comes first, as one of several processes, `in_step`; by itself where `coordinator` is None.

    `coordinator` is the address of process 0 with a port that is free there, or "auto" where JAX finds it, and the
    numbers, itself. Raises InputError where the three make no sense, or the processes do not find each other.
    """
    _check(coordinator, processes, process)
    if coordinator is None:
        yield
        return
    import jax

    try:
        if coordinator == _AUTO:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"The processes do not find each other by --coordinator {coordinator}: {_line(error)}.") from (
            error
        )
    with in_step():
        yield


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator is None or coordinator == _AUTO:
        if processes is not None or process is not None:
            raise InputError("--processes and --process need the address of process 0, as --coordinator HOST:PORT.")
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator is {coordinator!r}, but must be HOST:PORT, or auto.")
    if processes is None or process is None:
        raise InputError("--coordinator HOST:PORT needs --processes and --process too.")
    if not 0 <= process < processes:
        raise InputError(f"--process is {process}, but must be from 0 to {processes - 1}, as there are {processes}.")


def first() -> bool:
    """Whether this is process 0, which keeps what is found; the only one is."""
    import jax

    return jax.process_index() == 0


@contextlib.contextmanager
def in_step() -> Iterator[None]:
    """What raises in here in one process raises in all, at the end, so that none waits for one that has given up.

    Where it is bad input, InputError in the others; else RuntimeError. Between processes nothing may be computed in
    here but what raises in all of them or none. Raises InputError where a process has ended.
    """
    import jax

    if jax.process_count() == 1:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except _Lost:
        raise
    except Exception as error:  # whatever it is, the others have to know
        own = error
    bad = isinstance(own, InputError | DataError)
    try:
        said = _said("" if own is None else f"{'!' if bad else '?'}{_line(own)}")
    except _Lost as lost:
        raise own or lost from None
    if own is not None:
        raise own
    for number, words in enumerate(said):
        if words:
            message = f"Process {number} cannot go on: {words[1:]}."
            raise InputError(message) if words[0] == "!" else RuntimeError(message)


def word(tree: Tree) -> Tree:
    """A tree of arrays as process 0 has it; the others have one of the same shapes."""
    import jax
    from jax.experimental import multihost_utils

    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def check_alike(study: Study, datasets: dict[str, Dataset]) -> None:
    """Raise InputError, in all processes, where these were not given to all alike."""
    import jax

    if jax.process_count() == 1:
        return
    if len(set(_said(hashlib.sha256(repr(study).encode()).hexdigest()))) > 1:
        raise InputError("The processes were given different configs; give all of them the same.")
    for name, dataset in datasets.items():
        digest = hashlib.sha256()
        for part in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
            digest.update(np.ascontiguousarray(part).data)
        if len(set(_said(digest.hexdigest()))) > 1:
            raise InputError(f"The data set {name} is not the same in all processes; prepare it from the same files.")


def _said(words: str) -> list[str]:
    """What each process says here, in their order."""
    from jax.experimental import multihost_utils
    from orbax.checkpoint import multihost

    line = np.frombuffer(words.encode()[:_LENGTH].ljust(_LENGTH, b"\0"), np.uint8)
    try:
        # not between devices, which one that has given up in the middle of a training may leave waiting for ever
        multihost.get_barrier_sync_fn()(key=f"pathjax_{next(_MEETINGS)}", timeout_ms=1000 * _PATIENCE)
        lines = multihost_utils.process_allgather(line)
    except Exception as error:  # JAX's own, of many kinds
        raise _Lost(
            f"A process has ended or does not answer ({_line(error)}). What was kept before is safe; start all of them "
            "again."
        ) from error
    return [bytes(each).rstrip(b"\0").decode(errors="ignore") for each in lines]


def _line(error: Exception) -> str:
    """An error in one line, without its last point."""
    words = str(error).strip().splitlines() or [""]
    said = words[0].rstrip(".")
    return said if isinstance(error, InputError | DataError) else f"{type(error).__name__}: {said}"
