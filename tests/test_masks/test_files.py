"""Masks in files: the same when they come back, and nothing else comes back as a mask."""

import dataclasses
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import masks


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


def draw(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).random(shape) < 0.4)


MASKS = {
    "dict": {"params": {"b": draw(3, 5), "a": {"kernel": draw(2, 2, 3)}}},
    "list": [draw(3, 5), (draw(7), draw(1, 1))],
    "named tuple": Pair(draw(4, 4), {"x": draw(3)}),
    "dataclass": {"layer": Layer(draw(3, 3), draw(3))},
    "ordered": OrderedDict(b=draw(2, 9), a=draw(9)),
    "empty leaves": {"a": draw(0, 4), "b": draw(2, 3), "c": draw(3, 0, 2), "d": None},
    "scalars": {"a": jnp.array(True), "b": jnp.array(False), "c": draw(2, 2)},
    "bare": draw(3, 7),
    "nothing": {},
    "no weights": {"a": draw(0, 4)},
    "other letters": {"größe λ": draw(3, 2)},
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_come_back_as_they_were(name, tmp_path):
    mask = MASKS[name]
    masks.save(tmp_path / "mask.npz", mask)
    likes = [
        mask,
        jax.eval_shape(lambda: jax.tree.map(jnp.ones_like, mask)),
        jax.tree.map(lambda leaf: leaf * 1.5, mask),
    ]
    for like in likes:
        loaded = masks.load(str(tmp_path / "mask.npz"), like)
        jax.tree.map(np.testing.assert_array_equal, loaded, mask)  # of one structure, or this raises
        assert all(isinstance(leaf, jax.Array) and leaf.dtype == bool for leaf in jax.tree.leaves(loaded))
    assert os.listdir(tmp_path) == ["mask.npz"]


def test_a_file_takes_one_bit_for_each_weight_and_no_pickle(tmp_path):
    masks.save(tmp_path / "mask.npz", {"a": draw(1000, 800), "b": draw(3)})
    assert 100_000 < (tmp_path / "mask.npz").stat().st_size < 103_000
    with np.load(tmp_path / "mask.npz", allow_pickle=False) as archive:
        assert archive["paths"].tolist() == ["['a']", "['b']"]
        assert archive["version"] == 1


def test_another_tree_or_shape_is_refused_by_its_first_leaf(tmp_path):
    path = tmp_path / "mask.npz"
    masks.save(path, {"a": draw(2, 3), "b": draw(4)})
    other = r"another tree: its leaf {} is {}, where `like` has {}\."
    with pytest.raises(ValueError, match=other.format(1, r"\['b'\]", r"\['c'\]")):
        masks.load(path, {"a": draw(2, 3), "c": draw(4)})
    with pytest.raises(ValueError, match=other.format(1, r"\['b'\]", "no leaf")):
        masks.load(path, {"a": draw(2, 3)})
    with pytest.raises(ValueError, match=other.format(2, "no leaf", r"\['c'\]")):
        masks.load(path, {"a": draw(2, 3), "b": draw(4), "c": draw(5)})
    with pytest.raises(ValueError, match=r"another shape at \['a'\]: \(2, 3\), where `like` has \(3, 2\)"):
        masks.load(path, {"a": draw(3, 2), "b": draw(4)})


def archive(**changes):
    """The bytes of a file of three weights, with other parts."""
    content = io.BytesIO()
    parts: dict[str, Any] = {
        "version": np.int64(1),
        "paths": np.array(["['a']"]),
        "ranks": np.array([2]),
        "shapes": np.array([1, 3]),
        "kept": np.array([2]),
        "bits": np.packbits(np.array([True, False, True])),
    }
    np.savez(content, **{name: part for name, part in (parts | changes).items() if part is not None})
    return content.getvalue()


LIKE = {"a": jnp.ones((1, 3))}


def test_the_parts_of_these_tests_are_those_of_a_file(tmp_path):
    (tmp_path / "mask.npz").write_bytes(archive())
    assert masks.load(tmp_path / "mask.npz", LIKE)["a"].tolist() == [[True, False, True]]


def test_files_that_name_attributes_as_such_are_read(tmp_path):
    (tmp_path / "mask.npz").write_bytes(archive(paths=np.array([".first"])))
    assert masks.load(tmp_path / "mask.npz", Pair(jnp.ones((1, 3)), None)).first.tolist() == [[True, False, True]]
    with pytest.raises(ValueError, match=r"its leaf 0 is \.first, where `like` has \['second'\]"):
        masks.load(tmp_path / "mask.npz", Pair(None, jnp.ones((1, 3))))


NO_MASKS = {
    "nothing": b"",
    "text": b"kernel 1 0 1\n",
    "pickle": pickle.dumps({"a": np.ones((1, 3), bool)}),
    "cut": archive()[:-30],
    "longer": archive() + b"\n",
    "behind something": b"#" + archive(),
    "half": archive()[: len(archive()) // 2],
    "another archive": archive(bits=None, kept=None),
    "more parts": archive(extra=np.ones(3)),
    "more bits": archive(bits=np.zeros(2, np.uint8)),
    "fewer bits": archive(bits=np.zeros(0, np.uint8)),
    "wide bits": archive(bits=np.zeros(1, np.uint16)),
    "objects": archive(bits=np.array([{}], object)),
    "names of another kind": archive(paths=np.array([1.0])),
    "more names": archive(paths=np.array(["['a']", "['b']"])),
    "shapes of another rank": archive(ranks=np.array([3])),
    "negative shape": archive(shapes=np.array([-1, -3])),
    "no version": archive(version=None),
    "version of another kind": archive(version=np.array("1")),
}


@pytest.mark.parametrize("name", NO_MASKS)
def test_what_is_no_mask_is_refused(name, tmp_path):
    (tmp_path / "mask.npz").write_bytes(NO_MASKS[name])
    with pytest.raises(ValueError, match=r"mask\.npz is no mask that pathjax saved, or is damaged: "):
        masks.load(tmp_path / "mask.npz", LIKE)


def test_every_changed_byte_of_the_weights_is_seen(tmp_path):
    masks.save(tmp_path / "mask.npz", {"a": draw(40, 30)})
    data = (tmp_path / "mask.npz").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        bits = whole.read("bits.npy")[-150:]
    begin = data.index(bits)
    for place in (begin, begin + 77, begin + 149):
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / "changed.npz").write_bytes(changed)
        with pytest.raises(ValueError, match=r"or is damaged: "):
            masks.load(tmp_path / "changed.npz", {"a": draw(40, 30)})


def test_counts_that_disagree_with_the_bits_are_refused(tmp_path):
    (tmp_path / "mask.npz").write_bytes(archive(kept=np.array([1])))
    with pytest.raises(ValueError, match="damaged: its leaves do not keep as many weights as were saved"):
        masks.load(tmp_path / "mask.npz", LIKE)


def test_a_later_format_is_refused_whatever_its_parts(tmp_path):
    (tmp_path / "mask.npz").write_bytes(archive(version=np.int64(2), bits=None, runs=np.ones(3)))
    with pytest.raises(ValueError, match="has format 2; this pathjax reads formats up to 1. Update pathjax."):
        masks.load(tmp_path / "mask.npz", LIKE)


def test_no_file_is_its_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        masks.load(tmp_path / "mask.npz", LIKE)


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "mask.npz"
    masks.save(path, {"a": draw(2, 3)})
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        masks.save(path, {"a": draw(9, 9)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["mask.npz"]


def test_numbers_are_no_mask(tmp_path):
    with pytest.raises(TypeError, match=r"`mask` must have boolean leaves; at \['a'\]"):
        masks.save(tmp_path / "mask.npz", LIKE)
    assert not os.listdir(tmp_path)
