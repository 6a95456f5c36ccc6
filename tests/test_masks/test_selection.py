"""Masks from scores, held to a stable sort in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import masks
from pathjax._pruning import selection

DENSITIES = (1.0, 0.5, 0.1, 0.02)


def sorted_masks(leaves, kept, within=None):
    """Keep the `kept` largest by a stable sort; the first of equal ones, none outside `within`."""
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves]) + 0.0
    places = np.arange(flat.size)
    allowed = np.ones(flat.size, bool) if within is None else np.concatenate([np.ravel(leaf) for leaf in within])
    order = np.lexsort((places, -flat))
    keep = np.zeros(flat.size, bool)
    keep[order[allowed[order]][:kept]] = True
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    return [part.reshape(np.shape(leaf)) for part, leaf in zip(np.split(keep, ends), leaves, strict=True)]


def draw(kind, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (3, 5), "b": (5, 2, 2), "c": (4, 0), "d": (1, 1), "e": (17, 31)}
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    changes: dict[str, Any] = {
        "normal": lambda leaf: leaf,
        "positive": np.abs,
        "tied": lambda leaf: np.round(leaf),
        "constant": np.ones_like,
        "zeros of both signs": lambda leaf: np.where(leaf > 0.5, leaf, np.copysign(0.0, leaf)),
        "wide": lambda leaf: np.sign(leaf) * np.exp(20 * leaf),
        "tiny": lambda leaf: np.abs(leaf) * 1e-41,
    }
    return {name: changes[kind](leaf).astype(dtype) for name, leaf in values.items()}


KINDS = ("normal", "positive", "tied", "constant", "zeros of both signs", "wide", "tiny")


@pytest.mark.parametrize("density", (*DENSITIES, 1 / 563))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_global_mask_equals_stable_sort(kind, density, dtype):
    scores = draw(kind, dtype)
    mask = masks.from_scores(scores, density=density)
    expected = sorted_masks(list(scores.values()), round(density * 563))
    for got, want in zip(mask.values(), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert int(masks.count(mask)) == round(density * 563)


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16))
@pytest.mark.parametrize("kind", ("normal", "tied"))
def test_narrow_floats_rank_as_wide_ones(kind, dtype):
    scores = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), draw(kind))
    mask = masks.from_scores(scores, density=0.3)
    expected = sorted_masks([np.asarray(leaf.astype(jnp.float64)) for leaf in scores.values()], round(0.3 * 563))
    for got, want in zip(mask.values(), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_leaves_of_several_dtypes_rank_together():
    scores = {"a": np.array([[1.0, 1.0 + 1e-12, 3.0]]), "b": np.array([[1.0, 2.0], [0.5, 1.0]], np.float32)}
    mask = masks.from_scores(scores, density=3 / 7)
    assert mask["a"].tolist() == [[False, True, True]]
    assert mask["b"].tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("density", DENSITIES[:2])
def test_local_mask_keeps_the_share_of_each_leaf(density):
    scores = draw("tied")
    mask = masks.from_scores(scores, density=density, scope="local", prunable=lambda path, leaf: leaf.size != 1)
    for name, leaf in scores.items():
        kept = leaf.size if leaf.size == 1 else round(density * leaf.size)
        np.testing.assert_array_equal(mask[name], sorted_masks([leaf], kept)[0])


@pytest.mark.parametrize(("size", "kept"), ((5, 2), (7, 4), (9, 4), (11, 6)))
def test_halves_round_to_the_even_neighbour(size, kept):
    mask = masks.from_scores({"w": jnp.arange(float(size))[None]}, density=0.5)
    assert int(mask["w"].sum()) == kept
    assert mask["w"][0, -kept:].all()


def test_first_of_equal_scores_are_kept():
    mask = masks.from_scores({"a": jnp.zeros((2, 3)), "b": -jnp.zeros((3, 2))}, density=0.75)
    assert mask["a"].all()
    assert mask["b"].tolist() == [[True, True], [True, False], [False, False]]


def test_ties_come_before_smaller_scores_only():
    mask = masks.from_scores({"a": jnp.array([[1.0, 0.0, 1.0]]), "c": jnp.array([[2.0, 1.0, 0.0]])}, density=0.5)
    assert mask["a"].tolist() == [[True, False, True]]
    assert mask["c"].tolist() == [[True, False, False]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ("global", "local"))
def test_within_is_never_left(kind, scope):
    scores = draw(kind)
    within = masks.from_scores(draw("normal", seed=1), density=0.5, prunable=lambda path, leaf: leaf.size != 1)
    counts = masks.kept_counts(scores, density=0.25, scope=scope, prunable=lambda path, leaf: leaf.size > 1)
    mask = masks.keep_largest(scores, counts, scope=scope, prunable=lambda path, leaf: leaf.size > 1, within=within)
    names = [name for name, leaf in scores.items() if leaf.size > 1]
    if scope == "global":
        expected = sorted_masks([scores[n] for n in names], int(counts), [within[n] for n in names])
    else:
        expected = [sorted_masks([scores[n]], int(kept), [within[n]])[0] for n, kept in zip(names, counts, strict=True)]
    for name, want in zip(names, expected, strict=True):
        np.testing.assert_array_equal(mask[name], want)


def test_unprunable_leaves_stay_whole():
    scores = {"bias": jnp.zeros(4), "kernel": jnp.ones((3, 4)), "steps": jnp.arange(3), "frozen": jnp.ones((2, 2))}
    mask = masks.from_scores(
        scores, density=0.25, prunable=lambda path, leaf: masks.is_kernel(path, leaf) and path[0].key != "frozen"
    )
    assert {name: int(leaf.sum()) for name, leaf in mask.items()} == {"bias": 4, "kernel": 3, "steps": 3, "frozen": 4}
    assert jax.tree.map(jnp.shape, mask) == jax.tree.map(jnp.shape, scores)
    assert all(leaf.dtype == bool for leaf in mask.values())


def test_scores_that_do_not_compete_may_be_anything():
    scores = {"bias": jnp.array([jnp.nan]), "kernel": jnp.array([[1.0, -jnp.inf, jnp.nan, 3.0]])}
    within = {"bias": jnp.array([True]), "kernel": jnp.array([[True, False, False, True]])}
    mask = masks.from_scores(scores, density=0.25, within=within)
    assert mask["kernel"].tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("kind", ("normal", "tied"))
@pytest.mark.parametrize("scope", ("global", "local"))
def test_jit_and_vmap_equal_eager(kind, scope):
    seeds = [draw(kind, seed=seed) for seed in range(3)]
    withins = [masks.from_scores(draw("normal", seed=7 + seed), density=0.8) for seed in range(3)]

    def select(scores, within):
        return masks.from_scores(
            scores, density=0.5, scope=scope, prunable=lambda path, leaf: leaf.size > 100, within=within
        )

    eager = [select(scores, within) for scores, within in zip(seeds, withins, strict=True)]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    for transform in (jax.vmap, lambda function: jax.jit(jax.vmap(function))):
        together = transform(select)(stack(seeds), stack(withins))
        jax.tree.map(np.testing.assert_array_equal, together, stack(eager))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(select)(seeds[0], withins[0]), eager[0])


def test_traced_counts_equal_static_ones():
    scores = draw("tied")
    counts = jnp.array([1, 56, 282, 563])
    together = jax.vmap(lambda kept: masks.keep_largest(scores, kept))(counts)
    for index, kept in enumerate(counts):
        expected = masks.from_scores(scores, density=float(kept) / 563)
        jax.tree.map(lambda got, want, i=index: np.testing.assert_array_equal(got[i], want), together, expected)


def test_a_count_of_zero_keeps_nothing_where_a_density_that_keeps_nothing_is_refused():
    scores = {"kernel": jnp.ones((3, 2))}
    assert not masks.keep_largest(scores, 0)["kernel"].any()
    with pytest.raises(ValueError, match="density"):
        masks.from_scores(scores, density=0.0)


def test_leaves_may_be_joined_in_any_runs(monkeypatch):
    scores = draw("tied", np.float32)
    expected = masks.from_scores(scores, density=0.3)
    monkeypatch.setattr(selection, "_RUN", 34)  # one leaf, then three, then one
    with jax.disable_jit():
        apart = masks.from_scores(scores, density=0.3)
    jax.tree.map(np.testing.assert_array_equal, apart, expected)


def test_many_scores_keep_an_exact_count():
    shapes = {"a": (300, 400), "b": (5, 7), "c": (1100, 1000), "d": (50, 60)}
    keys = jax.random.split(jax.random.key(0), 4)
    normal = {
        name: jax.random.normal(k, shape, jnp.float32) for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    for scores in (normal, jax.tree.map(lambda leaf: jnp.round(leaf * 4), normal)):
        mask = masks.from_scores(scores, density=0.013)
        expected = sorted_masks(list(scores.values()), round(0.013 * 1223035))
        for got, want in zip(mask.values(), expected, strict=True):
            np.testing.assert_array_equal(got, want)


# errors


@pytest.mark.parametrize("density", (0.0, -0.5, 1.5, float("nan")))
def test_density_out_of_range_is_refused(density):
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
        masks.from_scores({"w": jnp.ones((2, 3))}, density=density)


def test_density_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match=r"keeps none of the prunable weights, 6 in number.*0\.167"):
        masks.from_scores({"w": jnp.ones((2, 3))}, density=0.01)
    with pytest.raises(ValueError, match=r"keeps none of \['small'\], 2 in number"):
        masks.from_scores({"large": jnp.ones((9, 9)), "small": jnp.ones((2, 1))}, density=0.2, scope="local")


def test_nothing_prunable_is_refused():
    for scores in ({"bias": jnp.ones(3)}, {}, {"empty": jnp.ones((0, 3))}):
        with pytest.raises(ValueError, match="leaves no weight to prune"):
            masks.from_scores(scores, density=0.5)


def test_unknown_scope_names_those_that_exist():
    with pytest.raises(ValueError, match='Unknown scope "layer". The scopes are global, local, uniform, erk.'):
        masks.from_scores({"w": jnp.ones((2, 3))}, density=0.5, scope="layer")


@pytest.mark.parametrize("bad", (jnp.nan, -jnp.nan, jnp.inf, -jnp.inf))
@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64, jnp.bfloat16))
@pytest.mark.parametrize("scope", ("global", "local"))
def test_scores_that_are_not_finite_name_their_leaf(bad, dtype, scope):
    scores = {"fine": jnp.ones((3, 2), dtype), "layer": {"kernel": jnp.ones((4, 2), dtype).at[2, 1].set(bad)}}
    with pytest.raises(ValueError, match=r"must be finite; those at \['layer'\]\['kernel'\]"):
        masks.from_scores(scores, density=0.5, scope=scope)


@pytest.mark.parametrize("bad", (jnp.nan, -jnp.nan, jnp.inf, -jnp.inf))
def test_under_jit_scores_that_are_not_finite_keep_nothing(bad):
    scores = {"w": jnp.ones((4, 2)).at[2, 1].set(bad), "bias": jnp.ones(2)}
    mask = jax.jit(lambda scores: masks.from_scores(scores, density=0.5))(scores)
    assert not mask["w"].any()
    assert mask["bias"].all()


def test_too_small_a_within_is_refused_and_under_jit_returned_whole():
    scores = {"w": jnp.arange(6.0).reshape(2, 3)}
    within = {"w": jnp.array([[True, False, False], [False, False, True]])}
    with pytest.raises(ValueError, match=r"Only 2 weights of \['w'\] may be kept, fewer than the 3 wanted"):
        masks.from_scores(scores, density=0.5, within=within)
    both = ({"v": scores["w"], "w": scores["w"]}, {"v": within["w"] | True, "w": within["w"]})
    with pytest.raises(ValueError, match="Only 8 weights of all prunable leaves may be kept, fewer than the 9 wanted"):
        masks.from_scores(both[0], density=0.75, within=both[1])
    with pytest.raises(ValueError, match=r"Only 2 weights of \['w'\] may be kept"):
        masks.from_scores(both[0], density=0.5, within=both[1], scope="local")
    mask = jax.jit(lambda scores: masks.from_scores(scores, density=0.5, within=within))(scores)
    np.testing.assert_array_equal(mask["w"], within["w"])


def test_mismatched_within_is_refused():
    scores = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"`within` has no leaf at \['w'\]"):
        masks.from_scores(scores, density=0.5, within={"v": jnp.ones((2, 3), bool)})
    with pytest.raises(ValueError, match=r"`within` at \['w'\] has shape \(3, 2\)"):
        masks.from_scores(scores, density=0.5, within={"w": jnp.ones((3, 2), bool)})
    with pytest.raises(TypeError, match=r"`within` must have boolean leaves; at \['w'\] it has float64"):
        masks.from_scores(scores, density=0.5, within={"w": jnp.ones((2, 3))})


def test_integer_scores_are_refused():
    with pytest.raises(TypeError, match=r"must be floating-point; at \['w'\] they are int64"):
        masks.from_scores({"w": jnp.ones((2, 3), int)}, density=0.5)


def test_counts_of_another_scope_are_refused():
    with pytest.raises(ValueError, match=r'With scope "local", `counts` must have shape \(1,\)'):
        masks.keep_largest({"w": jnp.ones((2, 3))}, 3, scope="local")


def test_counts_that_are_not_integers_are_refused():
    with pytest.raises(TypeError, match="`counts` must be integers, the numbers of weights to keep; they are float"):
        masks.keep_largest({"kernel": jnp.ones((3, 2))}, jnp.asarray(2.7))
