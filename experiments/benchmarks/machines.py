"""The machine that a benchmark runs on: its device, its cores, its versions, and how busy others keep it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import resource
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from experiments.base.versions import versions
from experiments.benchmarks import processes

__all__ = ["Machine", "Watch", "at_hand", "has_pytorch", "is_busy", "usable_cores"]

_PACKAGES = ("jax", "jaxlib", "neural-tangents", "numpy", "pathjax")
_QUIET = 0.1
"""The share of the cores up to which others may work beside a measurement."""


class Machine(NamedTuple):
    """What a benchmark ran on.

    The platform and the kind of device are JAX's words; versions are of packages; the commit is that of this
    repository, "" outside of one.
    """

    platform: str
    kind: str
    processor: str
    cores: int
    versions: dict[str, str]
    commit: str

    @property
    def title(self) -> str:
        """The device; of a CPU its cores."""
        return f"{self.cores} CPU cores" if self.platform == "cpu" else self.kind

    @property
    def slug(self) -> str:
        """The title as the name of a file.

        >>> Machine("gpu", "NVIDIA H100 80GB HBM3", "", 16, {}, "").slug
        'nvidia-h100-80gb-hbm3'
        """
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def __str__(self) -> str:
        packages = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        commit = f"; commit {self.commit}" if self.commit else ""
        return f"{self.kind}, {self.cores} cores of {self.processor}; {packages}{commit}"


def at_hand() -> Machine:
    """This machine. JAX is asked in a process of its own, which gives an accelerator's memory back."""
    device = processes.fresh(processes.device)
    torch = {"torch": metadata.version("torch") if has_pytorch() else "not installed"}
    installed = {package: version for package, version in versions().items() if package in _PACKAGES}
    return Machine(device.platform, device.kind, _processor(), usable_cores(), installed | torch, _commit())


def has_pytorch() -> bool:
    """Whether the peer can be measured."""
    return importlib.util.find_spec("torch") is not None


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", file.read_text()) if file.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=9"]
    try:
        said = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return said.stdout.strip()


def is_busy(others: float | None, cores: int) -> bool:
    """Whether others keep more of the cores busy than a measurement bears. What is not known passes."""
    return others is not None and others > _QUIET * cores


class Watch:
    """How many of the cores that this process may use others have kept busy since the watch was made.

    Read from /proc/stat, less the time of this process and of its children that have ended.
    """

    def __init__(self) -> None:
        self._begin = _clocks()

    def busy_cores(self) -> float | None:
        """The mean number of cores; None where the system does not tell."""
        if self._begin is None or (now := _clocks()) is None:
            return None
        wall, busy, own = (after - before for after, before in zip(now, self._begin, strict=True))
        return max(0.0, (busy - own) / wall)


def _clocks() -> tuple[float, float, float] | None:
    """Seconds: of the wall clock, of work on the usable cores, of work of this process and its ended children."""
    file = Path("/proc/stat")
    if not file.exists() or not hasattr(os, "sched_getaffinity"):
        return None
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in file.read_text().splitlines()]
    # of each core: its name, then user, nice, system, idle, iowait, irq and softirq
    worked = [[*fields[1:4], *fields[6:8]] for fields in lines if fields and fields[0] in cores]
    ticks = sum(int(count) for fields in worked for count in fields)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(usage.ru_utime + usage.ru_stime for usage in used)
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), own
