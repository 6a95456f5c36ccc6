"""Folders that hold parts of one study, joined into one: what agrees is taken over, what does not is refused."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.base.errors import InputError
from experiments.base.files import append_lines, cannot_write, write_atomically
from experiments.base.wording import counted, enumerated, some_of
from experiments.records import results_folder, stored_lines, study_table, trial_table
from experiments.records.jsonl import encode
from experiments.records.stored_lines import StoredLines
from experiments.records.trial import Name, Trial, device_of, tree_of

__all__ = ["merged"]

_OF_ALL = ("jax_", "source of ")
"""How keys of `Trial.setting` begin that one sweep gives to all trials of a data set and a model, or to none."""

_REMEDY = "leave one of the folders out, or join them into different ones."


class _Part(NamedTuple):
    """What a folder holds.

    Attributes:
        folder: the folder.
        config: its config.json; None where the folder to join into has none yet.
        stored: the lines of its results.jsonl.
        pictures: its files of kernel pictures, by name.
    """

    folder: Path
    config: dict[str, Any] | None
    stored: StoredLines
    pictures: dict[str, Path]


class _Kept(NamedTuple):
    """A trial, and the folder that it came from."""

    trial: Trial
    folder: Path


class _Joined(NamedTuple):
    """What several folders hold together: their one config, and each trial and file of pictures once."""

    config: dict[str, Any]
    trials: dict[Name, _Kept]
    pictures: dict[str, Path]

    def of_study(self) -> list[Trial]:
        """The trials that the config names."""
        options = self.config["options"]
        return [trial for trial, _ in self.trials.values() if study_table.is_of_study(trial, options)]


def merged(out: Path, folders: Sequence[Path]) -> list[str]:
    """Join folders into one, which may be new or have results already; gives what the user has to know, in sentences.

    The folders are only read, and sweeps may be writing to them. What the joined folder lacks is added to it: its
    config first, so that a sweep and figures accept it at any moment, then kernel pictures, then trials, so that a
    trial that is there has its pictures. After a kill the same call goes on.

    Raises InputError where a folder is none of a study, or has a broken line; where none has a finished trial; where
    configs, versions of packages or what decides trials differ; where one trial has other results or one file of
    pictures other bytes in two folders; and where another process holds the joined folder. Nothing is then written. A
    result takes the place of a failure.
    """
    distinct = {out.resolve(): out}
    for folder in folders:
        distinct.setdefault(folder.resolve(), folder)
    _, *others = distinct.values()
    if not others:
        raise InputError(f"There is nothing to join: name the folders of the parts after {out}, which they go into.")
    parts = [_Part(folder, _config_of(folder), _lines_of(folder), _pictures_of(folder)) for folder in others]
    if not any(part.stored.trials for part in parts):
        names = enumerated([str(folder) for folder in others])
        raise InputError(f"There is nothing to join: no network of {names} is finished yet.")
    _united([_read_joined(out), *parts])  # before the folder is made
    with results_folder.locked(out):
        before = _read_joined(out)
        joined = _united([before, *parts])
        new = [trial for trial, folder in joined.trials.values() if folder != out]
        results_folder.write_config(out, joined.config)
        _copy_pictures(out, joined.pictures)
        path = out / "results.jsonl"
        notes = results_folder.mended(path, before.stored)
        if new:
            append_lines(path, [encode(trial) for trial in new])
        notes += [_of_half(part.folder) for part in parts if part.stored.half]
        notes += [f"{part.folder} has no finished network yet." for part in parts if not part.stored.trials]
        table = trial_table.write(out, map(vars, joined.of_study()), joined.config["options"])
    return [*notes, *_of_origins(joined.of_study()), *_counts(out, parts, joined), table, *_next_steps(out, joined)]


def _read_joined(out: Path) -> _Part:
    """The folder to join into, with what it has; it need not exist."""
    is_new = not any(os.path.exists(out / name) for name in ("config.json", "results.jsonl"))
    return _Part(out, None if is_new else _config_of(out), _lines_of(out), _pictures_of(out))


def _config_of(folder: Path) -> dict[str, Any]:
    config = study_table.config_of(folder)
    if config["format"] != Trial.FORMAT:
        raise InputError(
            f"{folder} has results of format {config['format']}, and only those of format {Trial.FORMAT} say what "
            "decides them, so that they can be joined: leave it out, or sweep again into another folder."
        )
    return config


def _lines_of(folder: Path) -> StoredLines:
    is_there = os.path.exists(folder / "results.jsonl")
    return study_table.lines_of(folder) if is_there else StoredLines([], [], b"", is_ended=True)


def _pictures_of(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((folder / "kernels").glob("*.npz"))}


def _united(parts: Sequence[_Part]) -> _Joined:
    """What the parts hold together. Raises InputError where they do not agree; changes nothing."""
    configured = [(part.folder, part.config) for part in parts if part.config is not None]
    (first, config), *others = configured
    for folder, other in others:
        _check_configs(first, config, folder, other)
    joined = _Joined(config, _trials(parts), _pictures(parts))
    _check_settings(kept for kept in joined.trials.values() if study_table.is_of_study(kept.trial, config["options"]))
    return joined


def _check_configs(there: Path, one: Mapping[str, Any], here: Path, other: Mapping[str, Any]) -> None:
    for kind, what, remedy in (
        ("options", "studies of different configs", f"Sweep the same config in both, {_REMEDY}"),
        ("versions", "results of different versions", _REMEDY.capitalize()),
    ):
        differing = _differences(one[kind], there, other[kind], here)
        if differing:
            raise InputError(f"{there} and {here} hold {what}: {some_of(differing)}. {remedy}")


def _trials(parts: Sequence[_Part]) -> dict[Name, _Kept]:
    """Each trial once: of the first folder that has a result of it, or else of the first that has a failure."""
    trials: dict[Name, _Kept] = {}
    for part in parts:
        for name, trial in stored_lines.newest(part.stored.trials).items():
            if name not in trials or (trials[name].trial.reason and not trial.reason):
                trials[name] = _Kept(trial, part.folder)
            elif not trial.reason:
                _check_same(trials[name], _Kept(trial, part.folder))
    return trials


def _check_same(one: _Kept, other: _Kept) -> None:
    """Raise InputError where two results of one trial differ in more than when and by what they were computed."""
    lines = [encode(dataclasses.replace(trial, made={})) for trial, _ in (one, other)]
    if lines[0] == lines[1]:
        return
    values = [json.loads(line) for line in lines]
    settings = [each.pop("setting") for each in values]
    differing = _differences(settings[0], one.folder, settings[1], other.folder)
    differing += [name for name in values[0] if values[0][name] != values[1][name]]
    raise InputError(
        f"{one.trial.title} has different results in {one.folder} and {other.folder}, which differ in "
        f"{some_of(differing)}. {_REMEDY.capitalize()}"
    )


def _check_settings(trials: Iterable[_Kept]) -> None:
    """Raise InputError where trials with results were decided by what one sweep would not have accepted together.

    The configs agree, so that these are sources of networks and data of one's own, options of JAX, and versions in
    results that an older sweep left.
    """
    whole = [kept for kept in trials if not kept.trial.reason]
    of_all = {key: "absent" for kept in whole for key in kept.trial.setting if key.startswith(_OF_ALL)}
    decided: dict[tuple[str, str, str], tuple[Any, Path]] = {}
    for trial, folder in whole:
        for key, value in (of_all | trial.setting | trial.made.get("versions", {})).items():
            first, there = decided.setdefault((trial.data, trial.model, key), (value, folder))
            if first != value:
                words = _differences({key: first}, there, {key: value}, folder)[0]
                raise InputError(
                    f"{there} and {folder} were computed with something else: {words} (in {trial.title}). "
                    f"{_REMEDY.capitalize()}"
                )


def _pictures(parts: Sequence[_Part]) -> dict[str, Path]:
    """Each file of pictures once."""
    pictures: dict[str, Path] = {}
    for part in parts:
        for name, path in part.pictures.items():
            if name in pictures and _content(pictures[name]) != _content(path):
                raise InputError(f"{pictures[name]} and {path} do not hold the same numbers. {_REMEDY.capitalize()}")
            pictures.setdefault(name, path)
    return pictures


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


def _copy_pictures(out: Path, pictures: Mapping[str, Path]) -> None:
    """Write the files that the folder lacks."""
    folder = out / "kernels"
    for name, path in pictures.items():
        if path.parent != folder:
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error) from error
            write_atomically(folder / name, _content(path))


def _differences(one: Mapping[str, Any], there: Path, other: Mapping[str, Any], here: Path) -> list[str]:
    """The keys in which two tables differ, with both values and both folders."""
    spelled = results_folder.spelled
    return [
        f"{key} is {spelled(one, key)} in {there} and {spelled(other, key)} in {here}"
        for key in {**one, **other}
        if (key in one) != (key in other) or one[key] != other[key]
    ]


def _of_half(folder: Path) -> str:
    return (
        f"The last line of {folder / 'results.jsonl'} is written only in part, by a process that is still writing or "
        "was killed: it is left out."
    )


def _of_origins(trials: Sequence[Trial]) -> list[str]:
    """Where the trials were computed on different devices, or by different states of the source tree."""
    notes = []
    for origin, where, hence in (
        (device_of, "on different devices", "devices round differently"),
        (tree_of, "by different states of the program", "they are taken as they are, whatever changed in between"),
    ):
        if len(counts := _tally(trials, origin)) > 1:
            words = enumerated([f"{counted(count, 'trial')} by {name}" for name, count in counts.items()])
            notes.append(f"The study was computed {where}, {words}: {hence}.")
    return notes


def _tally(trials: Sequence[Trial], origin: Callable[[Mapping[str, Any]], str]) -> dict[str, int]:
    return dict(collections.Counter(origin(trial.made) for trial in trials))


def _counts(out: Path, parts: Sequence[_Part], joined: _Joined) -> list[str]:
    """How many trials each folder holds, and how many of them were taken over."""
    taken = collections.Counter(folder for _, folder in joined.trials.values())
    counts = []
    for part in parts:
        count = len(stored_lines.newest(part.stored.trials))
        counts.append(f"{part.folder}: {counted(count, 'trial')}, of which {taken[part.folder]} are new in {out}")
    others = len(joined.trials) - len(joined.of_study())
    return counts + results_folder.told_of_others(others, out / "results.jsonl")


def _next_steps(out: Path, joined: _Joined) -> list[str]:
    """How much of the study there is, and how to go on."""
    trials, wanted = joined.of_study(), study_table.wanted(joined.config["options"])
    folder = shlex.quote(str(out))
    sweep = f"python -m experiments sweep CONFIG --out {folder}"
    steps = [f"{out}: {len(trials)} of {wanted} trials of the study"]
    if len(trials) < wanted:
        missing = wanted - len(trials)
        steps.append(f"{missing} missing: join again when the parts have more, or compute them by `{sweep}`.")
    failed = sum(trial.has_failed for trial in trials)
    if failed:
        steps.append(f"{counted(failed, 'trial')} failed: `{sweep} --retry-failed` computes them again.")
    return [*steps, f"Figures: `python -m experiments figures {folder}`"]
