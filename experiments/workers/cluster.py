"""Workers of Ray: on this machine, or on all machines of a cluster. Each cell is a task of Ray's.

Ray hands tasks out, tries those again whose worker is lost, and gives each worker its GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from experiments.base import compile_cache, origin
from experiments.base.errors import InputError
from experiments.base.versions import versions
from experiments.base.wording import enumerated, first_line
from experiments.records.progress import Reporter
from experiments.workbench import Measured
from experiments.workers.tasks import ATTEMPTS, Given, Task, compute, lost

__all__ = ["Cluster", "at_hand"]

_PATIENCE = 120.0
"""Seconds in which the first worker has to begin."""

_MOST_MEMORY = 0.9
"""Share of an accelerator's memory that its workers set aside together."""


class Cluster(NamedTuple):
    """A cluster of Ray that this process has joined.

    Attributes:
        origin: what its workers compute with, as `origin.here()`.
        gpus: GPUs of each task; a part of one where several share it.
    """

    origin: dict[str, Any]
    gpus: float

    @property
    def side_by_side(self) -> bool:
        """Whether each worker may compute several networks in one program."""
        return self.gpus > 0.0

    def computed(self, given: Given, tasks: Sequence[Task], reporter: Reporter) -> Generator[Measured, None, None]:
        """As `driver.Workers.computed`. Raises InputError also where the cluster is lost."""
        import ray

        held = ray.put(given)
        remote: Any = ray.remote(_compute).options(**_resources(self.gpus))
        running = {remote.remote(held, task): task for task in tasks}
        try:
            while running:
                reporter.stage(f"{len(running)} cells left")
                (reference,), _ = ray.wait(list(running), num_returns=1)
                yield _result(given, running.pop(reference), reference)
        finally:
            for reference in running:
                with contextlib.suppress(ray.exceptions.RayError):  # the cluster may be gone
                    ray.cancel(reference, force=True)


def at_hand(gpus: float) -> Cluster:
    """The cluster that this process has joined, with so many GPUs for each task.

    Raises InputError where no machine of it has so many or is free, or its workers have other versions of packages.
    """
    import ray

    most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if gpus > most:
        raise InputError(f"--gpus-per-trial is {gpus:g}, but no machine of the cluster has more than {most:g} GPUs.")
    try:
        theirs = ray.get(ray.remote(_origin).options(**_resources(gpus)).remote(), timeout=_PATIENCE)
    except ray.exceptions.GetTimeoutError as error:
        raise InputError(
            f"In {_PATIENCE:.0f} s no worker of the cluster has begun: all are busy, or no machine has a free core"
            f"{' and GPU' if gpus else ''}. See `ray status`, or wait until others have ended."
        ) from error
    _check_versions(theirs["versions"])
    return Cluster(theirs, gpus)


def _origin() -> dict[str, Any]:
    return origin.here()


def _check_versions(theirs: dict[str, str]) -> None:
    ours = versions()
    differing = [f"{name} {theirs[name]} there and {ours[name]} here" for name in ours if theirs[name] != ours[name]]
    if differing:
        raise InputError(f"The workers of the cluster have {enumerated(differing)}: install the same on all machines.")


def _resources(gpus: float) -> dict[str, Any]:
    """What Ray is told of each task."""
    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus, "max_retries": ATTEMPTS - 1}
    if 0.0 < gpus < 1.0:  # workers that share a GPU share its memory
        share = f"{_MOST_MEMORY * gpus:.3f}"
        options["runtime_env"] = {"env_vars": {"XLA_PYTHON_CLIENT_MEM_FRACTION": share}}
    return options


def _compute(given: Given, task: Task) -> Measured:
    compile_cache.use()
    return compute(given, task)


def _result(given: Given, task: Task, reference: Any) -> Measured:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # an error of the task, as in this process
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        return lost(given.study, task, f"the last time: {first_line(error)}")
    except ray.exceptions.RayError as error:
        raise InputError(
            f"The cluster of Ray is lost ({first_line(error)}). Every finished network is kept: the same command goes "
            "on, on this cluster or another."
        ) from error
