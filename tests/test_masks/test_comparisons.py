"""Masks held beside each other, and the sanity checks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import masks

from ..tolerances import EXACT, STANDARD_ERRORS

SHAPES = {"bias": (5,), "a": (4, 6), "b": (3, 3, 2, 5), "none": (0, 2), "d": (1, 1)}


def draw(seed, share=0.4):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.random(shape) < share) for name, shape in SHAPES.items()}


# overlap


@pytest.mark.parametrize("seed", range(3))
def test_overlap_is_that_of_sets(seed):
    left, right = draw(seed), draw(seed + 10, 0.6)
    one, other = (
        {(name, *place) for name, leaf in mask.items() if leaf.ndim > 1 for place in np.argwhere(leaf).tolist()}
        for mask in (left, right)
    )
    wanted = len(one & other) / len(one | other)
    for found in (masks.overlap(left, right), jax.jit(masks.overlap)(left, right)):
        np.testing.assert_allclose(found.jaccard, wanted, rtol=EXACT)
        assert int(found.shared) == len(one & other)


def test_expected_overlap_is_that_of_all_random_masks():
    counts = {"a": (3, 2, 6), "c": (1, 3, 4)}  # kept on the left, kept on the right, size
    sets = [
        [set(chosen) for chosen in itertools.combinations(range(size), right)] for _, right, size in counts.values()
    ]
    mean = np.mean(
        [
            sum(len(part & set(range(left))) for part, (left, _, _) in zip(parts, counts.values(), strict=True))
            for parts in itertools.product(*sets)
        ]
    )
    make = lambda side: {name: (jnp.arange(each[2]) < each[side])[None] for name, each in counts.items()}  # noqa: E731
    np.testing.assert_allclose(masks.overlap(make(0), make(1)).expected, mean / (4 + 5 - mean), rtol=EXACT)


def test_shuffled_masks_overlap_as_expected():
    keys = jax.random.split(jax.random.key(0), 400)
    mask = {"a": jnp.arange(400).reshape(20, 20) < 150, "b": jnp.arange(300).reshape(30, 10) < 30}
    found = jax.vmap(lambda key: masks.overlap(mask, masks.shuffle(mask, key=key)))(keys)
    error = found.jaccard.std(ddof=1) / np.sqrt(400)
    np.testing.assert_allclose(found.jaccard.mean(), found.expected[0], rtol=0, atol=STANDARD_ERRORS * error)
    naive = 180**2 / 700 / (360 - 180**2 / 700)  # without regard to the leaves
    assert abs(float(found.expected[0]) / naive - 1) > 0.2


def test_overlap_of_equal_disjoint_and_empty_masks():
    mask = {"w": jnp.array([[True, False, True], [False, True, True]])}
    nothing = {"w": jnp.zeros((2, 3), bool)}
    inverse = {"w": ~mask["w"]}
    assert [float(masks.overlap(mask, other).jaccard) for other in (mask, inverse, nothing)] == [1.0, 0.0, 0.0]
    for found in (
        masks.overlap(nothing, nothing),
        masks.overlap({"bias": jnp.ones(3, bool)}, {"bias": jnp.zeros(3, bool)}),
        masks.overlap(mask, inverse, prunable=lambda path, leaf: False),
    ):
        assert [float(number) for number in found] == [1.0, 0.0, 1.0]


def test_overlap_refuses_other_trees_and_numbers():
    mask = {"w": jnp.ones((2, 3), bool)}
    with pytest.raises(ValueError, match=r"`right` has no leaf at \['w'\]"):
        masks.overlap(mask, {"v": mask["w"]})
    with pytest.raises(ValueError, match=r"`right` at \['w'\] has shape \(3, 2\)"):
        masks.overlap(mask, {"w": mask["w"].T})
    for pair in ((mask, {"w": jnp.ones((2, 3))}), ({"w": jnp.ones((2, 3))}, mask)):
        with pytest.raises(TypeError, match=r"must have boolean leaves; at \['w'\]"):
            masks.overlap(*pair)


# sanity checks


@pytest.mark.parametrize("seed", range(3))
def test_shuffling_keeps_counts_and_what_is_not_prunable(seed):
    mask = draw(seed)
    key = jax.random.key(seed)
    shuffled = masks.shuffle(mask, key=key)
    for name, leaf in mask.items():
        assert shuffled[name].dtype == bool and shuffled[name].shape == leaf.shape
        assert shuffled[name].sum() == leaf.sum()
    np.testing.assert_array_equal(shuffled["bias"], mask["bias"])
    assert (shuffled["b"] != mask["b"]).any()
    jax.tree.map(np.testing.assert_array_equal, jax.jit(masks.shuffle)(mask, key=key), shuffled)
    everything = masks.shuffle(mask, key=key, prunable=lambda path, leaf: True)
    assert everything["bias"].sum() == mask["bias"].sum()


def test_every_place_is_kept_as_often_and_leaves_are_drawn_apart():
    mask = {"a": jnp.arange(12).reshape(3, 4) < 3, "b": jnp.arange(12).reshape(3, 4) < 3}
    keys = jax.random.split(jax.random.key(0), 4000)
    shuffled = jax.vmap(lambda key: masks.shuffle(mask, key=key))(keys)
    error = np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_allclose(shuffled["a"].mean(axis=0), 0.25, rtol=0, atol=STANDARD_ERRORS * error)
    together = (shuffled["a"] & shuffled["b"]).mean()
    error = np.sqrt(0.25**2 * (1 - 0.25**2) / (4000 * 12))
    np.testing.assert_allclose(together, 0.25**2, rtol=0, atol=STANDARD_ERRORS * error)


def test_the_key_of_random_scores_may_be_used_again():
    key = jax.random.key(0)
    for draw_scores in (jax.random.uniform, jax.random.normal):
        for first in (key, jax.random.fold_in(key, 0), jax.random.split(key, 1)[0]):
            mask = masks.from_scores({"a": draw_scores(first, (20, 30), jnp.float32)}, density=0.5)
            assert float(masks.overlap(mask, masks.shuffle(mask, key=key)).jaccard) < 0.5


def test_inverted_scores_keep_the_smallest():
    scores = {"w": jax.random.normal(jax.random.key(0), (7, 9)), "steps": jnp.arange(3)}
    low = masks.from_scores(masks.invert(scores), density=1 / 3)["w"]
    high = masks.from_scores(scores, density=2 / 3)["w"]
    np.testing.assert_array_equal(low, ~high)
    np.testing.assert_array_equal(jax.jit(masks.invert)(scores)["w"], -scores["w"])
    assert masks.invert(scores)["steps"].tolist() == [0, 1, 2]


def test_other_weights_come_under_the_same_mask():
    mask = draw(0)
    init = lambda key: jax.tree.map(lambda leaf: 2.0 + jax.random.uniform(key, leaf.shape), mask)  # noqa: E731
    params = masks.reinitialize(init, mask, key=jax.random.key(3))
    jax.tree.map(lambda leaf, kept: np.testing.assert_array_equal(leaf != 0, kept), params, mask)
    drawn = init(jax.random.key(3))
    np.testing.assert_array_equal(params["a"], np.where(mask["a"], drawn["a"], 0.0))
    with pytest.raises(ValueError, match=r"`mask` has no leaf at \['v'\]"):
        masks.reinitialize(lambda key: {"v": jnp.ones((2, 3))}, {"w": jnp.ones((2, 3), bool)}, key=jax.random.key(0))


def test_shuffling_refuses_numbers():
    with pytest.raises(TypeError, match=r"`mask` must have boolean leaves; at \['w'\]"):
        masks.shuffle({"w": jnp.ones((2, 3))}, key=jax.random.key(0))
