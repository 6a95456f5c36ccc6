"""Points not trained on, and descent in steps: equal to the linear network trained, and to neural-tangents."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from pathjax import dynamics, factorization, ntk

from .. import networks
from ..tolerances import DIFFERENCES, DISCRETE, EXACT, SINGLE, SINGLE_ROUNDING, SUMS
from .examples import RATE, prediction, problem, trained

SIZES = pytest.mark.parametrize(("n", "o", "p", "m"), [(4, 3, 20, 2), (4, 3, 5, 3), (1, 1, 2, 1), (3, 2, 0, 2)])
TIMES = jnp.asarray([0.0, 0.1, 1.0, 7.0, 300.0])
STEPS = [0, 1, 2, 7, 40]


def linearized(case, times, **options):
    return prediction(dynamics.linearized, case, case["targets"], times, **options)


@SIZES
def test_test_outputs_follow_the_flow_of_training_and_test_points_together(n, o, p, m):
    case = problem(n, o, p, m)
    matrix, cross = np.asarray(ntk.as_matrix(case["ntk"])), np.asarray(ntk.as_matrix(case["test_ntk"]))
    together = np.block([[matrix, np.zeros((n * o, m * o))], [cross, np.zeros((m * o, m * o))]])
    residual = np.asarray(case["outputs"] - case["targets"]).ravel()
    start = np.concatenate([residual, np.asarray(case["test_outputs"]).ravel()])
    for time, found in zip(TIMES, linearized(case, TIMES), strict=True):
        moved = scipy.linalg.expm(-RATE * float(time) * together) @ start
        np.testing.assert_allclose(found.ravel(), moved[n * o :], rtol=0, atol=EXACT)


@pytest.mark.parametrize(("n", "o", "p", "m"), [(4, 3, 20, 2), (5, 1, 8, 3)])
def test_outputs_equal_those_of_neural_tangents_at_finite_and_infinite_time(n, o, p, m):
    case = problem(n, o, p, m)
    predict = ntk.neural_tangents().predict.gradient_descent_mse(
        case["ntk"], case["targets"], learning_rate=1.0, trace_axes=()
    )
    # its loss is ½ of the mean over all n·o outputs
    theirs = predict(
        RATE * case["targets"].size * TIMES, case["outputs"], case["test_outputs"], k_test_train=case["test_ntk"]
    )
    ends = predict(None, case["outputs"], case["test_outputs"], k_test_train=case["test_ntk"])
    for test in (False, True):
        found = linearized(case, jnp.append(TIMES, jnp.inf), test=test)
        np.testing.assert_allclose(found[:-1], theirs[test], rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(found[-1], ends[test], rtol=EXACT, atol=EXACT)


def test_kernels_of_independent_outputs_equal_those_of_neural_tangents_traced():
    case = problem(n=5, o=1, p=9, m=3)
    targets, outputs, test = (jnp.cos(jnp.arange(size * 4.0)).reshape(size, 4) for size in (5, 5, 3))
    predict = ntk.neural_tangents().predict.gradient_descent_mse(case["ntk"][:, :, 0, 0], targets, trace_axes=(-1,))
    theirs = predict(RATE * 5 * 4 * TIMES, outputs, test, k_test_train=case["test_ntk"][:, :, 0, 0])
    whole = {name: jnp.einsum("ij,ab->ijab", case[name][:, :, 0, 0], jnp.eye(4)) for name in ("ntk", "test_ntk")} | {
        "outputs": outputs,
        "targets": targets,
        "test_outputs": test,
    }
    for place in (False, True):
        np.testing.assert_allclose(linearized(whole, TIMES, test=place), theirs[place], rtol=EXACT, atol=EXACT)


def test_at_infinite_time_a_singular_kernel_moves_what_it_sees():
    case = problem(p=5)
    train, test = (np.asarray(case[f"{name}_jacobian"]).reshape(-1, 5) for name in ("train", "test"))
    weights = np.linalg.lstsq(train, -np.asarray(case["outputs"] - case["targets"]).ravel(), rcond=None)[0]
    found = linearized(case, jnp.asarray([jnp.inf]))[0]
    np.testing.assert_allclose((found - case["test_outputs"]).ravel(), test @ weights, rtol=0, atol=EXACT)
    found = linearized(case, jnp.asarray([jnp.inf]), test=False)[0]
    np.testing.assert_allclose((found - case["outputs"]).ravel(), train @ weights, rtol=0, atol=EXACT)


def test_where_the_training_kernel_is_zero_test_outputs_move_at_constant_speed():
    case = problem() | {"ntk": jnp.zeros((4, 4, 3, 3))}
    speed = -RATE * jnp.einsum("mnab,nb->ma", case["test_ntk"], case["outputs"] - case["targets"])
    for flow in (True, False):
        found = linearized(case, jnp.asarray([0.0, 3.0]), flow=flow)
        np.testing.assert_allclose(found[1] - found[0], 3 * speed, rtol=EXACT)


@SIZES
@pytest.mark.parametrize("factor", [0.5, 1.05])
def test_gradient_descent_is_that_of_the_linear_network_itself(n, o, p, m, factor):
    case = problem(n, o, p, m)
    rate = factor * float(dynamics.critical_learning_rate(case["ntk"])) if p else 1.0
    expected = trained(case, lambda outputs: outputs - np.asarray(case["targets"]), STEPS, rate)
    for test in (False, True):
        found = linearized(case, jnp.asarray(STEPS), test=test, flow=False, rate=rate)
        np.testing.assert_allclose(found, expected[test], rtol=EXACT, atol=EXACT)


def test_gradient_descent_diverges_above_the_critical_learning_rate_and_not_below():
    case = problem()
    critical = dynamics.critical_learning_rate(case["ntk"])
    for factor, grows in ((0.99, False), (1.01, True)):
        losses = dynamics.linearized_loss(
            case["ntk"],
            case["outputs"],
            case["targets"],
            jnp.asarray([0, 2000]),
            learning_rate=factor * critical,
            flow=False,
        )
        assert (losses[1] > losses[0]) == grows


def test_small_steps_of_gradient_descent_approach_the_flow():
    case = problem()
    for test in (False, True):
        flow = linearized(case, jnp.asarray([8.0]), test=test)
        gaps = [
            jnp.abs(linearized(case, jnp.asarray([8 * cut]), test=test, flow=False, rate=RATE / cut) - flow).max()
            for cut in (100, 1000)
        ]
        np.testing.assert_allclose(gaps[0] / gaps[1], 10, rtol=DISCRETE)


def test_the_loss_is_that_of_the_outputs():
    case = problem(p=7)
    for options in ({}, {"flow": False, "rate": 0.01}):
        curve = linearized(case, jnp.asarray([0, 3, 50]), test=False, **options)
        found = prediction(
            dynamics.linearized_loss, case, case["targets"], jnp.asarray([0, 3, 50]), test=False, **options
        )
        np.testing.assert_allclose(found, 0.5 * jnp.sum((curve - case["targets"][None]) ** 2, axis=(1, 2)), rtol=EXACT)


def test_losses_far_below_the_first_keep_their_digits():
    kernel, one = jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1))
    loss = dynamics.linearized_loss(kernel, 2 * one, one, jnp.asarray([60.0]), learning_rate=1.0)
    np.testing.assert_allclose(loss, 0.5 * np.exp(-120.0), rtol=EXACT)


def test_the_part_of_all_modes_predicts_the_loss_of_the_whole_kernel_and_fewer_modes_leave_more():
    network = networks.build("biased_mlp")
    outputs = network.apply(network.params, network.x)
    count = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    factorize = jax.jit(functools.partial(factorization.factorize, network.apply, rank=count, key=jax.random.key(0)))
    found = factorize(network.params, network.x)
    times = jnp.append(TIMES, jnp.inf)

    @jax.jit
    def loss(kernel):
        return dynamics.linearized_loss(kernel, outputs, 1 + 0 * outputs, times, learning_rate=RATE)

    whole = loss(ntk.empirical(network.apply, network.params, network.x))
    parts = [
        found._replace(eigenvalues=jnp.where(jnp.arange(len(found.eigenvalues)) < rank, found.eigenvalues, 0))
        for rank in (1, 3, count)
    ]
    curves = [loss(factorization.recompose(part)) for part in parts]
    np.testing.assert_allclose(curves[-1], whole, rtol=EXACT, atol=SUMS)
    assert curves[0][-1] > curves[1][-1] > whole[-1] + 0.01


# Transformations


@pytest.mark.parametrize("flow", [True, False])
def test_seeds_can_be_vmapped_and_jitted(flow):
    cases = [problem(seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *cases)
    times = jnp.asarray([0, 2, 9])
    curves = jax.jit(jax.vmap(lambda case: linearized(case, times, flow=flow, rate=0.02)))(stacked)
    losses = jax.jit(
        jax.vmap(
            lambda case: prediction(
                dynamics.linearized_loss, case, case["targets"], times, test=False, flow=flow, rate=0.02
            )
        )
    )(stacked)
    assert losses.shape == (3, 3)
    for curve, case in zip(curves, cases, strict=True):
        np.testing.assert_allclose(curve, linearized(case, times, flow=flow, rate=0.02), rtol=0, atol=EXACT)


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("spectrum", ["simple", "repeated", "singular", "steep"])
def test_gradients_equal_finite_differences_for_any_spectrum(flow, test, spectrum):
    case = problem(n=3, o=2, p=5 if spectrum == "singular" else 20)
    del case["train_jacobian"], case["test_jacobian"]
    if spectrum == "repeated":
        case["ntk"] = 0.3 * jnp.einsum("ij,ab->ijab", jnp.eye(3), jnp.eye(2))
    if spectrum == "singular":  # away from zero, where eigenvalues are clipped
        case["ntk"] += 1e-4 * jnp.einsum("ij,ab->ijab", jnp.eye(3), jnp.eye(2))
    # with steps so large that some modes change sign at each
    case["rate"] = jnp.asarray({True: RATE, False: 0.02}[flow] * (2.5 if spectrum == "steep" else 1))
    times = jnp.asarray([0.0, 1.0, 2.0, 6.0, jnp.inf] if spectrum == "simple" and flow else [0.0, 1.0, 2.0, 6.0])

    def total(case):
        rest = {name: part for name, part in case.items() if name != "rate"}
        return jnp.sum(jnp.sin(linearized(rest, times, test=test, flow=flow, rate=case["rate"])))

    slopes = jax.jit(jax.grad(total))(case)
    rng = np.random.default_rng(1)
    for name, value in case.items():
        direction = jnp.asarray(rng.normal(size=value.shape))
        step = 1e-6
        ends = [total(case | {name: value + sign * step * direction}) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(
            jnp.vdot(slopes[name], direction), expected, rtol=DIFFERENCES, atol=DIFFERENCES, err_msg=name
        )


def test_single_precision_stays_single_and_accurate():
    case = problem()
    single = {name: part.astype(jnp.float32) for name, part in case.items()}
    for flow, rate in ((True, RATE), (False, 0.02)):
        times = jnp.asarray([1.0, 1000.0])
        found = linearized(single, times.astype(jnp.float32), flow=flow, rate=rate)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, linearized(case, times, flow=flow, rate=rate), rtol=0, atol=SINGLE)


def test_small_learning_rates_are_not_rounded_away_in_single_precision():
    kernel, one = jnp.ones((1, 1, 1, 1), jnp.float32), jnp.ones((1, 1), jnp.float32)
    found = dynamics.linearized(kernel, one, 0 * one, jnp.asarray([10_000_000]), learning_rate=1e-8, flow=False)
    np.testing.assert_allclose(found, np.exp(-0.1), rtol=SINGLE_ROUNDING)


# Bad input


def test_test_points_of_another_kernel_are_refused():
    case = problem()
    function = inspect.unwrap(dynamics.linearized)
    arguments = case["ntk"], case["outputs"], case["targets"], TIMES
    with pytest.raises(ValueError, match="`test_outputs` is missing"):
        function(*arguments, learning_rate=RATE, test_ntk=case["test_ntk"])
    with pytest.raises(ValueError, match="`test_ntk` is missing"):
        function(*arguments, learning_rate=RATE, test_outputs=case["test_outputs"])
    with pytest.raises(ValueError, match=r"\(m, 4, 3, 3\).*\(4, 2, 3, 3\) and \(2, 3\) came.*x_test, x_train"):
        test = {"test_ntk": jnp.swapaxes(case["test_ntk"], 0, 1), "test_outputs": case["test_outputs"]}
        function(*arguments, learning_rate=RATE, **test)


def test_steps_that_are_not_whole_are_refused():
    with pytest.raises(ValueError, match="are steps, but some are not whole"):
        linearized(problem(), jnp.asarray([0.0, 0.5]), flow=False)
