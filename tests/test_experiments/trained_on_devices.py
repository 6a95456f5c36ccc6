"""A small network trained on all the devices there are: `python trained_on_devices.py FILE [ADDRESS PROCESS]`.

With an address, as one of two processes.
"""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import augmentation
from experiments.networks import architectures
from experiments.train import training
from experiments.train.recipe import Recipe


def trained(mesh):
    """Two seeds of a small network with batch norm, of images that are augmented."""
    network = architectures.fully_connected((8, 8, 1), 3, depth=1, widths={"hidden_0": 7}, batch_norm=True)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    params, state = jax.vmap(network.init)(keys)
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(48, 8, 8, 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, 48), jnp.int32)
    run = training.trainer(
        network,
        (images, labels),
        (images[:21], labels[:21]),
        Recipe(epochs=2, batch_size=16, learning_rate=0.02),
        augment=functools.partial(augmentation.augmented, flip=True),
        mesh=mesh,
    )
    return run(params, state, mask, keys)


def main(file, address=None, process="0"):
    """Train, and save the losses."""
    jax.config.update("jax_enable_x64", True)
    if address is not None:
        jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    found = trained(training.all_devices())
    np.savez(file, count=jax.device_count(), train_loss=found.train_loss, test_loss=found.test_loss)


if __name__ == "__main__":
    main(*sys.argv[1:])
