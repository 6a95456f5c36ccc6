"""The output folder: the study as last run, every trial ever finished in it, and the promise that none is lost.

`results.jsonl` only grows: each finished trial is appended as one line and synced. It is read once, when the folder is
opened; from then on an index in memory is kept up to date. `config.json` is replaced in one step. One process at a time
holds the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.base.errors import InputError
from experiments.base.files import append_lines, cut_end, write_atomically
from experiments.base.wording import counted, enumerated, some_of
from experiments.records import stored_lines
from experiments.records.jsonl import encode
from experiments.records.stored_lines import BrokenLine, StoredLines
from experiments.records.trial import Name, Trial, device_of, tree_of

__all__ = [
    "Claim",
    "Folder",
    "Unkept",
    "claimed",
    "locked",
    "looked_at",
    "mended",
    "spelled",
    "told_of_others",
    "write_config",
]


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a study wants of its output folder.

    Attributes:
        out: the folder.
        options: the study, as `config.json` keeps it.
        settings: what decides each trial of the study that is wanted, as `Trial.setting`.
        origin: what computes them, as `origin.here()`.
        study: a hash of the study, as in `Trial.made`.
        names: all trials of the study, where only a part of them is wanted.
        repair: move lines that cannot be read to another file.
        retry_failed: compute trials again that failed, whatever decided them then, and where something else decides
            them now also those whose method was not defined for their network.
    """

    out: Path
    options: dict[str, Any]
    settings: Mapping[Name, dict[str, Any]]
    origin: dict[str, Any]
    study: str
    names: frozenset[Name] = frozenset()
    repair: bool = False
    retry_failed: bool = False

    @property
    def results(self) -> Path:
        """The file of finished trials."""
        return self.out / "results.jsonl"


@dataclasses.dataclass
class Folder:
    """An output folder as a study sees it, which this process alone may write to.

    Attributes:
        path: the folder.
        kept: the newest trial of each name of the study, in the order in which they finished.
        missing: the names of the study that are still to be computed.
        fresh: those of the study that were not there when it was first run as it is now: the missing ones, and those
            that were computed for it. An interruption does not change them.
        notes: what the user has to know of the folder, a sentence each.
    """

    path: Path
    kept: dict[Name, Trial]
    missing: set[Name]
    fresh: frozenset[Name]
    notes: list[str]

    def trials(self) -> list[Trial]:
        """The finished trials of the study, in the order in which they finished."""
        return list(self.kept.values())

    def add(self, trials: Sequence[Trial]) -> list[Trial]:
        """Keep those of the trials that are missing, and give them back. When this returns, they are on the disk.

        Costs the same however many are kept already. Raises InputError where they cannot be written; then none is kept.
        """
        new = [trial for trial in trials if trial.name in self.missing]
        if new:
            append_lines(self.path / "results.jsonl", [encode(trial) for trial in new])
        for trial in new:
            self.kept.pop(trial.name, None)
            self.kept[trial.name] = trial
            self.missing.discard(trial.name)
        return new


@dataclasses.dataclass
class Unkept(Folder):
    """Takes the place of a folder where another process keeps the results."""

    def add(self, trials: Sequence[Trial]) -> list[Trial]:
        """Nothing is kept."""
        return []


@contextlib.contextmanager
def claimed(claim: Claim) -> Iterator[Folder]:
    """The output folder of a claim, held by this process until the context ends.

    Half a line that a killed process left is moved aside. Raises InputError where the folder cannot be written, is held
    by another process, holds trials of this study that were decided by something else, or a line that cannot be read
    (unless `claim.repair`); it is then as it was.
    """
    with locked(claim.out):
        stored = stored_lines.read(claim.results)
        folder = _agreed(claim, stored)
        folder.notes += mended(claim.results, stored)
        write_config(claim.out, _config(claim))
        yield folder


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold an output folder, which is made where it is not there, until the context ends.

    Raises InputError where it cannot be written, or another process holds it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise _cannot_write_to(out, error.strerror) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"Another process is writing to {out}; wait for its end or give another folder."
            ) from error
        except OSError as error:
            raise InputError(
                f"Cannot lock {out / '.lock'}: {error.strerror}. Give a folder on another file system."
            ) from error
        yield


def looked_at(claim: Claim) -> Folder:
    """The folder of a claim as `claimed` would find it, without holding or changing anything; it need not exist.

    Raises InputError as `claimed`, but not where another process holds the folder.
    """
    existing = next(place for place in (claim.out, *claim.out.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise _cannot_write_to(claim.out, "Not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _cannot_write_to(claim.out, "Permission denied")
    stored = stored_lines.read(claim.results)
    folder = _agreed(claim, stored)
    folder.notes += [f"A run would move {words} to another file." for words in _unreadable(stored)]
    return folder


def _cannot_write_to(out: Path, why: str | None) -> InputError:
    return InputError(f"Cannot write to {out}: {why}. Give another folder.")


def _agreed(claim: Claim, stored: StoredLines) -> Folder:
    """What the lines are to the study. Raises InputError where they are not what the claim says; changes nothing."""
    _check_config(claim)
    if stored.broken and not claim.repair:
        first = stored.broken[0]
        raise InputError(
            f"Line {first.number} of {claim.results} cannot be read ({first.fault}); every other finished trial is "
            "kept. Give the same command with --repair to move the line to another file and go on."
        )
    all_trials = stored_lines.newest(stored.trials)
    kept = {name: trial for name, trial in all_trials.items() if name in claim.settings}
    again = {name for name, trial in kept.items() if claim.retry_failed and _may_end_otherwise(trial, claim)}
    _check_settings(claim, [trial for name, trial in kept.items() if name not in again])
    incomplete = {name for name, trial in kept.items() if claim.settings[name].keys() - trial.setting.keys()}
    missing = (set(claim.settings) - set(kept)) | incomplete | again
    made_for_this = {name for name, trial in kept.items() if trial.made.get("study") == claim.study}
    others = all_trials.keys() - kept.keys() - claim.names
    notes = [*told_of_others(len(others), claim.results), *_of_incomplete(incomplete, claim, kept)]
    notes += _of_origins(claim.origin, [trial.made for trial in kept.values()])
    return Folder(claim.out, kept, missing, frozenset(missing | made_for_this), notes)


def _config(claim: Claim) -> dict[str, Any]:
    return {"format": Trial.FORMAT, "options": claim.options, "versions": claim.origin["versions"]}


def _check_config(claim: Claim) -> None:
    path = claim.out / "config.json"
    if not path.exists():
        if claim.results.exists():
            raise InputError(f"{claim.out} has a results.jsonl but no config.json; give another folder with --out.")
        return
    try:
        theirs = json.loads(path.read_bytes())
        written, _, _ = theirs["format"], theirs["options"].keys(), theirs["versions"].keys()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} is not a configuration of this program; give another folder with --out.") from error
    if written != Trial.FORMAT:
        raise _another_configuration(claim.out, [f"format is {written} there and {Trial.FORMAT} here"], "")


def write_config(out: Path, config: Mapping[str, Any]) -> None:
    """Make config.json of a folder say this, in one step; where it does, the file is not touched."""
    path, ours = out / "config.json", json.dumps(config, indent=2, allow_nan=False) + "\n"
    if not path.exists() or path.read_bytes() != ours.encode():
        write_atomically(path, ours)


def _may_end_otherwise(trial: Trial, claim: Claim) -> bool:
    """Whether a trial without a result may have one now: it failed, or what decides it is not what it was."""
    return trial.has_failed or (bool(trial.reason) and any(_differences(trial, claim)))


def _check_settings(claim: Claim, kept: Iterable[Trial]) -> None:
    """Raise InputError where a kept trial was decided by something else than the claim says."""
    differing: dict[str, None] = {}
    others: list[Trial] = []
    for trial in kept:
        found = list(_differences(trial, claim))
        differing |= dict.fromkeys(found)
        others += [trial] if found else []
    if differing:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise _another_configuration(claim.out, [*differing], f" (in {others[0].title}{more})")


def _another_configuration(out: Path, differing: Sequence[str], where: str) -> InputError:
    return InputError(
        f"{out} holds the results of another configuration: {some_of(differing)}{where}. "
        "Give another folder with --out, or the options of before."
    )


def _differences(trial: Trial, claim: Claim) -> Iterator[str]:
    """How what decided a trial differs from what the claim says; what was measured in addition may be more or less."""
    theirs, ours = trial.setting, claim.settings[trial.name]
    for there, here in ((theirs, ours), (trial.made.get("versions", {}), claim.origin["versions"])):
        for key in here | there:
            in_one_alone = (key in here) != (key in there)
            if here.get(key) != there.get(key) and not (in_one_alone and key in Trial.MEASURED):
                yield f"{key} is {spelled(there, key)} there and {spelled(here, key)} here"


def spelled(table: Mapping[str, Any], key: str) -> str:
    """The value of a key in words of a sentence."""
    if key not in table:
        return "absent"
    value = table[key]
    return value if isinstance(value, str) else json.dumps(value)


def told_of_others(count: int, results: Path) -> list[str]:
    """That so many trials of a file are of no study as it is now; nothing where there are none."""
    if not count:
        return []
    are = "is not part of this study: it stays" if count == 1 else "are not part of this study: they stay"
    return [f"{counted(count, 'trial')} in {results} {are} there and in no figure."]


def _of_incomplete(incomplete: set[Name], claim: Claim, kept: Mapping[Name, Trial]) -> list[str]:
    lacking = sorted({key for name in incomplete for key in claim.settings[name].keys() - kept[name].setting.keys()})
    if not lacking:
        return []
    return [
        f"{counted(len(incomplete), 'finished trial')} without {enumerated(lacking)} will be computed again, and "
        "measured in full."
    ]


def _of_origins(ours: dict[str, Any], kept: Sequence[dict[str, Any]]) -> list[str]:
    """Where finished trials were computed on another device, or by another state of the source tree."""
    notes = []
    devices = [device for made in kept if (device := device_of(made)) != device_of(ours)]
    if devices:
        notes.append(
            f"{counted(len(devices), 'finished trial')} of this study came from {_distinct(devices)}, and this is "
            f"{device_of(ours)}: devices round differently."
        )
    trees = [tree for made in kept if (tree := tree_of(made)) != tree_of(ours)]
    if trees:
        notes.append(
            f"{counted(len(trees), 'finished trial')} of this study came from {_distinct(trees)} of the program, and "
            f"this is {tree_of(ours)}: they are taken as they are, whatever changed in between."
        )
    return notes


def _distinct(words: Sequence[str]) -> str:
    return enumerated([*dict.fromkeys(words)])


def _unreadable(stored: StoredLines) -> list[str]:
    """What cannot be read, in words: the broken lines, and half a line at the end."""
    broken = [f"{_lines(stored.broken)}, which cannot be read ({stored.broken[0].fault}),"] if stored.broken else []
    half = ["the last line, of which a process that was killed had written only a part,"] if stored.half else []
    return broken + half


def _lines(broken: Sequence[BrokenLine]) -> str:
    numbers = [str(line.number) for line in broken]
    return f"line {numbers[0]}" if len(numbers) == 1 else f"lines {enumerated(numbers)}"


def mended(path: Path, stored: StoredLines) -> list[str]:
    """Move what cannot be read of results.jsonl to a file of its own, and say so. What can be read keeps its place."""
    notes = []
    if stored.half:
        aside = _set_aside(path, stored.half)
        cut_end(path, len(stored.half))
        notes.append(
            f"The last line of {path} was only written in part when a process was killed: it is now in {aside}, and "
            "its trial is computed again."
        )
    elif not stored.is_ended:
        append_lines(path, [""])
    if stored.broken:
        aside = _set_aside(path, b"".join(line.line + b"\n" for line in stored.broken))
        numbers = {line.number for line in stored.broken}
        whole = [line for number, line in enumerate(path.read_bytes().split(b"\n"), start=1) if number not in numbers]
        write_atomically(path, b"\n".join(whole))
        notes.append(
            f"Moved {_lines(stored.broken)} of {path}, which cannot be read ({stored.broken[0].fault}), to {aside}; "
            f"`cat {shlex.quote(str(aside))} >> {shlex.quote(str(path))}` puts back what was moved."
        )
    return notes


def _set_aside(path: Path, content: bytes) -> Path:
    """Write the content to a new file beside the path."""
    number, aside = 1, path.with_name(f"{path.name}.broken")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.broken-{number}")
    write_atomically(aside, content)
    return aside
