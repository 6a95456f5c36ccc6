"""How a command ends at once, in one sentence, when it is interrupted or told to terminate."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

__all__ = ["end_at_signals"]

_WORDS = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}
"""The signals that end a command, and what it says first. Slurm sends SIGTERM before a time limit and at preemption."""

_UNDER_WAY = 0.02
"""Seconds in which what another thread is writing at this moment is written."""


def end_at_signals() -> None:
    """From now on SIGINT and SIGTERM end the process at once, with status 130 and 143, as a kill would.

    No exception is raised: JAX's callbacks could swallow it, or its threads be cut off by it. A thread waits for the
    signals, since Python's own handlers wait until the main thread comes back from what is compiled. A signal that is
    ignored so far stays so, as SIGINT is for a process in the background.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in _WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _left_to_the_thread)
    threading.Thread(target=_wait, args=(reading,), daemon=True).start()


def _left_to_the_thread(*_: Any) -> None:
    pass


def _wait(reading: int) -> None:
    while True:
        (number,) = os.read(reading, 1)
        if number in _WORDS:
            _end(number)


def _end(number: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the cursor, which the progress bar had hidden
    words = f"{_WORDS[signal.Signals(number)]}; every finished network is kept. The same command continues.\n"
    errors = 2
    with contextlib.suppress(OSError):
        errors, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        for place in (1, 2):
            os.dup2(nowhere, place)  # what the main thread says from now on does not come after these words
    time.sleep(_UNDER_WAY)
    with contextlib.suppress(OSError):
        os.write(errors, words.encode())
    os._exit(128 + number)
