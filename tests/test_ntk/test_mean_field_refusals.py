"""What expected kernels accept and refuse, with the words of each error."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import ntk
from pathjax._interpreter.jaxpr import UnsupportedPrimitive

from .. import networks

relu = jax.nn.relu
unchecked = inspect.unwrap(ntk.mean_field)
SQUARE, OUT = (4, 4), (4, 2)

CORRELATED = "functions of the same weights, so that they are correlated"
TWICE = "used twice on one path"
BY_OTHERS = "gated by others than itself"


def gelu(p, x):
    return jax.nn.gelu(x @ p["a"]) @ p["out"]


def maximum_of_units(p, x):
    h = x @ p["a"]
    return jnp.maximum(h, h[:, ::-1]) @ p["out"]


def gated_by_others(p, x):
    h = x @ p["a"]
    return jnp.where(h > 0, h @ p["b"], 0) @ p["out"]


def used_twice(p, x):
    return relu(relu(x @ p["a"]) @ p["a"]) @ p["out"]


def used_twice_in_a_loop(p, x):
    return jax.lax.scan(lambda h, _: (relu(h @ p["a"]), None), x, length=2)[0] @ p["out"]


def overlapping_slices_used_twice(p, x):
    return relu(x @ p["a"][:, :3]) @ p["a"][:3] @ p["out"]


def flipped_and_added(p, x):
    h = x @ p["a"]
    return relu(h + h[:, ::-1]) @ p["out"]


def shared_by_branches(p, x):
    return relu(x @ p["a"] + jnp.abs(x) @ p["a"]) @ p["out"]


def shared_behind_gates(p, x):
    return relu(x @ p["a"]) @ p["out"] + relu(x @ p["b"]) @ p["out"]


def centered_units(p, x):
    h = relu(x @ p["a"])
    return (h - h.mean(1, keepdims=True)) @ p["out"]


def gated_twice(p, x):
    return relu(relu(x @ p["a"]).reshape(-1, 2, 2).mean(2)) @ p["out"][:2]


def one_weight_in_several_places(p, x):
    return relu(x @ p["a"][jnp.array([0, 0, 1, 2])]) @ p["out"]


def gate_on_weights(p, x):
    return x @ relu(p["a"]) @ p["out"]


def constant_added_to_weights(p, x):
    return x @ (p["a"] + 1.0) @ p["out"]


REFUSED = [
    (gelu, "not piecewise linear|erf|tanh|logistic"),
    (maximum_of_units, BY_OTHERS),
    (gated_by_others, BY_OTHERS),
    (used_twice, TWICE),
    (used_twice_in_a_loop, TWICE),
    (overlapping_slices_used_twice, TWICE),
    (flipped_and_added, CORRELATED),
    (shared_by_branches, CORRELATED),
    (shared_behind_gates, CORRELATED),
    (centered_units, CORRELATED),
    (gated_twice, "A gate follows another one with no weights between them"),
    (one_weight_in_several_places, "one weight to several places|computed from parameters alone"),
    (gate_on_weights, "computed from parameters alone|A gate on weights"),
    (constant_added_to_weights, "whose mean is then not 0|computed from parameters alone"),
]


def weights(*names):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=OUT if name == "out" else SQUARE)) for name in names}


@pytest.mark.parametrize(("apply", "words"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_networks_without_closed_form_are_refused_with_the_reason_and_the_line(apply, words):
    with pytest.raises(UnsupportedPrimitive, match=words) as error:
        unchecked(apply, weights("a", "b", "out"), jnp.ones((2, 4)))
    assert "test_mean_field_refusals.py" in str(error.value)
    if words in (CORRELATED, TWICE, BY_OTHERS):  # paths are defined there
        assert str(error.value).startswith("No expectation in closed form for `")
        assert str(error.value).endswith("`ntk.sign_average`.")


@pytest.mark.parametrize("name", ["max_pool", "global_max_pool", "maxout"])
def test_pooling_by_maxima_is_refused_and_sampling_is_named(name):
    network = networks.build(name)
    with pytest.raises(UnsupportedPrimitive, match=f"{BY_OTHERS}.*sign_average"):
        unchecked(network.apply, network.params, network.x)


# What must not be refused


def disjoint_slices(p, x):
    w = 2 * p["a"]
    return (relu(x @ w[:, :2]) @ p["out"][:2] - relu(x @ w[:, 2:]) @ p["out"][2:]) / 3


def sum_behind_gates(p, x):
    return (relu(x @ p["a"]) + relu(x @ p["b"])) @ p["out"]


def shortcut_behind_a_gate(p, x):
    h = relu(x @ p["a"])
    return relu(h + (h @ p["b"] - 0.3)) @ p["out"]


def one_head_of_linear_branches(p, x):
    return x @ p["a"] @ p["out"] + x @ p["b"] @ p["out"]


def scaled_inputs(p, x):
    return relu((x - 0.4) / 1.7 @ p["a"]) @ p["out"]


def cumulative_weights(p, x):
    return relu(x @ jnp.cumsum(p["a"], axis=0)) @ p["out"]


def rolled(p, x):
    return relu(jnp.roll(x @ p["a"], 1, axis=1)) @ p["out"]


def by_einsum(p, x):
    return relu(jnp.einsum("ni,ij->nj", x, p["a"])) @ p["out"]


def bias_by_one_hot(p, x):
    return relu(jnp.concatenate([x[:, :3], jnp.ones((len(x), 1))], axis=1) @ p["a"]) @ p["out"]


def by_hand(p, x):
    return relu((x[:, :, None] * p["a"][None]).sum(1)) @ p["out"]


ACCEPTED = [
    disjoint_slices, sum_behind_gates, shortcut_behind_a_gate, one_head_of_linear_branches, scaled_inputs,
    cumulative_weights, rolled, by_einsum, bias_by_one_hot, by_hand,
]  # fmt: skip


@pytest.mark.parametrize("apply", ACCEPTED, ids=lambda apply: apply.__name__)
def test_networks_with_independent_terms_are_accepted(apply):
    kernels = jax.eval_shape(lambda x: unchecked(apply, weights("a", "b", "out"), x), jnp.ones((2, 4)))
    assert kernels.ntk.shape == (2, 2, 2)


# Bad input


def plain(p, x):
    return relu(x @ p["a"]) @ p["out"]


X = jnp.ones((3, 4))


def test_second_moments_of_another_tree_or_shape_are_refused():
    params = weights("a", "out")
    with pytest.raises(ValueError, match=r"must be a tree like `params`.*differ at \['b'\]"):
        unchecked(plain, params, X, second_moments={**params, "b": 1.0})
    with pytest.raises(ValueError, match=r"`second_moments` at \['a'\] has shape \(2, 4\).*\(4, 4\)"):
        unchecked(plain, params, X, second_moments={"a": jnp.ones((2, 4)), "out": 1.0})


@pytest.mark.parametrize("number", [-1.0, jnp.nan, jnp.inf])
def test_second_moments_that_are_no_means_of_squares_are_refused(number):
    with pytest.raises(ValueError, match=r"`second_moments` at \['out'\] has an entry that is negative, NaN or infin"):
        unchecked(plain, weights("a", "out"), X, second_moments={"a": 1.0, "out": number})


def test_inputs_and_masks_and_words_are_checked():
    params = weights("a", "out")
    with pytest.raises(ValueError, match="`x1` holds"):
        unchecked(plain, params, X.at[1, 2].set(jnp.inf))
    with pytest.raises(ValueError, match="`x2` holds"):
        unchecked(plain, params, X, X.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="mask"):
        unchecked(plain, params, X, mask={"a": jnp.ones(SQUARE, bool)})
    with pytest.raises(ValueError, match="`which` is 'ntk', but must be 'both' or 'nngp'"):
        unchecked(plain, params, X, which="ntk")
    with pytest.raises(ValueError, match="`samples` is 1, but a standard error needs at least 2"):
        inspect.unwrap(ntk.sign_average)(plain, params, X, key=jax.random.key(0), samples=1)
    with pytest.raises(ValueError, match="There is no initialization 'xavier'. Choose one of 'lecun'"):
        ntk.second_moments(params, "xavier")
    with pytest.raises(ValueError, match="are means of squares"):
        ntk.second_moments(params, "he", bias=-1.0)
