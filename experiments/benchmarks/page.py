"""The page of the documentation with what benchmarks gave; `python -m experiments.benchmarks.page` makes it again.

It is made of the results of all devices in docs/benchmarks, and of obstacles.toml there, which is written by hand: for
the work of a row, what stands in the way of its aim.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.base.files import write_atomically
from experiments.benchmarks import growth_figure, results
from experiments.benchmarks.machines import Machine
from experiments.benchmarks.results import Run
from experiments.benchmarks.rows import HEADINGS, Curve, Row
from experiments.report.drawing import png

__all__ = ["FOLDER", "text", "write"]

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"

_OPENING = """# Benchmarks

What pathjax costs in time and memory, beside a peer that does the same work, and beside the least that the work could
cost, where that is known. This page is made by `make bench`; [costs.md](../costs.md) says in words what to expect.

**How it was measured.** Each number is the least of several. Ours and the peer's come from processes of their own that
run in turn, so that neither shares threads, memory or compiled programs with the other. *First call* means the first
in a fresh process: tracing and compilation count, imports do not, and JAX keeps no programs on disk. *Later calls* are
those after it in the same process. The ratio is ours over the peer's: 1/3 means that ours takes a third. Memory of a
process is the most that it has held, Python and JAX included; on an accelerator it is that of the accelerator alone.
*Planned* memory is what XLA sets aside for a program's temporary values. Weights are drawn from seed 0, numbers are
float32, and batch norm is in evaluation mode, where nothing else is said. While a benchmark ran, the time that other
processes took of the cores was watched; where they took more than a tenth, its rows are marked "busy".

**How to see it again.** `make bench` measures everything but what takes many minutes, and `make bench-long` the rest;
on an accelerator the same commands measure that. `make bench` refuses a busy machine; `python -m
experiments.benchmarks --busy` measures all the same. To measure some of it, or to print the rows of one benchmark
without writing them here:

    python -m experiments.benchmarks --only synflow kernels
    python -m experiments.benchmarks.synflow --repeats 5

The peers PyTorch (`pip install torch==2.13.0`) and neural-tangents are extras; without PyTorch its cells say
"no PyTorch".
"""


def write(folder: Path) -> Path:
    """Make the page of the results and the obstacles in a folder; returns its file."""
    file, by_hand = folder / "README.md", folder / "obstacles.toml"
    obstacles = tomllib.loads(by_hand.read_text()) if by_hand.exists() else {}
    devices = results.read(folder)
    for runs in devices:
        if curves := _curves(runs):
            drawn = growth_figure.figure(curves, _footer(runs))
            write_atomically(folder / _figure(runs), png(drawn))
    write_atomically(file, text(devices, obstacles))
    return file


def text(devices: Sequence[dict[str, Run]], obstacles: dict[str, str]) -> str:
    """The page: devices side by side where there are several, then all rows of each."""
    parts = [_OPENING]
    if len(devices) > 1:
        parts.append(_side_by_side(devices))
    parts += [_section(runs, obstacles) for runs in devices]
    return "\n".join(parts)


def _side_by_side(devices: Sequence[dict[str, Run]]) -> str:
    """What all devices have measured, a column for each."""
    columns = [{line[0]: line for line in results.lines(runs)} for runs in devices]
    works = [work for work in columns[0] if all(work in column for column in columns)]
    titles = [_machine(runs).title for runs in devices]
    table = [[work, *(_short(column[work]) for column in columns)] for work in works]
    opening = "## Devices side by side\n\nOurs, and in brackets its ratio to the peer.\n\n"
    return opening + _markdown(["work", *titles], table)


def _short(line: Sequence[str]) -> str:
    _, ours, _, _, ratio, *_ = line
    return f"{ours} ({ratio})" if ratio else ours


def _section(runs: dict[str, Run], obstacles: dict[str, str]) -> str:
    rows = [row for run in runs.values() for row in run.rows]
    parts = [f"## {_machine(runs).title}", _markdown(HEADINGS, results.lines(runs))]
    if _curves(runs):
        parts.append(f"![Growth of costs, on logarithmic axes]({_figure(runs)})\n")
    if notes := [f"- {row.work}: {row.note}." for row in rows if row.note]:
        parts.append("\n".join(notes) + "\n")
    if ways := [f"- **{row.work}.** {_obstacle(row, obstacles)}" for row in rows if row.reached is False]:
        parts.append("### What stands in the way of the aims that are not reached\n\n" + "\n".join(ways) + "\n")
    said = "\n".join(f"- `{name}`: {run}." for name, run in runs.items())
    where = "\n".join(f"- {machine}." for machine in dict.fromkeys(str(run.machine) for run in runs.values()))
    return "\n\n".join(part.rstrip("\n") for part in [*parts, f"### How each ran\n\n{where}\n\n{said}"]) + "\n"


def _curves(runs: dict[str, Run]) -> list[Curve]:
    return [row.curve for run in runs.values() for row in run.rows if row.curve]


def _figure(runs: dict[str, Run]) -> str:
    return f"growth-{_machine(runs).slug}.png"


def _footer(runs: dict[str, Run]) -> str:
    dates = {run.date for run in runs.values() if any(row.curve for row in run.rows)}
    return f"fully connected networks in float32, weights from seed 0 · {_machine(runs)} · {', '.join(sorted(dates))}"


def _obstacle(row: Row, obstacles: dict[str, str]) -> str:
    return " ".join(obstacles.get(row.work, "Not looked into.").split())


def _machine(runs: dict[str, Run]) -> Machine:
    return next(iter(runs.values())).machine


def _markdown(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"


if __name__ == "__main__":
    print(f"written: {write(FOLDER)}")
