"""Every rule of the table has a network, and spellings that the table of networks lacks are held to JAX here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from pathjax import enumeration, paths
from pathjax._interpreter import example_rules as _example_rules
from pathjax._interpreter import lifting as _lifting
from pathjax._interpreter import rules as _rules
from pathjax._interpreter.traced import traced

from .. import networks
from ..tolerances import EXACT, SINGLE_ROUNDING

KEY, EMPTY = jax.random.key(1), np.zeros((1, 0))


def convolved(images: Any, kernel: Any) -> Any:
    return lax.conv_general_dilated(images, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


SPELLINGS: dict[str, Callable[[Any], Any]] = {
    # what is done to hidden activations (n, 4), to give (n, 4)
    "clamp to the positive": lambda h: lax.clamp(0.0, h, jnp.inf),
    "clamp to the negative": lambda h: lax.clamp(-jnp.inf, h, 0.0),
    "clip from above": lambda h: jnp.clip(h, None, 0.0),
    "minimum of two": lambda h: jnp.minimum(h, h[:, ::-1] * 0.5),
    "maximum of a multiple": lambda h: jnp.maximum(h, 0.1 * h),
    "absolute by where": lambda h: jnp.where(h < 0, -h, h),
    "absolute by sign": lambda h: h * jnp.sign(h),
    "where not above": lambda h: jnp.where(h <= 0, 0.0, h),
    "not equal": lambda h: jnp.where(h != 0, h, 0.0),
    "equal": lambda h: jnp.where(h == h.max(axis=1, keepdims=True), h, 0.0),
    "gates combined": lambda h: h * ((h > 0) & ~(h[:, ::-1] < 0)),
    "slopes by arithmetic": lambda h: h * ((h > 0) + 0.2 * (h <= 0)),
    "another unit's gate": lambda h: h[:, ::-1] * (h > 0),
    "smallest": lambda h: h + h.min(axis=1, keepdims=True),
    "smallest of windows": lambda h: -lax.reduce_window(h, jnp.inf, lax.min, (1, 2), (1, 1), "SAME"),
    "running sum": lambda h: jnp.cumsum(h, axis=1),
    "running sum backwards": lambda h: lax.cumsum(h, axis=1, reverse=True),
    "stack": lambda h: jnp.stack([h[:, :2], 2.0 * h[:, 2:]], axis=1).reshape(-1, 4),
    "known to be zero": lambda h: h + jnp.where(h > 0, 0.0, 0.0),
    "tile": lambda h: jnp.tile(h[:, :2], (1, 2)),
    "dynamic slice": lambda h: jnp.tile(lax.dynamic_slice(h, (0, 1), (h.shape[0], 2)), (1, 2)),
    "dynamic update": lambda h: lax.dynamic_update_slice(h, 3.0 * h[:, 2:], (0, 0)),
    "set": lambda h: h.at[:, 1].set(h[:, 0]),
    "set to zero": lambda h: h.at[:, jnp.array([0, 2])].set(0.0),
    "add at": lambda h: h.at[:, jnp.array([1, 1])].add(2.0 * h[:, :2]),
    "subtract at": lambda h: h.at[:, jnp.array([1, 1])].subtract(2.0 * h[:, :2]),
    "multiply at": lambda h: h.at[:, jnp.array([1, 3, 3])].multiply(jnp.array([0.5, -2.0, 3.0])),
    "last unit of each example": lambda h: h + h[jnp.arange(len(h)), -1][:, None],
    "set in each example": lambda h: h.at[jnp.arange(len(h)), 1].set(h[:, 0]),
    "add in each example": lambda h: jnp.zeros_like(h).at[jnp.arange(len(h))].add(2.0 * h) + h,
    "taken in order": lambda h: jnp.take(h, jnp.arange(len(h)), axis=0),
    "edge padding": lambda h: jnp.pad(h, ((0, 0), (1, 1)), mode="edge")[:, ::2].repeat(2, axis=1)[:, 1:5],
    "padding by the mean": lambda h: jnp.pad(h, ((0, 0), (0, 2)), mode="mean")[:, 2:],
    "reflected padding": lambda h: jnp.pad(h, ((0, 0), (2, 2)), mode="reflect")[:, ::2],
    "wrapped padding": lambda h: jnp.pad(h, ((0, 0), (1, 3)), mode="wrap")[:, 1::2].repeat(2, axis=1)[:, :4],
    "symmetric padding": lambda h: jnp.pad(h, ((0, 0), (3, 0)), mode="symmetric")[:, :4],
    "rolled": lambda h: jnp.roll(h, 3, axis=-1),
    "copy": lambda h: jnp.array(h, copy=True),
    "lower precision and back": lambda h: lax.reduce_precision(h, 11, 52).astype(jnp.float64),
    "cast": lambda h: h.astype(jnp.float32).astype(jnp.float64),
    "barrier": lambda h: lax.optimization_barrier(h),
    "known branch": lambda h: lax.cond(True, lambda a: 2.0 * a, lambda a: jnp.tanh(a), h),
    "switch by a constant": lambda h: lax.switch(jnp.array(1), [jnp.tanh, jnp.negative], h),
    "a derivative inside": lambda h: jax.grad(lambda a: (a * h).sum() + (2.0 * a[:, ::-1] * h).sum())(0.0 * h + 1.0),
    "fixed number of steps": lambda h: lax.fori_loop(0, 3, lambda i, a: jnp.maximum(a + 0.1 * h, 0.0), h),
    "scan backwards": lambda h: lax.scan(lambda c, a: (c + a, jax.nn.relu(c - a)), h[:, 0], h.T, reverse=True)[1].T,
    "examples one by one": lambda h: lax.map(lambda a: jax.nn.relu(a) - a[::-1], h),
    "units as further examples": lambda h: jax.nn.relu(h.reshape(-1, 2) @ jnp.array([[1.0, 2.0], [3.0, -1.0]])).reshape(
        h.shape
    ),
    "units before examples and back": lambda h: (
        jax.nn.relu(h.reshape(-1, 2, 2).transpose(1, 0, 2).reshape(-1, 2))
        .reshape(2, -1, 2)
        .transpose(1, 0, 2)
        .reshape(h.shape)
    ),
    "a mask from a random key": lambda h: jnp.where(jax.random.bernoulli(KEY, 0.5, (1, 4)), h, 0.0),
    "nothing appended": lambda h: jnp.concatenate([h, jnp.broadcast_to(EMPTY, (len(h), 0))], axis=1),
    "tiled examples": lambda h: jnp.tile(h, (3, 1)).reshape(3, *h.shape).sum(axis=0),
    "filled with infinity": lambda h: (
        h + h.at[:, jnp.array([0, 5, 2])].get(mode="fill", fill_value=-jnp.inf).max(axis=1, keepdims=True)
    ),
    "channels one by one": lambda h: jax.vmap(
        lambda a, k: jax.nn.relu(convolved(a[..., None], k))[..., 0], in_axes=(-1, -1), out_axes=-1
    )(h.reshape(-1, 2, 2), jnp.array([1.0, -2.0, 0.5, 1.0]).reshape(2, 1, 1, 2)).reshape(h.shape),
    "two slopes by where": lambda h: h * jnp.where(h > 0, 1.0, 0.2),
    "halved slope": lambda h: h * ((h > 0) / 2.0),
    "weighted by a choice": lambda h: h[:, ::-1] * jnp.where(h > 0, 1.0, 0.0),
    "maximum with a filler": lambda h: jnp.maximum(h, -jnp.inf),
    "largest of those that a mask leaves": lambda h: (
        h + jnp.where(jnp.array([True, False, True, True]), h, -jnp.inf).max(axis=1, keepdims=True)
    ),
    "barrier of two": lambda h: sum(lax.optimization_barrier((h, 2.0 * h))),
    "no step at all": lambda h: lax.scan(lambda c, a: (jnp.tanh(c), a), h, jnp.zeros((0, 2)))[0],
    "vmap": lambda h: jax.vmap(lambda a: jax.nn.relu(a) - jnp.roll(a, 1))(h),
    "mean removed by parameters": lambda h: h - 0.5,
    "sum of everything": lambda h: h + h.sum(axis=1, keepdims=True) / 4.0,
}

WEIGHTS = ["square", "integer_pow"]


def build(hidden: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda params, x: hidden(x @ params["first"] + params["bias"][None]) @ params["second"]


@cache
def parameters() -> Any:
    rng = np.random.default_rng(5)
    shapes = {"first": (3, 4), "bias": (4,), "second": (4, 2)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def examples() -> Any:
    return jnp.asarray(np.random.default_rng(6).normal(size=(2, 3)))


def assert_paths_are_the_network(apply: Callable[[Any, Any], Any], params: Any, *, tolerance: float = EXACT) -> None:
    """Signed sums are the outputs, listed factors compose to the Jacobian, and open sums are those of listed paths."""
    x = examples()
    program = traced(apply, params).path_program(x)
    lift = jax.jit(lambda p: _lifting.lift(program, p, x, phi=lambda v: v, points=[(p, x)]).value())
    np.testing.assert_allclose(lift(params), apply(params, x), rtol=tolerance, atol=tolerance)
    listed = enumeration.enumerate_paths(apply, params, x, limit=5_000)
    activations = enumeration.path_activations(listed, apply, params, x)
    jacobian = jax.jacobian(lambda p: apply(ravel_pytree(params)[1](p), x))(ravel_pytree(params)[0])
    composed = activations @ enumeration.path_jacobian(listed, params)
    np.testing.assert_allclose(composed, jacobian, rtol=tolerance, atol=tolerance)
    norm = jnp.log(jnp.abs(enumeration.path_values(listed, params)).sum())
    np.testing.assert_allclose(paths.log_path_norm(apply, params, x), norm, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_has_the_paths_of_the_network(name: str) -> None:
    # float32 inside a network is float32 in its real values
    tolerance = SINGLE_ROUNDING if name == "cast" else EXACT
    assert_paths_are_the_network(build(SPELLINGS[name]), parameters(), tolerance=tolerance)


def leaky_stack(params: Any, x: Any, slopes: Any) -> Any:
    """Leaky layers in a loop, each with a slope of its own."""
    layer = lambda h, slope: (jax.nn.leaky_relu(h @ params["inner"], slope), None)  # noqa: E731
    return lax.scan(layer, x @ params["first"], slopes)[0] @ params["second"]


@pytest.mark.parametrize("gates", ["open", "data"])
def test_slopes_that_are_traced_are_slopes_and_not_paths(gates: str) -> None:
    params = parameters() | {"inner": jnp.asarray(np.random.default_rng(8).normal(size=(4, 4)))}

    def listed(params: Any, x: Any) -> Any:
        h = x @ params["first"]
        for slope in (0.1, 0.2, 0.3):
            h = jax.nn.leaky_relu(h @ params["inner"], slope)
        return h @ params["second"]

    def traced(slopes: Any) -> Any:
        return paths.path_sum(lambda p, x: leaky_stack(p, x, slopes), params, examples(), gates=gates)

    slopes = jnp.array([0.1, 0.2, 0.3])
    expected = paths.path_sum(listed, params, examples(), gates=gates)
    np.testing.assert_allclose(traced(slopes), expected, rtol=EXACT)
    np.testing.assert_allclose(jax.jit(traced)(slopes), expected, rtol=EXACT)
    one = jax.jit(lambda a: paths.path_sum(build(lambda h: jax.nn.leaky_relu(h, a)), params, examples(), gates=gates))
    known = paths.path_sum(build(lambda h: jax.nn.leaky_relu(h, 0.2)), params, examples(), gates=gates)
    np.testing.assert_allclose(one(0.2), known, rtol=EXACT)


def test_loops_may_widen_their_type() -> None:
    """Activations of half precision times weights of single precision."""

    def apply(params: Any, x: Any) -> Any:
        layer = lambda h, w: (jax.nn.relu(h.astype(jnp.float32) @ w).astype(jnp.bfloat16), None)  # noqa: E731
        return lax.scan(layer, x, params)[0]

    norm = paths.log_path_norm(apply, jnp.full((3, 4, 4), 0.5, jnp.float32), jnp.ones((1, 4), jnp.bfloat16))
    np.testing.assert_allclose(norm, np.log(4.0 * 2.0**3), rtol=SINGLE_ROUNDING)


@jax.custom_jvp
def half_at_zero(x: Any) -> Any:
    return jnp.maximum(x, 0.0)


half_at_zero.defjvps(lambda t, _, x: t * ((x > 0) + 0.5 * (x == 0)))


@jax.custom_vjp
def one_at_zero(x: Any) -> Any:
    return jnp.maximum(0.0, x)


one_at_zero.defvjp(lambda x: (jnp.maximum(0.0, x), x), lambda x, t: (t * (x >= 0),))


@jax.custom_jvp
def straight_through(x: Any) -> Any:
    return jnp.maximum(x, 0.0)


straight_through.defjvps(lambda t, _, x: t)


@jax.custom_jvp
def around_relu(x: Any) -> Any:
    return jax.nn.relu(x)


around_relu.defjvps(lambda t, _, x: t * (x >= 0))

guided_relu = jax.custom_vjp(jax.nn.relu)
guided_relu.defvjp(lambda x: (jax.nn.relu(x), x), lambda x, t: (t * (x > 0) * (t > 0),))

steep_absolute = jax.custom_jvp(jnp.abs)
steep_absolute.defjvps(lambda t, _, x: 5.0 * t)


@jax.custom_vjp
def clipped_cotangent(x: Any) -> Any:
    return jnp.maximum(x, 0.0)


clipped_cotangent.defvjp(
    lambda x: (jnp.maximum(x, 0.0), x), lambda x, t: (jnp.minimum(jnp.maximum(t, -1.5), 1.5) * (x > 0),)
)


@pytest.mark.parametrize(
    "activation",
    [half_at_zero, one_at_zero, jax.nn.relu, around_relu],
    ids=["half", "one", "zero", "one around zero"],
)
def test_slopes_at_a_tie_are_those_of_the_function_s_own_rule(activation: Any) -> None:
    params = jax.tree.map(jnp.zeros_like, parameters()) | {"second": parameters()["second"]}
    apply, x = build(activation), examples()
    listed = enumeration.enumerate_paths(apply, params, x, limit=5_000)
    composed = enumeration.path_activations(listed, apply, params, x) @ enumeration.path_jacobian(listed, params)
    flat, unravel = ravel_pytree(params)
    np.testing.assert_allclose(composed, jax.jacrev(lambda p: apply(unravel(p), x))(flat), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("activation", [straight_through, guided_relu, steep_absolute, clipped_cotangent])
def test_a_rule_that_is_not_the_derivative_is_refused(activation: Any) -> None:
    with pytest.raises(paths.UnsupportedPrimitive, match="Its derivative rule is not the derivative of what it"):
        paths.log_path_norm(build(activation), parameters(), examples())


def test_layers_tell_of_a_rule_that_is_not_the_derivative() -> None:
    report = paths.layers(build(straight_through), parameters(), examples())
    assert [layer.has_paths for layer in report].count(False) == 1


def test_windows_with_holes_are_those_of_shifted_copies() -> None:
    def with_holes(h: Any) -> Any:
        return lax.reduce_window(h, -jnp.inf, lax.max, (1, 2), (1, 1), "VALID", window_dilation=(1, 2))

    def of_shifts(h: Any) -> Any:
        return jnp.maximum(h[:, :2], h[:, 2:])

    params = parameters() | {"second": parameters()["second"][:2]}
    for gates in ("open", "data"):
        sums = [paths.path_sum(build(pool), params, examples(), gates=gates) for pool in (with_holes, of_shifts)]
        np.testing.assert_allclose(sums[0], sums[1], rtol=EXACT)


@pytest.mark.parametrize("power", [jnp.square, lambda w: w**3], ids=WEIGHTS)
def test_powers_of_a_weight_meet_it_several_times(power: Any) -> None:
    def apply(params: Any, x: Any) -> Any:
        return jax.nn.relu(x @ power(params["first"]) + params["bias"][None]) @ params["second"]

    assert_paths_are_the_network(apply, parameters())


def test_every_rule_says_where_examples_lie() -> None:
    """What has no entry of its own there acts entry by entry."""
    comparisons = {"gt", "ge", "lt", "le", "eq", "ne"}
    of_one = {"sign", "abs", "neg", "integer_pow", "square", "copy", "convert_element_type", "reduce_precision"}
    elementwise = {*comparisons, *of_one, "max", "min", "clamp", "select_n", "sub", "add", "add_any", "mul", "div"}
    assert set(_rules.PATH_RULES) - set(_example_rules.EXAMPLE_RULES) == elementwise


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The primitives whose path rules have been asked for."""
    names: set[str] = set()
    rule = _rules._rule

    def record(context: Any, values: Any) -> Any:
        names.add(context.equation.name)
        return rule(context, values)

    monkeypatch.setattr(_rules, "_rule", record)
    return names


def test_covering_networks_meet_every_rule_that_the_table_meets(met: set[str]) -> None:
    for name in networks.COVERING:
        network = networks.build(name)
        paths.layers(network.apply, network.params, network.x)
    by_covering = set(met)
    for network in networks.every():
        paths.layers(network.apply, network.params, network.x)
    assert met == by_covering


def test_every_rule_has_a_network(met: set[str]) -> None:
    for network in networks.every():
        paths.layers(network.apply, network.params, network.x)
    for hidden in SPELLINGS.values():
        paths.layers(build(hidden), parameters(), examples())
    paths.layers(lambda p, x: x @ (jnp.square(p) + p**3), parameters()["first"], examples())
    assert set(_rules.PATH_RULES) - met == set()


def test_rule_that_forgets_to_return_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_rules.PATH_RULES, "max", lambda context, values: None)
    with pytest.raises(TypeError, match="path rule of `max` returned nothing; return results, or GATE"):
        paths.log_path_norm(lambda p, x: jnp.maximum(x @ p, 0), jnp.ones((3, 4)), jnp.ones((2, 3)))
