"""ProsPr, held to central differences by the mask of a network that is trained in plain NumPy, and to a closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathjax import masks, pruning, scores

from ..tolerances import DIFFERENCES, EXACT, SINGLE

RNG = np.random.default_rng(0)
SIZES = (5, 3, 6, 4, 2)  # of the batches
BATCHES = [(RNG.normal(size=(n, 3)), RNG.integers(0, 2, n)) for n in SIZES]
PARAMS = {
    "bias": np.array([0.3, 0.0, -0.2, 0.1]),  # one that starts at 0, and is trained
    "first": RNG.normal(size=(3, 4)),
    "second": RNG.normal(size=(4, 2)),
}
KERNELS = ("first", "second")
RATE = 0.4


def apply(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["first"] + params["bias"][None]) @ params["second"]


def pruned(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights with some of those of the kernels at 0."""
    keep = {name: np.random.default_rng(1).random(params[name].shape) < 0.7 for name in KERNELS}
    assert not all(leaf.all() for leaf in keep.values())
    return {**params, **{name: np.where(keep[name], params[name], 0.0) for name in KERNELS}}


# The oracle


def loss_and_slopes(w: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """The mean cross-entropy of the network, and its gradient by hand."""
    before = x @ w["first"] + w["bias"]
    hidden = np.maximum(before, 0.0)
    logits = hidden @ w["second"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    to_logits = (np.exp(log_shares) - np.eye(2)[y]) / len(x)
    to_hidden = (to_logits @ w["second"].T) * (before > 0)
    slopes = {"bias": to_hidden.sum(axis=0), "first": x.T @ to_hidden, "second": hidden.T @ to_logits}
    return float(-log_shares[np.arange(len(x)), y].mean()), slopes


def loss_after_steps(
    params: dict[str, np.ndarray],
    factors: dict[str, np.ndarray],
    kept: dict[str, np.ndarray],
    batches: Any,
    steps: int,
    rate: float = RATE,
) -> float:
    """The loss of batch `steps` after one step on each batch before it, from θ ⊙ factors; the others stay at 0."""
    w = {name: params[name] * factors[name] for name in params}
    for x, y in batches[:steps]:
        _, slopes = loss_and_slopes(w, x, y)
        w = {name: w[name] - rate * kept[name] * slopes[name] for name in w}
    return loss_and_slopes(w, *batches[steps])[0]


def by_differences(params: dict[str, np.ndarray], kept: dict[str, np.ndarray], batches: Any, steps: int) -> Any:
    """|∂L(w_M)/∂mask| at the mask `kept`, for the weights that it keeps; 0 for the others."""
    expected, step = {name: np.zeros(leaf.shape) for name, leaf in params.items()}, 1e-5
    for name, leaf in params.items():
        for at in np.ndindex(leaf.shape):
            if not kept[name][at]:
                continue
            ends = []
            for sign in (1, -1):
                factors = {other: keep.astype(float) for other, keep in kept.items()}
                factors[name][at] += sign * step
                ends.append(loss_after_steps(params, factors, kept, batches, steps))
            expected[name][at] = abs(ends[0] - ends[1]) / (2 * step)
    return expected


def assert_close(found: Any, expected: Any, tolerance: float = EXACT) -> None:
    assert sorted(found) == sorted(expected)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=tolerance, atol=tolerance)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in expected.values())


# Formula


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_the_score_is_the_derivative_by_the_mask_of_the_loss_after_training(steps: int) -> None:
    dense = {name: np.ones(leaf.shape, bool) for name, leaf in PARAMS.items()}
    found = scores.prospr(apply, PARAMS, BATCHES, steps=steps, learning_rate=RATE)
    assert_close(found, by_differences(PARAMS, dense, BATCHES, steps), DIFFERENCES)


@pytest.mark.parametrize("prunable", [None, masks.is_kernel])
def test_pruned_weights_stay_at_zero_in_training_and_biases_of_zero_do_not(prunable: Any) -> None:
    params = pruned(PARAMS)
    kept = {name: (leaf != 0) | (name == "bias") for name, leaf in params.items()}
    expected = by_differences(params, kept, BATCHES, 3)
    if prunable is not None:  # the biases are not scored, but they are trained
        expected["bias"][:] = 0
    found = scores.prospr(apply, params, BATCHES, learning_rate=RATE, prunable=prunable)
    assert_close(found, expected, DIFFERENCES)
    assert not any(found[name][params[name] == 0].any() for name in KERNELS)


def test_a_mask_tells_pruned_weights_from_weights_of_zero() -> None:
    params = pruned(PARAMS)
    kept = {name: np.random.default_rng(2).random(leaf.shape) < 0.8 for name, leaf in params.items()}
    found = scores.prospr(apply, params, BATCHES, learning_rate=RATE, mask=kept)
    assert_close(found, by_differences(params, kept, BATCHES, 3), DIFFERENCES)
    # the weights of 0 that the mask keeps are trained, which changes the scores of the others
    without = scores.prospr(apply, masks.apply_mask(kept, params), BATCHES, learning_rate=RATE)
    assert not np.allclose(found["first"], without["first"])


def test_of_a_linear_network_it_is_a_product_of_matrices() -> None:
    """With L_k(W) = mean (x_k W − y_k)² and A_k = 2 x_kᵀ x_k / (n o): |W ⊙ Π_k (1 − η A_k) ∇L_M(W_M)|."""
    rng = np.random.default_rng(3)
    weights, rate, outputs = rng.normal(size=(3, 2)), 0.1, 2
    batches = [(rng.normal(size=(n, 3)), rng.normal(size=(n, outputs))) for n in SIZES]

    def slopes(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 2 * x.T @ (x @ w - y) / y.size

    trained, transported = weights, np.eye(3)
    for x, y in batches[:-1]:
        trained = trained - rate * slopes(trained, x, y)
        transported = transported @ (np.eye(3) - rate * 2 * x.T @ x / y.size)
    expected = np.abs(weights * (transported @ slopes(trained, *batches[-1])))
    found = scores.prospr(
        lambda w, x: x @ w["kernel"],
        {"kernel": weights},
        batches,
        steps=len(batches) - 1,
        learning_rate=rate,
        loss=lambda outputs, targets: jnp.mean((outputs - targets) ** 2),
    )
    assert_close(found, {"kernel": expected})


def test_without_steps_or_rate_it_is_snip() -> None:
    params = pruned(PARAMS)
    assert_close(scores.prospr(apply, params, BATCHES, steps=0), scores.snip(apply, params, BATCHES[:1]))
    assert_close(scores.prospr(apply, params, BATCHES, learning_rate=0.0), scores.snip(apply, params, BATCHES[3:4]))
    default = scores.prospr(apply, params, BATCHES)
    assert_close(scores.prospr(apply, params, BATCHES, steps=3, learning_rate=0.5), default)
    assert not np.allclose(default["first"], scores.snip(apply, params, BATCHES[3:4])["first"])


# Batches


def test_only_the_batches_that_are_needed_are_read() -> None:
    read: list[int] = []

    def many() -> Iterator[Any]:
        for number in range(99):
            read.append(number)
            yield BATCHES[number % len(BATCHES)]

    found = scores.prospr(apply, PARAMS, many(), steps=2)
    assert read == [0, 1, 2]
    assert_close(found, scores.prospr(apply, PARAMS, BATCHES, steps=2))
    assert_close(found, scores.prospr(apply, PARAMS, BATCHES[:3], steps=2))


def test_batches_without_examples_are_left_out() -> None:
    x, y = BATCHES[0]
    with_empty = [BATCHES[0], (x[:0], y[:0]), *BATCHES[1:4]]
    assert_close(scores.prospr(apply, PARAMS, with_empty), scores.prospr(apply, PARAMS, BATCHES[:4]))


def test_too_few_batches_are_refused_and_one_may_be_given_again() -> None:
    for given, number in ((BATCHES[:1], "1"), (iter(BATCHES[:3]), "3"), ([], "0")):
        with pytest.raises(
            ValueError, match=rf"With steps=3, `batches` must hold 4 .*it holds {number}\..*\[\(x, y\)\] \* 4"
        ):
            scores.prospr(apply, PARAMS, given)
    kept = {name: np.ones(leaf.shape, bool) for name, leaf in PARAMS.items()}
    again = BATCHES[:1] * 4
    found = scores.prospr(apply, PARAMS, again, learning_rate=RATE)
    assert_close(found, by_differences(PARAMS, kept, again, 3), DIFFERENCES)


# Options


def test_the_rate_may_be_traced_and_mapped_over() -> None:
    rates = np.array([0.1, 0.4])
    together = jax.jit(jax.vmap(lambda rate: scores.prospr(apply, PARAMS, BATCHES, learning_rate=rate)))(rates)
    for index, rate in enumerate(rates):
        alone = scores.prospr(apply, PARAMS, BATCHES, learning_rate=float(rate))
        assert_close({name: leaf[index] for name, leaf in together.items()}, alone)


def test_single_precision_stays_so_whatever_the_type_of_the_rate() -> None:
    single = {name: leaf.astype(np.float32) for name, leaf in PARAMS.items()}
    batches = [(x.astype(np.float32), y) for x, y in BATCHES]
    expected = scores.prospr(apply, PARAMS, BATCHES, learning_rate=RATE)
    for rate in (RATE, np.float64(RATE), jnp.asarray(RATE)):
        found = scores.prospr(apply, single, batches, learning_rate=rate)
        assert {leaf.dtype for leaf in found.values()} == {jnp.dtype(jnp.float32)}
        assert_close(found, expected, SINGLE)


def test_rounds_of_pruning_score_the_network_that_is_left() -> None:
    """Each round keeps the largest scores by the oracle of the weights that the round before kept."""
    score = lambda params, key: scores.prospr(apply, params, BATCHES, learning_rate=RATE)  # noqa: E731
    found = pruning.prune(score, PARAMS, density=0.3, rounds=3)
    mask = {name: np.ones(leaf.shape, bool) for name, leaf in PARAMS.items()}
    for density in pruning.densities(density=0.3, rounds=3):
        masked = {name: leaf * mask[name] for name, leaf in PARAMS.items()}
        mask = masks.from_scores(by_differences(masked, mask, BATCHES, 3), density=density)
        mask = {name: np.asarray(leaf) for name, leaf in mask.items()}
    for name, keep in mask.items():
        np.testing.assert_array_equal(found[name], keep)
    sparse = pruning.sparsify(
        scores.prospr, apply, PARAMS, BATCHES, optax.sgd(0.1), density=0.3, rounds=3, learning_rate=RATE
    )
    for name, keep in mask.items():
        np.testing.assert_array_equal(sparse.mask[name], keep)


# Refusals


@pytest.mark.parametrize("rate", [-0.1, np.nan, np.inf])
def test_rates_that_are_negative_or_not_finite_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"`learning_rate` must be finite and not negative; it is {rate}"):
        scores.prospr(apply, PARAMS, BATCHES, learning_rate=rate)


def test_negative_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="`steps` must be 0 or more; it is -1"):
        scores.prospr(apply, PARAMS, BATCHES, steps=-1)


def test_training_that_diverges_is_refused_with_the_step_and_the_remedy() -> None:
    def quartic(outputs: Any, targets: Any) -> Any:
        return jnp.mean((outputs - jax.nn.one_hot(targets, 2)) ** 4)

    def score(rate: Any) -> Any:
        return scores.prospr(apply, PARAMS, BATCHES, steps=4, learning_rate=rate, loss=quartic)

    with pytest.raises(ValueError, match=r"not finite after step [234] of 4 with learning_rate=1e\+30.*smaller"):
        score(1e30)
    assert np.isnan(jax.jit(score)(1e30)["first"]).any()  # where values cannot be read
    nothing = [(np.full_like(x, np.nan), y) for x, y in BATCHES]
    with pytest.raises(ValueError, match=r"not finite after step 1 of 3.*finite weights and batches"):
        scores.prospr(apply, PARAMS, nothing)


def test_an_infinite_weight_that_the_mask_prunes_takes_no_part() -> None:
    kept = {name: np.ones(leaf.shape, bool) for name, leaf in PARAMS.items()}
    kept["first"][1, 2] = False
    infinite = {**PARAMS, "first": np.where(kept["first"], PARAMS["first"], np.inf)}
    expected = scores.prospr(apply, masks.apply_mask(kept, PARAMS), BATCHES, mask=kept)
    assert_close(scores.prospr(apply, infinite, BATCHES, mask=kept), expected)


def test_what_fits_no_network_is_refused_as_by_snip() -> None:
    with pytest.raises(ValueError, match=r"Labels must lie in 0 … 1"):
        scores.prospr(apply, PARAMS, [(x, y + 1) for x, y in BATCHES])
    with pytest.raises(ValueError, match="`mask` has no leaf"):
        scores.prospr(apply, PARAMS, BATCHES, mask={"first": np.ones((3, 4), bool)})
