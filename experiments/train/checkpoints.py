"""Training kept on the way, by Orbax: a long run that is killed goes on from its last checkpoint."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.train import distributed

__all__ = ["Checkpoints", "begun"]


class Checkpoints:
    """The last state of one training, in a folder of its own. `load` and `save` take the epochs that are behind.

    Of several processes, which make the same calls, process 0 alone has the folder.
    """

    def __init__(self, manager: Any) -> None:
        """`manager` is Orbax'; None where process 0 has it."""
        self._manager = manager

    def load(self, like: Any) -> tuple[int, Any]:
        """Epochs and state to go on from, on the host: 0 and `like` where nothing is kept."""
        import orbax.checkpoint as ocp

        with distributed.in_step():
            epoch = self._manager.latest_step() if self._manager else None
            state = like = jax.device_get(like)
            if epoch is not None:
                state = self._manager.restore(epoch, args=ocp.args.StandardRestore(like))
        epoch, state = distributed.word((epoch or 0, state))
        return int(epoch), state

    def save(self, epoch: int, state: Any) -> None:
        """Keep a state in place of the one before. It is there whole, or not at all."""
        import orbax.checkpoint as ocp

        with distributed.in_step():
            if self._manager:
                self._manager.save(epoch, args=ocp.args.StandardSave(jax.device_get(state)))
                self._manager.wait_until_finished()


@contextmanager
def begun(folder: Path, *identity: Any) -> Iterator[Checkpoints]:
    """The checkpoints of the training that begins with the arrays in `identity`; removed when it has ended well."""
    own = folder.absolute() / _digest(identity)
    with ExitStack() as stack:
        with distributed.in_step():
            manager = stack.enter_context(_manager(own)) if distributed.first() else None
        yield Checkpoints(manager)
    if distributed.first():
        shutil.rmtree(own, ignore_errors=True)  # what is left of a finished training harms nothing


def _manager(own: Path) -> Any:
    """Orbax' keeper of a folder, in this process alone."""
    import orbax.checkpoint as ocp

    own.mkdir(parents=True, exist_ok=True)  # which Orbax does for all processes only
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=False, multiprocessing_options=alone)
    return ocp.CheckpointManager(own, options=options)


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        plain = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        digest.update(np.ascontiguousarray(plain).tobytes())
    return digest.hexdigest()[:32]
