"""The kernel taken layer by layer is that of dense Jacobians: any network, any mask, in any form and any chunks."""

from __future__ import annotations

import inspect
import re
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import ntk
from pathjax._interpreter.traced import TracedNetwork
from pathjax._ntk import layerwise
from pathjax._ntk.contractions import Form, Matrices, _of_masked_products, _of_products, _of_rows

from ..networks import build, covering
from ..tolerances import SUMS

unchecked = inspect.unwrap(ntk.empirical)
empirical, empirical_trace, empirical_diagonal = (
    jax.jit(function, static_argnums=0, static_argnames="batch_size")
    for function in (ntk.empirical, ntk.empirical_trace, ntk.empirical_diagonal)
)


def jacobian(apply, params, x, mask=None):
    """The derivative of every output by every kept weight, (n, o, p), at the masked weights."""
    if mask is not None:
        params = jax.tree.map(lambda leaf, keep: jnp.where(keep, leaf, 0), params, mask)
    vector, unravel = ravel_pytree(params)
    rows = np.asarray(jax.jit(jax.jacobian(lambda vector: apply(unravel(vector), x)))(vector))
    return rows if mask is None else rows[:, :, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mask)])]


def oracle(left, right):
    return np.einsum("iap,jbp->ijab", left, right)


def random_mask(params, density=0.4):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape) < density, params)


def assert_close(actual, expected, tolerance=SUMS):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(initial=0), 1e-300))


# Any network


@pytest.mark.parametrize("name", covering())
def test_kernel_of_kept_weights_and_two_batches_equals_that_of_jacobians(name):
    network = build(name)
    mask = random_mask(network.params)
    left = jacobian(network.apply, network.params, network.x, mask)
    kernel = jax.jit(lambda params: ntk.empirical(network.apply, params, network.x, network.x[::-1], mask=mask))
    assert_close(kernel(network.params), oracle(left, left[::-1]))


class Transformer(nn.Module):
    """One block: attention and a gelu layer, each behind a layer norm and beside a shortcut."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + nn.Dense(4)(nn.gelu(nn.Dense(5)(nn.LayerNorm()(x))))
        return nn.Dense(2)(x.mean(axis=1))


class Standardized(nn.Module):
    """A convolution whose weights have mean 0 and length 1, with swish and group norm."""

    @nn.compact
    def __call__(self, x):
        x = nn.WeightNorm(nn.Conv(4, (3,)))(x)
        return nn.Dense(2)(nn.swish(nn.GroupNorm(num_groups=2)(x)).reshape(len(x), -1))


def tied(params, x):
    """The same weights three times, once transposed, and a weight that two uses share with others."""
    w, v = params["w"], params["v"]
    return jnp.tanh(jnp.tanh(x[:, 0] @ w) @ w.T) @ (w * v) + v[:1]


def doubled(params, x):
    """Weights that go through forty steps, each of which uses the last one twice."""
    w = params["w"]
    for _ in range(40):
        w = w + jnp.tanh(w) / 2
    return jnp.sin(x[:, 0] @ w)


def looped(params, x):
    """A scan over layers, under remat, and a loop that reuses one layer."""

    @jax.checkpoint
    def layer(h, w):
        return jnp.tanh(h @ w), None

    h, _ = jax.lax.scan(layer, x[:, 0], jnp.stack([params["w"], params["v"] * params["w"]]))
    return jax.lax.fori_loop(0, 3, lambda _, h: h + jnp.sin(h @ params["w"]), h)


@jax.custom_jvp
def stepped(x, w):
    return jnp.round(x @ w)


stepped.defjvps(lambda t, _, x, w: t @ w, lambda t, _, x, w: 2 * x @ t)


@jax.custom_vjp
def clipped(x, w):
    return x @ w


clipped.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, c: (c @ kept[1].T, kept[0].T @ jnp.clip(c, -0.1, 0.1)))


def ruled(params, x):
    """Functions whose derivative is what they say it is, not what they compute."""
    return clipped(jnp.tanh(stepped(x[:, 0], params["w"])), params["w"] * params["v"])


def reversed_roles(params, x):
    """Data as a convolution's kernel, weights as its image; data on the right of a product; batched products."""

    def filtered(example):
        image, window = params["w"][None, :, :1], example[0, :3, None, None]
        return jax.lax.conv_general_dilated(image, window, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    batched = jnp.einsum("ntk,tkf->ntf", x, params["u"])
    return (params["w"] @ x[:, 0, :, None])[..., 0] + batched.sum(axis=1) + jax.vmap(filtered)(x)[:, 0, :, 0]


def unused(params, x):
    """A leaf that no output needs, one that meets no data, and an output of zeros."""
    outputs = jnp.tanh(x[:, 0] @ params["w"])
    return outputs.at[:, 1].set(0.0) + jnp.exp(params["v"][:1])


SQUARE = {"w": (4, 4), "v": (4, 4), "u": (3, 4, 4)}
FUNCTIONS = (tied, doubled, looped, ruled, reversed_roles, unused)
MODULES = (Transformer, Standardized)


def smooth(which):
    """(apply, params, x) of one of these, three examples of 3 × 4 numbers."""
    draw = np.random.default_rng(1).normal
    x = jnp.asarray(draw(size=(3, 3, 4)))
    if which in FUNCTIONS:
        return which, {name: jnp.asarray(draw(size=shape)) / 2 for name, shape in SQUARE.items()}, x
    network = which()
    params = network.init(jax.random.key(0), x)
    noisy = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.asarray(draw(size=leaf.shape)), params)
    return network.apply, noisy, x


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("which", [*FUNCTIONS, *MODULES], ids=lambda which: which.__name__)
def test_networks_that_are_not_piecewise_linear_have_their_kernel_too(which, masked):
    apply, params, x = smooth(which)
    mask = random_mask(params, 0.7) if masked else None
    kernel = jax.jit(lambda params: ntk.empirical(apply, params, x, mask=mask))(params)
    rows = jacobian(apply, params, x, mask)
    assert np.abs(rows).max() > 0
    assert_close(kernel, oracle(rows, rows))


# Any form, in any chunks


class Convolutions(nn.Module):
    """Layers for which different contractions are the cheapest: many places and few, one, wide and narrow."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(2, (3, 3))(x))
        x = nn.tanh(nn.Conv(40, (2, 2), strides=2)(x))
        return nn.Dense(3)(nn.tanh(nn.Dense(30)(x.reshape(len(x), -1))))


def convolutions(dtype=float):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(5, 4, 4, 2)), dtype)
    network = Convolutions()
    return network.apply, jax.tree.map(lambda leaf: leaf.astype(dtype), network.init(jax.random.key(3), x)), x


FORMS = [{}, {"trace": True}, {"diagonal": True}, {"trace": True, "diagonal": True}]
SUBSCRIPTS = {
    (False, False): "ijab->ijab",
    (True, False): "ijaa->ij",
    (False, True): "iiab->iab",
    (True, True): "iiaa->i",
}


def traces_of_examples(apply, params, x, *, mask=None, batch_size=None):
    """The form that `Operator.trace` sums, (n,)."""
    form = Form(trace=True, diagonal=True)
    return layerwise.kernel(TracedNetwork(apply, params), params, x, None, mask=mask, form=form, batch_size=batch_size)


def function_of(form):
    """What gives the kernel in this form."""
    if form == {"trace": True, "diagonal": True}:
        return traces_of_examples
    return ntk.empirical_trace if "trace" in form else ntk.empirical_diagonal if "diagonal" in form else ntk.empirical


def in_form(kernel, form):
    return np.einsum(SUBSCRIPTS[form.get("trace", False), form.get("diagonal", False)], kernel)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "+".join(form) or "whole")
@pytest.mark.parametrize("mask", ["dense", "known", "traced"])
def test_every_form_is_a_part_of_the_whole_kernel_in_chunks_of_any_size(form, mask):
    apply, params, x = convolutions()
    kept = None if mask == "dense" else random_mask(params, 0.3)
    rows = jacobian(apply, params, x, kept)
    expected = in_form(oracle(rows, rows), form)
    function = function_of(form)
    for batch_size in (None, 2):
        if mask == "traced":
            call = jax.jit(lambda params, kept, c=batch_size: function(apply, params, x, mask=kept, batch_size=c))
            found = call(params, kept)
        else:
            found = jax.jit(lambda params, c=batch_size: function(apply, params, x, mask=kept, batch_size=c))(params)
        assert_close(found, expected)


@pytest.mark.parametrize(("sizes", "trace"), [((5, 3), False), ((2, 5), True), ((1, 4), False)])
def test_two_batches_in_chunks_give_the_same_rectangle(sizes, trace):
    apply, params, x = convolutions()
    x1, x2 = x[: sizes[0]], x[-sizes[1] :] + 1
    expected = in_form(oracle(jacobian(apply, params, x1), jacobian(apply, params, x2)), {"trace": trace})
    for batch_size in (None, 2, 4):
        function = empirical_trace if trace else empirical
        assert_close(function(apply, params, x1, x2, batch_size=batch_size), expected)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_diagonal_of_two_batches_pairs_them_in_order(batch_size):
    apply, params, x = convolutions()
    expected = in_form(oracle(jacobian(apply, params, x), jacobian(apply, params, x[::-1])), {"diagonal": True})
    assert_close(empirical_diagonal(apply, params, x, x[::-1], batch_size=batch_size), expected)


@pytest.mark.parametrize("method", ["jacobian", "products"])
@pytest.mark.parametrize("form", FORMS[1:3], ids=lambda form: "+".join(form))
def test_the_other_methods_give_every_form_too(form, method):
    apply, params, x = smooth(tied)
    rows = jacobian(apply, params, x)
    kernel = jax.jit(lambda params: function_of(form)(apply, params, x, method=method))
    assert_close(kernel(params), in_form(oracle(rows, rows), form))


@pytest.mark.parametrize("batch_size", [None, 1, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=lambda dtype: dtype.__name__)
def test_kernel_is_exactly_symmetric_and_positive_up_to_rounding(dtype, batch_size):
    apply, params, x = convolutions(dtype)
    twice = jnp.concatenate([x, x])  # a kernel without full rank
    matrix = np.asarray(ntk.as_matrix(empirical(apply, params, twice, batch_size=batch_size)))
    assert matrix.dtype == dtype
    np.testing.assert_array_equal(matrix, matrix.T)
    eigenvalues = np.linalg.eigvalsh(matrix.astype(np.float64))
    assert eigenvalues[0] >= -len(matrix) * np.finfo(dtype).eps * eigenvalues[-1]
    traced = np.asarray(empirical_trace(apply, params, twice, batch_size=batch_size))
    np.testing.assert_array_equal(traced, traced.T)


def test_chunks_can_be_vmapped_and_differentiated():
    apply, params, x = convolutions()
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)

    def trace(params, batch_size):
        return jnp.einsum("ii->", ntk.empirical_trace(apply, params, x, batch_size=batch_size))

    slopes = [
        jax.jit(jax.vmap(jax.grad(lambda params, c=batch_size: trace(params, c))))(both) for batch_size in (None, 2)
    ]
    for whole, chunked in zip(*map(jax.tree.leaves, slopes), strict=True):
        assert_close(chunked, whole)


def test_what_is_pruned_is_not_formed():
    def flops(density):
        mask = jax.tree.map(lambda leaf: leaf & (leaf.ndim > 1), random_mask(params, density))
        compiled = jax.jit(lambda params: ntk.empirical(apply, params, x, mask=mask)).lower(params).compile()
        return cast(Any, compiled.cost_analysis())["flops"]

    apply, params, x = convolutions()
    assert flops(0.01) < flops(0.1) < flops(0.5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 6, 7])
def test_every_number_of_chunks_gives_the_same_kernel(batch_size):
    apply, params, _ = smooth(tied)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(6, 3, 4)))
    rows = jacobian(apply, params, x)
    assert_close(empirical(apply, params, x, batch_size=batch_size), oracle(rows, rows))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "+".join(form) or "whole")
def test_contractions_of_a_layer_agree_whichever_is_the_cheapest(form):
    rng = np.random.default_rng(5)
    kept = rng.random((2, 7, 4)) < 0.4

    def layer(places, kept):
        draw = jnp.asarray(rng.normal(size=5 * 2 * places * (7 + 3 * 4)))
        activations, cotangents = jnp.split(draw, [5 * 2 * places * 7])
        shapes = (5, 2, places, 7), (5, 3, 2, places, 4)
        return Matrices(activations.reshape(shapes[0]), cotangents.reshape(shapes[1]), kept)

    cases = [(_of_products, [layer(1, None), layer(1, None)]), (_of_products, [layer(3, None), layer(3, None)])]
    cases += [(_of_masked_products, [layer(1, kept), layer(1, kept)])]
    for contraction, (left, right) in cases:
        for other in (left, right):
            expected = _of_rows(left, other, Form(**form))
            assert_close(contraction(left, other, Form(**form)), expected)


def test_convolutions_in_chunks_have_their_channels_last():
    apply, params, x = convolutions()
    program = str(jax.make_jaxpr(lambda params: ntk.empirical(apply, params, x, batch_size=2))(params))
    orders = set(re.findall(r"lhs_spec=.*?out_spec=\([^)]*\)", program))
    assert orders == {"lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2)"}


# Bad input


def test_examples_that_cannot_be_paired_are_refused():
    apply, params, x = smooth(tied)
    with pytest.raises(ValueError, match="meets the one of `x2` in its place, but there are 3 and 2"):
        inspect.unwrap(ntk.empirical_diagonal)(apply, params, x, x[:2])


def test_chunks_of_no_examples_and_of_other_methods_are_refused():
    apply, params, x = smooth(tied)
    with pytest.raises(ValueError, match="`batch_size` is 0.*Pass 1 or more"):
        unchecked(apply, params, x, batch_size=0)
    with pytest.raises(ValueError, match="method 'jacobian' has no chunks.*Leave it or the method out"):
        unchecked(apply, params, x, batch_size=2, method="jacobian")
