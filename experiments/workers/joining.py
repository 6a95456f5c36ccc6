"""How this process joins a cluster of Ray, before JAX is imported: Ray forks processes, which JAX's threads forbid."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

from experiments.base.errors import InputError
from experiments.base.wording import enumerated, first_line

__all__ = ["LOCAL", "check_options", "joined"]

LOCAL = "local"
"""The address that stands for a cluster of this machine alone, which ends with this process."""

_PATIENCE = 5.0
"""Seconds that a machine has to answer."""


def check_options(workers: int, *, ray: str | None, gpus_per_trial: float, coordinator: str | None) -> None:
    """Raise InputError where the options for several processes make no sense together."""
    if workers < 1:
        raise InputError(f"--workers is {workers}, but must be 1 or more.")
    if not gpus_per_trial >= 0.0 or (gpus_per_trial > 1.0 and gpus_per_trial % 1.0):
        raise InputError(f"--gpus-per-trial is {gpus_per_trial:g}, but must be a whole number or a part of 1.")
    if ray == "":
        raise InputError(f"--ray is empty, but must be the address of a cluster, auto or {LOCAL}.")
    if gpus_per_trial and ray is None:
        raise InputError("--gpus-per-trial needs --ray, which gives each task its GPUs; on one machine, --ray local.")
    several = {"--workers": workers > 1, "--ray": ray is not None, "--coordinator": coordinator is not None}
    given = [name for name, is_given in several.items() if is_given]
    if len(given) > 1:
        raise InputError(f"{enumerated(given)} divide a study in different ways: give one of them alone.")


@contextlib.contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Join the cluster at an address, or begin one on this machine where it is `LOCAL`; leave it when the context ends.

    Without an address, do nothing. Raises InputError where Ray is not installed, or the cluster is not found.
    """
    if address is None:
        yield
        return
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray needs Ray, which is not installed: pip install ray.") from error
    _check_reachable(address)
    where: dict[str, Any] = {"address": address}
    if address == LOCAL:
        where |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise _not_found(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise InputError where nothing answers at an address HOST:PORT, to which Ray would wait for a long time."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()) or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _not_found(address, error) from error


def _not_found(address: str, error: Exception) -> InputError:
    return InputError(
        f"No cluster of Ray is found at {address} ({first_line(error)}): `ray start --head` begins one, and --ray "
        f"{LOCAL} one on this machine alone."
    )
