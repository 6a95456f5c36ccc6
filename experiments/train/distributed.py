"""Several processes that compute one study together: how they find each other, and how they fail together.

All processes make the same calls in the same order. Process 0 keeps and shows the results; where numbers could differ
between processes by rounding, those of process 0 count.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from experiments.base.errors import InputError
from experiments.base.wording import first_line

if TYPE_CHECKING:
    from experiments.data.loading import Dataset

__all__ = ["broadcast_from_first", "check_alike", "failing_together", "first_says", "is_first", "joined"]

_AUTO = "auto"

_BAD_INPUT, _OTHER_ERROR = "!", "?"
"""The first letter of a message between processes about an error."""

_TIMEOUT = 1800
"""Seconds that a process waits for the slowest one at a barrier."""

_MESSAGE_BYTES = 400
"""Length of the messages that processes exchange."""

_BARRIERS = itertools.count()
"""Numbers the barriers, each of which needs a name of its own."""

Tree = TypeVar("Tree")


class _Lost(InputError):
    """Another process has ended, so nothing can be exchanged with it."""


@contextlib.contextmanager
def joined(coordinator: str | None, *, processes: int | None, process: int | None) -> Iterator[None]:
    """Join the other processes, then run the context `failing_together`. Without a coordinator, do neither.

    `coordinator` is the address of process 0 with a port that is free there, or "auto" where JAX finds the address and
    the numbers itself. Raises InputError where the three arguments contradict each other, or the processes do not find
    each other.
    """
    _check(coordinator, processes, process)
    if coordinator is None:
        yield
        return
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM and go on
    try:
        if coordinator == _AUTO:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"The processes do not find each other by --coordinator {coordinator}: {_one_line(error)}."
        ) from (error)
    with failing_together():
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


def is_first() -> bool:
    """Whether this is process 0, which keeps the results. A process that runs alone is process 0."""
    import jax

    return jax.process_index() == 0


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """If the context raises in one process, it raises in all at its end, so that none waits for one that has given up.

    An InputError in one process is an InputError in the others; every other error is a RuntimeError there. The context
    must not compute across processes, except for what raises in all of them or in none. Raises InputError where a
    process has ended.
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
    except Exception as error:  # of any kind: the others have to be told
        own = error
    kind = _BAD_INPUT if isinstance(own, InputError) else _OTHER_ERROR
    try:
        messages = _exchanged("" if own is None else f"{kind}{_one_line(own)}")
    except _Lost as lost:
        raise own or lost from None
    if own is not None:
        raise own
    for number, message in enumerate(messages):
        if message:
            reason = f"Process {number} cannot go on: {message[1:]}."
            raise InputError(reason) if message[0] == _BAD_INPUT else RuntimeError(reason)


def broadcast_from_first(tree: Tree) -> Tree:
    """The tree of arrays of process 0. The other processes give one of the same shapes."""
    import jax
    from jax.experimental import multihost_utils

    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def first_says(answer: bool) -> bool:
    """The answer of process 0."""
    return bool(np.asarray(broadcast_from_first(np.array(answer))))


def check_alike(config: str, datasets: dict[str, Dataset]) -> None:
    """Raise InputError in all processes where they were given different configs or data sets."""
    import jax

    if jax.process_count() == 1:
        return
    if len(set(_exchanged(hashlib.sha256(config.encode()).hexdigest()))) > 1:
        raise InputError("The processes were given different configs; give all of them the same.")
    for name, dataset in datasets.items():
        digest = hashlib.sha256()
        for part in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
            digest.update(np.ascontiguousarray(part).data)
        if len(set(_exchanged(digest.hexdigest()))) > 1:
            raise InputError(f"The data set {name} is not the same in all processes; prepare it from the same files.")


def _exchanged(message: str) -> list[str]:
    """The messages of all processes, in their order."""
    from jax.experimental import multihost_utils
    from orbax.checkpoint import multihost

    encoded = np.frombuffer(message.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    try:
        # a barrier between processes: one between devices never ends if a process has given up in a training
        multihost.get_barrier_sync_fn()(key=f"pathjax_{next(_BARRIERS)}", timeout_ms=1000 * _TIMEOUT)
        lines = multihost_utils.process_allgather(encoded)
    except Exception as error:  # JAX's own, of many kinds
        raise _Lost(
            f"A process has ended or does not answer ({_one_line(error)}). What was kept before is safe; start all "
            "processes again."
        ) from error
    return [bytes(each).rstrip(b"\0").decode(errors="ignore") for each in lines]


def _one_line(error: Exception) -> str:
    """The first line of an error's message without its full stop, after the error's type if it is no InputError."""
    first = first_line(error)
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"
