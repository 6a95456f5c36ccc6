"""Live weights, collapsed layers and dead shortcuts, held to listed paths."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import connectivity, masks, paths

from .. import networks, oracles
from ..tolerances import EXACT

NAMES = [
    "biased_mlp",
    "residual_dense",
    "residual_convs",
    "batch_norm_dense",
    "conv_groups",
    "max_pool",
    "tied_square",
    "constant_mask",
    "recurrent_scan",
    "dense_concatenation",
]


def everything(key_path: Any, leaf: Any) -> bool:
    return True


def as_mask(network: networks.Network, kept: np.ndarray) -> Any:
    vector, unravel = ravel_pytree(network.params)
    return jax.tree.map(lambda leaf: leaf > 0, unravel(jnp.asarray(kept, vector.dtype)))


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(bool)


def on_paths(listed: list[oracles.Path], kept: np.ndarray, *, from_inputs: bool) -> np.ndarray:
    """The weights on listed paths whose weights are all kept."""
    live = np.zeros(len(kept), bool)
    for path in listed:
        if path.coefficient and all(kept[list(path.weights)]) and (path.source != oracles.ONE or not from_inputs):
            live[list(path.weights)] = True
    return live


def expected_live(listed: list[oracles.Path], kept: np.ndarray) -> np.ndarray:
    """Weights on paths from inputs, and biases from which a path goes on through such weights."""
    live = on_paths(listed, kept, from_inputs=True)
    of_inputs = on_paths(listed, np.ones_like(kept), from_inputs=True)
    return on_paths(listed, live | (kept & ~of_inputs), from_inputs=False)


@pytest.mark.parametrize("name", NAMES)
def test_live_weights_are_those_on_listed_paths(name: str) -> None:
    network, listed = networks.build(name), networks.listed(name)
    live_of = jax.jit(
        lambda mask: connectivity.effective_mask(
            network.apply, network.params, network.x, mask=mask, prunable=everything
        )
    )
    some_dead = False
    for seed, density in ((0, 0.7), (1, 0.4), (2, 0.25)):
        kept = np.random.default_rng(seed).random(len(network.theta)) < density
        found = flat(live_of(as_mask(network, kept)))
        np.testing.assert_array_equal(found, expected_live(listed, kept))
        some_dead |= bool((found != kept).any())
    assert some_dead
    np.testing.assert_array_equal(
        flat(live_of(as_mask(network, np.ones(len(network.theta), bool)))),
        expected_live(listed, np.ones(len(network.theta), bool)),
    )


@pytest.mark.parametrize("name", ["biased_mlp", "batch_norm_dense"])
def test_with_biases_every_path_counts(name: str) -> None:
    network, listed = networks.build(name), networks.listed(name)
    kept = np.random.default_rng(3).random(len(network.theta)) < 0.5
    found = connectivity.effective_mask(
        network.apply, network.params, network.x, mask=as_mask(network, kept), biases=True, prunable=everything
    )
    np.testing.assert_array_equal(flat(found), on_paths(listed, kept, from_inputs=False))


def mlp(params: Any, x: Any) -> Any:
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias[None])
    return x @ params[-1][0] + params[-1][1][None]


def deep(depth: int, width: int = 20) -> Any:
    keys = jax.random.split(jax.random.key(0), depth + 1)
    widths = [5, *[width] * depth, 3]
    return [
        (jax.random.normal(key, (i, o)), jnp.zeros(o)) for key, i, o in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def test_outputs_stay_when_dead_weights_go() -> None:
    params = deep(3)
    mask = jax.tree.map(
        lambda leaf: jax.random.bernoulli(jax.random.key(leaf.size), 0.08, leaf.shape) | (leaf.ndim < 2), params
    )
    x = jax.random.normal(jax.random.key(1), (7, 5))
    live = connectivity.effective_mask(mlp, params, x, mask=mask)
    before, after = (mlp(masks.apply_mask(each, params), x) for each in (mask, live))
    np.testing.assert_allclose(after, before, rtol=EXACT)
    assert int(masks.count(live)) < int(masks.count(mask))
    assert all(bool(bias.all()) for _, bias in live)  # not prunable
    again = connectivity.effective_mask(mlp, params, x, mask=live)
    jax.tree.map(np.testing.assert_array_equal, again, live)
    before, after = (paths.log_path_count(mlp, params, x, mask=each) for each in (mask, live))
    assert before > after  # those from biases of dead units are gone


def test_a_single_thread_is_followed_through_any_depth() -> None:
    """One unit in each of 60 layers lies on a path, beside 10^76 times as many paths that count more."""
    params = deep(60)
    mask = [(jnp.ones(kernel.shape, bool), jnp.ones(bias.shape, bool)) for kernel, bias in params]
    lone = jnp.zeros((20, 20), bool).at[0, 0].set(True).at[1:, 1:].set(True)
    mask = [(lone if kernel.shape == (20, 20) else kernel, bias) for kernel, bias in mask]
    live = connectivity.effective_mask(mlp, params, jnp.zeros((1, 5)), mask=mask)
    jax.tree.map(np.testing.assert_array_equal, live, mask)
    cut = [*mask[:-1], (mask[-1][0].at[0].set(False), mask[-1][1])]
    live = connectivity.effective_mask(mlp, params, jnp.zeros((1, 5)), mask=cut)
    assert not any(bool(kernel[0, 0]) for kernel, _ in live[1:-1])
    assert all(bool(kernel[1:, 1:].all()) for kernel, _ in live[1:-1])


class Residual(nn.Module):
    """Two blocks, the second with a projection."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        h = nn.relu(nn.Conv(4, (3, 3), name="a1")(nn.relu(x)))
        x = nn.relu(nn.Conv(4, (3, 3), name="a2")(h) + x)
        h = nn.relu(nn.Conv(6, (3, 3), (2, 2), name="b1")(x))
        x = nn.relu(nn.Conv(6, (3, 3), name="b2")(h) + nn.Conv(6, (1, 1), (2, 2), name="projection")(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


def without(params: Any, *names: str) -> Any:
    return {
        "params": {
            layer: {kind: jnp.full(leaf.shape, kind == "bias" or layer not in names) for kind, leaf in leaves.items()}
            for layer, leaves in params["params"].items()
        }
    }


def test_collapsed_layers_and_dead_shortcuts_are_told_apart() -> None:
    module, x = Residual(), jnp.zeros((1, 8, 8, 2))
    params = module.init(jax.random.key(0), x)

    def named(*names: str) -> tuple[str, ...]:
        return tuple(f"['params']['{name}']['kernel']" for name in names)

    whole = connectivity.connectivity(module.apply, params, x)
    assert whole.collapsed == () and whole.dead_shortcuts == ()
    assert whole.density == whole.effective_density == 1.0
    assert whole.units == 4 + 4 + 4 + 6 + 6 + 6 + 3

    shortcut = connectivity.connectivity(module.apply, params, x, mask=without(params, "projection"))
    assert shortcut.collapsed == shortcut.dead_shortcuts == named("projection")
    assert np.isfinite(shortcut.log_paths) and shortcut.log_paths < whole.log_paths

    # of a branch that is cut in one place, the rest is dead too, though its weights are kept
    branch = connectivity.connectivity(module.apply, params, x, mask=without(params, "a2"))
    assert branch.collapsed == named("a1", "a2") and branch.dead_shortcuts == ()
    assert {layer.path: layer.kept for layer in branch.layers}[named("a1")[0]] == 3 * 3 * 4 * 4
    assert branch.effective_density < branch.density < 1

    cut = connectivity.connectivity(module.apply, params, x, mask=without(params, "stem"))
    assert cut.log_paths == -np.inf and cut.parameters == cut.units == 0
    assert set(cut.collapsed) == {layer.path for layer in cut.layers}
    assert cut.dead_shortcuts == named("projection")


def test_of_branches_of_one_length_none_is_a_shortcut() -> None:
    def apply(params: Any, x: Any) -> Any:
        return jax.nn.relu(x @ params["a"]) @ params["b"] + jax.nn.relu(x @ params["c"]) @ params["d"]

    params = {name: jnp.ones((3, 3)) for name in "abcd"}
    mask = {name: jnp.full((3, 3), name != "a") for name in "abcd"}
    found = connectivity.connectivity(apply, params, jnp.ones((1, 3)), mask=mask)
    assert found.collapsed == ("['a']", "['b']") and found.dead_shortcuts == ()


@pytest.mark.parametrize("name", ["biased_mlp", "residual_convs", "batch_norm_dense"])
def test_paths_are_counted_from_inputs_alone(name: str) -> None:
    network, listed = networks.build(name), networks.listed(name)
    kept = np.random.default_rng(5).random(len(network.theta)) < 0.8
    found = connectivity.connectivity(network.apply, network.params, network.x, mask=as_mask(network, kept))
    alive = [
        path for path, keep in zip(listed, oracles.is_kept(listed, kept), strict=True) if keep and path.coefficient
    ]
    count = sum(path.source != oracles.ONE for path in alive)
    assert 0 < count < len(alive) or name == "residual_convs"
    np.testing.assert_allclose(found.log_paths, np.log(count), rtol=EXACT)


def test_state_is_handed_to_the_network() -> None:
    params, x = {"kernel": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}, jnp.zeros((1, 3))

    def apply(params: Any, state: Any, x: Any) -> Any:
        return jax.nn.relu(x @ params["kernel"] * state[None]) @ params["out"]

    live = connectivity.effective_mask(apply, params, x, state=jnp.array([1.0, 0.0, 2.0, 0.0]))
    assert live["kernel"].all(axis=0).tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="`mask` has no leaf at"):
        connectivity.effective_mask(apply, params, x, mask={"kernel": params["kernel"] > 0}, state=jnp.ones(4))


# Leaves without weights


@pytest.mark.parametrize("shape", [(4, 0), (0,), (0, 4), (3, 0, 2)])
def test_a_leaf_without_weights_is_no_fault(shape: tuple[int, ...]) -> None:
    def apply(params: Any, x: Any) -> Any:
        return jax.nn.relu(x @ params["first"]) @ params["second"]

    params = {"first": jnp.ones((3, 4)), "second": jnp.ones((4, 2))}
    mask = {"first": jnp.ones((3, 4), bool).at[:, 0].set(False), "second": jnp.ones((4, 2), bool).at[1].set(False)}
    empty = {"unused": jnp.zeros(shape)}
    x = jnp.ones((5, 3))
    for prunable in (None, everything):
        given: Any = {"prunable": prunable}
        whole = connectivity.connectivity(apply, params, x, mask=mask, **given)
        more = connectivity.connectivity(
            apply, params | empty, x, mask=mask | {"unused": jnp.ones(shape, bool)}, **given
        )
        own = [layer for layer in more.layers if layer.path == "['unused']"]
        assert more._replace(layers=tuple(layer for layer in more.layers if layer not in own)) == whole
        assert [(layer.size, layer.kept, layer.live, layer.live_units) for layer in own] == [(0, 0, 0, 0)] * len(own)
        assert (len(own) == 1) == (prunable is everything)
        for biases in (False, True):
            live = connectivity.effective_mask(
                apply, params | empty, x, mask=mask | {"unused": jnp.ones(shape, bool)}, biases=biases, **given
            )
            expected = connectivity.effective_mask(apply, params, x, mask=mask, biases=biases, **given)
            assert live.pop("unused").shape == shape
            jax.tree.map(np.testing.assert_array_equal, live, expected)


def test_an_empty_leaf_that_the_network_reads_changes_nothing() -> None:
    """A layer of no units beside another one."""

    def apply(params: Any, x: Any) -> Any:
        return jax.nn.relu(x @ params["in"]) @ params["out"] + jax.nn.relu(x @ params["none in"]) @ params["none out"]

    params = {
        "in": jnp.ones((3, 4)),
        "out": jnp.ones((4, 2)),
        "none in": jnp.ones((3, 0)),
        "none out": jnp.ones((0, 2)),
    }
    report = connectivity.connectivity(apply, params, jnp.ones((5, 3)))
    assert report.collapsed == () and report.parameters == 20 and report.density == report.effective_density == 1.0
    np.testing.assert_allclose(report.log_paths, np.log(24), rtol=EXACT)
