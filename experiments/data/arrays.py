"""Data of one's own as four arrays, from a function or from a .npz file, and what is asked of them."""

from __future__ import annotations

import functools
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.base import own
from experiments.base.errors import InputError
from experiments.base.wording import enumerated, first_line

__all__ = ["Arrays", "file_hash", "from_file", "from_function"]

_KIND = "data set"


class Arrays(NamedTuple):
    """The images of the train set, their labels, and those of the test set; in a .npz file, arrays of these names.

    Images (n, height, width, channels) have any values, uint8 or floats, which `loading.load` standardizes. Images
    without channels (n, height, width) get one; vectors (n, d) become images of one pixel with d channels. Labels (n,)
    are whole numbers 0 … k − 1, and the train set has each of them.
    """

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def classes(self) -> int:
        """The number of classes, k."""
        return int(self.labels.max()) + 1


def from_function(name: str) -> Arrays:
    """The arrays that "module:function" returns, a function without arguments.

    Raises InputError where there is no such function, where it raises, and where its arrays cannot be used.
    """
    given = own.called(_KIND, name, own.function_of(_KIND, name))
    if not isinstance(given, tuple | list) or len(given) != len(Arrays._fields):
        what = (
            f"{len(given)} values" if isinstance(given, tuple | list) else f"a value of the type {type(given).__name__}"
        )
        raise InputError(f"{name} returns {what}; it has to return {_wanted()}, in this order.")
    return _checked(name, given)


def from_file(file: str) -> Arrays:
    """The arrays of a .npz file. Raises InputError where there is none, or its arrays cannot be used."""
    path = Path(file)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            missing = [name for name in Arrays._fields if name not in stored.files]
            if missing:
                raise InputError(
                    f"{path} has no array {missing[0]}; it has {', '.join(sorted(stored.files)) or 'none'}, and has to "
                    f"have {_wanted()}."
                )
            given = [stored[name] for name in Arrays._fields]
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a .npz file of arrays of numbers ({first_line(error)}).") from error
    return _checked(str(path), given)


@functools.cache
def file_hash(file: str) -> str:
    """A hash of the content of a file, 16 hexadecimal digits, which tells data of one's own from other data.

    It is taken once, since a process keeps the data that it has loaded.
    """
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def _wanted() -> str:
    return enumerated(Arrays._fields)


def _checked(name: str, given: Sequence[Any]) -> Arrays:
    """The arrays in the form of `Arrays`. Raises InputError at the first that cannot be used."""
    arrays = [_numbers(name, field, value) for field, value in zip(Arrays._fields, given, strict=True)]
    images, labels, test_images, test_labels = arrays
    for which, of_set, known in (("", images, labels), ("test_", test_images, test_labels)):
        _check_images(name, f"{which}images", of_set)
        _check_labels(name, which, known, len(of_set))
    if images.shape[1:] != test_images.shape[1:]:
        raise InputError(
            f"{name} has images of shape {images.shape[1:]} and test_images of shape {test_images.shape[1:]}; all need "
            "one shape."
        )
    present = np.unique(labels)
    classes = len(present)
    if classes < 2 or present[-1] != classes - 1:
        raise InputError(
            f"{name} has the labels {_listed(present)} in its train set; they have to be 0 to k − 1, each at least "
            "once, of 2 classes or more."
        )
    if test_labels.max() >= classes:
        raise InputError(
            f"{name} has the label {test_labels.max()} in its test set, but its train set has only 0 to {classes - 1}."
        )
    return Arrays(_as_images(images), labels.astype(np.int32), _as_images(test_images), test_labels.astype(np.int32))


def _numbers(name: str, field: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} has {field} that are no array: {str(error).rstrip('.')}.") from error
    if array.dtype.kind not in "uifb" and array.dtype.name != "bfloat16":
        raise InputError(f"{name} has {field} of the type {array.dtype}; they have to be numbers.")
    return array


def _check_images(name: str, field: str, images: np.ndarray) -> None:
    if images.ndim not in (2, 3, 4):
        raise InputError(
            f"{name} has {field} of shape {images.shape}; they have to be (n, height, width, channels), (n, height, "
            "width) or vectors (n, d)."
        )
    if not images.size:
        raise InputError(f"{name} has {field} of shape {images.shape}, which is empty.")
    if images.dtype.kind not in "uib" and not np.isfinite(images).all():
        raise InputError(
            f"{name} has {field} that are not finite: {np.sum(~np.isfinite(images))} numbers are NaN or ∞."
        )


def _check_labels(name: str, which: str, labels: np.ndarray, count: int) -> None:
    field = f"{which}labels"
    if labels.ndim != 1:
        raise InputError(f"{name} has {field} of shape {labels.shape}; give each image one whole number, as (n,).")
    if len(labels) != count:
        raise InputError(f"{name} has {count} {which}images and {len(labels)} {field}; they have to be as many.")
    if labels.dtype.kind not in "ui":
        raise InputError(f"{name} has {field} of the type {labels.dtype}; they have to be whole numbers, as int32.")
    if labels.min() < 0:
        raise InputError(f"{name} has the label {labels.min()} in {field}; they have to be 0 to k − 1.")


def _listed(labels: np.ndarray, most: int = 6) -> str:
    words = [str(label) for label in labels[:most]]
    return ", ".join(words) + (f", … ({len(labels)} in all)" if len(labels) > most else "")


def _as_images(images: np.ndarray) -> np.ndarray:
    if images.ndim == 2:
        return images[:, np.newaxis, np.newaxis, :]
    return images[..., np.newaxis] if images.ndim == 3 else images
