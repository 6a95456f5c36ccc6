"""FORCE held to its formula: the gradient at the masked weights, times the weights as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import masks, scores

from ..tolerances import EXACT
from .test_saliencies import apply, assert_trees_close, backpropagated, network


def random_mask(params, share=0.5):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) < share), params)


def force(params, x, y, mask):
    return scores.force(apply, params, [(x[:4], y[:4]), (x[4:], y[4:])], mask=mask)


def test_force_is_the_weights_times_the_gradient_at_the_masked_weights():
    params, x, y = network()
    mask = random_mask(params)
    masked = jax.tree.map(lambda kept, leaf: np.where(kept, leaf, 0), mask, params)
    slopes = backpropagated(masked, x, y)
    expected = {name: np.abs(np.asarray(params[name]) * slopes[name]) for name in params}
    assert any((expected[name] > 0)[~np.asarray(mask[name])].any() for name in params)
    assert_trees_close(force(params, x, y, mask), expected, EXACT)
    assert_trees_close(jax.jit(force)(params, x, y, mask), expected, EXACT)


def test_force_under_a_full_mask_is_snip():
    params, x, y = network()
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    assert_trees_close(force(params, x, y, everything), scores.snip(apply, params, [(x, y)]), EXACT)


def test_values_of_pruned_weights_do_not_reach_the_gradient():
    params, x, y = network()
    mask = random_mask(params)
    larger = jax.tree.map(lambda kept, leaf: jnp.where(kept, leaf, 10 * leaf), mask, params)
    scaled = jax.tree.map(lambda kept, score: jnp.where(kept, score, 10 * score), mask, force(params, x, y, mask))
    assert_trees_close(force(larger, x, y, mask), scaled, EXACT)


def test_state_and_prunable_are_those_of_snip():
    params, x, y = network()
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)

    def scaled(params, state, x):
        return apply(params, x * state)

    found = scores.force(scaled, params, [(x, y)], mask=everything, state=2.0, prunable=masks.is_kernel)
    assert_trees_close(found, scores.snip(apply, params, [(2.0 * x, y)], prunable=masks.is_kernel), EXACT)
    assert not found["bias"].any()


def test_masks_of_another_tree_and_empty_data_are_refused():
    params, x, y = network()
    mask = random_mask(params)
    with pytest.raises(ValueError, match=r"`mask` has no leaf at \['bias'\]"):
        force(params, x, y, {name: mask[name] for name in ("first", "second")})
    with pytest.raises(TypeError, match="`mask` must have boolean leaves"):
        force(params, x, y, params)
    with pytest.raises(ValueError, match="`batches` has no examples"):
        scores.force(apply, params, iter(()), mask=mask)
