"""The output folder: its configuration, its finished trials, and the promise that none of them is ever lost.

Every file is replaced in one step, so that a process killed at any moment leaves either the old file or the new one.
One process at a time holds the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.base.errors import InputError
from experiments.base.files import write_atomically
from experiments.base.versions import versions
from experiments.records.jsonl import decode, encode
from experiments.records.trial import Name, Trial

__all__ = ["Claim", "Folder", "Unkept", "claimed", "kept_names"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a study wants of its output folder.

    `options` are those that decide the numbers: a folder made with other options is refused. `expected` has the names
    of the trials that may be there. `repair` sets lines aside that cannot be read.
    """

    out: Path
    options: dict[str, Any]
    expected: Collection[Name]
    repair: bool = False


@dataclasses.dataclass
class Folder:
    """An output folder that this process alone may write to."""

    path: Path
    config: dict[str, Any]
    lines: list[str]

    def trials(self) -> list[Trial]:
        """The finished trials, in the order in which they finished."""
        return [decode(line, Trial) for line in self.lines]

    def names(self) -> set[Name]:
        """The names of the finished trials."""
        return {trial.name for trial in self.trials()}

    def add(self, trials: Sequence[Trial]) -> None:
        """Keep the trials that are not kept yet. When this returns, all of them are on the disk."""
        kept = self.names()
        lines = self.lines + [encode(trial) for trial in trials if trial.name not in kept]
        write_atomically(self.path / "results.jsonl", "".join(line + "\n" for line in lines))
        self.lines = lines


@dataclasses.dataclass
class Unkept(Folder):
    """Takes the place of a folder where another process keeps the results."""

    def add(self, trials: Sequence[Trial]) -> None:
        """Nothing."""


@contextlib.contextmanager
def claimed(claim: Claim) -> Iterator[Folder]:
    """The output folder of a claim, held by this process until the context ends.

    Raises InputError where the folder cannot be written, is held by another process, was made by another
    configuration, or holds a line that cannot be read (unless `claim.repair`).
    """
    out = claim.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise InputError(f"Cannot write to {out}: {error.strerror}. Give another folder with --out.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"Another process is writing to {out}; wait for its end or give another --out.") from error
        config = _agreed_config(claim)
        yield Folder(out, config, _read_lines(claim))


def kept_names(claim: Claim) -> set[Name]:
    """The names of the trials in a folder, read without holding it. Raises InputError as `claimed`."""
    return {decode(line, Trial).name for line in _read_lines(claim)}


def _agreed_config(claim: Claim) -> dict[str, Any]:
    """The configuration of the claim, written where there is none; raises InputError where another one is there."""
    ours = {"format": Trial.FORMAT, "options": claim.options, "versions": versions()}
    path = claim.out / "config.json"
    if not path.exists():
        if (claim.out / "results.jsonl").exists():
            raise InputError(f"{claim.out} has a results.jsonl but no config.json; give another folder with --out.")
        write_atomically(path, json.dumps(ours, indent=2, allow_nan=False) + "\n")
        return ours
    try:
        theirs = json.loads(path.read_bytes())
        differing = list(_differences(theirs, ours))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} is not a configuration of this program; give another folder with --out.") from error
    if differing:
        raise InputError(
            f"{claim.out} holds the results of another configuration: {'; '.join(differing)}. "
            "Give another folder with --out, or the options of before."
        )
    return ours


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    if theirs["format"] != ours["format"]:
        yield f"format is {theirs['format']} there and {ours['format']} here"
    for part in ("options", "versions"):
        for key in ours[part] | theirs[part]:
            there, here = (_spelled(side[part].get(key, "absent")) for side in (theirs, ours))
            if there != here:
                yield f"{key} is {there} there and {here} here"


def _spelled(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_lines(claim: Claim) -> list[str]:
    """The lines of results.jsonl, each a trial of the claim; broken ones are set aside where `claim.repair`."""
    path = claim.out / "results.jsonl"
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    whole: list[str] = []
    broken: list[bytes] = []
    names: set[Name] = set()
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        try:
            trial = _expected_trial(line, claim, names)
        except ValueError as error:
            if not claim.repair:
                raise InputError(
                    f"Line {number} of {path} cannot be read ({_fault(line, error)}); every other finished trial is "
                    "kept. Give the same command with --repair to set the line aside and go on."
                ) from error
            broken.append(line if line.endswith(b"\n") else line + b"\n")
            continue
        names.add(trial.name)
        whole.append(line.decode().rstrip("\n"))
    if broken:
        _set_aside(path, whole, broken)
    return whole


def _expected_trial(line: bytes, claim: Claim, names: Collection[Name]) -> Trial:
    """The trial of a line; raises ValueError where it is not one of the claim, or its name is taken."""
    trial = decode(line.decode(), Trial)
    if trial.name not in claim.expected:
        raise ValueError(f"{trial.title} is not part of this study")
    if trial.name in names:
        raise ValueError(f"{trial.title} is there twice")
    return trial


def _fault(line: bytes, error: ValueError) -> str:
    if not line.endswith(b"\n"):
        return "only half of it was written"
    return "it is not JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)


def _set_aside(path: Path, whole: Sequence[str], broken: Sequence[bytes]) -> None:
    aside = path.with_name(path.name + ".broken")
    before = aside.read_bytes() if aside.exists() else b""
    write_atomically(aside, before + b"".join(broken))
    write_atomically(path, "".join(line + "\n" for line in whole))
