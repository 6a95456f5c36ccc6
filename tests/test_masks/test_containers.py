"""Masks, weights and files are matched by the names of their leaves, whatever the containers are."""

from collections import OrderedDict
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, freeze

from pathjax import connectivity, factorization, masks, ntk, path_kernel, paths, pruning, scores
from pathjax._base.trees import check_like, plain_paths

from ..tolerances import EXACT


class Dense(NamedTuple):
    bias: Any
    kernel: Any


class Layer(eqx.Module):
    kernel: Any
    bias: Any


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])


MODEL = Net(nnx.Rngs(0))
STATE = nnx.state(MODEL, nnx.Param)
DENSE = jax.random.normal(jax.random.key(0), (3, 4))
WEIGHTS = {"bias": jnp.ones(4), "kernel": DENSE}

# trees of the same names, which differ in their containers alone
SAME: dict[str, list[Any]] = {
    "dicts": [
        {"one": WEIGHTS},
        freeze({"one": WEIGHTS}),
        {"one": freeze(WEIGHTS)},
        OrderedDict(one=OrderedDict(kernel=DENSE, bias=jnp.ones(4))),  # its leaves are in another order
        {"one": Dense(**WEIGHTS)},
        {"one": Layer(**WEIGHTS)},  # in another order
        {"one": {name: nn.Partitioned(leaf, names=(None,) * leaf.ndim) for name, leaf in WEIGHTS.items()}},
    ],
    "lists": [[(DENSE, jnp.ones(4))], ([DENSE, jnp.ones(4)],), {0: {1: jnp.ones(4), 0: DENSE}}],
    "nnx": [MODEL, STATE, nnx.as_pure(STATE), nnx.to_pure_dict(STATE)],
    "bare": [DENSE, nnx.Param(DENSE)],
    "attributes called value": [
        {"a": Dense(1.0, 2.0), "value": jnp.ones(3)},
        OrderedDict(value=jnp.ones(3), a={"kernel": 2.0, "bias": 1.0}),
    ],
}
PAIRS = [(name, i, j) for name, trees in SAME.items() for i in range(len(trees)) for j in range(len(trees))]


def structure(tree):
    return jax.tree.structure(tree)


@pytest.mark.parametrize(("name", "left", "right"), PAIRS)
def test_a_mask_comes_back_in_the_containers_of_the_weights(name, left, right):
    one, other = SAME[name][left], SAME[name][right]
    mask = jax.tree.map(lambda leaf: jnp.asarray(leaf) > 0.3, one)
    masked = masks.apply_mask(mask, other)
    assert structure(masked) == structure(other)
    for leaf, pruned in zip(jax.tree.leaves(other), jax.tree.leaves(masked), strict=True):
        np.testing.assert_array_equal(pruned, jnp.where(jnp.asarray(leaf) > 0.3, leaf, 0))
    assert sorted(map(str, plain_paths(one))) == sorted(map(str, plain_paths(other)))


@pytest.mark.parametrize(("name", "left", "right"), PAIRS)
def test_a_file_is_loaded_into_other_containers(name, left, right, tmp_path):
    one, other = SAME[name][left], SAME[name][right]
    masks.save(tmp_path / "mask.npz", jax.tree.map(lambda leaf: jnp.asarray(leaf) > 0.3, one))
    loaded = masks.load(tmp_path / "mask.npz", other)
    assert structure(loaded) == structure(other)
    for leaf, kept in zip(jax.tree.leaves(other), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(kept, jnp.asarray(leaf) > 0.3)


def test_masks_are_compared_across_containers():
    left, right = ({"a": jnp.arange(6).reshape(2, 3) < kept, "c": jnp.ones((2, 3), bool)} for kept in (3, 4))
    turned = OrderedDict(c=right["c"], a=right["a"])
    jax.tree.map(np.testing.assert_array_equal, masks.overlap(left, turned), masks.overlap(left, right))
    mask = masks.from_scores(jax.tree.map(lambda leaf: leaf * 1.0, left), density=0.25, within=turned)
    assert int(masks.count(mask)) == 3


def apply(params, x):
    return jax.nn.relu(x @ params["a"] + params["bias"][None]) @ params["c"]


def problem():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"bias": jnp.ones(4), "a": jax.random.normal(keys[0], (3, 4)), "c": jax.random.normal(keys[1], (4, 2))}
    mask = masks.from_scores(scores.random(params, key=keys[2]), density=0.7)
    # a mask of the same names whose leaves are in another order
    turned: Any = OrderedDict(bias=mask["bias"], c=mask["c"], a=mask["a"])
    return params, mask, turned


READERS = {
    "path norm": lambda params, x, mask: paths.log_path_norm(apply, params, x, mask=mask),
    "data gram": lambda params, x, mask: paths.log_data_gram(apply, params, x, mask=mask).log_abs,
    "path kernel": lambda params, x, mask: path_kernel.path_kernel(apply, params, x, mask=mask).trace(),
    "factors": lambda params, x, mask: (
        factorization.factorize(apply, params, x, rank=2, key=jax.random.key(0), mask=mask).eigenvalues
    ),
    "layers": lambda params, x, mask: factorization.layer_kernels(apply, params, x, mask=mask),
    "layerwise": lambda params, x, mask: ntk.empirical(apply, params, x, mask=mask),
    "jacobian": lambda params, x, mask: ntk.empirical(apply, params, x, mask=mask, method="jacobian"),
    "operator": lambda params, x, mask: ntk.operator(apply, params, x, mask=mask).trace(),
    "live": lambda params, x, mask: connectivity.effective_mask(apply, params, x, mask=mask),
    "force": lambda params, x, mask: scores.force(apply, params, [(x, jnp.array([0, 1, 1, 0, 1]))], mask=mask),
}


@pytest.mark.parametrize("name", READERS)
def test_every_function_takes_a_mask_in_other_containers(name):
    params, mask, turned = problem()
    x = jax.random.normal(jax.random.key(7), (5, 3))
    expected = READERS[name](params, x, mask)
    got = READERS[name](params, x, turned)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=EXACT), got, expected)


def test_a_score_may_come_in_other_containers():
    params, _, _ = problem()
    magnitude = lambda params, key: jax.tree.map(jnp.abs, params)  # noqa: E731
    turned: Any = lambda params, key: FrozenDict(magnitude(params, key))  # noqa: E731
    expected, got = (pruning.prune(score, params, density=0.4, rounds=3) for score in (magnitude, turned))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


# errors

DIFFERENT = [
    (freeze({"a": {"c": DENSE}}), {"a": {"d": DENSE}}, r"`mask` has no leaf at \['a'\]\['d'\]"),
    ({"a": DENSE, "c": DENSE}, freeze({"a": DENSE}), r"`params` has no leaf at \['c'\]"),
    (STATE, {"layers": [WEIGHTS]}, r"`params` has no leaf at \['layers'\]\[1\]\['bias'\]\.value"),
    (STATE, {"layers": [WEIGHTS, WEIGHTS, WEIGHTS]}, r"`mask` has no leaf at \['layers'\]\[2\]\['bias'\]"),
    ([DENSE, DENSE], [DENSE], r"`params` has no leaf at \[1\]"),
    (DENSE, {"a": DENSE}, r"`mask` has no leaf at \['a'\]"),
    ({"a": DENSE}, DENSE, r"`mask` has no leaf at the top"),
    ({"a": DENSE}, {}, r"`params` has no leaf at \['a'\]"),
    ({}, {"a": DENSE}, r"`mask` has no leaf at \['a'\]"),
    (OrderedDict(c=DENSE, a=DENSE), {"a": DENSE, "c": DENSE.T}, r"`mask` at \['c'\] has shape \(3, 4\)"),
]


@pytest.mark.parametrize(("mask", "params", "message"), DIFFERENT)
def test_the_first_difference_is_named_and_no_tree_is_printed(mask, params, message):
    with pytest.raises(ValueError, match=message) as caught:
        masks.apply_mask(jax.tree.map(lambda leaf: leaf > 0, mask), params)
    assert "PyTreeDef" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_leaf_that_is_left_out_must_be_left_out_by_name():
    class Hole(NamedTuple):
        pass

    whole = {"a": {"kernel": DENSE, "bias": jnp.ones(4)}, "c": DENSE}
    part = {"a": Hole(), "c": DENSE}
    assert structure(check_like(whole, part, name="mask", left_out=Hole)) == structure(part)
    for other in (part | {"a": {"kernel": Hole()}}, {"a": Hole()}):
        with pytest.raises(ValueError, match="`params` has no leaf at"):
            check_like(whole, other, name="mask", left_out=Hole)
    with pytest.raises(ValueError, match=r"`params` has no leaf at \['a'\]"):
        check_like(whole, part, name="mask")


def test_kernels_of_weights_in_other_containers_are_not_compared():
    params, _, _ = problem()
    x = jnp.ones((5, 3))
    kernels = [path_kernel.path_kernel(apply, weights, x) for weights in (params, freeze(params))]
    with pytest.raises(ValueError, match="in containers of different types"):
        path_kernel.cosine(*kernels, key=jax.random.key(0))


def test_swapped_arguments_are_told():
    params, mask, _ = problem()
    for swapped in ((params, mask), (params, None)):
        with pytest.raises(TypeError, match=r"swapped: the mask comes first. Write masks.apply_mask\(mask, params\)"):
            masks.apply_mask(*swapped)
