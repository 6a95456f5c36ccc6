"""Masks of n weights of every m, held to loops in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathjax import masks, scores


def looped(leaf: Any, n: int, m: int, axis: int = -2, within: Any = None) -> np.ndarray:
    """The first n of a stable sort of every m in a row along the axis, none outside `within`."""
    rows = np.moveaxis(np.asarray(leaf, np.float64), axis, -1) + 0.0
    allowed = np.ones(rows.shape, bool) if within is None else np.moveaxis(np.asarray(within), axis, -1)
    keep = np.zeros(rows.shape, bool)
    for at in np.ndindex(rows.shape[:-1]):
        for start in range(0, rows.shape[-1], m):
            group = [place for place in range(start, start + m) if allowed[at][place]]
            order = np.argsort([-rows[at][place] for place in group], kind="stable")
            for place in order[:n]:
                keep[(*at, group[place])] = True
    return np.moveaxis(keep, -1, axis)


def draw(kind: str, dtype: Any = np.float64, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"dense": (12, 5), "conv": (3, 2, 24, 5), "flat": (12, 1), "none": (12, 0), "neither": (0, 4)}
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    changes: dict[str, Any] = {
        "normal": lambda leaf: leaf,
        "tied": np.round,
        "constant": np.ones_like,
        "zeros of both signs": lambda leaf: np.where(leaf > 0.5, leaf, np.copysign(0.0, leaf)),
        "wide": lambda leaf: np.sign(leaf) * np.exp(20 * leaf),
    }
    return {name: jnp.asarray(changes[kind](leaf), dtype) for name, leaf in values.items()}


KINDS = ("normal", "tied", "constant", "zeros of both signs", "wide")
PATTERNS = ((1, 2), (2, 4), (1, 4), (3, 4), (4, 12), (12, 12), (1, 1))


def assert_equal(found: Any, expected: Any) -> None:
    assert sorted(found) == sorted(expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_of_every_group_of_inputs_are_kept(kind: str, n: int, m: int) -> None:
    drawn = draw(kind)
    mask = masks.n_of_m(drawn, n=n, m=m)
    assert_equal(mask, {name: looped(leaf, n, m) for name, leaf in drawn.items()})
    assert all(leaf.dtype == bool for leaf in mask.values())
    assert int(masks.count(mask)) * m == n * sum(leaf.size for leaf in drawn.values())


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16, jnp.float32))
def test_narrow_floats_rank_as_wide_ones(dtype: Any) -> None:
    drawn = draw("tied", dtype)
    assert_equal(masks.n_of_m(drawn, n=2, m=4), {name: looped(leaf, 2, 4) for name, leaf in drawn.items()})


@pytest.mark.parametrize("axis", (0, 2, 3, -1, -4))
def test_groups_may_lie_along_any_axis(axis: int) -> None:
    kernel = np.random.default_rng(1).standard_normal((8, 2, 4, 12))
    assert_equal(masks.n_of_m({"w": kernel}, n=3, m=4, axis=axis), {"w": looped(kernel, 3, 4, axis)})


def test_the_first_of_equal_scores_are_kept() -> None:
    mask = masks.n_of_m({"w": jnp.array([[0.0], [-0.0], [1.0], [0.0], [2.0], [2.0], [2.0], [2.0]])}, n=2, m=4)
    assert mask["w"][:, 0].tolist() == [True, False, True, False, True, True, False, False]


def test_leaves_that_are_not_prunable_stay_whole() -> None:
    drawn = {"bias": jnp.zeros(3), "kernel": jnp.ones((4, 3)), "steps": jnp.arange(3), "stem": jnp.ones((3, 2))}
    mask = masks.n_of_m(drawn, n=1, m=4, prunable=lambda path, leaf: path[0].key == "kernel")
    assert {name: int(leaf.sum()) for name, leaf in mask.items()} == {"bias": 3, "kernel": 3, "steps": 3, "stem": 6}


@pytest.mark.parametrize("kind", KINDS)
def test_within_is_never_left_and_groups_may_keep_fewer(kind: str) -> None:
    drawn = draw(kind)
    within = masks.from_scores(draw("normal", seed=1), density=0.4)
    mask = masks.n_of_m(drawn, n=2, m=4, within=within)
    assert_equal(mask, {name: looped(leaf, 2, 4, within=within[name]) for name, leaf in drawn.items()})
    assert float(masks.density(mask)) < 0.4  # some groups of `within` keep more than two, some fewer
    # as hardware has it: a mask of two of four lies within that of three of four
    three = masks.n_of_m(drawn, n=3, m=4)
    assert_equal(masks.n_of_m(drawn, n=2, m=4, within=three), masks.n_of_m(drawn, n=2, m=4))


@pytest.mark.parametrize("kind", ("normal", "tied"))
def test_jit_vmap_and_stacked_equal_each_seed(kind: str) -> None:
    seeds = [draw(kind, seed=seed) for seed in range(3)]
    withins = [masks.from_scores(draw("normal", seed=7 + seed), density=0.8) for seed in range(3)]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731

    def select(drawn: Any, within: Any, **options: Any) -> Any:
        return masks.n_of_m(drawn, n=2, m=4, within=within, **options)

    expected = stack([select(*each) for each in zip(seeds, withins, strict=True)])
    together = stack(seeds), stack(withins)
    assert_equal(select(*together, stacked=True), expected)
    for transform in (jax.vmap, lambda function: jax.jit(jax.vmap(function))):
        assert_equal(transform(select)(*together), expected)
    assert_equal(jax.jit(lambda *both: select(*both, stacked=True))(*together), expected)
    assert_equal(jax.jit(select)(seeds[0], withins[0]), jax.tree.map(lambda leaf: leaf[0], expected))


def test_axes_of_stacked_seeds_are_those_of_one_seed() -> None:
    kernel = np.random.default_rng(2).standard_normal((3, 8, 5))
    mask = masks.n_of_m({"w": kernel}, n=1, m=4, axis=0, stacked=True)
    assert_equal(mask, {"w": np.stack([looped(each, 1, 4, axis=0) for each in kernel])})


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 6),
    groups=st.integers(1, 4),
    others=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    data=st.data(),
)
def test_every_group_keeps_its_n_largest(seed: int, m: int, groups: int, others: list[int], data: Any) -> None:
    n, axis = data.draw(st.integers(1, m)), data.draw(st.integers(0, len(others)))
    shape = [*others[:axis], groups * m, *others[axis:]]
    leaf = np.random.default_rng(seed).integers(-3, 4, shape).astype(float)  # many ties
    keep = np.asarray(masks.n_of_m([leaf], n=n, m=m, axis=axis, prunable=lambda path, leaf: True)[0])
    rows, kept = (np.moveaxis(array, axis, -1).reshape(-1, m) for array in (leaf, keep))
    np.testing.assert_array_equal(kept.sum(axis=1), n)
    for row, keeps in zip(rows, kept, strict=True):
        assert row[keeps].min() >= row[~keeps].max(initial=-np.inf)
        ties = np.flatnonzero(row == row[keeps].min())
        assert keeps[ties].tolist() == sorted(keeps[ties], reverse=True)


# With the rest of the library


def test_a_frozen_optimizer_keeps_two_of_four() -> None:
    params = {"bias": jnp.zeros(3), "kernel": jax.random.normal(jax.random.key(0), (8, 3))}
    mask = masks.n_of_m(scores.magnitude(params), n=2, m=4)
    params, optimizer = masks.apply_mask(mask, params), masks.freeze(optax.adamw(0.1), mask)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["kernel"] != 0, mask["kernel"])
    assert int(masks.count(mask)) == 12


# Errors


def test_axes_that_are_no_multiple_are_refused_with_a_remedy_that_works() -> None:
    drawn: dict[str, Any] = {"stem": {"kernel": jnp.ones((3, 3, 3, 8))}, "next": {"kernel": jnp.ones((3, 3, 8, 5))}}
    message = r"Axis -2 of \['stem'\]\['kernel'\], \(3, 3, 3, 8\), has length 3, no multiple of m = 4.*prunable=(.*)\.$"
    with pytest.raises(ValueError, match=message) as refused:
        masks.n_of_m(drawn, n=2, m=4)
    prunable = eval(str(refused.value).split("prunable=")[1][:-1], {"masks": masks})
    mask = masks.n_of_m(drawn, n=2, m=4, prunable=prunable)
    assert mask["stem"]["kernel"].all() and int(mask["next"]["kernel"].sum()) == 180


@pytest.mark.parametrize("axis", (2, -3))
def test_an_axis_that_a_leaf_lacks_is_refused(axis: int) -> None:
    with pytest.raises(ValueError, match=rf"\['w'\] has shape \(4, 2\), which has no axis {axis}\. Pass"):
        masks.n_of_m({"w": jnp.ones((4, 2))}, n=2, m=4, axis=axis)


@pytest.mark.parametrize(("n", "m"), ((0, 4), (5, 4), (-1, 4), (0, 0)))
def test_patterns_that_are_none_are_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=rf"`n` must lie in 1 … m.*n={n} and m={m}\."):
        masks.n_of_m({"w": jnp.ones((4, 2))}, n=n, m=m)


def test_nothing_prunable_is_refused() -> None:
    for drawn in ({"bias": jnp.ones(3)}, {}, {"empty": jnp.ones((0, 3))}):
        with pytest.raises(ValueError, match="leaves no weight to prune"):
            masks.n_of_m(drawn, n=2, m=4)


@pytest.mark.parametrize("bad", (jnp.nan, -jnp.nan, jnp.inf, -jnp.inf))
@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64, jnp.bfloat16))
def test_scores_that_are_not_finite_name_their_leaf_and_under_jit_keep_none_of_it(bad: float, dtype: Any) -> None:
    drawn: dict[str, Any] = {
        "fine": jnp.ones((4, 2), dtype),
        "layer": {"kernel": jnp.ones((8, 2), dtype).at[2, 1].set(bad)},
    }
    with pytest.raises(ValueError, match=r"must be finite; those at \['layer'\]\['kernel'\]"):
        masks.n_of_m(drawn, n=2, m=4)
    mask = jax.jit(lambda drawn: masks.n_of_m(drawn, n=2, m=4))(drawn)
    assert not mask["layer"]["kernel"].any() and int(mask["fine"].sum()) == 4
    within = {"fine": jnp.ones((4, 2), bool), "layer": {"kernel": jnp.isfinite(drawn["layer"]["kernel"])}}
    assert int(masks.n_of_m(drawn, n=2, m=4, within=within)["layer"]["kernel"].sum()) == 8
    stacked = jax.tree.map(lambda leaf: jnp.stack([jnp.ones_like(leaf), leaf]), drawn)
    with pytest.raises(ValueError, match=r"Of seed 1: Scores must be finite; those at \['layer'\]\['kernel'\]"):
        masks.n_of_m(stacked, n=2, m=4, stacked=True)


def test_what_is_refused_by_from_scores_is_refused_here() -> None:
    drawn = {"w": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match=r"`within` at \['w'\] has shape \(3, 2\)"):
        masks.n_of_m(drawn, n=2, m=4, within={"w": jnp.ones((3, 2), bool)})
    with pytest.raises(TypeError, match=r"`within` must have boolean leaves"):
        masks.n_of_m(drawn, n=2, m=4, within=drawn)
    with pytest.raises(TypeError, match=r"Scores must be floating-point; at \['w'\] they are int"):
        masks.n_of_m({"w": jnp.ones((4, 3), int)}, n=2, m=4)
    with pytest.raises(ValueError, match=r"equally long"):
        masks.n_of_m({"v": jnp.ones((2, 4, 3)), "w": jnp.ones((1, 4, 3))}, n=2, m=4, stacked=True)
