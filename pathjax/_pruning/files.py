"""Save masks to files and load them: one bit per weight, with the key paths and shapes of the tree."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import uuid
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._base.trees import check_boolean, key_paths, plain_paths
from pathjax.types import Mask, Params

__all__ = ["load", "save"]

_VERSION = 1

# for each array of the file, the kind of its dtype and its number of axes
_PARTS = {
    "bits": ("u", 1),
    "kept": ("i", 1),
    "paths": ("U", 1),
    "ranks": ("i", 1),
    "shapes": ("i", 1),
    "version": ("i", 0),
}


def save(path: str | os.PathLike[str], mask: Mask) -> None:
    """Save a mask to the file `path`, one bit per weight.

    The file is replaced atomically: an interrupted call leaves it as it was before. It is an uncompressed NumPy archive
    (`.npz`, no pickle) with, for l leaves of p weights in all: the format's `version`; the key `paths` (l,), written as
    those of nested dicts and lists whatever the containers are; the `ranks` (l,), numbers of axes; the `shapes`,
    concatenated; the numbers `kept` of kept weights (l,); and the `bits` of all leaves, raveled, concatenated and
    packed by `numpy.packbits` (⌈p/8⌉,).

    Raises TypeError for leaves that are not boolean, and OSError where the file cannot be written.

    >>> import os, tempfile
    >>> import jax.numpy as jnp
    >>> mask = {"kernel": jnp.array([[True, False, True], [False, True, True]])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(os.path.join(folder, "mask.npz"), mask)
    ...     load(os.path.join(folder, "mask.npz"), mask)["kernel"].astype(int).tolist()
    [[1, 0, 1], [0, 1, 1]]
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            "The arguments of `save` are swapped: the path comes first. Write masks.save(path, mask)."
            if isinstance(mask, str | os.PathLike)
            else f"`path` is a {type(path).__name__}, not the path of a file. Write masks.save(path, mask)."
        )
    check_boolean(mask, name="mask")
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(mask)]
    content = io.BytesIO()
    np.savez(
        content,
        allow_pickle=False,
        version=np.int64(_VERSION),
        paths=np.array(_plain_key_paths(mask), np.str_),
        ranks=np.array([leaf.ndim for leaf in leaves], np.int64),
        shapes=np.array([size for leaf in leaves for size in leaf.shape], np.int64),
        kept=np.array([leaf.sum() for leaf in leaves], np.int64),
        bits=np.packbits(np.concatenate([np.zeros(0, bool), *(leaf.ravel() for leaf in leaves)])),
    )
    _replace(Path(path), content.getbuffer())


def load(path: str | os.PathLike[str], like: Params) -> Mask:
    """Load the mask that `save` wrote to the file `path`, as a pytree with the structure of `like`.

    `like` can be the parameters, another mask, or the result of `jax.eval_shape`; only its key paths and shapes are
    read. Its containers may be others than those of the mask that was saved: leaves are matched by their names, so that
    the mask of a Flax NNX state or an Equinox model is loaded into nested dicts and lists where neither is installed.

    Raises ValueError where the file was not written by `save`, is damaged, has a later format, or holds a mask with
    other key paths or shapes than `like` (names the first difference); FileNotFoundError where there is no file.

    >>> import os, tempfile
    >>> import jax, jax.numpy as jnp
    >>> like = jax.eval_shape(lambda: {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(os.path.join(folder, "mask.npz"), {"kernel": jnp.eye(2, 3, dtype=bool), "bias": jnp.ones(3, bool)})
    ...     load(os.path.join(folder, "mask.npz"), like)["kernel"].astype(int).tolist()
    [[1, 0, 0], [0, 1, 0]]
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            "The arguments of `load` are swapped: the path comes first. Write masks.load(path, params)."
            if isinstance(like, str | os.PathLike)
            else f"`path` is a {type(path).__name__}, not the path of a file. Write masks.load(path, params)."
        )
    members = _read(Path(path))
    paths = [str(name) for name in members["paths"]]
    shapes = _shapes(members)
    order = _order(path, paths, shapes, like)
    sizes = [math.prod(shape) for shape in shapes]
    bits = np.unpackbits(members["bits"], count=sum(sizes)).astype(bool)
    leaves = [part.reshape(shape) for part, shape in zip(_split(bits, sizes), shapes, strict=True)]
    if [int(leaf.sum()) for leaf in leaves] != members["kept"].tolist():
        raise ValueError(f"{path} is damaged: its leaves do not keep as many weights as were saved. Save it again.")
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(leaves[place]) for place in order])


def _split(bits: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    ends = [0, *itertools.accumulate(sizes)]
    return [bits[start:end] for start, end in itertools.pairwise(ends)]


def _replace(path: Path, content: memoryview) -> None:
    """Write `content` to the file `path`, atomically: through a temporary file that is renamed when it is complete."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    file = temporary.open("xb")
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `save` wrote, with consistent shapes and dtypes."""
    data = path.read_bytes()
    unknown = f"{path} is no mask that pathjax saved, or is damaged"
    # zip files may have other bytes before the first and after the last record; files of `save` have none
    if not data.startswith(b"PK\x03\x04") or data[-22:-18] != b"PK\x05\x06":
        raise ValueError(f"{unknown}: it does not begin and end as a NumPy archive does.")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            members = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{unknown}: {error}.") from error
    version = members.get("version", np.array("none"))
    if (version.dtype.kind, version.ndim) == _PARTS["version"] and version > _VERSION:
        raise ValueError(f"{path} has format {version}; this pathjax reads formats up to {_VERSION}. Update pathjax.")
    if not _agree(members):
        raise ValueError(f"{unknown}: its arrays are not {', '.join(_PARTS)} of one mask.")
    return members


def _agree(members: dict[str, np.ndarray]) -> bool:
    """Whether the arrays have the dtypes, numbers of axes and sizes that `save` gives those of one mask."""
    if {name: (array.dtype.kind, array.ndim) for name, array in members.items()} != _PARTS:
        return False
    paths, ranks, shapes, kept = (members[name] for name in ("paths", "ranks", "shapes", "kept"))
    if not paths.size == ranks.size == kept.size or min((*ranks, *shapes), default=0) < 0 or ranks.sum() != shapes.size:
        return False
    weights = sum(math.prod(shape) for shape in _shapes(members))
    return members["bits"].dtype == np.uint8 and members["bits"].size == -(-weights // 8)


def _shapes(members: dict[str, np.ndarray]) -> list[tuple[int, ...]]:
    shapes = iter(members["shapes"].tolist())
    return [tuple(itertools.islice(shapes, rank)) for rank in members["ranks"].tolist()]


def _plain_key_paths(tree: Any) -> list[str]:
    """The key paths as those of nested dicts and lists: `model.layers[0].weight` is `['layers'][0]['weight']`."""
    return ["".join(f"[{name!r}]" for name in names) for names in plain_paths(tree)]


def _order(path: Any, paths: list[str], shapes: list[tuple[int, ...]], like: Params) -> list[int]:
    """For each leaf of `like`, the place of its mask in the file; ValueError where key paths or shapes differ."""
    remedy = "Load it with the parameters of the network that it was saved for."
    if any(cls.__module__.startswith("flax.nnx") for cls in type(like).__mro__):
        remedy = f"{remedy[:-1]}; of a Flax NNX model these are nnx.state(model, nnx.Param)."
    like_paths = _plain_key_paths(like)
    if set(paths) != set(like_paths) and set(paths) == set(key_paths(like)):
        like_paths = key_paths(like)  # as files were written before containers were left out of the paths
    if sorted(paths) != sorted(like_paths):
        unmatched = set(paths) ^ set(like_paths)
        pairs = enumerate(itertools.zip_longest(paths, like_paths, fillvalue="no leaf"))
        index, (name, like_name) = next(pair for pair in pairs if not unmatched or unmatched.intersection(pair[1]))
        raise ValueError(
            f"{path} has a mask of another tree: its leaf {index} is {name}, where `like` has {like_name}. {remedy}"
        )
    order = [paths.index(like_name) for like_name in like_paths]
    for name, place, leaf in zip(like_paths, order, jax.tree.leaves(like), strict=True):
        if shapes[place] != jnp.shape(leaf):
            raise ValueError(
                f"{path} has a mask of another shape at {name}: {shapes[place]}, where `like` has {jnp.shape(leaf)}. "
                f"{remedy}"
            )
    return order
