"""CPU minutes that it takes to hold 1,200 random networks to their listed paths, as `make fuzz` does.

`python -m experiments.benchmarks.fuzzing` runs that test with few networks and with more, and takes the cost of one
network from the difference: the start of the test, which happens once, is not scaled.
"""

from __future__ import annotations

import functools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks import command, processes
from experiments.benchmarks.rows import Row

__all__ = ["FULL", "TOY", "Sizes", "cpu_seconds", "rows"]

_ROOT = Path(__file__).parents[2]


class Sizes(NamedTuple):
    """The test as arguments of Python, the networks of both of its runs, and how many it is scaled to."""

    test: tuple[str, ...]
    few: int
    more: int
    scaled: int


FULL = Sizes(("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_fuzz/test_networks.py"), 16, 64, 1200)
TOY = Sizes(("-c", "import os; sum(range(5_000_000 * int(os.environ['FUZZ_NETWORKS'])))"), 1, 3, 12)
_AIMS = {1200: 15.0}


class CpuTime(NamedTuple):
    """Seconds of all threads."""

    seconds: float


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """The one row; it takes minutes, so that each number of networks runs once."""
    measurements = [functools.partial(cpu_seconds, sizes.test, networks) for networks in (sizes.few, sizes.more)]
    few, more = processes.in_turn(*measurements, repeats=1)
    each = (more.seconds - few.seconds) / (sizes.more - sizes.few)
    minutes = (few.seconds + (sizes.scaled - sizes.few) * each) / 60
    note = f"scaled from {sizes.few} and {sizes.more} networks, which took {few.seconds:.0f} and {more.seconds:.0f} s"
    yield Row(f"{sizes.scaled:,} fuzzed networks", "CPU minutes", minutes, note=note, aim=_AIMS.get(sizes.scaled))


def cpu_seconds(test: tuple[str, ...], networks: int) -> CpuTime:
    """CPU time of the test, which runs alone and on the CPU."""
    environment = os.environ | {"FUZZ_NETWORKS": str(networks), "FUZZ_SEED": "0", "JAX_PLATFORMS": "cpu"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *test], cwd=_ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return CpuTime(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
