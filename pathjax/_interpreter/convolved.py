"""Second moments behind a convolution with independent weights.

At places p and p', for output channel o: K'(p, p')_o = Σ_δc u_δco K(p + δ, p' + δ)_c, with u the moments of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._interpreter.algebra import Convolution, Undefined
from pathjax._interpreter.moments import Axis, Kind, Moments, laid_out, mapped
from pathjax._interpreter.routes import joint

__all__ = ["convolved"]

_ONCE = (Kind.SAME, Kind.ALIKE)


class _Layout(NamedTuple):
    """How a convolution is computed, with axes in the order examples, channels, places.

    Attributes:
        options: strides, padding, dilations and groups.
        paired: places, counted among the axes of places, whose moments are stored in pairs.
        sums_channels: whether the kernel's moments are the same for all input channels, so that the image is summed
            over them first; all groups are then one.
        channels: by how much the image is multiplied where that sum has equal terms.
    """

    options: Convolution
    paired: list[int]
    sums_channels: bool
    channels: int


def convolved(image: Moments, kernel: Moments, convolution: Convolution) -> tuple[Moments, list[int]]:
    """The moments, and the axes of the result along which entries have weights of their own: the channels.

    The channels of the image must not be in pairs.
    """
    specs, groups = convolution.dimension_numbers, convolution.feature_group_count
    if not kernel.is_weight or any(
        kernel.axes[i].kind is Kind.SAME and kernel.axes[i].size > 1 for i in specs.rhs_spec
    ):
        raise Undefined(
            "The entries of its filter are not weights of their own, so that their products are not independent.",
            "Give each entry a weight of its own, or estimate by sampling: `ntk.sign_average`.",
        )
    images, kernels = [image.axes[i] for i in specs.lhs_spec], [kernel.axes[i] for i in specs.rhs_spec]
    paired = [i for i, axis in enumerate(images[2:]) if axis.kind is Kind.PAIRS]
    is_once = images[1].kind in _ONCE and kernels[1].kind in _ONCE
    sums_channels = is_once or (groups == 1 and kernels[1].kind in _ONCE)
    layout = _Layout(convolution, paired, sums_channels, kernels[1].size if is_once else 1)
    is_alike = kernels[0].kind in _ONCE and (sums_channels or groups == 1)

    def convolve(leading: int, image_array: Any, kernel_array: Any) -> Any:
        examples = image_array.shape[:leading]
        ordered = _image(image_array, image, specs.lhs_spec, leading, layout)
        weights = _kernel(kernel_array, kernel, specs.rhs_spec, leading, layout, is_alike)
        result = _in_pairs(ordered, weights, layout) if paired else _alone(ordered, weights, layout)
        return _back(result.reshape(*examples, 1, *result.shape[1:]), specs.out_spec, leading, paired)

    fields = mapped(convolve, image, kernel)
    sizes = [fields["first"].shape[1 + i] for i in specs.out_spec]
    channels = Kind.ALIKE if is_alike else Kind.EACH
    labels = kernels[0].labels | (frozenset() if sums_channels or groups == 1 else images[1].labels)
    ordered_axes = [Axis(1, Kind.SAME), Axis(kernels[0].size, Kind.SAME if kernels[0].size == 1 else channels, labels)]
    for place, (before, size) in enumerate(zip(images[2:], sizes[2:], strict=True)):
        kind = Kind.PAIRS if place in paired else Kind.SAME if size == 1 else Kind.EACH
        ordered_axes.append(Axis(size, kind, before.labels))
    axes = tuple(ordered_axes[specs.out_spec.index(i)] for i in range(len(sizes)))
    result = Moments(axes, **fields, route=joint([image.route, kernel.route]))
    return result, [specs.out_spec[1]]


def _image(array: Any, image: Moments, order: Sequence[int], leading: int, layout: _Layout) -> Any:
    """(examples, channels, places, right places), with all examples along one axis."""
    lengths = [axis.size for axis in image.axes]
    if layout.sums_channels and image.axes[order[1]].kind in _ONCE:
        lengths[order[1]] = 1
    rights = [i for i, axis in enumerate(image.axes) if axis.kind is Kind.PAIRS]
    full = jnp.broadcast_to(array, (*array.shape[:leading], *lengths, *(image.axes[i].size for i in rights)))
    right_places = [leading + len(lengths) + rights.index(i) for i in order if i in rights]
    full = jnp.transpose(full, [*range(leading), *(leading + i for i in order), *right_places])
    full = full.reshape(-1, *full.shape[leading + 1 :])
    return layout.channels * jnp.sum(full, axis=1, keepdims=True) if layout.sums_channels else full


def _kernel(array: Any, kernel: Moments, order: Sequence[int], leading: int, layout: _Layout, is_alike: bool) -> Any:
    """(output channels, input channels, places); weights are the same for all examples."""
    lengths = [axis.size for axis in kernel.axes]
    if layout.sums_channels:
        lengths[order[1]] = 1
    if is_alike:
        lengths[order[0]] = 1
    array = laid_out(array, kernel.axes, leading)
    return jnp.transpose(jnp.broadcast_to(array.reshape(array.shape[leading:]), lengths), order)


def _alone(image: Any, kernel: Any, layout: _Layout) -> Any:
    """Every place with itself."""
    order = tuple(range(image.ndim))
    options = layout.options._asdict() | {"dimension_numbers": lax.ConvDimensionNumbers(order, order, order)}
    if layout.sums_channels:
        options["feature_group_count"] = 1
    return lax.conv_general_dilated(image, kernel, **options, precision=lax.Precision.HIGHEST)


def _in_pairs(image: Any, kernel: Any, layout: _Layout) -> Any:
    """Every place with itself, or with every other along the axes in pairs: a sum over the places of the kernel."""
    options, paired = layout.options, layout.paired
    places = [*range(kernel.ndim - 2), *paired]
    padding = [(*options.padding[place], options.lhs_dilation[place] - 1) for place in places]
    padded = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), (0, 0, 0), *padding])
    spans = [options.rhs_dilation[p] * (kernel.shape[2 + p] - 1) + 1 for p in places]
    sizes = [
        max((length - span) // options.window_strides[p] + 1, 0)
        for p, length, span in zip(places, padded.shape[2:], spans, strict=True)
    ]
    total: Any = 0
    for offset in np.ndindex(*kernel.shape[2:]):
        starts = [options.rhs_dilation[p] * offset[p] for p in places]
        window = tuple(
            slice(start, start + (size - 1) * options.window_strides[p] + 1, options.window_strides[p])
            for p, start, size in zip(places, starts, sizes, strict=True)
        )
        total = total + _through_channels(padded[(..., *window)], kernel[(..., *offset)], layout)
    return total


def _through_channels(image: Any, weights: Any, layout: _Layout) -> Any:
    """Σ_c u_oc K_c of an image (examples, channels, ...) and weights (output channels, input channels)."""
    groups = 1 if layout.sums_channels else layout.options.feature_group_count
    grouped = image.reshape(len(image), groups, -1, *image.shape[2:])
    result = jnp.einsum(
        "ngc...,goc->ngo...", grouped, weights.reshape(groups, -1, weights.shape[1]), precision=lax.Precision.HIGHEST
    )
    return result.reshape(len(image), -1, *image.shape[2:])


def _back(array: Any, order: Sequence[int], leading: int, paired: Sequence[int]) -> Any:
    """The axes in the order of the network's value, and right axes in the order of their axes."""
    axes = [leading + order.index(i) for i in range(len(order))]
    rights = sorted(range(len(paired)), key=lambda i: order[2 + paired[i]])
    return jnp.transpose(array, [*range(leading), *axes, *(leading + len(order) + i for i in rights)])
