"""The results of benchmarks on one device: a JSON file, in which each benchmark keeps its last run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.base.files import write_atomically
from experiments.benchmarks import machines, rows
from experiments.benchmarks.machines import Machine
from experiments.benchmarks.rows import Curve, Row

__all__ = ["Run", "lines", "read", "write"]


class Run(NamedTuple):
    """One run of one benchmark: when it began, its seconds, its rows, and why it broke off, if it did.

    `load` is the system's load before and after, own processes included; `others` is the number of cores that other
    processes kept busy meanwhile, on average, None where the system does not tell.
    """

    machine: Machine
    date: str
    seconds: float
    load: tuple[float, float]
    others: float | None
    failed: str
    rows: tuple[Row, ...]

    @property
    def was_disturbed(self) -> bool:
        """Whether others worked so much that the numbers mean little."""
        return machines.is_busy(self.others, self.machine.cores)

    def __str__(self) -> str:
        others = "unknown work of" if self.others is None else f"{self.others:.1f} cores taken by"
        before, after = self.load
        disturbed = ": **busy, so that its ratios mean little**" if self.was_disturbed else ""
        failed = f". **It broke off: {self.failed}**" if self.failed else ""
        return (
            f"{self.date}, {self.seconds:.0f} s; load {before:.1f} before, {after:.1f} after; {others} others"
            f"{disturbed}{failed}"
        )


def lines(runs: dict[str, Run]) -> list[tuple[str, ...]]:
    """The cells of all rows, those of disturbed runs marked."""
    marked = []
    for run in runs.values():
        for row in run.rows:
            *others, reached = rows.cells(row)
            marked.append((*others, f"{reached} (busy)".strip() if run.was_disturbed else reached))
    return marked


def write(folder: Path, runs: dict[str, Run]) -> Path:
    """Put runs, by their benchmarks' names, in place of older ones in the file of their device; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{_machine(runs).slug}.json"
    kept = (_read(file) if file.exists() else {}) | runs
    content = {name: _plain(run) for name, run in kept.items()}
    write_atomically(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return file


def read(folder: Path) -> list[dict[str, Run]]:
    """For each device its runs by the benchmarks' names; CPUs first."""
    devices = [_read(file) for file in sorted(folder.glob("*.json"))]
    return sorted(devices, key=lambda runs: _machine(runs).platform != "cpu")


def _machine(runs: dict[str, Run]) -> Machine:
    return next(iter(runs.values())).machine


def _plain(run: Run) -> dict[str, Any]:
    plain = [
        row._asdict() | {"curve": row.curve and row.curve._asdict(), "ratio": row.ratio, "reached": row.reached}
        for row in run.rows
    ]
    return run._asdict() | {"machine": run.machine._asdict(), "disturbed": run.was_disturbed, "rows": plain}


def _read(file: Path) -> dict[str, Run]:
    return {name: _run(fields) for name, fields in json.loads(file.read_text()).items()}


def _run(fields: dict[str, Any]) -> Run:
    machine = Machine(**fields["machine"])
    given = tuple(Row(**_known(Row, row) | {"curve": row["curve"] and Curve(**row["curve"])}) for row in fields["rows"])
    return Run(**_known(Run, fields) | {"machine": machine, "load": tuple(fields["load"]), "rows": given})


def _known(kind: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Without what was computed from the other fields."""
    names: Sequence[str] = kind._fields
    return {name: fields[name] for name in names}
