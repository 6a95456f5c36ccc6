"""The study of the digits by two workers, beside the same by one.

`python -m experiments.benchmarks.workers` runs the command `sweep digits` at one density, with one seed and a few
methods, on three networks as it stands there: once with no compiled program at hand, then again into another folder
with those that the first one left. The whole study has thirty times as many networks to train with the same programs.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks import command, processes
from experiments.benchmarks.rows import Row

__all__ = ["FULL", "TOY", "Sizes", "Times", "measure", "rows"]

_ROOT = Path(__file__).parents[2]
_WORKERS = 2
_AIM = 0.65


class Sizes(NamedTuple):
    """What of the study is run, as changes of its config, and in words."""

    changes: tuple[str, ...]
    said: str


FULL = Sizes(
    ('method=["random", "magnitude", "snip", "synflow"]', "density=[0.05]", "seeds=1", "train.epochs=6"),
    "15 networks of the digits study",
)
TOY = Sizes(
    (
        'method=["random"]',
        "density=[0.5]",
        "seeds=1",
        "train_images=200",
        "test_images=50",
        "train.epochs=2",
        "measure.curve_density=[0.5]",
        "measure.score_per_class=1",
        'model=[{name="fc", network="fc", factor=0.05}]',
    ),
    "a toy study",
)


class Times(NamedTuple):
    """Seconds of a study from the command on, with no compiled program at hand and with all of them."""

    cold: float
    warm: float


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """Cold and warm; each takes minutes, so that each runs once."""
    measurements = [functools.partial(measure, sizes, workers) for workers in (_WORKERS, 1)]
    several, one = processes.in_turn(*measurements, repeats=1)
    for said, ours, peer in (
        ("no program compiled before", several.cold, one.cold),
        ("all programs compiled before", several.warm, one.warm),
    ):
        yield Row(f"{sizes.said} by {_WORKERS} workers, {said}", "s", ours, peer, "one worker", aim_ratio=_AIM)


def measure(sizes: Sizes, workers: int) -> Times:
    """One study twice, into folders of their own, with a cache of compiled programs of its own."""
    with tempfile.TemporaryDirectory() as root:
        return Times(*(_seconds(sizes, workers, Path(root), Path(root) / name) for name in ("cold", "warm")))


def _seconds(sizes: Sizes, workers: int, root: Path, out: Path) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(root / "cache")}
    changes = [word for change in sizes.changes for word in ("--set", change)]
    arguments = ["sweep", "digits", "--out", str(out), "--workers", str(workers), *changes]
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=_ROOT,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - begin
    failed = [line for line in (out / "results.jsonl").read_text().splitlines() if json.loads(line)["reason"]]
    if failed:
        raise RuntimeError(f"{len(failed)} networks of the study failed: {json.loads(failed[0])['reason']}")
    return seconds


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
