"""Kernels of every kind on all the devices there are: `python on_devices.py FILE` saves them."""

from __future__ import annotations

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pathjax import ntk


class Network(nn.Module):
    """A convolution and a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(2, (3,))(x))
        return nn.Dense(3)(x.reshape(len(x), -1))


def example():
    """The network's function, weights, a mask, and ten examples."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 4, 2)))
    params = jax.tree.map(lambda leaf: leaf.astype(x.dtype), Network().init(jax.random.key(0), x))
    mask = jax.tree.map(lambda leaf: np.random.default_rng(1).random(leaf.shape) < 0.6, params)
    return Network().apply, params, mask, x


def kernels(mesh):
    """Kernels in all forms, also of numbers of examples that the devices do not divide, and a gradient."""
    apply, params, mask, x = example()

    def kernel(*batches, of=ntk.empirical, **options):
        return jax.jit(lambda params: of(apply, params, *batches, mesh=mesh, **options))(params)

    def size(params, mask, x):
        return (ntk.empirical_trace(apply, params, x, mask=mask, mesh=mesh) ** 2).sum()

    return {
        "symmetric": kernel(x[:8], mask=mask),
        "rectangular": kernel(x[:8], x[:3], batch_size=2),
        "diagonal": kernel(x, x[::-1], of=ntk.empirical_diagonal),
        "slope": jax.jit(jax.grad(size))(params, mask, x[:3])["params"]["Dense_0"]["kernel"],
    }


def main(file):
    """Where the devices divide the examples, each has its rows."""
    jax.config.update("jax_enable_x64", True)
    count = jax.device_count()
    found = kernels(jax.make_mesh((2, count // 2), ("a", "b")))
    for name in ("symmetric", "rectangular"):
        assert [shard.data.shape[0] for shard in found[name].addressable_shards] == [8 // count] * count
    np.savez(file, count=count, **found)


if __name__ == "__main__":
    main(sys.argv[1])
