"""What the scores of networks have in common: state, prunable leaves, batches, transformations, refusals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import masks, scores

from ..tolerances import DIFFERENCES, EXACT, SINGLE

X = jax.random.normal(jax.random.key(7), (6, 3))
Y = jnp.array([0, 1, 0, 1, 1, 0])


def initial(key: Any) -> Any:
    first, bias, second = jax.random.split(key, 3)
    return {
        "bias": jax.random.normal(bias, (4,)),
        "first": jax.random.normal(first, (3, 4)),
        "second": jax.random.normal(second, (4, 2)),
    }


PARAMS = initial(jax.random.key(3))
STATE = {"mean": jnp.array([0.1, -0.2, 0.3, 0.0]), "scale": jnp.array([1.0, 2.0, 0.5, 1.5])}


def apply(params: Any, x: Any) -> Any:
    return with_state(params, STATE, x)


def with_state(params: Any, state: Any, x: Any) -> Any:
    hidden = (x @ params["first"] - state["mean"][None]) * state["scale"][None] + params["bias"][None]
    return jax.nn.relu(hidden) @ params["second"]


SCORES = {
    "snip": lambda apply, params, **options: scores.snip(apply, params, [(X, Y)], **options),
    "grasp": lambda apply, params, **options: scores.grasp(apply, params, [(X, Y)], **options),
    "prospr": lambda apply, params, **options: scores.prospr(
        apply, params, [(X, Y), (X[:2], Y[:2]), (X[2:], Y[2:])], steps=2, learning_rate=0.05, **options
    ),
    "synflow": lambda apply, params, **options: scores.synflow(apply, params, X, **options),
    "synflow_l2": lambda apply, params, **options: scores.synflow_l2(apply, params, X, **options),
    "synflow_data": lambda apply, params, **options: scores.synflow_data(apply, params, X, q=2, **options),
    "path_kernel_trace": lambda apply, params, **options: scores.path_kernel_trace(apply, params, X, **options),
    "mean_field_trace": lambda apply, params, **options: scores.mean_field_trace(apply, params, X, inputs=X, **options),
    "px": lambda apply, params, **options: scores.px(apply, params, X, **options),
    "ntk_sap": lambda apply, params, **options: scores.ntk_sap(
        apply, params, X, init=initial, key=jax.random.key(5), repeats=2, **options
    ),
}


def assert_close(found: Any, expected: Any) -> None:
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT * largest), found, expected)


@pytest.mark.parametrize("name", SCORES)
def test_state_is_handed_to_the_network_and_may_be_traced(name: str) -> None:
    score = SCORES[name]
    closed = score(apply, PARAMS)
    assert_close(jax.jit(lambda state: score(with_state, PARAMS, state=state))(STATE), closed)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, STATE)
    other = score(with_state, PARAMS, state=doubled)
    assert not np.allclose(other["first"], closed["first"])


@pytest.mark.parametrize("name", SCORES)
def test_leaves_that_are_not_prunable_are_constants(name: str) -> None:
    """The score of kernels alone is the score of the network in which biases are numbers, not parameters."""
    score = SCORES[name]
    kernels = {name: leaf for name, leaf in PARAMS.items() if name != "bias"}
    found = score(apply, PARAMS, prunable=masks.is_kernel)
    assert not found["bias"].any()
    # draws of another tree are other draws, expected biases are random, and ProsPr trains biases: all three are held to
    # formulas elsewhere
    if name in ("ntk_sap", "mean_field_trace", "prospr"):
        return
    constant = score(lambda params, x: apply({**params, "bias": PARAMS["bias"]}, x), kernels)
    assert_close({name: found[name] for name in kernels}, constant)


@pytest.mark.parametrize("name", SCORES)
def test_vmap_over_seeds_and_jit_equal_eager(name: str) -> None:
    score, seeds = SCORES[name], [initial(jax.random.key(seed)) for seed in range(2)]
    together = jax.jit(jax.vmap(lambda params: score(apply, params)))(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    )
    for index, params in enumerate(seeds):
        assert_close(jax.tree.map(lambda leaf, i=index: leaf[i], together), score(apply, params))


@pytest.mark.parametrize("name", SCORES)
def test_a_predicate_that_chooses_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"chooses no leaf"):
        SCORES[name](apply, PARAMS, prunable=lambda key_path, leaf: False)


@pytest.mark.parametrize("name", ["synflow", "synflow_l2", "synflow_data", "px"])
def test_flows_are_invariant_under_rescaling_of_neurons(name: str) -> None:
    scale = jnp.array([3.0, 0.1, 1.0, 20.0])
    rescaled = {
        "bias": PARAMS["bias"] * scale,
        "first": PARAMS["first"] * scale[None],
        "second": PARAMS["second"] / scale[:, None],
    }

    def centred(params: Any, x: Any) -> Any:  # a running mean would have to be rescaled too
        return with_state(params, {**STATE, "mean": jnp.zeros(4)}, x)

    assert_close(SCORES[name](centred, rescaled), SCORES[name](centred, PARAMS))


@pytest.mark.parametrize("name", ["magnitude", "path_kernel_trace"])
def test_magnitude_and_the_trace_are_not_invariant(name: str) -> None:
    scale = jnp.array([3.0, 0.1, 1.0, 20.0])
    rescaled = {**PARAMS, "first": PARAMS["first"] * scale[None], "second": PARAMS["second"] / scale[:, None]}
    score = SCORES.get(name, lambda apply, params: scores.magnitude(params))
    before, after = (score(apply, params)["first"] for params in (PARAMS, rescaled))
    assert (np.abs(after - before) > 0.1 * np.abs(before)).any()


@pytest.mark.parametrize(
    "batches", [[(X[:2], Y[:2]), (X[2:], Y[2:])], [(X[i : i + 1], Y[i : i + 1]) for i in range(6)]]
)
def test_grasp_does_not_depend_on_how_examples_are_batched(batches: Any) -> None:
    whole = scores.grasp(apply, PARAMS, [(X, Y)])
    assert_close(scores.grasp(apply, PARAMS, batches), whole)
    assert_close(scores.grasp(apply, PARAMS, iter(batches)), whole)


def test_grasp_is_weight_times_hessian_times_gradient() -> None:
    vector, unravel = jax.flatten_util.ravel_pytree(PARAMS)

    def loss(vector: Any) -> Any:
        return scores.cross_entropy(apply(unravel(vector), X) / 2.0, Y)

    expected = vector * (jax.hessian(loss)(vector) @ jax.grad(loss)(vector))
    assert_close(scores.grasp(apply, PARAMS, [(X, Y)], temperature=2.0), unravel(expected))


def test_grasp_takes_another_loss() -> None:
    def squared(outputs: Any, labels: Any) -> Any:
        return jnp.mean((outputs - jax.nn.one_hot(labels, 2)) ** 2)

    vector, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    loss = lambda vector: squared(apply(unravel(vector), X), Y)  # noqa: E731
    expected = vector * (jax.hessian(loss)(vector) @ jax.grad(loss)(vector))
    found = scores.grasp(apply, PARAMS, [(X[:4], Y[:4]), (X[4:], Y[4:])], loss=squared, temperature=1.0)
    assert_close(found, unravel(expected))


@pytest.mark.parametrize("prunable", [None, masks.is_kernel])
def test_ntk_sap_is_the_derivative_of_the_squared_change_by_the_mask(prunable: Any) -> None:
    """Its formula, with the draws that the docstring promises and differences for derivatives."""
    pruned = {**PARAMS, "first": PARAMS["first"].at[1, 2].set(0.0)}
    mask = jax.tree.map(lambda leaf: np.array((leaf != 0) | (leaf.ndim < 2), float), pruned)
    key, epsilon, step = jax.random.key(11), 0.3, 1e-6
    draws = []
    for repeat in range(3):
        of_weights, of_noise, of_inputs = jax.random.split(jax.random.fold_in(key, repeat), 3)
        weights = initial(of_weights)
        noise = {
            name: jax.random.normal(own, weights[name].shape)
            for own, name in zip(jax.random.split(of_noise, 3), sorted(weights), strict=True)
        }
        if prunable is not None:
            noise["bias"] = jnp.zeros(4)
        draws.append((weights, noise, jax.random.normal(of_inputs, X.shape)))

    def change(mask: Any) -> float:
        values = []
        for weights, noise, x in draws:
            ends = [
                np.asarray(apply({name: mask[name] * (leaf + size * noise[name]) for name, leaf in weights.items()}, x))
                for size in (0.0, epsilon)
            ]
            values.append(np.sum((ends[0] - ends[1]) ** 2) / len(X))
        return float(np.mean(values))

    expected = {name: np.zeros(leaf.shape) for name, leaf in mask.items()}
    for name, leaf in mask.items():
        for at in np.ndindex(leaf.shape):
            ends = []
            for sign in (1, -1):
                moved = {**mask, name: leaf.copy()}
                moved[name][at] += sign * step
                ends.append(change(moved))
            expected[name][at] = abs(ends[0] - ends[1]) / (2 * step)
    if prunable is not None:
        expected["bias"][:] = 0
    found = scores.ntk_sap(apply, pruned, X, init=initial, key=key, epsilon=epsilon, repeats=3, prunable=prunable)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=DIFFERENCES, atol=DIFFERENCES), found, expected)
    assert found["first"][1, 2] > 0  # it would matter, were it let back in


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", SCORES)
def test_half_precision_is_widened(name: str, dtype: Any) -> None:
    """The score of half-precision weights is that of the same numbers in single precision."""
    half = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    found = SCORES[name](apply, half)
    assert all(leaf.dtype in (jnp.float32, jnp.float64) for leaf in jax.tree.leaves(found))
    expected = SCORES[name](apply, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=SINGLE, atol=SINGLE * float(jnp.abs(other).max()))
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(found))


def test_zeros_in_leaves_that_prunable_chooses_are_pruned() -> None:
    # the bias leads to one output alone, whose paths it would make count more
    pruned = {**PARAMS, "bias": jnp.array([0.0, 0.1, 0.1, 0.1]), "second": PARAMS["second"].at[0, 1].set(0.0)}
    everything = lambda key_path, leaf: True  # noqa: E731
    mask = jax.tree.map(lambda leaf: leaf != 0, pruned)
    expected = scores.px(apply, pruned, X, mask=mask)
    assert_close(scores.px(apply, pruned, X, prunable=everything), expected)
    assert not np.allclose(scores.px(apply, pruned, X)["first"], expected["first"])


def test_ntk_sap_draws_inputs_like_integers_too() -> None:
    found, expected = (
        scores.ntk_sap(apply, PARAMS, jax.ShapeDtypeStruct((4, 3), dtype), init=initial, key=jax.random.key(0))
        for dtype in (jnp.uint8, jnp.float32)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(bool(jnp.any(leaf > 0)) for leaf in jax.tree.leaves(found))


def test_bad_arguments_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"`temperature` must be positive.*it is 0"):
        scores.grasp(apply, PARAMS, [(X, Y)], temperature=0.0)
    with pytest.raises(ValueError, match="`batches` has no examples"):
        scores.grasp(apply, PARAMS, iter([]))
    with pytest.raises(ValueError, match=r"Labels must lie in 0 … 1"):
        scores.grasp(apply, PARAMS, [(X, Y + 1)])
    with pytest.raises(ValueError, match="`inputs` has no examples"):
        scores.px(apply, PARAMS, [X[:0]])
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        scores.px(apply, PARAMS, X, batch_size=0)
    with pytest.raises(ValueError, match="`epsilon` must be positive"):
        scores.ntk_sap(apply, PARAMS, X, init=initial, key=jax.random.key(0), epsilon=0.0)
    with pytest.raises(ValueError, match="`repeats` must be 1 or more"):
        scores.ntk_sap(apply, PARAMS, X, init=initial, key=jax.random.key(0), repeats=0)
    with pytest.raises(ValueError, match=r"`init\(key\)` has no leaf at \['bias'\]"):
        scores.ntk_sap(apply, PARAMS, X, init=lambda key: {"first": PARAMS["first"]}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="`mask` has no leaf"):
        scores.px(apply, PARAMS, X, mask={"first": PARAMS["first"] > 0})
