"""Checkpoints of a training, kept by Orbax: a long run that is killed goes on from its last checkpoint."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.train import distributed

__all__ = ["Checkpoints", "checkpointed", "digest"]

_REMOVED = ".removed-"
"""How the names of folders begin that are being removed."""


class Checkpoints:
    """The last state of one training, in a folder of its own.

    Several processes make the same calls; process 0 alone has the folder.
    """

    def __init__(self, manager: Any) -> None:
        """`manager` is that of Orbax, or None in a process that does not keep the checkpoints."""
        self._manager = manager

    def load(self, like: Any) -> tuple[int, Any]:
        """The finished epochs and the state after them, on the host; 0 and `like` where nothing is kept."""
        import orbax.checkpoint as ocp

        with distributed.failing_together():
            epoch = self._manager.latest_step() if self._manager else None
            state = like = jax.device_get(like)
            if epoch is not None:
                state = self._manager.restore(epoch, args=ocp.args.StandardRestore(like))
        epoch, state = distributed.broadcast_from_first((epoch or 0, state))
        return int(epoch), state

    def save(self, epoch: int, state: Any) -> None:
        """Keep the state after `epoch` epochs in place of the one before. It is kept whole, or not at all."""
        import orbax.checkpoint as ocp

        with distributed.failing_together():
            if self._manager:
                self._manager.save(epoch, args=ocp.args.StandardSave(jax.device_get(state)))
                self._manager.wait_until_finished()


@contextmanager
def checkpointed(folder: Path, *identity: Any) -> Iterator[Checkpoints]:
    """The checkpoints of the training that `identity` decides; removed when the context ends well.

    `identity` holds arrays and words: all that decides the numbers, since a training goes on from what has the same.
    Where another process of this machine is at the very same training, as of two methods that keep all weights, this
    one keeps no checkpoints.
    """
    own_folder = folder.absolute() / digest(identity)
    with ExitStack() as claim:
        with ExitStack() as stack:
            with distributed.failing_together():
                keeps = distributed.is_first() and claim.enter_context(_claimed(own_folder))
                manager = stack.enter_context(_manager(own_folder)) if keeps else None
            yield Checkpoints(manager)
        if keeps:
            _remove(own_folder)


def _remove(folder: Path) -> None:
    """Remove the folder of a finished training, out of sight first: after a kill no half of it is taken for a whole.

    What cannot be removed of it harms nothing.
    """
    with suppress(OSError):
        folder = folder.rename(folder.with_name(f"{_REMOVED}{folder.name}"))
    for path in (folder, *folder.parent.glob(f"{_REMOVED}*")):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether no other process has this folder until the context ends: a byte of a file beside it is locked for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("wb") as file:
        is_free = True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(folder.name[:15], 16))
        except OSError as error:
            is_free = error.errno not in (errno.EACCES, errno.EAGAIN)  # others say that files cannot be locked here
        yield is_free


def _manager(folder: Path) -> Any:
    """The Orbax manager of a folder that this process alone uses."""
    import orbax.checkpoint as ocp

    folder.mkdir(parents=True, exist_ok=True)  # Orbax would make it only if all processes called it
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=False, multiprocessing_options=alone)
    return ocp.CheckpointManager(folder, options=options)


def digest(tree: Any) -> str:
    """A hash of the words and of the numbers of the arrays of a tree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, str):
            found.update(leaf.encode())
        else:
            plain = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
            found.update(np.ascontiguousarray(plain).view(np.uint8).data)
    return found.hexdigest()[:32]
