"""The output folder: its configuration, its finished runs, and the promise that none of them is ever lost.

Every file is written beside its place and moved there in one step, so that a job killed at any moment leaves
either the old file or the new one. One job at a time holds the folder.
"""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from experiments.options import DENSE, Compare, InputError
from experiments.records.jsonl import decode, encode
from experiments.records.runs import Run

__all__ = ["Claim", "Folder", "Record", "Unkept", "claimed", "comparison", "kept", "versions", "write"]

_ELSEWHERE = ("out", "data_dir", "repair")  # options that do not change a number
_PACKAGES = ("flax", "jax", "jaxlib", "matfree", "neural-tangents", "numpy", "optax", "pathjax", "scikit-learn")


class Record(Protocol):
    """What a line of results keeps: a dataclass with a name of its own, the same in words, and a version."""

    FORMAT: ClassVar[int]

    @property
    def name(self) -> tuple[Any, ...]: ...  # noqa: D102

    @property
    def title(self) -> str: ...  # noqa: D102


R = TypeVar("R", bound=Record)


@dataclasses.dataclass(frozen=True)
class Claim(Generic[R]):
    """What a job wants of its output folder.

    `options` decide the numbers: with others the folder is refused, in words of `spelled(option)`. `expected` has the
    names of the records, of type `kind`, that may be there; `repair` sets lines aside that cannot be read.
    """

    out: Path
    kind: type[R]
    options: dict[str, Any]
    expected: Collection[tuple[Any, ...]]
    repair: bool = False
    spelled: Callable[[str], str] = str


def comparison(options: Compare) -> Claim[Run]:
    """The claim of the main job."""
    kept = {key: value for key, value in dataclasses.asdict(options).items() if key not in _ELSEWHERE}
    numeric = {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}
    cells = [(DENSE, 1.0), *((method, density) for method in options.method for density in options.density)]
    expected = {(*cell, seed) for cell in cells for seed in range(options.seeds)}
    return Claim(options.out, Run, numeric, expected, options.repair, spelled=lambda key: f"--{key.replace('_', '-')}")


@dataclasses.dataclass
class Folder(Generic[R]):
    """An output folder that this job alone may write to."""

    path: Path
    config: dict[str, Any]
    lines: list[str]
    kind: type[R]

    def runs(self) -> list[R]:
        """The finished runs, in the order in which they finished."""
        return [decode(line, self.kind) for line in self.lines]

    def add(self, runs: Sequence[R]) -> None:
        """Keep the runs that are not kept yet. When this returns they are on the disk, all of them whole."""
        known = {run.name for run in self.runs()}
        lines = self.lines + [encode(run) for run in runs if run.name not in known]
        write(self.path / "results.jsonl", "".join(line + "\n" for line in lines))
        self.lines = lines


@dataclasses.dataclass
class Unkept(Folder[R]):
    """Takes the place of a folder where another process keeps the results."""

    def add(self, runs: Sequence[R]) -> None:
        """Nothing."""


@contextlib.contextmanager
def claimed(claim: Claim[R]) -> Iterator[Folder[R]]:
    """The output folder of a claim, held by this job until the context ends.

    Raises InputError where the folder cannot be written, is held by another job, was made by another
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
            raise InputError(f"Another job is writing to {out}; wait for its end or give another --out.") from error
        config = _agreed_config(claim)
        yield Folder(out, config, _read_lines(claim), claim.kind)


def kept(claim: Claim[Any]) -> set[tuple[Any, ...]]:
    """The names of the records that a folder holds, without holding it. Raises InputError as `claimed`."""
    return {decode(line, claim.kind).name for line in _read_lines(claim)}


def write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step, on the disk before this returns.

    Raises InputError where there is no room or no right to write; the file is then as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"Cannot write {path}: {error.strerror}. Every run finished before is kept; give the same command "
            "again when this is mended."
        ) from error


def _agreed_config(claim: Claim[Any]) -> dict[str, Any]:
    ours = {"format": claim.kind.FORMAT, "options": claim.options, "versions": versions()}
    path = claim.out / "config.json"
    if not path.exists():
        if (claim.out / "results.jsonl").exists():
            raise InputError(f"{claim.out} has a results.jsonl but no config.json; give another folder with --out.")
        write(path, json.dumps(ours, indent=2, allow_nan=False) + "\n")
        return ours
    try:
        theirs = json.loads(path.read_bytes())
        differing = list(_differences(theirs, ours, claim.spelled))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} is not a configuration of this program; give another folder with --out.") from error
    if differing:
        raise InputError(
            f"{claim.out} holds the results of another configuration: {'; '.join(differing)}. "
            "Give another folder with --out, or the options of before."
        )
    return ours


def versions() -> dict[str, str]:
    """The packages that decide the numbers, with their versions."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    # the experiments run from the source tree, where pathjax need not be installed
    described = configparser.ConfigParser()
    described.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    found["pathjax"] = described.get("metadata", "version", fallback=found["pathjax"])
    return found


def _differences(theirs: dict[str, Any], ours: dict[str, Any], spelled: Callable[[str], str]) -> Iterator[str]:
    if theirs["format"] != ours["format"]:
        yield f"format is {theirs['format']} there and {ours['format']} here"
    for part in ("options", "versions"):
        for key in ours[part] | theirs[part]:
            there, here = (_words(side[part].get(key, "absent")) for side in (theirs, ours))
            if there != here:
                yield f"{spelled(key) if part == 'options' else key} is {there} there and {here} here"


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_lines(claim: Claim[Any]) -> list[str]:
    path = claim.out / "results.jsonl"
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    whole: list[str] = []
    broken: list[bytes] = []
    names: set[tuple[Any, ...]] = set()
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        try:
            run = _belonging(line, claim, names)
        except ValueError as error:
            if not claim.repair:
                raise InputError(
                    f"Line {number} of {path} cannot be read ({_fault(line, error)}); every other finished run is "
                    "kept. Give the same command with --repair to set the line aside and go on."
                ) from error
            broken.append(line if line.endswith(b"\n") else line + b"\n")
            continue
        names.add(run.name)
        whole.append(line.decode().rstrip("\n"))
    if broken:
        _set_aside(path, whole, broken)
    return whole


def _belonging(line: bytes, claim: Claim[R], names: Collection[tuple[Any, ...]]) -> R:
    run = decode(line.decode(), claim.kind)
    if run.name not in claim.expected:
        raise ValueError(f"{run.title} is not part of this job")
    if run.name in names:
        raise ValueError(f"{run.title} is there twice")
    return run


def _fault(line: bytes, error: ValueError) -> str:
    if not line.endswith(b"\n"):
        return "it is written half"
    return "it is not JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)


def _set_aside(path: Path, whole: Sequence[str], broken: Sequence[bytes]) -> None:
    aside = path.with_name(path.name + ".broken")
    before = aside.read_bytes() if aside.exists() else b""
    write(aside, before + b"".join(broken))
    write(path, "".join(line + "\n" for line in whole))
