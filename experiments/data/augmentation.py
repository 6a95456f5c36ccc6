"""Random crops and mirror images, in place of the images of a minibatch."""

from __future__ import annotations

import jax

from pathjax.types import Key

__all__ = ["MIRRORED", "augmented"]

MIRRORED = ("fashion_mnist", "cifar10", "cifar100", "imagenet_resized", "tiny_imagenet")
"""The data sets in which a mirror image shows the same."""


def augmented(key: Key, images: jax.Array, *, flip: bool) -> jax.Array:
    """Images (n, height, width, channels) cropped at random from padded ones and, with `flip`, mirrored at random.

    Each side is padded by an eighth of the image, 4 pixels of 32, with zeros: the mean color of standardized images.
    Each image draws its own place, and is mirrored with probability 1/2. Source: He et al. (2016), section 4.2.
    """
    count, height, width, _ = images.shape
    rows, columns = (round(side / 8 + 1e-9) for side in (height, width))
    padded = jax.numpy.pad(images, [(0, 0), (rows, rows), (columns, columns), (0, 0)])
    row_key, column_key, mirror_key = jax.random.split(key, 3)
    down = jax.random.randint(row_key, (count,), 0, 2 * rows + 1)
    right = jax.random.randint(column_key, (count,), 0, 2 * columns + 1)

    def cropped(image: jax.Array, top: jax.Array, left: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (top, left, 0), (height, width, image.shape[-1]))

    crops = jax.vmap(cropped)(padded, down, right)
    if not flip:
        return crops
    mirrored = jax.random.bernoulli(mirror_key, shape=(count, 1, 1, 1))
    return jax.numpy.where(mirrored, crops[:, :, ::-1], crops)
