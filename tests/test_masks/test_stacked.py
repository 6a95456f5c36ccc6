"""Seeds stacked on a leading axis: each is treated alone, as under `jax.vmap`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import masks

from ..tolerances import SINGLE_ROUNDING

SHAPES = {"a": {"kernel": (4, 6), "bias": (6,)}, "c": {"kernel": (3, 1, 2, 5), "scale": (2, 2)}, "none": (0, 2)}


def draw(seed, seeds=3):
    """Scores of networks without names that a shape could not tell: their biases have two axes when stacked."""
    rng = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jnp.asarray(rng.standard_normal((seeds, *shape))), SHAPES, is_leaf=is_shape)


def nameless(tree):
    return jax.tree.leaves(tree)


@pytest.mark.parametrize("form", (lambda tree: tree, nameless))
@pytest.mark.parametrize("scope", ("global", "local", "uniform", "erk"))
def test_masks_of_stacked_scores_are_those_of_each_seed(form, scope):
    stacked = form(draw(0))
    together = masks.from_scores(stacked, density=0.3, scope=scope, stacked=True)
    mapped = jax.vmap(lambda one: masks.from_scores(one, density=0.3, scope=scope))(stacked)
    jax.tree.map(np.testing.assert_array_equal, together, mapped)
    for seed in range(3):
        alone = masks.from_scores(jax.tree.map(lambda leaf, s=seed: leaf[s], stacked), density=0.3, scope=scope)
        jax.tree.map(lambda got, want, s=seed: np.testing.assert_array_equal(got[s], want), together, alone)
    jitted = jax.jit(lambda stacked: masks.from_scores(stacked, density=0.3, scope=scope, stacked=True))(stacked)
    jax.tree.map(np.testing.assert_array_equal, jitted, together)


def test_within_is_that_of_each_seed():
    scores, within = draw(0), masks.from_scores(draw(1), density=0.6, stacked=True)
    mask = masks.from_scores(scores, density=0.3, within=within, stacked=True)
    assert masks.count(mask, stacked=True).tolist() == [round(0.3 * 54)] * 3
    jax.tree.map(lambda leaf, earlier: np.testing.assert_array_equal(leaf & ~earlier, False), mask, within)


@pytest.mark.parametrize("form", (lambda tree: tree, nameless))
def test_descriptions_are_those_of_each_seed(form):
    left, right = (form(jax.tree.map(lambda leaf: leaf > 0.5, draw(seed))) for seed in (2, 3))
    seeds = [jax.tree.map(lambda leaf, s=seed: leaf[s], left) for seed in range(3)]
    for describe in (masks.count, masks.density):
        got = describe(left, stacked=True)
        np.testing.assert_array_equal(got, jax.vmap(describe)(left))
        np.testing.assert_array_equal(got, [describe(seed) for seed in seeds])
        np.testing.assert_array_equal(got, jax.jit(lambda mask, f=describe: f(mask, stacked=True))(left))
    overlaps = masks.overlap(left, right, stacked=True)
    jax.tree.map(np.testing.assert_array_equal, overlaps, jax.vmap(masks.overlap)(left, right))
    rows: Any = masks.statistics(left, stacked=True)
    for seed, mask in enumerate(seeds):
        of_seed = [(row.path, row.kept[seed], row.size, row.density[seed]) for row in rows]
        assert of_seed == [tuple(row) for row in masks.statistics(mask)]


def test_a_density_of_stacked_seeds_is_not_that_of_their_biases():
    # the mask of a vmap over seeds: without `stacked`, the nameless biases (s, d) would count as kernels
    scores = [(jnp.arange(5.0 * 16 * 26).reshape(5, 16, 26), jnp.ones((5, 26)))]
    mask = jax.vmap(lambda one: masks.from_scores(one, density=0.05))(scores)
    np.testing.assert_allclose(masks.density(mask, stacked=True), 21 / 416, rtol=SINGLE_ROUNDING)
    assert float(masks.density(mask)) > 0.08


def test_leading_axes_that_differ_are_refused():
    mask = {"a": jnp.ones((3, 2, 4), bool), "c": jnp.ones((2, 4), bool)}
    message = r"equally long, but \['a'\] has shape \(3, 2, 4\) and \['c'\] has \(2, 4\).*leave out `stacked`"
    for call in (masks.count, masks.density, masks.statistics, lambda mask, **o: masks.overlap(mask, mask, **o)):
        with pytest.raises(ValueError, match=message):
            call(mask, stacked=True)
    with pytest.raises(ValueError, match=message):
        masks.from_scores(jax.tree.map(lambda leaf: leaf * 1.0, mask), density=0.5, stacked=True)
    with pytest.raises(ValueError, match=r"\['a'\] has shape \(\) and \['a'\] has \(\)"):
        masks.count({"a": jnp.array(True)}, stacked=True)
    with pytest.raises(TypeError, match="must have boolean leaves"):
        masks.density({"a": jnp.ones((3, 2, 4))}, stacked=True)


def test_bad_scores_name_their_seed():
    scores = {"kernel": jnp.ones((3, 4, 2)).at[1, 2, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match=r"Of seed 1: Scores must be finite; those at \['kernel'\]"):
        masks.from_scores(scores, density=0.5, stacked=True)
    within = {"kernel": jnp.ones((3, 4, 2), bool).at[2].set(False)}
    with pytest.raises(ValueError, match=r"Of seed 2: Only 0 weights of \['kernel'\] may be kept, fewer than the 4"):
        masks.from_scores(jax.tree.map(jnp.nan_to_num, scores), density=0.5, within=within, stacked=True)
