"""Run benchmarks: all of them for the page of the documentation, or one for its rows."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.benchmarks import machines, page, results
from experiments.benchmarks.machines import Machine
from experiments.benchmarks.results import Run
from experiments.benchmarks.rows import cells, table

__all__ = ["BENCHMARKS", "alone", "main", "measure"]

BENCHMARKS = (
    "synflow",
    "selection",
    "spectrum",
    "lifting",
    "kernels",
    "mean_field",
    "relaxation",
    "listing",
    "sweeping",
    "workers",
    "fuzzing",
    "factorize",
    "shrink",
    "growth",
)
"""Modules of this package, in the order of the table. Each has sizes `FULL` and `TOY`, perhaps `LONG`, and gives its
rows one after the other by `rows(sizes, repeats)`."""

_WATCHED = 1.0
"""Seconds for which the machine is watched before anything is measured."""
_LONG = ", minutes"
"""Stands behind the name of a benchmark that ran at its `LONG` sizes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks, print one table, and keep it as JSON and as a page; returns the exit status."""
    parser = _parser("python -m experiments.benchmarks", "Measure what pathjax costs beside its peers.")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME", help="of these alone"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON file and the page (docs/benchmarks)")
    options = parser.parse_args(arguments)
    folder = options.out or (Path("runs/benchmarks") if options.quick else page.FOLDER)
    return _run(options.only, options, folder)


def alone(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark of a module, named in full, and print its rows; returns the exit status."""
    options = _parser(f"python -m {name}", importlib.import_module(name).__doc__).parse_args(arguments)
    return _run([name.rpartition(".")[2]], options, None)


def _parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of which the least is taken")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="toy sizes, to see that everything runs")
    sizes.add_argument("--long", action="store_true", help="what takes many minutes, in place of the rest")
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too, and mark the results")
    return parser


def _run(names: Sequence[str], options: argparse.Namespace, folder: Path | None) -> int:
    cores = machines.usable_cores()
    watch = machines.Watch()
    time.sleep(_WATCHED)
    if machines.is_busy(others := watch.busy_cores(), cores) and not options.busy:
        print(
            f"Others keep {others:.1f} of {cores} cores busy, so that no ratio would mean anything. Wait until they "
            "have ended, or measure all the same with --busy; the results are then marked.",
            file=sys.stderr,
        )
        return 2
    sizes = "TOY" if options.quick else "LONG" if options.long else "FULL"
    runs = {}
    machine = machines.at_hand()
    for name in names:
        module = importlib.import_module(f"{__package__}.{name}")
        if hasattr(module, sizes):
            print(f"{name} …", file=sys.stderr, flush=True)
            label = name + (_LONG if options.long else "")
            runs[label] = measure(module, getattr(module, sizes), machine, repeats=options.repeats)
            if folder is not None:  # at once, so that an interrupted command keeps what is finished
                results.write(folder, {label: runs[label]})
    _print(runs)
    if folder is not None:
        print(f"written: {page.write(folder)}")
    return int(any(run.failed for run in runs.values()))


def measure(module: Any, sizes: Any, machine: Machine, *, repeats: int) -> Run:
    """One run of one benchmark. Where it breaks off, the rows until then are kept, and why it did."""
    date, before, begin, watch = datetime.date.today(), os.getloadavg()[0], time.perf_counter(), machines.Watch()
    rows, failed = [], ""
    try:
        for row in module.rows(sizes, repeats):
            rows.append(row)
            print("  " + "   ".join(cells(row)), file=sys.stderr, flush=True)
    except Exception as error:  # the other benchmarks do not depend on this one
        traceback.print_exc()
        failed = f"{type(error).__name__}: {error}"
    return Run(
        machine=machine,
        date=str(date),
        seconds=time.perf_counter() - begin,
        load=(before, os.getloadavg()[0]),
        others=watch.busy_cores(),
        failed=failed,
        rows=tuple(rows),
    )


def _print(runs: dict[str, Run]) -> None:
    """The one table, and what is to be known of it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)  # a file has no width of its own
    for name, run in runs.items():
        console.print(f"{name}: {run}", soft_wrap=True)
    console.print(table(results.lines(runs)))
    for row in (row for run in runs.values() for row in run.rows if row.note):
        console.print(f"{row.work}: {row.note}", soft_wrap=True)
