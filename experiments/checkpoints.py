"""Training kept on the way, by Orbax: a long run that is killed goes on from its last checkpoint."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Checkpoints", "begun"]


class Checkpoints:
    """The last state of one training, in a folder of its own. `load` and `save` take the epochs that are behind."""

    def __init__(self, manager: Any, save: Any, restore: Any) -> None:
        self._manager, self._save, self._restore = manager, save, restore

    def load(self, like: Any) -> tuple[int, Any]:
        """Epochs and state to go on from: 0 and `like` where nothing is kept."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return 0, like
        return epoch, self._manager.restore(epoch, args=self._restore(like))

    def save(self, epoch: int, state: Any) -> None:
        """Keep a state in place of the one before. It is there whole, or not at all."""
        self._manager.save(epoch, args=self._save(state))
        self._manager.wait_until_finished()


@contextmanager
def begun(folder: Path, *identity: Any) -> Iterator[Checkpoints]:
    """The checkpoints of the training that begins with the arrays in `identity`; removed when it has ended well."""
    import orbax.checkpoint as ocp

    own = folder.absolute() / _digest(identity)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
    with ocp.CheckpointManager(own, options=options) as manager:
        yield Checkpoints(manager, ocp.args.StandardSave, ocp.args.StandardRestore)
    if jax.process_index() == 0:
        shutil.rmtree(own)


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        plain = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        digest.update(np.ascontiguousarray(plain).tobytes())
    return digest.hexdigest()[:32]
