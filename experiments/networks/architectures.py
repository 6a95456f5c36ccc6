"""The networks that the study prunes and trains: those of the pruning literature, in Flax, as pure functions.

They have batch norm, pools and shortcuts as published; `twins` has the networks whose infinite-width limit is known.
Each is built from `layers`, with every width in a table that can be changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from experiments.networks.layers import IMAGE, OUTPUTS, Block, Layer, Network, Options, Pad, Step, build

__all__ = [
    "ARCHITECTURES",
    "fully_connected",
    "lenet_5",
    "resnet",
    "resnet_18",
    "vgg",
    "wide_resnet",
]


def _head(reads: str, through: str | None = None) -> Layer:
    return Layer("dense", reads, OUTPUTS, normed=False, active=False, through=through)


def fully_connected(
    shape: tuple[int, ...],
    outputs: int,
    *,
    depth: int = 2,
    widths: Mapping[str, int] | None = None,
    batch_norm: bool = False,
    **options: Any,
) -> Network:
    """Hidden layers `hidden_0`, `hidden_1` … on flattened images, of 300 and 100 units and 100 from there on.

    With two, LeNet-300-100 (LeCun et al., 1998), 266,610 parameters on images of 28 × 28 × 1.
    """
    names = [f"hidden_{i}" for i in range(depth)]
    hidden: list[Step] = [Layer(name, reads, name) for name, reads in zip(names, [IMAGE, *names], strict=False)]
    table = {name: 100 if i else 300 for i, name in enumerate(names)} | {OUTPUTS: outputs}
    steps = ("flatten", *hidden, _head(names[-1] if names else IMAGE))
    return build(shape, steps, table, widths or {}, Options(batch_norm=batch_norm, **options))


def lenet_5(
    shape: tuple[int, ...],
    outputs: int,
    *,
    widths: Mapping[str, int] | None = None,
    batch_norm: bool = False,
    active_convolutions: bool = True,
    **options: Any,
) -> Network:
    """LeNet-5 as the pruning literature has it: windows of 5 × 5 without border, 20, 50 and 500 units.

    431,080 parameters for ten classes on images of 28 × 28 × 1; the network of LeCun et al. (1998) has 61,706. With
    `active_convolutions` each convolution is followed by the activation; in Caffe's own, which SNIP's authors train,
    none is, and max pooling is all that is not linear before the dense layers. Raises ValueError for images smaller
    than 16 × 16.
    """
    if min(shape[:2]) < 16:
        raise ValueError(f"LeNet-5 needs images of 16 × 16 or more; these are {shape[0]} × {shape[1]}.")
    steps = (
        Layer("conv_0", IMAGE, "conv_0", window=5, valid=True, active=active_convolutions),
        "max_pool",
        Layer("conv_1", "conv_0", "conv_1", window=5, valid=True, active=active_convolutions),
        "max_pool",
        "flatten",
        Layer("hidden", "conv_1", "hidden"),
        _head("hidden"),
    )
    table = {"conv_0": 20, "conv_1": 50, "hidden": 500, OUTPUTS: outputs}
    return build(shape, steps, table, widths or {}, Options(batch_norm=batch_norm, **options))


_VGG = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}


def vgg(
    shape: tuple[int, ...], outputs: int, *, depth: int = 16, widths: Mapping[str, int] | None = None, **options: Any
) -> Network:
    """VGG-11 or VGG-16 (Simonyan and Zisserman, 2015, A and D) as used on CIFAR: five stages, one dense layer.

    Without biases before batch norm 9,228,362 and 14,724,042 parameters for ten classes on images of 32 × 32 × 3 (with
    them, as in PyTorch's common code, 9,231,114 and 14,728,266). A pool leaves out images of one pixel.
    """
    if depth not in _VGG:
        raise ValueError(f"VGG has depth {' or '.join(map(str, _VGG))}; got {depth}.")
    steps: list[Step] = []
    table, reads = {}, IMAGE
    for stage, convs in enumerate(_VGG[depth]):
        for conv in range(convs):
            name = f"conv_{stage}_{conv}"
            steps.append(Layer(name, reads, name, window=3))
            table[name] = min(64 * 2**stage, 512)
            reads = name
        steps.append("max_pool")
    everything = (*steps, "flatten", _head(reads))
    return build(shape, everything, table | {OUTPUTS: outputs}, widths or {}, Options(**options))


def resnet(
    shape: tuple[int, ...],
    outputs: int,
    *,
    depth: int = 20,
    shortcut: str = "pad",
    widths: Mapping[str, int] | None = None,
    **options: Any,
) -> Network:
    """The residual network of He et al. (2016, section 4.2) of depth 6 n + 2: n blocks at 16, 32 and 64 channels.

    `shortcut` "pad" strides and pads with zeros (their option A), "project" projects with batch norm (option B): for
    ten classes on three channels 269,722 and 272,474 parameters at depth 20, 464,154 and 466,906 at 32, 853,018 and
    855,770 at 56. `widths` has the channels of each stage, `stage_0` …, which all its blocks write to, and of the
    inside of each block, `stage_0_block_0` ….
    """
    if depth % 6 != 2 or depth < 8:
        raise ValueError(f"The depth of this ResNet is 6 n + 2, as 20, 32 and 56; got {depth}.")
    return _residual(shape, outputs, (depth // 6,) * 3, 16, shortcut, widths, Options(**options))


def resnet_18(
    shape: tuple[int, ...], outputs: int, *, widths: Mapping[str, int] | None = None, **options: Any
) -> Network:
    """ResNet-18 (He et al., 2016) with CIFAR's stem: one convolution of 3 × 3, no pool. Shortcuts project.

    11,173,962 parameters for ten classes on three channels. `widths` as of `resnet`, with four stages.
    """
    return _residual(shape, outputs, (2,) * 4, 64, "project", widths, Options(**options))


def _residual(
    shape: tuple[int, ...],
    outputs: int,
    blocks: tuple[int, ...],
    width: int,
    shortcut: str,
    widths: Mapping[str, int] | None,
    options: Options,
) -> Network:
    if shortcut not in ("pad", "project"):
        raise ValueError(f'Unknown shortcut "{shortcut}". There are pad, project.')
    steps: list[Step] = [Layer("stem", IMAGE, "stage_0", window=3)]
    table, reads = {"stage_0": width}, "stage_0"
    for stage, number in enumerate(blocks):
        writes = f"stage_{stage}"
        table[writes] = width * 2**stage
        for block in range(number):
            name = f"{writes}_block_{block}"
            stride = 1 if reads == writes else 2
            across: Layer | Pad | None = None
            if reads != writes:
                across = Pad(reads, writes)
                if shortcut == "project":
                    across = Layer(f"{name}_shortcut", reads, writes, window=1, stride=2)
            first = Layer(f"{name}_a", reads, name, window=3, stride=stride)
            steps.append(Block(first, Layer(f"{name}_b", name, writes, window=3), across))
            table[name] = table[writes]
            reads = writes
    return build(shape, (*steps, "mean", _head(reads)), table | {OUTPUTS: outputs}, widths or {}, options)


def wide_resnet(
    shape: tuple[int, ...],
    outputs: int,
    *,
    depth: int = 28,
    factor: int = 10,
    widths: Mapping[str, int] | None = None,
    **options: Any,
) -> Network:
    """Wide ResNet (Zagoruyko and Komodakis, 2016) of depth 6 n + 4: pre-activation blocks of 16, 32, 64 times `factor`.

    Without dropout. WRN-28-10 has 36,479,194 parameters for ten classes on three channels, WRN-16-8 10,961,370.
    """
    if depth % 6 != 4 or depth < 10:
        raise ValueError(f"The depth of a Wide ResNet is 6 n + 4, as 16 and 28; got {depth}.")
    # of factor 1 the first block keeps the channels, and its shortcut is the identity
    reads = "stem" if factor > 1 else "stage_0"
    steps: list[Step] = [Layer("stem", IMAGE, reads, window=3, normed=False, active=False)]
    table = {reads: 16}
    for stage in range(3):
        writes = f"stage_{stage}"
        table[writes] = 16 * factor * 2**stage
        for block in range(depth // 6):
            name = f"{writes}_block_{block}"
            norm = f"{name}_norm"
            stride = 2 if stage and not block else 1
            rest: dict[str, Any] = {"normed": False, "active": False}
            across = Layer(f"{name}_shortcut", reads, writes, 1, stride, through=norm, **rest)
            first = Layer(f"{name}_a", reads, name, 3, stride, through=norm)
            second = Layer(f"{name}_b", name, writes, 3, **rest)
            steps.append(Block(first, second, across if reads != writes else None))
            table[name] = table[writes]
            reads = writes
    ends = ("last_norm", "mean", _head(reads, through="last_norm"))
    return build(shape, (*steps, *ends), table | {OUTPUTS: outputs}, widths or {}, Options(**options))


ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "lenet_300_100": fully_connected,
    "lenet_5": lenet_5,
    "lenet_5_caffe": functools.partial(lenet_5, active_convolutions=False),
    "vgg_11": functools.partial(vgg, depth=11),
    "vgg_16": vgg,
    "resnet_20": resnet,
    "resnet_32": functools.partial(resnet, depth=32),
    "resnet_56": functools.partial(resnet, depth=56),
    "resnet_18": resnet_18,
    "wrn_16_8": functools.partial(wide_resnet, depth=16, factor=8),
    "wrn_28_10": wide_resnet,
}
"""`ARCHITECTURES[name](shape, outputs, widths=..., batch_norm=..., activation=..., init=...)`."""
