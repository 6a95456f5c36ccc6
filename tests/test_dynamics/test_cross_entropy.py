"""Training on the cross-entropy: equal to fine Runge-Kutta steps in NumPy, and to descent of the network itself."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import dynamics

from ..tolerances import DISCRETE, EXACT, INTEGRATED, SINGLE
from .examples import RATE, prediction, problem, trained

LABELS = jnp.asarray([0, 2, 1, 2])
TIMES = jnp.asarray([0.0, 1.0, 7.0, 60.0])
unchecked = inspect.unwrap(dynamics.linearized_cross_entropy)


def predicted(case, times=TIMES, labels=LABELS, **options):
    return prediction(dynamics.linearized_cross_entropy, case, labels, times, **options)


def slope(outputs):
    """The derivative of the summed cross-entropy by the outputs, in NumPy."""
    shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True) - np.eye(3)[np.asarray(LABELS)]


def integrated(case, time, *, steps):
    """Training and test outputs by steps of the classical Runge-Kutta method."""
    kernels = [np.asarray(case["ntk"]), np.asarray(case["test_ntk"])]
    both = [np.asarray(case["outputs"]), np.asarray(case["test_outputs"])]
    h = RATE * time / steps

    def speed(outputs):
        return [-np.einsum("ijab,jb->ia", kernel, slope(outputs)) for kernel in kernels]

    for _ in range(steps):
        first = speed(both[0])
        second = speed(both[0] + h / 2 * first[0])
        third = speed(both[0] + h / 2 * second[0])
        fourth = speed(both[0] + h * third[0])
        both = [
            outputs + h / 6 * (a + 2 * b + 2 * c + d)
            for outputs, a, b, c, d in zip(both, first, second, third, fourth, strict=True)
        ]
    return both


def test_outputs_equal_fine_steps_of_runge_kutta():
    case = problem()
    found = predicted(case, test=False), predicted(case)
    for place, time in enumerate(TIMES):
        for curve, expected in zip(found, integrated(case, float(time), steps=500), strict=True):
            np.testing.assert_allclose(curve[place], expected, rtol=0, atol=INTEGRATED)


def test_small_steps_of_descent_of_the_network_itself_follow_the_prediction():
    case, cut = problem(), 200
    for test, expected in enumerate(trained(case, slope, [cut, 7 * cut], RATE / cut)):
        np.testing.assert_allclose(predicted(case, TIMES[1:3], test=bool(test)), expected, rtol=0, atol=DISCRETE)


def test_the_prediction_can_be_jitted_vmapped_and_differentiated():
    cases = [problem(seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *cases)
    curves = jax.jit(jax.vmap(predicted))(stacked)
    for curve, case in zip(curves, cases, strict=True):
        np.testing.assert_allclose(curve, predicted(case), rtol=0, atol=EXACT)

    def total(case):
        rest = {name: part for name, part in case.items() if name != "rate"}
        return jnp.sum(jnp.sin(predicted(rest, TIMES[:3], rate=case["rate"])))

    case = {name: part for name, part in cases[0].items() if not name.endswith("jacobian")} | {
        "rate": jnp.asarray(RATE)
    }
    slopes = jax.jit(jax.grad(total))(case)
    value = jax.jit(total)
    for name in ("ntk", "outputs", "test_ntk", "test_outputs", "rate"):
        direction = jnp.asarray(np.random.default_rng(2).normal(size=case[name].shape))
        ends = [value(case | {name: case[name] + sign * 1e-4 * direction}) for sign in (1, -1)]
        # the steps of the solver change with what is moved
        expected, tolerance = (ends[0] - ends[1]) / 2e-4, 10 * INTEGRATED
        np.testing.assert_allclose(
            jnp.vdot(slopes[name], direction), expected, rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_single_precision_stays_single():
    single = {name: part.astype(jnp.float32) for name, part in problem().items()}
    found = predicted(single, TIMES.astype(jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, predicted(problem()), rtol=0, atol=SINGLE)


# Bad input


def test_labels_and_times_that_have_no_meaning_are_refused():
    case = problem()
    for labels, words in (
        (jnp.asarray([0, 1, 2, 3]), "3 outputs from 0 to 2, but they reach from 0 to 3"),
        (jnp.asarray([0, 1, -1, 2]), "reach from -1 to 2"),
        (jnp.asarray([0, 1]), r"4 training examples, but `labels` have shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            prediction(unchecked, case, labels, TIMES)
    for times in ([0.0, jnp.inf], [1.0, 1.0], [-1.0, 1.0], [jnp.nan]):
        with pytest.raises(ValueError, match="`times` must be finite and ascend from 0"):
            predicted(case, jnp.asarray(times))
    with pytest.raises(ValueError, match="`test_outputs` is missing"):
        unchecked(case["ntk"], case["outputs"], LABELS, TIMES, learning_rate=RATE, test_ntk=case["test_ntk"])
