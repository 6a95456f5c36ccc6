"""Training predicted from products alone: equal to the dense prediction within bounds, which are not far too large."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathjax import dynamics, ntk

from ..networks import build
from ..tolerances import EXACT, ROUNDING, SINGLE, SINGLE_ROUNDING, SUMS
from .examples import RATE, problem

DECADES = 1e4
"""How far above the error a bound may be, where that is not a rounding."""

EXAMPLES, OUTPUTS, POINTS = 20, 3, 4
ROWS = EXAMPLES * OUTPUTS
TIMES = jnp.asarray([0.0, 0.3, 1.0, 10.0, 100.0, 3000.0])
SPECTRA = {
    "well conditioned": np.linspace(0.2, 1, ROWS),
    "decaying": np.logspace(0, -7, ROWS),
    "singular": np.concatenate([np.logspace(0, -3, ROWS // 2), np.zeros(ROWS - ROWS // 2)]),
    "repeated": np.repeat([1.0, 0.3, 0.01], ROWS // 3),
    "one large": np.concatenate([[1.0], np.logspace(-2, -5, ROWS - 1)]),
    "zero": np.zeros(ROWS),
}
LARGEST = {"flow": 1.0, "descent": 1.0, "descent in large steps": 1.9}


def linear(params, x):
    """A network that is linear in its weights: `x` (n, o, p) is its Jacobian."""
    return jnp.einsum("iap,p->ia", x, params)


def case(eigenvalues, seed=0, largest=1.0):
    """A kernel of these eigenvalues, with test points."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(ROWS, ROWS)))
    rotation, _ = np.linalg.qr(rng.normal(size=(ROWS, ROWS)))
    train = (basis * np.sqrt(largest * eigenvalues)[None]) @ rotation
    test = rng.normal(size=(POINTS * OUTPUTS, ROWS)) @ train / np.sqrt(ROWS)
    found = {
        "train_jacobian": train.reshape(EXAMPLES, OUTPUTS, ROWS),
        "test_jacobian": test.reshape(POINTS, OUTPUTS, ROWS),
        "outputs": rng.normal(size=(EXAMPLES, OUTPUTS)),
        "targets": rng.normal(size=(EXAMPLES, OUTPUTS)),
        "test_outputs": rng.normal(size=(POINTS, OUTPUTS)),
    }
    return {name: jnp.asarray(array) for name, array in found.items()}


def operators(case, **options):
    """Kernels of training examples, and of test points with them."""
    train, test = case["train_jacobian"], case["test_jacobian"]
    params = jnp.zeros(train.shape[-1], train.dtype)
    return ntk.operator(linear, params, train, **options), ntk.operator(linear, params, test, train, **options)


def formed(case):
    train, test = case["train_jacobian"], case["test_jacobian"]
    return jnp.einsum("iap,jbp->ijab", train, train), jnp.einsum("iap,jbp->ijab", test, train)


def predictions(case, times, *, test, flow=True, rate=1.0, **options):
    """What is found from products, and the dense outputs."""
    training: dict[str, Any] = {"learning_rate": rate, "flow": flow}
    arguments = case["outputs"], case["targets"], times
    (kernel, cross_kernel), (array, cross_array) = operators(case), formed(case)
    points: dict[str, Any] = {"test_outputs": case["test_outputs"]} if test else {}
    crosses: list[dict[str, Any]] = [{"test_ntk": cross} if test else {} for cross in (cross_kernel, cross_array)]
    found = dynamics.trajectory(kernel, *arguments, **(training | points | crosses[0] | options))
    return found, dynamics.linearized(array, *arguments, **(training | points | crosses[1]))


def distances(found, dense):
    return np.sqrt(np.mean((np.asarray(found.outputs, np.float64) - dense) ** 2, axis=(1, 2)))


def scale(case):
    return float(jnp.sqrt(jnp.mean((case["outputs"] - case["targets"]) ** 2)))


@pytest.mark.parametrize("test", [False, True], ids=["training", "test points"])
@pytest.mark.parametrize("training", LARGEST)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_errors_are_within_their_bounds_and_these_within_the_tolerance(spectrum, training, test):
    this = case(SPECTRA[spectrum], largest=LARGEST[training])
    times = TIMES if training == "flow" else TIMES.round()
    for tolerance in (1e-2, 1e-8):
        found, dense = predictions(this, times, test=test, flow=training == "flow", tolerance=tolerance)
        errors = distances(found, dense)
        assert (errors <= found.errors + SUMS).all()
        assert (found.errors <= (tolerance + EXACT) * scale(this)).all()
    assert found.products <= ROWS


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_losses_are_off_by_no_more_than_the_bounds_allow(spectrum):
    this = case(SPECTRA[spectrum])
    dense = dynamics.linearized_loss(formed(this)[0], this["outputs"], this["targets"], TIMES, learning_rate=1.0)
    for order in (5, 20):
        found, _ = predictions(this, TIMES, test=False, order=order, tolerance=1e3)
        off = np.asarray(found.errors) * np.sqrt(ROWS)
        assert (abs(found.losses - dense) <= off * np.sqrt(2 * dense) + off**2 / 2).all()


@pytest.mark.parametrize("test", [False, True], ids=["training", "test points"])
@pytest.mark.parametrize("flow", [True, False], ids=["flow", "descent"])
@pytest.mark.parametrize("spectrum", ["well conditioned", "decaying", "singular", "one large"])
def test_bounds_hold_in_spaces_of_any_size_and_are_not_far_too_large(spectrum, flow, test):
    this = case(SPECTRA[spectrum])
    for order in (1, 3, 9):
        with pytest.warns(UserWarning, match=f"a Krylov space of {order} vectors is too small for it. Pass a larger"):
            found, dense = predictions(this, TIMES.round(), test=test, flow=flow, tolerance=1e-12, order=order)
        errors = distances(found, dense)
        assert found.products == order
        assert (errors <= found.errors + SUMS).all()
        is_truncated = errors > EXACT
        assert is_truncated.any()
        assert (found.errors <= DECADES * errors)[is_truncated].all()


@pytest.mark.parametrize("spectrum", ["well conditioned", "singular", "repeated", "zero"])
def test_at_infinite_time_it_is_where_the_dense_prediction_is(spectrum):
    this, times = case(SPECTRA[spectrum]), jnp.asarray([jnp.inf, 0.0])
    for flow in (True, False):
        for test in (False, True):
            found, dense = predictions(this, times, test=test, flow=flow, tolerance=1e-10)
            np.testing.assert_allclose(found.outputs, dense, rtol=0, atol=EXACT)
            assert (distances(found, dense) <= found.errors + SUMS).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-8, 0), min_size=ROWS, max_size=ROWS),
    st.lists(st.floats(0, 1e4), min_size=3, max_size=3),
    st.booleans(),
    st.integers(0, 9),
)
def test_bounds_hold_for_any_spectrum_and_times(logarithms, times, test, seed):
    this = case(10.0 ** np.asarray(logarithms), seed)
    found, dense = predictions(this, jnp.asarray(times), test=test, tolerance=SINGLE)
    assert (distances(found, dense) <= found.errors + SUMS).all()
    assert (found.errors <= (SINGLE + EXACT) * scale(this)).all()


# Where the space ends


def test_a_residual_in_an_eigenspace_takes_one_product():
    this = case(SPECTRA["repeated"])
    kernel, _ = operators(this)
    target = ntk.as_matrix(formed(this)[0])
    vector = jnp.linalg.eigh(target)[1][:, -1].reshape(EXAMPLES, OUTPUTS)
    found = dynamics.trajectory(
        kernel, vector, jnp.zeros((EXAMPLES, OUTPUTS)), TIMES, learning_rate=1.0, tolerance=1e-10
    )
    assert found.products == 1
    np.testing.assert_allclose(found.outputs, jnp.exp(-TIMES)[:, None, None] * vector[None], rtol=0, atol=EXACT)
    assert (found.errors < EXACT).all()


def test_a_space_is_no_larger_than_eigenvalues_differ():
    this = case(SPECTRA["repeated"])
    found, dense = predictions(this, TIMES, test=False, tolerance=1e-11)
    assert found.products == 3
    np.testing.assert_allclose(found.outputs, dense, rtol=0, atol=EXACT)


def test_outputs_that_meet_their_targets_stay_there_without_a_product():
    this = case(SPECTRA["decaying"])
    this["outputs"] = this["targets"]
    times = jnp.asarray([0.0, 5.0, jnp.inf])
    for test in (False, True):
        found, dense = predictions(this, times, test=test)
        np.testing.assert_allclose(found.outputs, dense, rtol=0, atol=ROUNDING)
        assert found.products == 0
        assert not np.asarray(found.errors).any() and not np.asarray(found.losses).any()


def test_steps_that_diverge_are_predicted_as_such():
    this = case(SPECTRA["decaying"])
    found, dense = predictions(this, jnp.asarray([0.0, 5.0, 20.0]), test=False, flow=False, rate=2.5, tolerance=1e-12)
    largest = np.max(np.abs(dense), axis=(1, 2))
    np.testing.assert_allclose(found.outputs, dense, rtol=0, atol=EXACT * largest.max())
    # the dense prediction is rounded too, in proportion to outputs that grow 1.5-fold with each step
    assert (distances(found, dense) <= found.errors + SUMS * np.maximum(largest, 1)).all()


# Networks


@pytest.mark.parametrize("name", ["biased_mlp", "conv_same_stride", "recurrent_scan"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_networks_masked_and_in_chunks_train_as_their_kernels_predict(name, batch_size):
    network = build(name)
    mask = jax.tree.map(lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape) % 3 > 0, network.params)
    x = jnp.concatenate([network.x, -network.x, 2 * network.x[:1]])
    of = network.apply, network.params
    kernel = ntk.operator(*of, x, mask=mask, batch_size=batch_size)
    test = ntk.operator(*of, network.x, x, mask=mask, batch_size=batch_size)
    outputs, targets = jnp.ones(kernel.shape), jnp.zeros(kernel.shape)
    points: dict[str, Any] = {"test_outputs": jnp.ones((len(network.x), kernel.shape[1]))}
    rate = dynamics.critical_learning_rate(kernel, key=jax.random.key(0)) / 4
    dense, cross = (ntk.empirical(*of, *batches, mask=mask) for batches in ((x,), (network.x, x)))
    np.testing.assert_allclose(rate, dynamics.critical_learning_rate(dense) / 4, rtol=SINGLE)
    for flow in (True, False):
        options: dict[str, Any] = {"learning_rate": rate, "flow": flow}
        arguments = outputs, targets, jnp.asarray([0.0, 1.0, 30.0])
        found = dynamics.trajectory(kernel, *arguments, **options, tolerance=1e-11)
        np.testing.assert_allclose(
            found.outputs, dynamics.linearized(dense, *arguments, **options), rtol=EXACT, atol=EXACT
        )
        np.testing.assert_allclose(
            found.losses, dynamics.linearized_loss(dense, *arguments, **options), rtol=EXACT, atol=EXACT
        )
        found = dynamics.trajectory(kernel, *arguments, **(options | points), test_ntk=test, tolerance=1e-11)
        expected = dynamics.linearized(dense, *arguments, **(options | points), test_ntk=cross)
        np.testing.assert_allclose(found.outputs, expected, rtol=EXACT, atol=EXACT)


def test_linearized_training_takes_an_operator_in_place_of_a_kernel():
    this = case(SPECTRA["decaying"])
    kernel, test = operators(this)
    arguments = this["outputs"], this["targets"], TIMES
    points: dict[str, Any] = {"test_ntk": test, "test_outputs": this["test_outputs"]}
    for flow, times in ((True, TIMES), (False, TIMES.round())):
        arguments = this["outputs"], this["targets"], times
        options: dict[str, Any] = {"learning_rate": 1.0, "flow": flow}
        found = dynamics.trajectory(kernel, *arguments, **options)
        np.testing.assert_array_equal(dynamics.linearized(kernel, *arguments, **options), found.outputs)
        np.testing.assert_array_equal(dynamics.linearized_loss(kernel, *arguments, **options), found.losses)
        found = dynamics.trajectory(kernel, *arguments, **(options | points))
        np.testing.assert_array_equal(dynamics.linearized(kernel, *arguments, **(options | points)), found.outputs)


def test_a_state_is_read():
    this = case(SPECTRA["decaying"])
    x = this["train_jacobian"]

    def scaled(params, state, x):
        return state * linear(params, x)

    state, params = jnp.asarray(0.5), jnp.zeros(ROWS)
    kernel, test = (ntk.operator(scaled, params, *batch, state=state) for batch in ((x,), (x[:2], x)))
    arguments = this["outputs"], this["targets"], TIMES
    found = dynamics.trajectory(kernel, *arguments, learning_rate=1.0)
    expected = dynamics.trajectory(operators(this)[0], *arguments, learning_rate=0.25)
    np.testing.assert_allclose(found.outputs, expected.outputs, rtol=0, atol=EXACT)
    # test points that are training examples
    points: dict[str, Any] = {"test_ntk": test, "test_outputs": this["outputs"][:2], "tolerance": 1e-10}
    found = dynamics.trajectory(kernel, *arguments, learning_rate=1.0, **points)
    expected = dynamics.trajectory(kernel, *arguments, learning_rate=1.0, tolerance=1e-10)
    np.testing.assert_allclose(found.outputs, expected.outputs[:, :2], rtol=0, atol=EXACT)


# Formats and transformations


def test_bounds_hold_in_single_precision():
    for name in ("well conditioned", "decaying", "singular", "one large"):
        this = case(SPECTRA[name])
        single = {key: leaf.astype(jnp.float32) for key, leaf in this.items()}
        for test in (False, True):
            for flow in (True, False):
                options: dict[str, Any] = {"test": test, "flow": flow}
                found, _ = predictions(single, TIMES[:-1].round().astype(jnp.float32), **options)
                _, dense = predictions(
                    {key: leaf.astype(jnp.float64) for key, leaf in single.items()}, TIMES[:-1].round(), **options
                )
                assert found.outputs.dtype == found.errors.dtype == jnp.float32
                assert (distances(found, dense) <= found.errors + SUMS).all()
                assert found.errors[0] <= 100 * SINGLE_ROUNDING


def test_the_prediction_can_be_jitted_and_vmapped_and_has_no_derivative():
    cases = [case(SPECTRA["decaying"], seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)

    def predicted(this):
        kernel, test = operators(this)
        points: dict[str, Any] = {"test_ntk": test, "test_outputs": this["test_outputs"]}
        return dynamics.trajectory(kernel, this["outputs"], this["targets"], TIMES, learning_rate=1.0, **points)

    several = jax.jit(jax.vmap(predicted))(stacked)
    assert repr(several) == f"Trajectory(batch=(2,), t={len(TIMES)}, examples={POINTS}, o={OUTPUTS})"
    for seed, this in enumerate(cases):
        alone = predicted(this)
        assert (np.abs(several.outputs[seed] - alone.outputs).max(axis=(1, 2)) <= 10 * (alone.errors + EXACT)).all()
        assert several.products[seed] == alone.products

    def total(outputs):
        return jnp.sum(predicted(cases[0] | {"outputs": outputs}).losses)

    with pytest.raises(TypeError, match="has no derivative. Pass the kernel itself, `ntk.empirical"):
        jax.grad(total)(cases[0]["outputs"])


# Bad input


def test_what_does_not_fit_is_refused():
    this = case(SPECTRA["decaying"])
    kernel, test = operators(this)
    array, cross = formed(this)
    arguments = this["outputs"], this["targets"], TIMES
    linearized, trajectory = inspect.unwrap(dynamics.linearized), inspect.unwrap(dynamics.trajectory)
    points: dict[str, Any] = {"test_outputs": this["test_outputs"]}
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"test_ntk": test}, "`test_outputs` is missing"),
        ({"test_ntk": cross, **points}, "must both be arrays or both operators"),
        ({"test_ntk": kernel, **points}, r"Test points come before training examples: `ntk.operator\(apply"),
        ({"test_ntk": test, "test_outputs": this["outputs"]}, r"to those of `test_outputs`, \(20, 3\)"),
        ({"order": 0}, "`order` must be at least 1, but is 0"),
        ({"flow": False}, "`times` of gradient descent are steps"),
    )
    for wrong, words in cases:
        with pytest.raises(ValueError, match=words):
            trajectory(kernel, *arguments, learning_rate=RATE, **wrong)
    with pytest.raises(ValueError, match="must both be arrays or both operators"):
        linearized(array, *arguments, learning_rate=RATE, test_ntk=test, **points)
    with pytest.raises(ValueError, match="this operator is of two. Leave out `x2`"):
        trajectory(test, *arguments, learning_rate=RATE)
    with pytest.raises(ValueError, match=r"of shape \(20, 3\) needs outputs and targets of shape \(20, 3\)"):
        linearized(kernel, this["outputs"].T, this["targets"], TIMES, learning_rate=RATE)
    with pytest.raises(TypeError, match="an operator came. Form it by `ntk.empirical`"):
        labels = jnp.zeros(EXAMPLES, int)
        inspect.unwrap(dynamics.linearized_cross_entropy)(kernel, this["outputs"], labels, TIMES, learning_rate=RATE)
    with pytest.raises(ValueError, match="`key` is missing"):
        dynamics.critical_learning_rate(kernel)


def test_a_single_example_and_a_single_output_are_enough():
    for n, o, p in ((1, 1, 2), (1, 3, 8), (5, 1, 3)):
        this = problem(n, o, p, m=1)
        found, dense = predictions(this, TIMES, test=True, rate=RATE, tolerance=1e-11)
        np.testing.assert_allclose(found.outputs, dense, rtol=0, atol=EXACT)


def test_a_warning_names_the_line_of_the_call_and_what_is_in_the_way():
    this = {name: leaf.astype(jnp.float32) for name, leaf in case(SPECTRA["decaying"]).items()}
    kernel, _ = operators(this)
    times = jnp.asarray([1.0, 1e9], jnp.float32)
    for call in (inspect.unwrap(dynamics.linearized), inspect.unwrap(dynamics.linearized_loss)):
        with pytest.warns(UserWarning, match="from time 1e[+]09 on: products with Θ are not more accurate") as record:
            call(kernel, this["outputs"], this["targets"], times, learning_rate=1.0)
        assert record[0].filename == __file__


def test_a_kernel_as_an_array_is_refused_with_the_function_to_call():
    kernel = jnp.ones((2, 2, 1, 1))
    with pytest.raises(
        TypeError, match="takes what `ntk.operator` gives. With the kernel as an array, use `linearized`"
    ):
        inspect.unwrap(dynamics.trajectory)(kernel, jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.ones(1), learning_rate=0.1)
