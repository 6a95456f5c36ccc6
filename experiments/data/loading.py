"""Images and labels, through TFDS without TensorFlow and without a network, or of one's own.

`digits` is made here from what scikit-learn bundles. Others of TFDS are read where they are prepared, and data of one's
own come from a function or a .npz file. TFDS is imported by `load` alone, for its data sets: that takes a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.base import own
from experiments.base.errors import InputError, check_known
from experiments.base.wording import first_line
from experiments.data import arrays
from experiments.data.arrays import Arrays

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

__all__ = ["DATASETS", "Dataset", "balanced_batch", "check_data_dir", "known_names", "load"]

DATASETS = {
    "digits": "1,797 handwritten digits of 8×8 pixels, from scikit-learn; made on first use",
    "mnist": "70,000 handwritten digits of 28×28 pixels; must be prepared",
    "fashion_mnist": "70,000 pieces of clothing of 28×28 pixels; must be prepared",
    "cifar10": "60,000 color photographs of 32×32 pixels; must be prepared",
    "cifar100": "60,000 color photographs of 32×32 pixels in 100 classes; must be prepared",
    "svhn_cropped": "99,289 house numbers of 32×32 pixels; must be prepared",
    "imagenet_resized": "1.3 million photographs of 32×32 pixels in 1,000 classes; must be prepared",
    "tiny_imagenet": "110,000 photographs of 64×64 pixels in 200 classes; must be prepared",
}
"""The data sets by name, and what each is."""

_BUILDERS = {"imagenet_resized": "imagenet_resized/32x32"}
"""TFDS' names of builder and config, where they are not the data set's."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images (n, height, width, channels), float32, and their labels (n,), int32, from 0 to `classes` - 1.

    In the training images every channel has mean 0 and standard deviation 1; the test images are shifted and scaled
    by the same numbers. The order is always the same.
    """

    name: str
    classes: int
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def first(self, train: int, test: int) -> Dataset:
        """The data set of the first `train` training and the first `test` test images; 0 is all."""
        return dataclasses.replace(
            self,
            train_images=self.train_images[: train or None],
            train_labels=self.train_labels[: train or None],
            test_images=self.test_images[: test or None],
            test_labels=self.test_labels[: test or None],
        )


def known_names(data_dir: str | Path | None = None) -> tuple[str, ...]:
    """The names of `DATASETS`, and those of all data sets of TFDS that are prepared, as "name" or "name/config"."""
    root = _data_directory(data_dir)
    descriptions = [file for pattern in ("*/*", "*/*/*") for file in root.glob(f"{pattern}/{_DESCRIPTION}")]
    versions = [file.parent for file in descriptions if re.fullmatch(r"\d+\.\d+\.\d+", file.parent.name)]
    prepared = {folder.parent.relative_to(root).as_posix() for folder in versions}
    return (*DATASETS, *sorted(prepared - {*DATASETS, *_BUILDERS.values()}))


def check_data_dir(data_dir: Path | None) -> None:
    """Raise InputError where the data directory that a user gave is not there; only the default one is made."""
    if data_dir is not None and not data_dir.expanduser().exists():
        raise InputError(
            f"There is no data directory {data_dir}; make the folder first, or leave --data-dir out to take "
            f"{_data_directory(None)}."
        )


def load(name: str, *, data_dir: str | Path | None = None, may_write: bool = True) -> Dataset:
    """A data set by its name in a config, standardized: one of `known_names`, "module:function" or a .npz file.

    Whatever the values of the images are, every channel is shifted and scaled to mean 0 and standard deviation 1.
    `arrays.Arrays` says what a function returns and a file holds. `data_dir` is TFDS' data directory, by default TFDS'
    own (`TFDS_DATA_DIR`, or else ~/tensorflow_datasets). Unless the call `may_write` there, `digits` is made in a
    folder that is removed again, where it is not there yet. Raises InputError where there is no such data set, it is
    not prepared, or its arrays or files are no good.
    """
    if own.is_file(name):
        return _dataset(name, arrays.from_file(name))
    if own.is_function(name):
        return _dataset(name, arrays.from_function(name))
    check_known("data set", name, known_names(data_dir), own.OTHER_DATA)
    root = _data_directory(data_dir)
    with _quiet_log(), contextlib.ExitStack() as stack:
        if name == "digits":
            if not (may_write or _folder_of_digits(root).exists()):
                root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder = _prepared_digits(root)
        else:
            folder = _prepared(name, root)
        classes, train, test = _read(folder)
    return _dataset(name, Arrays(*train, *test), classes)


def _dataset(name: str, given: Arrays, classes: int | None = None) -> Dataset:
    mean, deviation = _channel_moments(given.images)
    return Dataset(
        name=own.short_name(name),
        classes=given.classes if classes is None else classes,
        train_images=_standardized(given.images, mean, deviation),
        train_labels=given.labels,
        test_images=_standardized(given.test_images, mean, deviation),
        test_labels=given.test_labels,
    )


_DESCRIPTION = "dataset_info.json"
"""The file in which TFDS describes a prepared version of a data set."""


def _data_directory(data_dir: str | Path | None) -> Path:
    """The folder of prepared data sets, as TFDS finds it. Raises InputError where it is a file."""
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if root.exists() and not root.is_dir():
        raise InputError(f"The data directory {root} is a file; name a folder.")
    return root


def balanced_batch(labels: np.ndarray, per_class: int, *, after: int = 0) -> np.ndarray:
    """Indices (classes · per_class,) of the first `per_class` examples of every class, in the order of the classes.

    The first `after` examples of every class are left out, so that batches do not share any. Raises InputError where a
    class has fewer examples.

    >>> labels = np.array([1, 0, 0, 1, 1, 0])
    >>> balanced_batch(labels, 2).tolist(), balanced_batch(labels, 1, after=2).tolist()
    ([1, 2, 0, 3], [5, 4])
    """
    if per_class < 1:
        raise InputError(f"A balanced batch needs at least one example per class, but {per_class} were asked for.")
    indices = []
    for label in np.unique(labels):
        examples = np.flatnonzero(labels == label)[: after + per_class]
        if len(examples) < after + per_class:
            raise InputError(
                f"Class {label} has {len(examples)} examples, but {after + per_class} of every class were asked for."
            )
        indices.append(examples[after:])
    return np.concatenate(indices)


@contextlib.contextmanager
def _quiet_log() -> Iterator[None]:
    """Without what TFDS logs below an error, such as advice to install OpenCV."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _folder_of_digits(root: Path) -> Path:
    from experiments.data.digits import Digits

    return root / Digits.name / str(Digits.VERSION)


def _prepared_digits(root: Path) -> Path:
    """The folder of `digits`, written now if it is not there. What an interrupted writing left is never read."""
    import tensorflow_datasets as tfds

    from experiments.data.digits import Digits

    folder = _folder_of_digits(root)
    if folder.exists():
        return folder
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            Digits(data_dir=root, file_format="array_record").download_and_prepare()
    except OSError as error:
        # another process may have moved its own copy into place first
        if not folder.exists():
            raise InputError(f"Cannot write the data set digits in {root}: {error.strerror or error}.") from error
    return folder


def _prepared(name: str, root: Path) -> Path:
    """The folder of the newest prepared version of one of TFDS' own data sets."""
    import tensorflow_datasets as tfds

    builder = _BUILDERS.get(name, name)
    versions = [folder for folder in root.glob(f"{builder}/*") if tfds.core.Version.is_valid(folder.name)]
    if not versions:
        if name == "tiny_imagenet":
            raise InputError(
                f"The data set {name} is not prepared in {root}; prepare it once from its published folder by "
                f"python -m experiments.data.tiny_imagenet tiny-imagenet-200 --data-dir {root}."
            )
        raise InputError(
            f"The data set {name} is not prepared in {root}; with a network and TensorFlow, prepare it once by "
            f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{builder}', data_dir='{root}', "
            "file_format='array_record').download_and_prepare()\"."
        )
    return max(versions, key=lambda folder: tfds.core.Version(folder.name))


Split = tuple[np.ndarray, np.ndarray]
"""Images (n, height, width, channels), uint8, and labels (n,), int32."""


def _read(folder: Path) -> tuple[int, Split, Split]:
    """The number of classes, the training split and the test split of a prepared data set."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        _check_features(folder, builder)
        classes = builder.info.features["label"].num_classes
        held_out = "test" if "test" in builder.info.splits or "validation" not in builder.info.splits else "validation"
        train, test = _read_split(builder, "train"), _read_split(builder, held_out)
    except NotImplementedError as error:
        raise InputError(
            f"The data set in {folder} is not stored as array_record, so it cannot be read without TensorFlow; "
            "prepare it again with file_format='array_record'."
        ) from error
    except InputError:
        raise
    except Exception as error:  # TFDS lets through whatever its parsers raise on files that are no data set
        raise InputError(
            f"The folder {folder} is not a complete data set ({first_line(error)}); remove it and try again."
        ) from error
    for _, labels in (train, test):
        if labels.min() < 0 or labels.max() >= classes:
            raise InputError(
                f"The data set in {folder} has labels from {labels.min()} to {labels.max()}, but {classes} classes; "
                "remove it and prepare it again."
            )
    return classes, train, test


def _check_features(folder: Path, builder: tfds.core.DatasetBuilder) -> None:
    """Raise InputError where examples are not an image of one shape and its class."""
    features = builder.info.features
    names = list(features.keys()) if hasattr(features, "keys") else []
    if "image" not in names or "label" not in names:
        raise InputError(
            f"The data set in {folder} has the features {', '.join(sorted(names)) or 'of no names'}; a study needs "
            "image and label."
        )
    if not hasattr(features["label"], "num_classes"):
        raise InputError(
            f"The data set in {folder} has labels that are no classes, so no network can be trained on them."
        )
    if None in features["image"].shape or len(features["image"].shape) != 3:
        raise InputError(
            f"The data set in {folder} has images of shape {features['image'].shape}; a study needs one shape (height, "
            "width, channels) for all, so resize them into a .npz file or a function."
        )


def _read_split(builder: tfds.core.DatasetBuilder, split: str) -> Split:
    """All examples of a split, in the order of the files."""
    source = builder.as_data_source(split=split)
    examples = source.__getitems__(range(len(source)))
    images = np.stack([example["image"] for example in examples])
    # a file cut off at a block's end reads as empty examples
    if images.shape[1:] != builder.info.features["image"].shape:
        raise ValueError(f"its {split} split has images of shape {images.shape[1:]}")
    return images, np.array([example["label"] for example in examples], dtype=np.int32)


def _channel_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (channels,) over all pixels of all images; a constant channel has deviation 1."""
    channels = [images[..., channel] for channel in range(images.shape[-1])]
    mean = np.array([channel.mean(dtype=np.float64) for channel in channels])
    deviation = np.array([channel.std(dtype=np.float64) for channel in channels])
    return mean, np.where(deviation > 0, deviation, 1.0)


def _standardized(images: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return (images.astype(np.float32) - mean.astype(np.float32)) / deviation.astype(np.float32)
