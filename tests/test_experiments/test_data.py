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

from experiments.base import own
from experiments.base.errors import InputError
from experiments.data import arrays, augmentation, loading


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
        "There is no data set 'digit'; the nearest to it is digits: there are digits, mnist, fashion_mnist, cifar10, "
        "cifar100, svhn_cropped, imagenet_resized, tiny_imagenet; others of TFDS, by name or name/config, are there "
        'once they are prepared in the data directory, and one\'s own as "module:function" or as a .npz file.'
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


# data of one's own


def drawn(images=(12, 5, 4, 2), test_images=(4, 5, 4, 2), classes=3):
    """Four arrays as one's own data gives them."""
    rng = np.random.default_rng(0)
    return {
        "images": rng.normal(3, 2, images),
        "labels": np.arange(images[0]) % classes,
        "test_images": rng.normal(3, 2, test_images),
        "test_labels": np.arange(test_images[0]) % classes,
    }


def stored(folder, parts, name="my-cells.npz"):
    np.savez(folder / name, **parts)
    return str(folder / name)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 4, 2), (5, 4, 2)), ((5, 4), (5, 4, 1)), ((7,), (1, 1, 7))],
)
@pytest.mark.parametrize("kind", (np.float64, np.float32, np.uint8))
def test_arrays_of_a_file_are_standardized_as_those_of_tfds(shape, expected, kind, tmp_path):
    given = drawn((12, *shape), (4, *shape))
    given |= {name: np.abs(given[name] * 9).astype(kind) for name in ("images", "test_images")}
    dataset = loading.load(stored(tmp_path, given))
    assert (dataset.name, dataset.classes) == ("my_cells.npz", 3)
    pixels = given["images"].reshape(12, *expected).astype(np.float64)
    mean, deviation = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    for images, name in ((dataset.train_images, "images"), (dataset.test_images, "test_images")):
        assert images.dtype == np.float32
        raw = given[name].reshape(-1, *expected).astype(np.float64)
        np.testing.assert_allclose(images, (raw - mean) / deviation, rtol=1e-5, atol=1e-5)
    for labels, name in ((dataset.train_labels, "labels"), (dataset.test_labels, "test_labels")):
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, given[name])


MODULE = """
import numpy as np
from {beside} import COUNT

def cells():
    return np.arange(COUNT * 6.0).reshape(COUNT, 6), np.arange(COUNT) % 2, np.ones((1, 6)), np.array([1])

def three():
    return cells()[:3]

def wrong():
    return 1 / 0

number = 5
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder with two modules of one's own, the names of which no other test has."""
    name = f"data_{tmp_path.name.strip('_0123456789')}"
    (tmp_path / f"beside_{name}.py").write_text("COUNT = 4\n")
    (tmp_path / f"{name}.py").write_text(MODULE.format(beside=f"beside_{name}"))
    (tmp_path / f"broken_{name}.py").write_text("def cells(:\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    own.look_beside(tmp_path / "config.toml")
    return name


def test_a_function_beside_the_config_gives_data(modules):
    dataset = loading.load(f"{modules}:cells")
    assert dataset.name == f"{modules}.cells" and dataset.classes == 2
    assert dataset.train_images.shape == (4, 1, 1, 6) and dataset.test_images.shape == (1, 1, 1, 6)
    np.testing.assert_allclose(dataset.train_images.mean(0), 0, atol=1e-6)
    assert dataset.train_labels.tolist() == [0, 1, 0, 1] and dataset.test_labels.tolist() == [1]


def test_functions_that_give_no_data_are_refused_with_the_users_line(modules, tmp_path):
    for name, words in (
        (f"{modules}:three", "returns 3 values; it has to return images, labels, test_images and test_labels"),
        (f"{modules}:wrong", f"cannot be made: ZeroDivisionError: division by zero ({tmp_path / modules}.py:12)."),
        (f"{modules}:none", f"{tmp_path / modules}.py has no function none."),
        (f"{modules}:number", "has no function number."),
        (f"{modules}:", 'write it as "module:function".'),
        ("no_such_module:f", "No module named 'no_such_module'; modules are looked for beside the config"),
        (
            f"broken_{modules}:cells",
            f"cannot be imported: SyntaxError: invalid syntax ({tmp_path}/broken_{modules}.py:1",
        ),
    ):
        assert words in error_of(name, None)


WRONG = {
    "no test_labels": (
        lambda parts: parts.pop("test_labels"),
        "has no array test_labels; it has images, labels, test_",
    ),
    "nan": (lambda parts: parts["images"].put(3, np.nan), "has images that are not finite: 1 numbers are NaN or ∞."),
    "infinite": (lambda parts: parts["test_images"].put(3, np.inf), "has test_images that are not finite"),
    "labels from 1": (
        lambda parts: parts.update(labels=parts["labels"] + 1),
        "has the labels 1, 2, 3 in its train set",
    ),
    "a gap": (
        lambda parts: parts.update(labels=parts["labels"] * 2),
        "has the labels 0, 2, 4 in its train set; they",
    ),
    "negative": (lambda parts: parts.update(labels=parts["labels"] - 1), "has the label -1 in labels"),
    "one class": (lambda parts: parts.update(labels=parts["labels"] * 0), "of 2 classes or more."),
    "one-hot": (
        lambda parts: parts.update(labels=np.eye(12, 3)),
        "labels of shape (12, 3); give each image one whole",
    ),
    "real labels": (
        lambda parts: parts.update(labels=parts["labels"] * 1.0),
        "labels of the type float64; they have",
    ),
    "too few": (lambda parts: parts.update(labels=parts["labels"][:5]), "has 12 images and 5 labels"),
    "new in test": (
        lambda parts: parts.update(test_labels=np.array([0, 1, 2, 3])),
        "has the label 3 in its test set",
    ),
    "words": (
        lambda parts: parts.update(images=np.array(["a"] * 12)),
        "images of the type <U1; they have to be numbers",
    ),
    "numbers": (lambda parts: parts.update(images=np.ones(12)), "images of shape (12,); they have to be (n, height,"),
    "empty": (lambda parts: parts.update(test_images=np.ones((0, 5, 4, 2))), "which is empty."),
    "two shapes": (
        lambda parts: parts.update(test_images=np.ones((4, 5, 4, 3))),
        "has images of shape (5, 4, 2) and test_images of shape (5, 4, 3); all need one shape.",
    ),
    "objects": (lambda parts: parts.update(labels=np.array([None] * 12)), "is not a .npz file of arrays of numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arrays_that_cannot_be_used_are_refused(name, tmp_path):
    change, words = WRONG[name]
    parts = drawn()
    change(parts)
    assert words in error_of(stored(tmp_path, parts), None)


def test_the_hash_of_a_file_is_that_of_its_content(tmp_path):
    first, again = stored(tmp_path, drawn()), stored(tmp_path, drawn(), name="again.npz")
    other = stored(tmp_path, drawn() | {"test_labels": np.array([0, 1, 2, 2])}, name="other.npz")
    hashes = [arrays.file_hash(each) for each in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2] and len(hashes[0]) == 16


def test_what_is_no_file_of_arrays_is_refused(tmp_path):
    assert (
        error_of(str(tmp_path / "none.npz"), None) == f"Cannot read {tmp_path / 'none.npz'}: No such file or directory."
    )
    (tmp_path / "words.npz").write_text("words")
    assert "is not a .npz file of arrays of numbers (" in error_of(str(tmp_path / "words.npz"), None)
    (tmp_path / "cut.npz").write_bytes(Path(stored(tmp_path, drawn())).read_bytes()[:300])
    assert "is not a .npz file of arrays of numbers (" in error_of(str(tmp_path / "cut.npz"), None)


def prepared_as(root, name, features, examples):
    """A data set of TFDS with these features, prepared under the name of the class."""
    config = tfds.core.BuilderConfig(name="small", version="1.0.0")
    made = type(
        name.title().replace("_", ""),
        (tfds.core.GeneratorBasedBuilder,),
        {
            "VERSION": tfds.core.Version("1.0.0"),
            "BUILDER_CONFIGS": [config],
            "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features)),
            "_split_generators": lambda self, _: {"train": enumerate(examples), "test": enumerate(examples[:3])},
            "_generate_examples": lambda self: iter(()),
            "__module__": __name__,
        },
    )
    made(config="small", data_dir=root, file_format="array_record").download_and_prepare()


def test_any_prepared_data_set_of_images_and_labels_is_found_by_name_and_config(tmp_path):
    label = tfds.features.ClassLabel(num_classes=2)
    image = tfds.features.Tensor(shape=(3, 2, 1), dtype=np.uint8)
    images = np.random.default_rng(0).integers(0, 255, (6, 3, 2, 1)).astype(np.uint8)
    prepared_as(
        tmp_path,
        "my_own",
        {"image": image, "label": label, "more": np.int64},
        [{"image": each, "label": number % 2, "more": 1} for number, each in enumerate(images)],
    )
    prepared_as(
        tmp_path,
        "no_label",
        {"image": image, "digit": label},
        [{"image": each, "digit": number % 2} for number, each in enumerate(images)],
    )
    assert set(loading.known_names(tmp_path)) == {*loading.DATASETS, "my_own/small", "no_label/small"}
    dataset = loading.load("my_own/small", data_dir=tmp_path)
    assert (dataset.name, dataset.classes) == ("my_own_small", 2)
    assert dataset.train_images.shape == (6, 3, 2, 1) and dataset.test_images.shape == (3, 3, 2, 1)
    np.testing.assert_allclose([dataset.train_images.mean(), dataset.train_images.std()], [0, 1], atol=1e-6)
    assert "has the features digit, image; a study needs image and label." in error_of("no_label/small", tmp_path)


def test_a_data_directory_that_is_mistyped_is_not_made(tmp_path):
    with pytest.raises(
        InputError, match="There is no data directory .*; make the folder first, or leave --data-dir out"
    ):
        loading.check_data_dir(tmp_path / "none")
    assert not (tmp_path / "none").exists()


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
