"""What is not piecewise linear is refused, with the primitive, the line, the reason and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pathjax import paths
from pathjax._interpreter.jaxpr import check_batch
from pathjax._interpreter.refusals import REASONS
from pathjax._interpreter.rules import PATH_RULES

from ..tolerances import EXACT

CASES: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    # name: what is done to hidden activations (1, 4), the primitive, a phrase of the reason
    "softmax": (lambda h: jnp.exp(h) / jnp.exp(h).sum(1, keepdims=True), "exp", "is not homogeneous"),
    "jax softmax": (lambda h: jax.nn.softmax(h), "softmax", "takes exponentials of activations"),
    "log softmax": (lambda h: h - jnp.log(jnp.abs(h)), "log", "is not homogeneous"),
    "gelu": (lambda h: jax.nn.gelu(h), "gelu", "curved"),
    "exact gelu": (lambda h: jax.nn.gelu(h, approximate=False), "(erf|erfc)", "curved"),
    "silu": (lambda h: jax.nn.silu(h), "logistic", "curved"),
    "tanh": (jnp.tanh, "tanh", "curved"),
    "sigmoid": (jax.nn.sigmoid, "logistic", "curved"),
    "softplus": (lambda h: jnp.log1p(jnp.abs(h)), "log1p", "exponential or logarithm"),
    "square": (jnp.square, "square", "not of first order in the input"),
    "cube": (lambda h: h**3, "integer_pow", "not of first order in the input"),
    "square root": (lambda h: jnp.sqrt(jnp.abs(h)), "sqrt", "root or power"),
    "attention": (
        lambda h: jax.vmap(lambda a: (a[:, None] @ a[None]) @ a)(h),
        "(mul|dot_general)",
        "multiplies two activations, as attention does",
    ),
    "product": (lambda h: h * h[:, ::-1], "mul", "multiplies two activations"),
    "division by an activation": (lambda h: h / (jnp.abs(h) + h), "div", "divides by an activation"),
    "constant over an activation": (lambda h: 1.0 / h, "div", "divides by an activation"),
    "sort": (lambda h: jnp.sort(h), "sort", "order of activations"),
    "top k": (lambda h: jnp.tile(lax.top_k(h, 2)[0], (1, 2)), "top_k", "order of activations"),
    "argmax": (lambda h: jax.nn.one_hot(jnp.argmax(h, 1), 4), "argmax", "order of activations"),
    "relu6": (jax.nn.relu6, "min", "clipped at a constant other than 0"),
    "clip": (lambda h: jnp.clip(h, -1.0, 1.0), "max", "clipped at a constant other than 0"),
    "clamp": (lambda h: lax.clamp(-1.0, h, 1.0), "clamp", "clipped at a constant other than 0"),
    "threshold": (lambda h: jnp.where(h > 0.5, h, 0.0), "gt", "compared with a constant other than 0"),
    "mixed thresholds": (lambda h: h * (h > jnp.array([[0.0, 0.0, 0.0, 1.0]])), "gt", "compared with a constant"),
    "a comparison as a number": (lambda h: h + (h > 0), "add", "used as a number"),
    "a comparison summed": (
        lambda h: h * (h > 0).astype(h.dtype).sum(axis=1, keepdims=True),
        "reduce_sum",
        "used as a number",
    ),
    "a comparison and a mask": (
        lambda h: h * ((h > 0) & (jnp.arange(4)[None] > 1)),
        "and",
        "multiply masks into these",
    ),
    "a masked choice": (lambda h: h * jnp.where(h > 0, jnp.arange(4.0)[None], 0.0), "select_n", "used as a number"),
    "a step": (lambda h: jnp.where(h > 0, 2.0, 1.0) @ jnp.ones((4, 4)), "dot_general", "used as a number"),
    "a step to zero": (lambda h: jnp.where(h > 0, 1.0, 0.0) @ jnp.ones((4, 4)), "dot_general", "used as a number"),
    "a comparison in a maximum": (lambda h: jnp.maximum((h > 0) * 1.0, -jnp.inf), "max", "used as a number"),
    "a comparison's largest": (lambda h: h * jnp.max((h > 0) * 1.0, 1, keepdims=True), "reduce_max", "used as a"),
    "a comparison clipped": (lambda h: lax.clamp(0.0, (h > 0) * 1.0, jnp.inf), "clamp", "used as a number"),
    "a comparison that a loop sums": (
        lambda h: h * lax.scan(lambda c, a: (c + (a > 0), None), jnp.zeros(len(h)), h.T)[0][:, None],
        "(add|scan)",
        "used as a number",
    ),
    "infinities": (lambda h: h + jnp.inf, "add", "infinite or NaN"),
    "a threshold that is not known": (
        lambda h: jax.jit(lambda a, t: jnp.where(a > t, a, 0.0))(h, 1.0),
        "gt",
        "constant other than 0",
    ),
    "infinities behind a mask": (
        lambda h: jnp.where(jnp.arange(4)[None] > 1, h, -jnp.inf) + 1.0,
        "add",
        "infinite or NaN",
    ),
    "smallest with the wrong filler": (
        lambda h: jnp.where(jnp.arange(4)[None] > 1, h, -jnp.inf).min(axis=1, keepdims=True) * jnp.ones((len(h), 4)),
        "reduce_min",
        "infinite or NaN",
    ),
    "every example added to each": (lambda h: lax.map(lambda a: (a[None] + h).sum(axis=0), h), "scan", "mixes the"),
    "position in the batch": (lambda h: h * jnp.arange(1.0, 1.0 + len(h))[:, None], "mul", "by their position"),
    "a bias of each place": (lambda h: h + jnp.linspace(0.0, 1.0, len(h))[:, None], "add", "by their position"),
    "shifted by a window": (
        lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (1, 1), (1, 1), ((1, -1), (0, 0))),
        "reduce_window_max",
        "mixes the examples",
    ),
    "read in another order": (lambda h: lax.reshape(h, h.shape, dimensions=(1, 0)), "dot_general", "mixes the"),
    "mean of the batch": (lambda h: h - h.mean(axis=0, keepdims=True), "reduce_sum", "mixes the examples of a batch"),
    "order of the batch": (lambda h: h[::-1], "rev", "mixes the examples of a batch"),
    "another example's gate": (
        lambda h: h * (h.sum(axis=0, keepdims=True) > 0),
        "reduce_sum",
        "mixes the examples of a batch",
    ),
    "first example": (lambda h: h + h[:1], "slice", "mixes the examples of a batch"),
    "examples rolled": (lambda h: jnp.roll(h, 1, axis=0), "slice", "mixes the examples of a batch"),
    "examples one after another": (
        lambda h: lax.scan(lambda c, a: (c + a, c), jnp.zeros(4), h)[1],
        "scan",
        "mixes the examples of a batch",
    ),
    "examples times examples": (
        lambda h: h + (h @ h.T > 0) @ jnp.ones((len(h), 4)),
        "dot_general",
        "mixes the examples",
    ),
    "examples among units": (lambda h: h.T.reshape(h.shape), "dot_general", "mixes the examples of a batch"),
    "convolved along examples": (
        lambda h: lax.conv_general_dilated(
            h[None], jnp.ones((3, 4, 4)), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )[0],
        "conv_general_dilated",
        "mixes the examples of a batch",
    ),
    "running sum of examples": (lambda h: jnp.cumsum(h, axis=0), "cumsum", "mixes the examples of a batch"),
    "a comparison times a mask": (lambda h: h * ((h > 0) * jnp.array([[1.0, 0.0, 1.0, 1.0]])), "mul", "used as a"),
    "a comparison compared": (lambda h: jnp.where(h > (h == h).astype(h.dtype), h, 0.0), "gt", "used as a number"),
    "filling": (
        lambda h: jnp.take(h, jnp.array([0, 9, 1, 2]), axis=1, fill_value=1.0),
        "gather",
        "fills with a constant",
    ),
    "rounding": (lambda h: jnp.round(h), "round", "steps"),
    "integers": (lambda h: h.astype(jnp.int32).astype(h.dtype), "convert_element_type", "rounded to whole numbers"),
    "cumulative product": (lambda h: jnp.cumprod(h, axis=1), "cumprod", "running product"),
    "stopped gradient": (lambda h: lax.stop_gradient(h), "stop_gradient", "no derivative"),
    "branch": (
        lambda h: lax.map(lambda a: lax.cond(a.sum() > 0, lambda b: b, lambda b: -b, a), h),
        "(cond|convert_element_type)",
        ".",
    ),
    "loop": (lambda h: lax.while_loop(lambda a: a.sum() > 0, lambda a: a - 1, h), "while", "How often the loop runs"),
    "picking by an activation": (lambda h: jax.vmap(lambda a: a[jnp.argmax(a)] * a)(h), "argmax", "order of"),
    "power": (lambda h: jnp.abs(h) ** 1.5, "pow", "root or power"),
}


def network(hidden: Callable[[Any], Any]) -> tuple[Callable[[Any, Any], Any], Any]:
    params = {"first": jnp.ones((3, 4)), "second": jnp.ones((4, 2))}

    def apply(params: Any, x: Any) -> Any:
        h = hidden(x @ params["first"])
        return h[:, :4] @ params["second"]

    return apply, params


@pytest.mark.parametrize("name", CASES)
def test_refusal_names_primitive_line_reason_and_remedy(name: str) -> None:
    hidden, primitive, reason = CASES[name]
    apply, params = network(hidden)
    with pytest.raises(paths.UnsupportedPrimitive) as caught:
        paths.log_path_norm(apply, params, jnp.ones((5, 3)))
    assert_says(str(caught.value), primitive, reason)


def assert_says(message: str, primitive: str, reason: str) -> None:
    import re

    assert re.search(rf"No path rule for `{primitive}` \(test_refusals\.py:\d+(, in layer `[^`]+`)?\)\. ", message)
    assert re.search(reason, message)
    assert message.count(". ") >= 2, f"no remedy: {message}"


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.LayerNorm(), "(power of an activation|root or power)"),
        (nn.RMSNorm(), "(power of an activation|root or power)"),
        (nn.BatchNorm(use_running_average=False), "mixes the examples of a batch"),
    ],
    ids=["layer norm", "rms norm", "batch norm with batch statistics"],
)
def test_flax_norms_are_refused_by_layer(layer: Any, reason: str) -> None:
    model = nn.Sequential([nn.Dense(4), layer, nn.Dense(2)])
    variables = model.init(jax.random.key(0), jnp.ones((1, 3)))

    def apply(params: Any, x: Any) -> Any:
        return model.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]

    with pytest.raises(paths.UnsupportedPrimitive, match=rf"in layer `Sequential/layers_1`\)\. .*{reason}"):
        paths.log_path_norm(apply, variables["params"], jnp.ones((5, 3)))


def test_every_reason_belongs_to_a_primitive_without_a_rule() -> None:
    assert not set(REASONS) & set(PATH_RULES)


def test_whole_number_inputs_and_weights_are_refused() -> None:
    apply, params = network(jax.nn.relu)
    with pytest.raises(ValueError, match=r"`x` has dtype int\d+; paths start at real-valued inputs"):
        paths.log_path_norm(apply, params, jnp.ones((5, 3), jnp.int32))
    counted = params | {"step": jnp.ones((), jnp.int32)}
    with pytest.raises(ValueError, match=r"`params` at \['step'\] has dtype int32; weights must be floating-point"):
        paths.log_path_norm(apply, counted, jnp.ones((5, 3)))


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must return one array of shape \(n, o\).*returned \(1,\).*shape \(n, 1\)"):
        paths.log_path_norm(lambda params, x: (x * params).sum(axis=1), jnp.ones((1, 3)), jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"must return one array.*a pytree of arrays \(1, 3\), \(1, 3\)"):
        paths.log_path_norm(lambda params, x: (x, x), jnp.ones(3), jnp.ones((5, 3)))


@pytest.mark.parametrize("computed", [jnp.sqrt, jnp.exp, lambda w: 1.0 / (1.0 + jnp.tanh(w))])
def test_what_is_computed_from_parameters_alone_is_refused_with_its_own_remedy(computed: Any) -> None:
    with pytest.raises(
        paths.UnsupportedPrimitive, match="computed from parameters alone.* Close over it as a constant"
    ):
        paths.log_path_norm(lambda params, x: x @ computed(params), jnp.ones((3, 2)), jnp.ones((5, 3)))


def test_thresholds_that_are_traced_are_said_to_be_unknown() -> None:
    def norm(threshold: Any) -> Any:
        apply, params = network(lambda h: jnp.where(h > threshold, h, 0.0))
        return paths.log_path_norm(apply, params, jnp.ones((5, 3)))

    with pytest.raises(paths.UnsupportedPrimitive, match="a constant that is not known while tracing"):
        jax.jit(norm)(0.0)


def test_lists_are_refused_as_inputs() -> None:
    with pytest.raises(ValueError, match="`x` is a list of numbers, but paths start at one array of real inputs"):
        check_batch([[1.0, 2.0, 3.0]])


def test_what_no_output_needs_is_not_refused() -> None:
    def apply(params: Any, x: Any) -> Any:
        jnp.tanh(x @ params)
        return x @ params

    np.testing.assert_allclose(paths.log_path_norm(apply, jnp.ones((3, 2)), jnp.ones((5, 3))), np.log(6.0), rtol=EXACT)


def test_layers_are_reported_without_raising() -> None:
    model = nn.Sequential([nn.Dense(4), nn.LayerNorm(), jax.nn.relu, nn.Dense(4), jnp.tanh, nn.Dense(2)])
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))
    report = paths.layers(model.apply, params, jnp.ones((5, 3)))
    assert [layer.name for layer in report if not layer.has_paths] == ["Sequential/layers_1", "Sequential"]
    assert {layer.name for layer in report if layer.has_paths} == {f"Sequential/layers_{i}" for i in (0, 3, 5)}
    assert any("No path rule for `tanh`" in problem for layer in report for problem in layer.problems)


class TestDeclaredGates:
    @staticmethod
    def leaky(x: Any) -> Any:
        return x * (0.2 + 0.8 * jnp.ceil(jnp.clip(x, 0.0, 1.0)))

    def test_a_declared_activation_has_the_paths_of_its_slopes(self) -> None:
        gate = paths.declare_gate(self.leaky)
        params = {"first": jnp.array([[1.0, -2.0], [0.5, 3.0], [1.0, 1.0]]), "second": jnp.array([[1.0], [-1.0]])}
        x = jnp.array([[1.0, 1.0, -2.0], [0.3, -1.0, 0.4]])

        def build(activation: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
            return lambda params, x: activation(x @ params["first"]) @ params["second"]

        reference = build(lambda h: jax.nn.leaky_relu(h, 0.2))
        for gates in ("open", "data"):
            ours = paths.path_sum(build(gate), params, x, gates=gates)
            np.testing.assert_allclose(ours, paths.path_sum(reference, params, x, gates=gates), rtol=EXACT)
        with pytest.raises(paths.UnsupportedPrimitive):
            paths.path_sum(build(self.leaky), params, x)

    def test_gates_of_one_factory_stay_apart(self) -> None:
        def leaky(slope: float) -> Any:
            return paths.declare_gate(lambda x: x * (slope + (1 - slope) * jnp.ceil(jnp.clip(x, 0.0, 1.0))))

        def slope_of(gate: Any) -> float:
            params = jnp.array([[-1.0]])
            return float(paths.path_sum(lambda p, x: gate(x @ p) @ p, params, jnp.ones((1, 1)), gates="data")[0, 0])

        sums = [slope_of(leaky(slope)) for slope in (0.0, 0.5)]
        assert sums == [0.0, 0.5]

    @pytest.mark.parametrize(
        ("activation", "problem"),
        [
            (jnp.tanh, r"`tanh` cannot be a gate; it is not positively homogeneous: f\(3·x\) is not 3·f\(x\)"),
            (lambda x: x + x[::-1], "does not act on each entry alone|is not piecewise linear"),
            (lambda x: jnp.sort(x), "cannot be a gate"),
            (lambda x: jnp.clip(x, 0.0, 100.0), "is not positively homogeneous"),
            (lambda x: jnp.sqrt(x * x), r"is not piecewise linear.* as at x = 0"),
        ],
    )
    def test_what_is_not_a_gate_is_refused_when_declared(self, activation: Any, problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            paths.declare_gate(activation)
