"""Kernels of networks that read tokens or trees of arrays, or have outputs of several axes, and of no examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import ntk

from ..tolerances import EXACT
from .test_empirical import assert_close, random_mask

KEY = jax.random.key(0)
MESH = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
FUNCTIONS = {"empirical": ntk.empirical, "trace": ntk.empirical_trace, "diagonal": ntk.empirical_diagonal}


class Case(NamedTuple):
    apply: Callable[[Any, Any], Any]
    params: Any
    x: Any


def doubled(params: Any) -> Any:
    """The parameters in double precision, drawn anew so that none is zero."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in leaves])


def linen(module: nn.Module, x: Any) -> Case:
    params = doubled(jax.eval_shape(module.init, KEY, x)["params"])
    return Case(lambda params, x: module.apply({"params": params}, x), params, x)


class Tokens(nn.Module):
    """Logits at every token, (n, t, o), or with `pools` of the whole text, (n, o)."""

    pools: bool = False

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 3, param_dtype=float)
        h = jnp.tanh(nn.Dense(4, param_dtype=float)(embed(tokens) + self.param("at", nn.initializers.ones, (1, 5, 3))))
        h = nn.Dense(3, param_dtype=float)(h)
        return h.mean(1) if self.pools else embed.attend(h)[..., :2]


class Segmentation(nn.Module):
    """A class map, (n, h, w, o)."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (1, 1), param_dtype=float)(nn.relu(nn.Conv(3, (2, 2), param_dtype=float)(x)))


def of_trees(params: Any, x: Any) -> Any:
    """Reads an embedding by integers, floats, and a mask of the positions."""
    text = jnp.where(x["mask"][:, :, None], params["table"][x["tokens"]], 0).sum(1)
    return jnp.tanh(jnp.concatenate([text, x["numbers"]], axis=1) @ params["hidden"]) @ params["out"]


def of_pairs(params: Any, x: Any) -> Any:
    left, right = x
    return jnp.tanh(left @ params["left"]) * (right @ params["right"])


def cases() -> dict[str, Case]:
    rng = np.random.default_rng(1)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    tokens = jnp.asarray(rng.integers(0, 7, (4, 5)))
    tree = {"tokens": tokens, "numbers": normal(4, 2), "mask": jnp.asarray(rng.random((4, 5)) < 0.7)}
    shapes = {"hidden": normal(5, 4), "out": normal(4, 2), "table": normal(7, 3)}
    pair = {"left": normal(3, 2), "right": normal(2, 2)}
    return {
        "tokens": linen(Tokens(), tokens),
        "texts": linen(Tokens(pools=True), tokens.astype(jnp.uint8)),
        "maps": linen(Segmentation(), normal(4, 3, 2, 2)),
        "dictionary": Case(of_trees, shapes, tree),
        "tuple": Case(of_pairs, pair, (normal(4, 3), normal(4, 2))),
        "constant": Case(
            lambda b, x: jnp.broadcast_to(b["bias"] ** 2, (len(x), 2)), {"bias": normal(1, 2)}, normal(4, 3)
        ),
        "constant and more": Case(
            lambda p, x: jnp.concatenate([jnp.broadcast_to(p["bias"], (len(x), 1)), x @ p["kernel"]], axis=1),
            {"bias": normal(1, 1), "kernel": normal(3, 1)},
            normal(4, 3),
        ),
    }


CASES = cases()
every_case = pytest.mark.parametrize("name", CASES)


def first(x: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:count], x)


def jacobian(case: Case, x: Any, mask: Any = None) -> np.ndarray:
    """(n, o, p) by `jax.jacrev`, at the masked weights and of the kept ones alone; all axes of outputs raveled."""
    params = (
        case.params if mask is None else jax.tree.map(lambda leaf, keep: jnp.where(keep, leaf, 0), case.params, mask)
    )
    rows = jax.jacrev(lambda params: case.apply(params, x).reshape(len(jax.tree.leaves(x)[0]), -1))(params)
    n, o = jax.tree.leaves(rows)[0].shape[:2]
    columns = np.concatenate([np.asarray(leaf).reshape(n, o, -1) for leaf in jax.tree.leaves(rows)], axis=2)
    kept = (
        np.ones(columns.shape[2], bool)
        if mask is None
        else np.concatenate([np.ravel(m) for m in jax.tree.leaves(mask)])
    )
    return columns[:, :, kept]


def dense(case: Case, x1: Any, x2: Any, form: str, mask: Any = None) -> np.ndarray:
    """The kernel, or what the form asks of it, from dense Jacobians."""
    sums = {"empirical": "iap,jbp->ijab", "trace": "iap,jap->ij", "diagonal": "iap,ibp->iab"}[form]
    return np.einsum(sums, jacobian(case, x1, mask), jacobian(case, x2, mask))


def reversed_examples(x: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[::-1], x)


@every_case
@pytest.mark.parametrize("form", FUNCTIONS)
def test_kernels_of_any_inputs_and_outputs_are_products_of_dense_jacobians(name: str, form: str) -> None:
    case = CASES[name]
    mask = random_mask(case.params)
    other = reversed_examples(case.x) if form == "diagonal" else first(case.x, 3)
    for second, given in ((None, None), (other, mask)):
        options = {} if given is None else {"batch_size": 3, "mask": mask}
        found = FUNCTIONS[form](case.apply, case.params, case.x, second, **options)
        assert_close(found, dense(case, case.x, case.x if second is None else second, form, given))


@pytest.mark.parametrize(("name", "form"), [("dictionary", "empirical"), ("constant and more", "trace")])
def test_kernels_of_any_inputs_and_outputs_are_computed_on_a_mesh(name: str, form: str) -> None:
    case = CASES[name]
    found = FUNCTIONS[form](case.apply, case.params, case.x, mesh=MESH, batch_size=3)
    assert_close(found, dense(case, case.x, case.x, form))


@pytest.mark.parametrize(
    ("name", "method"),
    [("dictionary", "jacobian"), ("tuple", "products"), ("tokens", "jacobian"), ("constant", "products")],
)
def test_kernels_by_neural_tangents_are_the_same(name: str, method: str) -> None:
    case = CASES[name]
    found = ntk.empirical(case.apply, case.params, case.x, first(case.x, 2), method=method)
    assert_close(found, dense(case, case.x, first(case.x, 2), "empirical"))


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [("tokens", None), ("maps", 3), ("dictionary", 3), ("tuple", None), ("constant and more", 3)],
)
def test_operators_of_any_inputs_and_outputs_multiply_as_the_kernel(name: str, batch_size: int | None) -> None:
    case = CASES[name]
    mask = random_mask(case.params)
    theta = dense(case, case.x, case.x, "empirical", mask)
    operator = ntk.operator(case.apply, case.params, case.x, mask=mask, batch_size=batch_size)
    n, _, o, _ = theta.shape
    assert operator.shape == (n, o)
    vector = np.random.default_rng(2).normal(size=(n, o))
    assert_close(operator.matvec(jnp.asarray(vector)), np.einsum("ijab,jb->ia", theta, vector))
    assert_close(operator.trace(), np.einsum("iiaa->", theta))
    pairs = ntk.top_eigenpairs(operator, 2, key=KEY)
    matrix = theta.transpose(0, 2, 1, 3).reshape(n * o, n * o)
    assert_close(pairs.eigenvalues, np.linalg.eigvalsh(matrix)[::-1][:2])


@pytest.mark.parametrize("name", ["dictionary", "constant and more"])
def test_kernels_of_any_inputs_go_through_jit_and_vmap(name: str) -> None:
    case = CASES[name]
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), case.params)
    compiled = jax.jit(jax.vmap(lambda params, x: ntk.empirical(case.apply, params, x), in_axes=(0, None)))
    for found, scale in zip(compiled(several, case.x), (1, 2), strict=True):
        scaled = case._replace(params=jax.tree.map(lambda leaf, by=scale: by * leaf, case.params))
        assert_close(found, dense(scaled, case.x, case.x, "empirical"))


def test_outputs_of_more_axes_are_numbered_row_by_row() -> None:
    """Output t·O + o of (n, T, O) is the one at t and o, in kernels as in the reshaped outputs."""
    case = CASES["tokens"]
    theta = ntk.empirical(case.apply, case.params, case.x).reshape(4, 4, 5, 2, 5, 2)
    one = lambda params, x: case.apply(params, x)[:, 3, 1:]  # noqa: E731
    assert_close(theta[:, :, 3, 1, 3, 1], ntk.empirical_trace(one, case.params, case.x))


# No examples


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"mesh": MESH}, {"method": "jacobian"}])
@pytest.mark.parametrize("name", ["tokens", "dictionary", "constant"])
def test_kernels_of_no_examples_have_no_rows(name: str, options: Any) -> None:
    case = CASES[name]
    empty, o = first(case.x, 0), 10 if name == "tokens" else 2
    for mask in (None, random_mask(case.params)):
        given = {**options, "mask": mask}
        assert ntk.empirical(case.apply, case.params, empty, **given).shape == (0, 0, o, o)
        assert ntk.empirical(case.apply, case.params, case.x, empty, **given).shape == (4, 0, o, o)
        assert ntk.empirical(case.apply, case.params, empty, case.x, **given).shape == (0, 4, o, o)
        assert ntk.empirical_trace(case.apply, case.params, empty, **given).shape == (0, 0)
        assert ntk.empirical_diagonal(case.apply, case.params, empty, **given).shape == (0, o, o)
        found = jax.jit(lambda x, given=given: ntk.empirical(case.apply, case.params, x, **given))(empty)
        assert found.shape == (0, 0, o, o) and found.dtype == jnp.float64


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("name", ["tokens", "dictionary", "constant"])
def test_operators_of_no_examples_are_zero(name: str, batch_size: int | None) -> None:
    case = CASES[name]
    operator = ntk.operator(case.apply, case.params, first(case.x, 0), batch_size=batch_size)
    o = 10 if name == "tokens" else 2
    assert operator.shape == (0, o)
    assert float(operator.trace()) == 0.0
    assert operator.matvec(jnp.zeros((0, o))).shape == (0, o)
    assert tuple(map(float, ntk.trace_estimate(operator, key=KEY, samples=2))) == (0.0, 0.0)
    assert tuple(map(float, ntk.norm_estimate(operator, key=KEY, samples=2))) == (0.0, 0.0)
    with pytest.raises(ValueError, match="`rank` must lie between 1 and the number of rows n·o, 0"):
        ntk.top_eigenpairs(operator, 1, key=KEY)


def test_a_spectrum_of_no_examples_is_empty_and_examples_need_not_be_as_many_on_a_diagonal() -> None:
    case = CASES["tuple"]
    assert ntk.spectrum(ntk.empirical(case.apply, case.params, first(case.x, 0))).shape == (0,)
    with pytest.raises(ValueError, match="there are 4 and 0"):
        ntk.empirical_diagonal(case.apply, case.params, case.x, first(case.x, 0))


def test_outputs_that_read_neither_inputs_nor_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="No leaf of `params` reaches the outputs"):
        ntk.empirical(lambda params, x: jnp.ones((len(x), 2)), {"w": jnp.ones(2)}, jnp.ones((3, 4)))


# What is refused


def test_inputs_that_are_no_batches_are_refused_in_words() -> None:
    case, array = CASES["tuple"], CASES["constant"]
    for x, message in (
        (None, "`x1` is None"),
        (1.0, "`x1` is a single number"),
        ({}, "`x1` holds no array"),
        ({"image": jnp.ones((3, 2)), "rate": 0.1}, r"`x1` at \['rate'\] is a single number.*belongs into `state`"),
        ({"image": jnp.ones((3, 2)), "name": "one"}, r"`x1` at \['name'\] is a str, not an array"),
        ((jnp.ones((4, 3)), jnp.ones((3, 2))), r"shapes \(4, 3\), \(3, 2\), but the first axis of each counts"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            ntk.empirical(case.apply, case.params, x)
        with pytest.raises((ValueError, TypeError), match=message.replace("x1", "x")):
            ntk.operator(case.apply, case.params, x)
    for other, message in (
        ((case.x[0],), r"a tuple of arrays at \[0\], \[1\] and `x2` a tuple of arrays at \[0\], but both go"),
        (list(case.x), r"a tuple of arrays at \[0\], \[1\] and `x2` a list of arrays"),
        (case.x[0], "and `x2` one array"),
        ((case.x[0][:, :2], case.x[1]), r"shape \(3,\), \(2,\) and those of `x2` \(2,\), \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ntk.empirical(case.apply, case.params, case.x, other)
    with pytest.raises(ValueError, match=r"Give x an axis of examples, x\[None\]"):
        ntk.empirical(lambda p, x: p["bias"][0] * x, array.params, array.x[0, :2])


def test_errors_of_the_network_say_with_what_it_was_called() -> None:
    params, x = {"w": jnp.ones((2, 4))}, jnp.ones((5, 3, 3, 2))
    apply = lambda params, x: jnp.einsum("nhwc,co->no", x, params["w"])  # noqa: E731
    with pytest.raises(ValueError, match=r"with x of shape \(3, 3, 2\), whose first axis.*x\[None\]"):
        ntk.empirical(apply, params, x[0])


def test_integers_are_inputs_like_others() -> None:
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))}
    apply = lambda params, x: jnp.tanh(x @ params["w"])  # noqa: E731
    x = np.arange(12).reshape(4, 3)
    expected = ntk.empirical(apply, params, x.astype(float))
    for same in (x, x.tolist(), jnp.asarray(x, jnp.uint8)):
        np.testing.assert_allclose(ntk.empirical(apply, params, same), expected, rtol=EXACT)
        np.testing.assert_allclose(ntk.operator(apply, params, same).trace(), np.einsum("iiaa->", expected), rtol=EXACT)
