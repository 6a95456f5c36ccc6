import functools
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from experiments.base.errors import InputError
from experiments.data import augmentation, loading


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data directory with digits in it, not to be changed."""
    root = tmp_path_factory.mktemp("prepared")
    loading.load("digits", data_dir=root)
    return root


@pytest.fixture
def own_copy(prepared, tmp_path):
    """The folder of digits in a data directory that may be damaged; the data directory is two levels up."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return tmp_path / "digits" / "1.0.0"


def error_of(name, data_dir):
    with pytest.raises(InputError) as caught:
        loading.load(name, data_dir=data_dir)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def bundled(*, test):
    index = np.arange(1797)
    chosen = (index % 5 == 4) == test
    images, labels = load_digits().images[chosen], load_digits().target[chosen]
    return images[..., np.newaxis].astype(np.float64), labels


def test_every_fifth_image_is_a_test_image(prepared):
    dataset = loading.load("digits", data_dir=prepared)
    assert (dataset.name, dataset.classes) == ("digits", 10)
    assert dataset.train_images.shape == (1438, 8, 8, 1)
    assert dataset.test_images.shape == (359, 8, 8, 1)
    for labels, test in ((dataset.train_labels, False), (dataset.test_labels, True)):
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, bundled(test=test)[1])


def test_both_splits_are_standardized_by_the_training_images(prepared):
    dataset = loading.load("digits", data_dir=prepared)
    train, test = bundled(test=False)[0], bundled(test=True)[0]
    for images, raw in ((dataset.train_images, train), (dataset.test_images, test)):
        assert images.dtype == np.float32
        np.testing.assert_allclose(images, (raw - train.mean()) / train.std(), rtol=1e-5, atol=1e-6)


def test_every_channel_has_its_own_mean_and_deviation():
    images = np.zeros((3, 2, 2, 3), np.uint8)
    images[0, ..., 0] = 9
    images[..., 1] = 7
    mean, deviation = loading._channel_moments(images)
    np.testing.assert_allclose(mean, [3, 7, 0])
    np.testing.assert_allclose(deviation, [np.sqrt(18), 1, 1])


def test_two_loads_are_identical(prepared):
    first, second = (loading.load("digits", data_dir=prepared) for _ in range(2))
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_preparing_says_nothing(tmp_path, capfd):
    loading.load("digits", data_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_the_environment_names_the_default_data_directory(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(loading.load("digits").test_labels) == 359


def test_what_an_interrupted_preparation_left_is_passed_over(tmp_path):
    leftover = tmp_path / "digits" / "incomplete.AB12CD_1.0.0"
    leftover.mkdir(parents=True)
    (leftover / "digits-train.array_record-00000-of-00001").write_bytes(b"cut off")
    assert len(loading.load("digits", data_dir=tmp_path).train_labels) == 1438


def test_another_process_may_prepare_first(prepared, tmp_path, monkeypatch):
    from experiments.data.digits import Digits

    def overtaken(builder):
        shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(Digits, "download_and_prepare", overtaken)
    assert len(loading.load("digits", data_dir=tmp_path).train_labels) == 1438


def test_unknown_name_lists_the_data_sets(tmp_path):
    assert error_of("digit", tmp_path) == (
        "There is no data set 'digit'; there are digits, mnist, fashion_mnist, cifar10, cifar100, svhn_cropped, "
        "imagenet_resized, tiny_imagenet."
    )


@pytest.mark.parametrize("name", sorted(set(loading.DATASETS) - {"digits", "tiny_imagenet"}))
def test_unprepared_data_set_says_how_to_prepare_it(name, tmp_path):
    message = error_of(name, tmp_path)
    assert message.startswith(f"The data set {name} is not prepared in {tmp_path}; ")
    builder = "imagenet_resized/32x32" if name == "imagenet_resized" else name
    assert f"tfds.builder('{builder}', data_dir='{tmp_path}', file_format='array_record')" in message


STOCK = {
    "mnist": ((28, 28, 1), 10, ("train", "test")),
    "fashion_mnist": ((28, 28, 1), 10, ("train", "test")),
    "cifar10": ((32, 32, 3), 10, ("train", "test")),
    "cifar100": ((32, 32, 3), 100, ("train", "test")),
    "svhn_cropped": ((32, 32, 3), 10, ("train", "extra", "test")),
    "imagenet_resized": ((32, 32, 3), 1000, ("train", "validation")),
}
"""The data sets that are TFDS' own: shape of an image, classes, and splits as published, the one to test on last."""


def mocked(name, root, splits):
    """The images and labels of TFDS' mock data, by split, and a data set of them, prepared as TFDS prepares its own."""
    builder = loading._BUILDERS.get(name, name)
    with tfds.testing.mock_data(num_examples=20):
        source = tfds.data_source(builder, split="train", builder_kwargs={"file_format": "array_record"})
        examples = [source[number] for number in range(len(source))]
    parts = {split: examples[at :: len(splits)] for at, split in enumerate(splits)}
    real = tfds.builder(builder, data_dir=root, file_format="array_record")
    real._split_generators = lambda *_: {
        split: enumerate(example | {"image": png(example["image"])} for example in part)
        for split, part in parts.items()
    }
    real.download_and_prepare()
    return {
        split: (np.stack([each["image"] for each in part]), np.array([each["label"] for each in part]))
        for split, part in parts.items()
    }


def png(image):
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(out, "png")
    out.seek(0)
    return out


def test_every_data_set_is_made_here_or_stock():
    assert {"digits", "tiny_imagenet", *STOCK} == set(loading.DATASETS)


@pytest.mark.parametrize("name", STOCK)
def test_stock_data_sets_are_read_as_tfds_prepares_them(name, tmp_path):
    shape, classes, splits = STOCK[name]
    examples = mocked(name, tmp_path, splits)
    dataset = loading.load(name, data_dir=tmp_path)
    assert (dataset.name, dataset.classes) == (name, classes)
    pixels = examples["train"][0].astype(np.float64)
    mean, deviation = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    found = (
        (dataset.train_images, dataset.train_labels, "train"),
        (dataset.test_images, dataset.test_labels, splits[-1]),
    )
    for images, labels, split in found:
        expected, expected_labels = examples[split]
        assert images.shape == (len(expected), *shape) and images.dtype == np.float32
        assert labels.min() >= 0 and labels.max() < classes and labels.dtype == np.int32
        distance = np.abs(images[:, None] - (expected - mean) / deviation).max((2, 3, 4))
        order = distance.argmin(1)  # TFDS shuffles what it prepares
        assert sorted(order) == list(range(len(expected))) and distance.min(1).max() < 1e-5
        np.testing.assert_array_equal(labels, expected_labels[order])


def published(root):
    """A folder as that of Tiny ImageNet, of two classes; one image is gray."""
    rng = np.random.default_rng(0)
    (root / "wnids.txt").parent.mkdir(parents=True)
    (root / "wnids.txt").write_text("n02\nn01\n")
    colors = {"n02": (200, 10, 10), "n01": (10, 10, 200)}
    for wnid, color in colors.items():
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (64, 64), color).save(folder / f"{wnid}_{number}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(root / "val" / "images" / "val_0.JPEG")
    Image.new("RGB", (64, 64), colors["n01"]).save(root / "val" / "images" / "val_1.JPEG")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t57\nval_1.JPEG\tn01\t0\t0\t1\t1\n")
    return root


def test_tiny_imagenet_is_prepared_from_its_published_folder(tmp_path, capsys):
    from experiments.data import tiny_imagenet

    assert "python -m experiments.data.tiny_imagenet tiny-imagenet-200" in error_of("tiny_imagenet", tmp_path / "data")
    source = published(tmp_path / "tiny-imagenet-200")
    assert tiny_imagenet.main([str(source), "--data-dir", str(tmp_path / "data")]) == 0
    dataset = loading.load("tiny_imagenet", data_dir=tmp_path / "data")
    assert dataset.train_images.shape == (6, 64, 64, 3) and dataset.test_images.shape == (2, 64, 64, 3)
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and dataset.test_labels.tolist() == [0, 1]
    assert (dataset.train_images[:3, ..., 0] > 0).all() and (dataset.train_images[:3, ..., 2] < 0).all()
    np.testing.assert_allclose(dataset.test_images[1], dataset.train_images[3], atol=1e-5)


def test_another_folder_is_not_tiny_imagenet(tmp_path, capsys):
    from experiments.data import tiny_imagenet

    assert tiny_imagenet.main([str(tmp_path), "--data-dir", str(tmp_path / "data")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: Tiny ImageNet cannot be read from {tmp_path}") and printed.count("\n") == 1


def test_augmented_images_are_windows_of_padded_ones_and_mirror_images_of_these():
    images = jax.random.normal(jax.random.key(0), (200, 8, 16, 2), jnp.float32)
    found = np.asarray(jax.jit(functools.partial(augmentation.augmented, flip=True))(jax.random.key(1), images))
    padded = np.pad(images, [(0, 0), (1, 1), (2, 2), (0, 0)])
    seen = set()
    for image, around in zip(found, padded, strict=True):
        places = [
            (top, left, mirrored)
            for top in range(3)
            for left in range(5)
            for mirrored in (False, True)
            if np.array_equal(image[:, :: -1 if mirrored else 1], around[top : top + 8, left : left + 16])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 30


def test_augmentation_without_flip_mirrors_nothing_and_follows_its_key():
    images = jnp.broadcast_to(jnp.arange(16.0)[None, None, :, None], (20, 8, 16, 1))
    first, again, other = (augmentation.augmented(jax.random.key(seed), images, flip=False) for seed in (0, 0, 1))
    assert (np.diff(first[:, 4, 2:-2, 0], axis=1) == 1).all()
    assert (first == again).all() and (first != other).any()


def test_the_newest_prepared_version_is_read(own_copy):
    root = own_copy.parents[1]
    for version in ("3.0.2", "3.0.10"):
        shutil.copytree(own_copy, root / "mnist" / version)
    assert loading._prepared("mnist", root).name == "3.0.10"


def test_data_directory_that_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert error_of("digits", file) == f"The data directory {file} is a file; name a folder."


def test_data_directory_that_cannot_be_written(tmp_path, monkeypatch):
    from experiments.data.digits import Digits

    def refused(builder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Digits, "download_and_prepare", refused)
    assert error_of("digits", tmp_path) == f"Cannot write the data set digits in {tmp_path}: Permission denied."


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


def without_features(folder):
    (folder / "features.json").unlink()


def unparsable(folder):
    (folder / "dataset_info.json").write_text('{"name": "dig')


def without_records(folder):
    next(folder.glob("digits-test*")).unlink()


def short_records(folder):
    file = next(folder.glob("digits-test*"))
    file.write_bytes(file.read_bytes()[:100])


def records_cut_at_a_block(folder):
    file = next(folder.glob("digits-train*"))
    file.write_bytes(file.read_bytes()[:65536])


def without_test_split(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] == "train"]
    (folder / "dataset_info.json").write_text(json.dumps(info))


DAMAGES = [
    empty,
    without_features,
    unparsable,
    without_records,
    short_records,
    records_cut_at_a_block,
    without_test_split,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_set_is_refused(damage, own_copy):
    damage(own_copy)
    message = error_of("digits", own_copy.parents[1])
    assert message.startswith(f"The folder {own_copy} is not a complete data set (")
    assert message.endswith("); remove it and try again.")


def test_other_file_format_is_refused(own_copy):
    info = json.loads((own_copy / "dataset_info.json").read_text())
    (own_copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    message = error_of("digits", own_copy.parents[1])
    assert message.startswith(f"The data set in {own_copy} is not stored as array_record, ")


def test_labels_out_of_range_are_refused(own_copy):
    features = own_copy / "features.json"
    features.write_text(features.read_text().replace('"numClasses": "10"', '"numClasses": "7"'))
    assert error_of("digits", own_copy.parents[1]) == (
        f"The data set in {own_copy} has labels from 0 to 9, but 7 classes; remove it and prepare it again."
    )


def test_balanced_batch_takes_the_first_of_every_class():
    labels = np.array([2, 0, 1, 1, 2, 0, 0, 2, 1])
    np.testing.assert_array_equal(loading.balanced_batch(labels, 2), [1, 5, 2, 3, 0, 4])


@pytest.mark.parametrize(
    ("per_class", "words"),
    [
        (3, "Class 1 has 1 examples, but 3 of every class were asked for."),
        (0, "A balanced batch needs at least one example per class, but 0 were asked for."),
    ],
)
def test_balanced_batch_refuses(per_class, words):
    with pytest.raises(InputError, match=words):
        loading.balanced_batch(np.array([0, 0, 0, 1]), per_class)


def test_importing_data_leaves_tfds_alone():
    code = "import sys, experiments.data.loading; sys.exit('tensorflow_datasets' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
