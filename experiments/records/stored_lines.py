"""The lines of results.jsonl as trials: those that can be read, those that cannot, and half a line that a kill left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from experiments.base.errors import InputError
from experiments.records.jsonl import decode
from experiments.records.trial import Name, Trial

__all__ = ["BrokenLine", "StoredLines", "newest", "read"]


class BrokenLine(NamedTuple):
    """A line that is no trial, with its number from 1 and why."""

    number: int
    line: bytes
    fault: str


class StoredLines(NamedTuple):
    """What a file holds.

    Attributes:
        trials: of all lines that can be read, in the order of the file.
        broken: the other lines.
        half: what follows the last newline and is no trial: what a process wrote when it was killed; else empty.
        is_ended: whether the last trial has its newline.
    """

    trials: list[Trial]
    broken: list[BrokenLine]
    half: bytes
    is_ended: bool


def read(path: Path) -> StoredLines:
    """The lines of the file, of which there are none where it does not exist. Each line is decoded once.

    Raises InputError where the file cannot be read.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    *lines, rest = data.split(b"\n")
    trials: list[Trial] = []
    broken: list[BrokenLine] = []
    for number, line in enumerate(lines, start=1):
        found = _trial_or_fault(line)
        if isinstance(found, Trial):
            trials.append(found)
        else:
            broken.append(BrokenLine(number, line, found))
    last = _trial_or_fault(rest) if rest else ""
    if isinstance(last, Trial):
        return StoredLines([*trials, last], broken, b"", is_ended=False)
    return StoredLines(trials, broken, rest, is_ended=True)


def newest(trials: list[Trial]) -> dict[Name, Trial]:
    """The trials by name, in the order in which they came.

    Of several of one name the last one counts; but one without a result does not take the place of a result.
    """
    by_name: dict[Name, Trial] = {}
    for trial in trials:
        if trial.reason and trial.name in by_name and not by_name[trial.name].reason:
            continue
        by_name.pop(trial.name, None)
        by_name[trial.name] = trial
    return by_name


def _trial_or_fault(line: bytes) -> Trial | str:
    try:
        return decode(line.decode(), Trial)
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except json.JSONDecodeError:
        return "it is not JSON"
    except (ValueError, OverflowError, RecursionError) as error:  # numbers and brackets beyond what Python holds
        return str(error)
