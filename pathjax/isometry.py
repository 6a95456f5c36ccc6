"""Dynamical isometry: whether a network preserves lengths, from the singular values of its layers and its Jacobian.

`jacobian_singular_values` and `layer_singular_values` compute the singular values, `summary` their distance from 1.
Signals and gradients neither vanish nor explode in a deep network whose Jacobian has singular values near 1. In a
linear network of any depth orthogonal weights make them exactly 1; pruning breaks this. JAX has the initializers:
`jax.nn.initializers.orthogonal()` for dense kernels and `jax.nn.initializers.delta_orthogonal()` for convolutions,
which then preserve lengths on images with circular padding. Scale both by √2 for layers followed by a ReLU.

>>> import jax, jax.numpy as jnp
>>> from pathjax import masks, scores
>>> keys = jax.random.split(jax.random.key(0), 4)
>>> params = [jax.nn.initializers.orthogonal()(key, (10, 10)) for key in keys]
>>> def apply(params, x):
...     return jnp.linalg.multi_dot([x, *params])
>>> x = jnp.ones((1, 10))
>>> bool(jnp.allclose(jacobian_singular_values(apply, params, x), 1.0))
True
>>> mask = masks.from_scores(scores.random(params, key=keys[0]), density=0.5)
>>> bool(summary(jacobian_singular_values(apply, params, x, mask=mask)).condition[0] > 100)
True
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, Float, Shaped

from pathjax import masks
from pathjax._base.network import as_batch, check_inputs, check_params
from pathjax._base.trees import wide
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax._linalg import lapack
from pathjax.types import AnyArray, ApplyFn, Mask, Params, Prunable, State

__all__ = ["Summary", "jacobian_singular_values", "layer_singular_values", "summary"]


def jacobian_singular_values(
    apply: ApplyFn, params: Params, x: Shaped[AnyArray, "n ..."], *, mask: Mask | None = None, state: State = None
) -> Float[Array, "n r"]:
    """How a network stretches small changes of each input: the singular values of ∂f/∂x, the largest first.

    For o outputs, counted over all axes after the first, and examples of d numbers, each example has r = min(o, d)
    singular values. They are differentiable where those of one example are distinct. Cost: r forward or backward passes
    for each example, n·o·d numbers of memory, and n decompositions of O(o·d·r) operations.

    Raises ValueError for inputs that are not one floating-point array or hold NaN, for weights that are not floating
    point, for an `apply` whose output is not one array with a row for each example or mixes examples, and for a mask of
    another tree; TypeError for a mask that is not boolean.

    Source: Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks", 2014; Pennington, Schoenholz, Ganguli, "Resurrecting the sigmoid in deep learning through dynamical
    isometry", 2017.

    >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])}
    >>> jacobian_singular_values(lambda params, x: x @ params["kernel"], params, jnp.ones((4, 3))).tolist()[0]
    [3.0, 0.5]
    """
    x = as_batch("x", x)
    check_params(params)
    check_inputs(reals_only=True, x=x)
    weights = masks.apply_mask(mask, params)
    network = traced(apply, weights, state)
    network.check_outputs(weights, x, "x")
    return cast(Array, network.compiled(_of_jacobian)(weights, x))


def _of_jacobian(network: TracedNetwork, weights: Params, x: Array) -> Array:
    def outputs(example: Array) -> Any:
        return network(weights, example[None])[0]

    o, d = network.output(x).shape[1], int(np.prod(x.shape[1:]))
    jacobian = jax.jacfwd if d < o else jax.jacrev
    return _singular_values(jax.vmap(jacobian(outputs))(x).reshape(len(x), o, d))


def layer_singular_values(
    params: Params,
    *,
    mask: Mask | None = None,
    spatial: tuple[int, ...] | None = None,
    prunable: Prunable = masks.is_kernel,
) -> dict[str, Float[Array, " _"]]:
    """How each layer stretches signals: the singular values of its kernel, the largest first, by its key path.

    For a dense kernel (i, o), the singular values of this matrix. For a convolution kernel (window..., i, o), those of
    the unfolded matrix (window·i, o), whose columns are the output channels. With `spatial`, the size of the images,
    those of the convolution itself, as a linear map of images of i channels with circular padding and stride 1: the
    Fourier transform decomposes it into one (i, o) matrix for each frequency, with min(i, o) singular values each.
    `spatial` has one entry for each axis of the window, at least as large as the window; dense kernels ignore it. For a
    convolution with feature groups, pass the kernel of each group as a leaf of its own, since a kernel does not tell
    its groups. An empty leaf has no singular values.

    Cost: one singular value decomposition per kernel, or with `spatial` one per kernel and frequency.

    Raises ValueError for a mask of another tree, a chosen leaf of fewer than two axes, and a `spatial` with another
    number of axes than a window or smaller than it; TypeError for a mask that is not boolean.

    Source: unfolded, Lee, Ajanthan, Gould, Torr, "A signal propagation perspective for pruning neural networks at
    initialization", 2020; operators, Sedghi, Gupta, Long, "The singular values of convolutional layers", 2019.

    >>> params = {"bias": jnp.ones(3), "conv_kernel": jnp.ones((2, 1, 1)), "dense": jnp.diag(jnp.array([2.0, 0.5]))}
    >>> {path: values.round(3).tolist() for path, values in layer_singular_values(params).items()}
    {"['conv_kernel']": [1.414], "['dense']": [2.0, 0.5]}
    >>> layer_singular_values(params, spatial=(4,))["['conv_kernel']"].round(3).tolist()  # 2·cos of 0, π/4, π/4 and π/2
    [2.0, 1.414, 1.414, 0.0]
    """
    weights = masks.apply_mask(mask, params)
    chosen = [(keystr(path), leaf) for path, leaf in tree_leaves_with_path(weights) if prunable(path, leaf)]
    return {path: _of_kernel(path, jnp.asarray(leaf), spatial) for path, leaf in chosen}


class Summary(NamedTuple):
    """How far singular values s are from those of an isometry, which are all 1.

    Attributes:
        mean: of s.
        standard_deviation: of s.
        condition: the condition number, largest over smallest s; infinite where the smallest is 0 up to rounding.
        distance: |mean s² − 1|, the relative change of the mean squared length of signals.
    """

    mean: Float[Array, "*batch"]
    standard_deviation: Float[Array, "*batch"]
    condition: Float[Array, "*batch"]
    distance: Float[Array, "*batch"]


def summary(singular_values: Float[AnyArray, "*batch r"]) -> Summary:
    """How far singular values are from those of an isometry, summarized over the last axis.

    Takes the result of `jacobian_singular_values`, for one summary per example, or one entry of that of
    `layer_singular_values`. A smallest singular value of at most r·ε times the largest counts as 0, with ε the rounding
    unit of the dtype.

    Raises ValueError where there is no singular value.

    >>> import jax
    >>> kernels = {"orthogonal": jax.nn.initializers.orthogonal(), "normal": jax.nn.initializers.lecun_normal()}
    >>> for name, init in kernels.items():
    ...     params = {"kernel": init(jax.random.key(0), (30, 20))}
    ...     values = layer_singular_values(params)["['kernel']"]
    ...     print(name, bool(summary(values).condition < 1.001))
    orthogonal True
    normal False
    """
    values = jnp.asarray(singular_values)
    r = values.shape[-1]
    if r == 0:
        raise ValueError("There is no singular value to summarize. Leave out kernels that are empty.")
    largest, smallest = jnp.max(values, axis=-1), jnp.min(values, axis=-1)
    is_singular = smallest <= lapack.rounding_error(values, r)
    # a finite stand-in, so that the branch not taken keeps gradients finite
    condition = jnp.where(is_singular, jnp.inf, largest / jnp.where(is_singular, 1.0, smallest))
    distance = jnp.abs(jnp.mean(jnp.square(values), axis=-1) - 1.0)
    return Summary(jnp.mean(values, axis=-1), jnp.std(values, axis=-1), condition, distance)


def _of_kernel(path: str, kernel: Array, spatial: tuple[int, ...] | None) -> Array:
    if kernel.ndim < 2:
        raise ValueError(
            f"A kernel has two axes or more, inputs and outputs last; {path} has shape {kernel.shape}. Choose others "
            "with `prunable`."
        )
    if kernel.ndim == 2 or spatial is None:
        return _singular_values(kernel.reshape(int(np.prod(kernel.shape[:-1])), kernel.shape[-1]))
    window = kernel.shape[:-2]
    if len(spatial) != len(window) or any(size < width for size, width in zip(spatial, window, strict=True)):
        raise ValueError(
            f"The window at {path} is {window}, but `spatial` is {spatial}. It needs one entry for each axis of the "
            "window, none smaller."
        )
    transforms = jnp.fft.fftn(wide(kernel), s=spatial, axes=range(len(window)))
    values = _singular_values(transforms.reshape(int(np.prod(spatial)), *kernel.shape[-2:]))
    return jnp.sort(values.ravel(), descending=True)


def _singular_values(matrices: Array) -> Array:
    matrices = wide(matrices)
    if matrices.size == 0:
        return jnp.zeros((*matrices.shape[:-2], min(matrices.shape[-2:])), matrices.real.dtype)
    return jnp.vectorize(lapack.singular_values, signature="(m,n)->(r)")(matrices)
