"""The two ways to find the largest scores, NumPy's search on a CPU and the compiled one, give the same masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import masks
from pathjax._pruning import host_selection, selection

from .test_selection import KINDS, draw, sorted_masks

SIZE = 563  # of what `draw` draws
KEPT = (0, 1, 2, 57, 281, 562, 563)
LOWEST = np.iinfo(np.int32).min


@jax.jit
def compiled(scores, kept, within=None):
    return masks.keep_largest(scores, kept, within=within)


def assert_masks_are(got, want):
    for mask, expected in zip(jax.tree.leaves(got), want, strict=True):
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", (np.float32, np.float64, jnp.bfloat16))
def test_both_ways_equal_stable_sort(kind, dtype):
    scores = draw(kind, dtype)
    for kept in KEPT:
        expected = sorted_masks(list(scores.values()), kept)
        assert_masks_are(masks.keep_largest(scores, kept), expected)
        assert_masks_are(compiled(scores, kept), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_keep_none_outside_an_earlier_mask(kind):
    scores, within = draw(kind, np.float32), {name: leaf > 0 for name, leaf in draw("normal", seed=1).items()}
    scores = {name: np.where(within[name], leaf, np.float32(np.nan)) for name, leaf in scores.items()}
    sure = {name: np.nan_to_num(leaf) for name, leaf in scores.items()}
    available = sum(int(leaf.sum()) for leaf in within.values())
    for kept in (0, 1, available // 3, available - 1, available):
        expected = sorted_masks(list(sure.values()), kept, list(within.values()))
        assert_masks_are(masks.keep_largest(scores, kept, within=within), expected)
        assert_masks_are(compiled(scores, kept, within), expected)


def test_both_ways_rank_floats_of_several_types_together():
    drawn = draw("normal")
    scores = {
        name: leaf.astype(dtype)
        for (name, leaf), dtype in zip(drawn.items(), ("f2", "f4", "f8", "f4", "f8"), strict=True)
    }
    for kept in KEPT:
        expected = sorted_masks(list(scores.values()), kept)
        assert_masks_are(masks.keep_largest(scores, kept), expected)
        assert_masks_are(compiled(scores, kept), expected)


@pytest.mark.parametrize("scope", ("local", "uniform", "erk"))
def test_both_ways_rank_leaves_alone(scope):
    scores = {name: leaf for name, leaf in draw("tied", np.float32).items() if leaf.size}
    counts = masks.kept_counts(scores, density=0.6, scope=scope)

    def select(scores, counts):
        return masks.keep_largest(scores, counts, scope=scope)

    jax.tree.map(np.testing.assert_array_equal, select(scores, counts), jax.jit(select)(scores, counts))


def test_no_prunable_leaf_leaves_all_as_they_are():
    scores = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    mask = masks.keep_largest(scores, 1, prunable=lambda path, leaf: False)
    assert all(bool(leaf.all()) for leaf in jax.tree.leaves(mask))


@pytest.mark.parametrize("committed", (False, True))
def test_masks_lie_where_their_scores_do(committed):
    kernel = jnp.ones((3, 2))
    scores = {"kernel": jax.device_put(kernel, jax.devices("cpu")[-1]) if committed else kernel}
    mask = masks.keep_largest(scores, 4)
    assert mask["kernel"].devices() == scores["kernel"].devices()
    assert mask["kernel"].committed == scores["kernel"].committed


# the search of NumPy, with a sample that is small beside the integers


def integers(kind, size=3000):
    rng = np.random.default_rng(0)
    spread = rng.integers(-(10**6), 10**6, size)
    drawn = {
        "spread": spread,
        "tied": rng.integers(-3, 3, size),
        "equal": np.full(size, 5),
        "two values": np.where(rng.random(size) < 0.5, 7, -7),
        "a mass below": np.where(rng.random(size) < 0.9, 0, 1 + np.abs(spread)),
        "a mass above": np.where(rng.random(size) < 0.9, 2 * 10**6, spread),
        "few compete": np.where(rng.random(size) < 0.95, LOWEST, spread),
        "rising": np.arange(size),
        "periodic": np.arange(size) % 47,
    }
    return drawn[kind].astype(np.int32)


@pytest.mark.parametrize(
    "kind",
    (
        *("spread", "tied", "equal", "two values", "a mass below"),
        *("a mass above", "few compete", "rising", "periodic"),
    ),
)
@pytest.mark.parametrize("bracket", ("as it is", "one sample wide", "below all", "above all"))
def test_search_on_the_host_finds_the_first_largest(monkeypatch, kind, bracket):
    monkeypatch.setattr(host_selection, "_SAMPLE", 64)
    if bracket == "one sample wide":
        monkeypatch.setattr(host_selection, "_SPREAD", 0.0)
    elif bracket != "as it is":
        bounds = (LOWEST + 1, LOWEST + 2) if bracket == "below all" else (2**31 - 2, 2**31 - 1)
        monkeypatch.setattr(host_selection, "_bracket", lambda arrays, kept: bounds)
    flat = integers(kind)
    arrays = [flat[:7].reshape(7, 1), flat[7:7], flat[7:1507].reshape(30, 50), flat[1507:]]
    competing = [array > LOWEST for array in arrays]
    available = sum(int(mask.sum()) for mask in competing)
    for kept in (0, 1, 30, 150, 299, 1500, 2700, 2999, 3000):
        found = host_selection.largest(arrays, kept)
        assert found.kept == min(kept, available)
        assert_masks_are(found.masks, sorted_masks(arrays, kept, competing))


def test_search_on_the_host_keeps_no_lowest_integer():
    found = host_selection.largest([np.array([LOWEST, 3, LOWEST, 4], np.int32)], 3)
    assert found.kept == 2
    assert found.masks[0].tolist() == [False, True, False, True]


def test_large_scores_select_alike_both_ways():
    rng = np.random.default_rng(0)
    wide = {"a": np.exp(4 * rng.standard_normal((300, 400))), "b": np.exp(4 * rng.standard_normal((3, 5)))}
    tied = {name: np.round(leaf) for name, leaf in wide.items()}
    for scores in (wide, tied):
        for kept in (1, 1200, 60_000, 119_000):
            expected = sorted_masks(list(scores.values()), kept)
            assert_masks_are(masks.keep_largest(scores, kept), expected)
            assert_masks_are(compiled(scores, kept), expected)


def test_selection_on_a_cpu_compiles_no_search(monkeypatch):
    def refused(*arguments):
        raise AssertionError("the compiled search ran")

    monkeypatch.setattr(selection, "_ranked", refused)
    masks.from_scores(draw("normal", np.float32), density=0.5)
    with pytest.raises(AssertionError, match="compiled search"):
        jax.jit(lambda scores: masks.from_scores(scores, density=0.5))(draw("normal", np.float32))
