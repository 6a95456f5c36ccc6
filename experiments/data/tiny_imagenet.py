"""Tiny ImageNet as a TFDS data set, from the folder in which it is published: no TensorFlow, no network.

`python -m experiments.data.tiny_imagenet FOLDER` prepares it once, from `tiny-imagenet-200` as unpacked. Importing this
module registers `tiny_imagenet` with TFDS, and takes about a second.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from experiments.base.errors import InputError
from experiments.base.wording import first_line

__all__ = ["TinyImagenet", "main", "prepare"]

_SIDE = 64


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Photographs of 64×64 pixels in 200 classes: `train/<wnid>/images/*.JPEG`, and those of `val/` as the test set.

    The published test images have no labels. Classes are numbered in the order of `wnids.txt`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, source: Path, **options: Any) -> None:
        """`source` is the folder that holds `wnids.txt`."""
        self._source = Path(source)
        self._wnids = _lines(self._source / "wnids.txt")
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="A part of ImageNet, at a quarter of the side.",
            homepage="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            citation="Le, Y. and Yang, X. (2015). Tiny ImageNet Visual Recognition Challenge.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIDE, _SIDE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=self._wnids),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # the images lie in the folder
        return {"train": self._generate_examples(self._train()), "test": self._generate_examples(self._validation())}

    def _generate_examples(self, images: Iterator[tuple[Path, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (path, wnid) in enumerate(images):
            yield number, {"image": _png(path), "label": wnid}

    def _train(self) -> Iterator[tuple[Path, str]]:
        for wnid in self._wnids:
            for path in sorted((self._source / "train" / wnid / "images").glob("*.JPEG")):
                yield path, wnid

    def _validation(self) -> Iterator[tuple[Path, str]]:
        for line in _lines(self._source / "val" / "val_annotations.txt"):
            name, wnid, *_ = line.split("\t")
            yield self._source / "val" / "images" / name, wnid


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _png(path: Path) -> io.BytesIO:
    """The image, colored: some of the published ones are gray."""
    out = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(out, "png", compress_level=1)
    out.seek(0)
    return out


def prepare(source: Path, *, data_dir: Path | None = None) -> None:
    """Write the data set into TFDS' data directory. Raises InputError where the folder is not as published."""
    try:
        tfds.disable_progress_bar()
        TinyImagenet(source=source, data_dir=data_dir, file_format="array_record").download_and_prepare()
    except (OSError, ValueError) as error:
        raise InputError(f"Tiny ImageNet cannot be read from {source}: {first_line(error)}.") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the data set from the folder that the arguments name; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that holds wnids.txt, train and val")
    parser.add_argument("--data-dir", type=Path, help="TFDS' data directory, if not its own")
    options = parser.parse_args(arguments)
    try:
        prepare(options.folder, data_dir=options.data_dir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
