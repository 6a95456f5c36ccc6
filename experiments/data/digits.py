"""scikit-learn's bundled handwritten digits as a TFDS data set: no download, no TensorFlow.

Importing this module registers `digits` with TFDS, and takes about a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

TEST_EVERY = 5
"""Of every five images the last is a test image."""


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 images of 8×8 pixels with values 0 to 16, and the digit that each shows."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Optical recognition of handwritten digits, as scikit-learn bundles it.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=(
                "Alpaydin, E. and Kaynak, C. (1998). Optical Recognition of Handwritten Digits. "
                "UCI Machine Learning Repository. https://doi.org/10.24432/C50P49"
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # the images come with scikit-learn
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, *, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        bundled = load_digits()
        images = bundled.images.astype(np.uint8)[..., np.newaxis]
        for index, (image, label) in enumerate(zip(images, bundled.target, strict=True)):
            if (index % TEST_EVERY == TEST_EVERY - 1) == test:
                yield index, {"image": image, "label": int(label)}
