"""Scores with a loss of the user's: targets, outputs, inputs and batches of any kind, held to `jax.grad`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import scores

from ..tolerances import EXACT

N = 6


class Case(NamedTuple):
    """A network, its loss, and the examples; `has_aux` where it returns a pair with something to ignore."""

    apply: Callable[[Any, Any], Any]
    params: Any
    x: Any
    y: Any
    loss: Callable[[Any, Any], Any]
    has_aux: bool = False


def squares(outputs: Any, targets: Any) -> Any:
    return jnp.mean((outputs - targets) ** 2)


def pixelwise(logits: Any, labels: Any) -> Any:
    return scores.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.ravel())


def several(outputs: Any, targets: Any) -> Any:
    value, (classes,) = outputs["value"], outputs["classes"]
    weighted = jnp.mean(targets["weight"] * (value - targets["value"]) ** 2)
    return weighted + 0.3 * scores.cross_entropy(classes, targets["label"])


class Text(nn.Module):
    """A class for each token."""

    @nn.compact
    def __call__(self, tokens):
        h = nn.Embed(7, 3, param_dtype=float)(tokens)
        return nn.Dense(5, param_dtype=float)(jnp.tanh(nn.Dense(4, param_dtype=float)(h)))


class Map(nn.Module):
    """A class for each pixel."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (1, 1), param_dtype=float)(jnp.tanh(nn.Conv(3, (2, 2), param_dtype=float)(x)))


def hidden(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["first"])


def cases() -> dict[str, Case]:
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    labels = lambda classes, *shape: jnp.asarray(rng.integers(0, classes, shape))  # noqa: E731
    mlp = {"first": normal(3, 4), "second": normal(4, 2)}
    outputs = lambda p, x: hidden(p, x) @ p["second"]  # noqa: E731
    x, tokens = normal(N, 3), labels(7, N, 5)

    def trees(p: Any, x: Any) -> Any:
        h = hidden(p, jnp.concatenate([x["numbers"], x["more"][0][:, None]], axis=1))
        return {"value": h[:, 0], "classes": (h @ p["second"],)}

    tree = {"numbers": normal(N, 2), "more": (normal(N),)}
    targets = {"weight": jnp.abs(normal(N)), "value": normal(N), "label": labels(2, N)}
    text, pixels, images = Text(), Map(), normal(N, 3, 2, 2)
    text_params, map_params = text.init(jax.random.key(0), tokens), pixels.init(jax.random.key(1), images)
    return {
        "one number each": Case(lambda p, x: outputs(p, x)[:, 0], mlp, x, normal(N), squares),
        "numbers (n, o)": Case(outputs, mlp, x, normal(N, 2), squares),
        "labels of pixels": Case(pixels.apply, map_params, images, labels(3, N, 3, 2), pixelwise),
        "labels of tokens": Case(text.apply, text_params, tokens, labels(5, N, 5), pixelwise),
        "trees": Case(trees, mlp, tree, targets, several),
        "trees and more": Case(
            lambda p, x: (trees(p, x), {"norm": x["numbers"].sum()}), mlp, tree, targets, several, True
        ),
        "no targets": Case(lambda p, x: hidden(p, x) @ p["first"].T - x, mlp, x, None, lambda out, _: jnp.mean(out**2)),
        "signs": Case(outputs, mlp, x, normal(N, 2) > 0, lambda out, y: jnp.mean(jnp.where(y, 1, -1) * out**3)),
    }


CASES = cases()
every_case = pytest.mark.parametrize("name", CASES)


def mean_loss(case: Case) -> Callable[[Any], Any]:
    """The mean loss of all examples as a function of the raveled parameters."""
    unravel = ravel_pytree(case.params)[1]

    def loss(vector: Any) -> Any:
        result = case.apply(unravel(vector), case.x)
        return case.loss(result[0] if case.has_aux else result, case.y)

    return loss


def part(tree: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[start:stop], tree)


def batches(case: Case) -> list[tuple[Any, Any]]:
    return [(part(case.x, *ends), part(case.y, *ends)) for ends in ((0, 1), (1, 4), (4, 6))]


def assert_close(found: Any, expected: Any) -> None:
    found, expected = np.asarray(ravel_pytree(found)[0]), np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=EXACT, atol=EXACT * np.abs(expected).max())
    assert np.abs(expected).max() > 0


@every_case
def test_snip_and_force_are_weights_times_the_gradient_of_the_mean_loss(name: str) -> None:
    case = CASES[name]
    options: Any = {"loss": case.loss, "has_aux": case.has_aux}
    vector, _ = ravel_pytree(case.params)
    expected = jnp.abs(vector * jax.grad(mean_loss(case))(vector))
    assert_close(scores.snip(case.apply, case.params, [(case.x, case.y)], **options), expected)
    assert_close(scores.snip(case.apply, case.params, (batch for batch in batches(case)), **options), expected)
    keep = np.random.default_rng(1).random(vector.shape) < 0.7
    mask = jax.tree.map(lambda leaf: leaf > 0, ravel_pytree(case.params)[1](jnp.asarray(keep, float)))
    expected = jnp.abs(vector * jax.grad(mean_loss(case))(vector * keep))
    assert_close(scores.force(case.apply, case.params, batches(case), mask=mask, **options), expected)


@every_case
def test_grasp_is_weights_times_hessian_times_gradient_of_the_mean_loss(name: str) -> None:
    case = CASES[name]
    vector, _ = ravel_pytree(case.params)
    loss = mean_loss(case)
    expected = vector * (jax.hessian(loss)(vector) @ jax.grad(loss)(vector))
    options: Any = {"loss": case.loss, "has_aux": case.has_aux, "temperature": 1.0}
    assert_close(scores.grasp(case.apply, case.params, iter(batches(case)), **options), expected)


@every_case
def test_prospr_is_weights_times_the_gradient_through_the_steps(name: str) -> None:
    """By differentiating the unrolled steps, of networks and losses of all kinds and batches of several lengths."""
    case, rate = CASES[name], 0.05
    *steps, last = [case._replace(x=x, y=y) for x, y in batches(case)]

    def loss_after_steps(vector: Any) -> Any:
        for step in steps:
            vector = vector - rate * jax.grad(mean_loss(step))(vector)
        return mean_loss(last)(vector)

    vector, _ = ravel_pytree(case.params)
    expected = jnp.abs(vector * jax.grad(loss_after_steps)(vector))
    options: Any = {"loss": case.loss, "has_aux": case.has_aux, "steps": 2, "learning_rate": rate}
    assert_close(scores.prospr(case.apply, case.params, iter(batches(case)), **options), expected)


def test_the_temperature_divides_every_array_of_outputs() -> None:
    case = CASES["trees"]

    def cooler(outputs: Any, targets: Any) -> Any:
        return several(jax.tree.map(lambda leaf: leaf / 3.0, outputs), targets)

    vector, _ = ravel_pytree(case.params)
    loss = mean_loss(case._replace(loss=cooler))
    expected = vector * (jax.hessian(loss)(vector) @ jax.grad(loss)(vector))
    assert_close(scores.grasp(case.apply, case.params, batches(case), loss=several, temperature=3.0), expected)


# Batches


def test_batches_may_be_dictionaries_with_named_targets() -> None:
    case = CASES["numbers (n, o)"]
    expected = scores.snip(case.apply, case.params, [(case.x, case.y)], loss=squares)
    for name in ("y", "label", "labels", "target", "targets"):
        named = ({name: y, "image": x} for x, y in batches(case))
        assert_close(scores.snip(case.apply, case.params, named, loss=squares), ravel_pytree(expected)[0])
    case = CASES["trees"]
    named = ({"target": y, "numbers": x["numbers"], "more": x["more"]} for x, y in batches(case))
    expected = scores.snip(case.apply, case.params, [(case.x, case.y)], loss=several)
    assert_close(scores.snip(case.apply, case.params, named, loss=several), ravel_pytree(expected)[0])


def test_lists_of_numbers_are_arrays() -> None:
    case = CASES["one number each"]
    expected = scores.snip(case.apply, case.params, [(case.x, case.y)], loss=squares)
    for y in (np.asarray(case.y).tolist(), list(np.asarray(case.y)), list(case.y)):
        listed = [(np.asarray(case.x).tolist(), y)]
        assert_close(scores.snip(case.apply, case.params, listed, loss=squares), ravel_pytree(expected)[0])


# what a user meets without the run-time type checker that tests install, whose words would come first
unchecked = inspect.unwrap(scores.snip)
X, Y, PARAMS = CASES["numbers (n, o)"].x, jnp.zeros(N, int), CASES["numbers (n, o)"].params
APPLY = CASES["numbers (n, o)"].apply


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X, Y), r"bare arrays, of shape \(6, 3\) and \(6,\), not pairs.*\[\(x, y\)\]"),
        ([X, Y], r"bare arrays, of shape \(6, 3\) and \(6,\)"),
        ((np.asarray(X), [0] * N), r"bare arrays, of shape \(6, 3\), not pairs"),
        (((X, X), Y), r"bare arrays, of shape \(6,\), not pairs"),
        (X, r"bare arrays, of shape \(6, 3\)"),
        ([(X, X, Y)], r"one is 3 parts.*\[\(x, y\)\] for a single batch"),
        (iter([X]), r"must be a pair \(x, y\).*ArrayImpl"),
        ({"image": X, "label": Y}, r"`batches` is one dictionary.*\[\(x, y\)\].*\[\{\.\.\.\}\]"),
        (7, "`batches` is a int, but must be an iterable"),
        ([(X, ["cat"] * N)], r"`y` at \[0\] is a str, not an array"),
        ([{"label": Y, "image": X, "name": ["one"] * N}], r"`x` at \['name'\]\[0\] is a str"),
    ],
)
def test_what_are_no_batches_is_refused_with_the_remedy(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        unchecked(APPLY, PARAMS, given)


def test_dictionaries_without_one_target_are_refused_with_the_names() -> None:
    for batch in ({"image": X, "class": Y}, {"image": X, "label": Y, "target": Y}, {"label": Y}):
        with pytest.raises(
            ValueError, match=r"exactly one must be that of the targets \('y', 'label'.*Pass pairs instead"
        ):
            scores.snip(APPLY, PARAMS, [batch])


def test_targets_that_are_not_one_for_each_example_are_refused() -> None:
    for y, shapes in ((Y[1:], r"\(5,\)"), (jnp.ones((1, 6)), r"\(1, 6\)"), ({"a": Y, "b": 1.0}, r"\(6,\), \(\)")):
        with pytest.raises(ValueError, match=rf"one target, \(n, \.\.\.\): the shapes are {shapes} and \(6, 3\)"):
            scores.snip(APPLY, PARAMS, [(X, y)], loss=squares)


# Losses and outputs


def test_a_loss_of_more_than_one_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must return one number, the mean over the examples.*shape \(6, 2\)"):
        scores.snip(APPLY, PARAMS, [(X, jnp.ones((N, 2)))], loss=lambda outputs, targets: (outputs - targets) ** 2)


def test_cross_entropy_of_outputs_of_more_axes_says_how_to_take_it() -> None:
    case = CASES["labels of pixels"]
    with pytest.raises(ValueError, match=r"label at each place, pass (loss=.*\.ravel\(\)\))\.") as refused:
        scores.snip(case.apply, case.params, [(case.x, case.y)])
    remedy = str(refused.value).split("pass loss=")[1][:-1]
    loss = eval(remedy, {"scores": scores})
    expected = scores.snip(case.apply, case.params, [(case.x, case.y)], loss=pixelwise)
    assert_close(scores.snip(case.apply, case.params, [(case.x, case.y)], loss=loss), ravel_pytree(expected)[0])


def test_outputs_that_are_no_logits_are_refused_with_what_came() -> None:
    for apply, message in (
        (lambda p, x: {"logits": APPLY(p, x)}, r"returned a pytree of arrays \(6, 2\)"),
        (lambda p, x: (APPLY(p, x), x.mean(0)), "returned a pair. Pass `has_aux=True`"),
        (lambda p, x: APPLY(p, x)[:, 0], r"returned \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            scores.snip(apply, PARAMS, [(X, Y)])
    with pytest.raises(ValueError, match=r"targets of shape \(6, 2\)\. Of one-hot targets take jnp.argmax"):
        scores.snip(APPLY, PARAMS, [(X, jnp.ones((N, 2)))])
    with pytest.raises(ValueError, match=r"targets a NoneType\. Pass a `loss` of your own\."):
        scores.snip(APPLY, PARAMS, [(X, None)])


def test_has_aux_of_a_network_that_returns_no_pair_is_refused() -> None:
    def init(key: Any) -> Any:
        return PARAMS

    triple = lambda p, x: (APPLY(p, x), 1, 2)  # noqa: E731
    for apply, came in ((APPLY, "no pair"), (triple, "3 parts")):
        with pytest.raises(ValueError, match=f"must return a pair.*but it returned {came}"):
            scores.snip(apply, PARAMS, [(X, Y)], has_aux=True)
        with pytest.raises(ValueError, match=f"must return a pair.*but it returned {came}"):
            scores.ntk_sap(apply, PARAMS, X, init=init, key=jax.random.key(0), has_aux=True)


# NTK-SAP, which draws its inputs


def sap_by_hand(outputs: Any, params: Any, init: Any, draw: Any, key: Any, epsilon: float) -> Any:
    """The derivative by a mask of ones of ‖f(θ) − f(θ + εN)‖² / n, for the draw of `ntk_sap`'s first repeat."""
    weights_key, noise_key, inputs_key = jax.random.split(jax.random.fold_in(key, 0), 3)
    weights, x = init(weights_key), draw(inputs_key)
    leaves, structure = jax.tree.flatten(weights)
    keys = jax.random.split(noise_key, len(leaves))
    noise = jax.tree.unflatten(
        structure, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )

    def change(mask: Any) -> Any:
        ends = [
            outputs(jax.tree.map(lambda m, w, e, s=size: m * (w + s * e), mask, weights, noise), x)
            for size in (0.0, epsilon)
        ]
        return sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, ends), strict=True)) / N

    slopes = jax.grad(change)(jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params))
    return jnp.abs(ravel_pytree(slopes)[0])


@pytest.mark.parametrize("name", ["labels of tokens", "labels of pixels", "trees", "trees and more"])
def test_ntk_sap_takes_trees_and_draws_tokens_as_told(name: str) -> None:
    case, key = CASES[name], jax.random.key(3)
    options: dict[str, Any] = {"has_aux": case.has_aux, "epsilon": 0.1}

    def init(key: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), case.params)

    def draw(key: Any) -> Any:
        leaves, structure = jax.tree.flatten(case.x)
        if name == "labels of tokens":
            return jax.random.randint(key, (N, 5), 0, 7)
        keys = [key] if len(leaves) == 1 else jax.random.split(key, len(leaves))
        draws = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, draws)

    def outputs(params: Any, x: Any) -> Any:
        result = case.apply(params, x)
        return result[0] if case.has_aux else result

    expected = sap_by_hand(outputs, case.params, init, draw, key, 0.1)
    if name != "labels of tokens":
        assert_close(scores.ntk_sap(case.apply, case.params, case.x, init=init, key=key, **options), expected)
    options["draw_inputs"] = draw
    assert_close(scores.ntk_sap(case.apply, case.params, case.x, init=init, key=key, **options), expected)


def test_drawn_inputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`draw_inputs\(key\)`.* has shape \(5, 3\), but `x_like` has \(6, 3\)"):
        scores.ntk_sap(
            APPLY,
            PARAMS,
            X,
            init=lambda key: PARAMS,
            key=jax.random.key(0),
            draw_inputs=lambda key: jax.random.normal(key, (5, 3)),
        )
