"""The share of the expected trace: against listed paths, differences of expectations, and the kernel itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import masks, ntk, pruning, scores
from pathjax._interpreter.jaxpr import UnsupportedPrimitive

from .. import networks, oracles
from ..expectations import Expectation, OfDrawnInputs
from ..tolerances import DIFFERENCES, EXACT, SINGLE, SUMS

# Gates of these are half open whatever the weights are.
HALF_OPEN = ["bias_free_mlp", "biased_mlp", "leaky_mlp", "linen_mlp", "conv_same_stride"]
# In these, positions are summed behind a gate, or constants are added before one.
UNEVEN = ["batch_norm_without_affine", "average_pool", "global_average_pool"]


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def assert_equal(found: Any, expected: np.ndarray, tolerance: float = EXACT) -> None:
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(flat(found), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def some_kept(network: networks.Network) -> tuple[np.ndarray, Any]:
    """A mask (p,) of kernels and biases alike, and the same as a tree."""
    kept = np.random.default_rng(7).random(network.theta.size) < 0.8
    _, unravel = ravel_pytree(network.params)
    return kept, jax.tree.map(lambda leaf: leaf > 0.5, unravel(jnp.asarray(kept, network.theta.dtype)))


def listed_shares(name: str, squares: np.ndarray, kept: np.ndarray, trained: np.ndarray | None = None) -> np.ndarray:
    """Σ_{p∋i} Σ_{j∈p, j≠i} ḡ_p x² c² Π_{k≠j} u_k over the sum of all, with each gate open half of the time.

    The derivatives are those by the kept and trained weights j.
    """
    network = networks.build(name)
    graph, u = network.graph, np.where(kept, network.theta**2, 0)
    everywhere = np.ones((len(graph.edges), 1))
    slopes = [(gate(everywhere) ** 2 + gate(-everywhere) ** 2).item() / 2 for gate in graph.gates]
    through, total = np.zeros(len(u)), 0.0
    for path in networks.listed(name):
        start = 1.0 if path.source == oracles.ONE else squares[path.source]
        factor = start * path.coefficient**2 * np.prod([slopes[gate] for gate in path.gates])
        for place, j in enumerate(path.weights):
            others = path.weights[:place] + path.weights[place + 1 :]
            term = kept[j] * (trained is None or trained[j]) * factor * np.prod([u[k] for k in others])
            total += term
            through[list(others)] += term
    return through / total


@pytest.mark.parametrize("name", HALF_OPEN)
def test_the_score_sums_the_other_derivatives_of_the_paths_with_half_open_gates(name: str) -> None:
    network = networks.build(name)
    kept, mask = some_kept(network)
    squares = np.mean(np.asarray(network.x) ** 2, axis=0)
    drawn = scores.mean_field_trace(network.apply, network.params, network.x, mask=mask)
    assert_equal(drawn, listed_shares(name, np.ones(squares.size), kept))
    expected = listed_shares(name, squares.ravel(), kept)
    assert_equal(
        scores.mean_field_trace(network.apply, network.params, network.x, mask=mask, input_moments=squares), expected
    )
    parts = iter([network.x[:1], network.x[1:]])
    options = {"mask": mask, "inputs": parts, "batch_size": 2}
    assert_equal(scores.mean_field_trace(network.apply, network.params, network.x, **options), expected)


def test_leaves_that_are_not_prunable_stay_random_and_have_no_derivatives() -> None:
    network = networks.build("biased_mlp")
    kernels = flat(jax.tree.map(lambda leaf: jnp.full(leaf.shape, leaf.ndim >= 2), network.params)) > 0
    found = scores.mean_field_trace(network.apply, network.params, network.x, prunable=masks.is_kernel)
    ones, everything = np.ones(network.x[0].size), np.ones(kernels.size, bool)
    assert_equal(found, kernels * listed_shares("biased_mlp", ones, everything, kernels))


def shares_by_differences(of_moments: Any, u: np.ndarray) -> np.ndarray:
    """u ∂ log T/∂u by central differences, T = `of_moments(u, gates).trace()` with the gates held as they are at u."""
    gates, step = of_moments(u, None), 1e-6
    total = gates.trace()
    result = np.zeros(len(u))
    for i in np.flatnonzero(u):
        ends = [of_moments(u * (1 + sign * step * (np.arange(len(u)) == i)), gates).trace() for sign in (1, -1)]
        result[i] = (ends[0] - ends[1]) / (2 * step) / total
    return result


@pytest.mark.parametrize("name", UNEVEN)
def test_the_score_is_the_derivative_of_the_expected_trace_with_gates_held(name: str) -> None:
    network = networks.build(name)
    kept, mask = some_kept(network)
    u, x = np.where(kept, network.theta**2, 0), np.asarray(network.x)
    found = scores.mean_field_trace(network.apply, network.params, x, inputs=x, mask=mask)
    expected = shares_by_differences(lambda u, gates: Expectation(network.graph, u, x, kept, gates), u)
    assert_equal(found, expected, 10 * DIFFERENCES)
    free = shares_by_differences(lambda u, gates: Expectation(network.graph, u, x, kept), u)
    assert np.abs(free - expected).max() > 1e-3 * np.abs(expected).max()  # holding the gates matters


@pytest.mark.parametrize("name", UNEVEN)
def test_without_data_the_inputs_are_independent_and_of_mean_0(name: str) -> None:
    network = networks.build(name)
    kept, mask = some_kept(network)
    u, squares = np.where(kept, network.theta**2, 0), np.random.default_rng(1).uniform(0.5, 2, network.x.shape[1:])
    found = scores.mean_field_trace(network.apply, network.params, network.x, mask=mask, input_moments=squares)
    expected = shares_by_differences(
        lambda u, gates: OfDrawnInputs(network.graph, u, squares[None], kept, gates=gates), u
    )
    assert_equal(found, expected, 10 * DIFFERENCES)


def test_where_all_paths_pass_equally_many_gates_it_is_the_path_kernels_trace() -> None:
    network = networks.build("bias_free_mlp")
    arguments = network.apply, network.params, network.x
    assert_equal(scores.mean_field_trace(*arguments), flat(scores.path_kernel_trace(*arguments)), SUMS)
    biased = networks.build("biased_mlp")
    arguments = biased.apply, biased.params, biased.x
    assert np.abs(flat(scores.mean_field_trace(*arguments)) - flat(scores.path_kernel_trace(*arguments))).max() > 0.01


def test_it_is_the_derivative_of_the_trace_of_the_kernel_where_gates_do_not_move() -> None:
    network = networks.build("biased_mlp")
    moments = jax.tree.map(lambda leaf: jnp.square(leaf) + 0.1, network.params)

    def log_trace(moments: Any) -> Any:
        kernel = ntk.mean_field_trace(network.apply, network.params, network.x, second_moments=moments)
        return jnp.log(jnp.trace(kernel))

    slopes = jax.grad(log_trace)(moments)
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), network.params)
    found = scores.mean_field_trace(
        network.apply, network.params, network.x, inputs=network.x, second_moments=moments, mask=everything
    )
    assert_equal(found, flat(moments) * flat(slopes), SUMS)


def test_a_layer_holds_the_trace_without_its_own_derivatives() -> None:
    # Euler: every path passes one weight of each layer, and the derivatives by the layer do not depend on its weights
    network = networks.build("bias_free_mlp")
    found = scores.mean_field_trace(network.apply, network.params, network.x)
    shares = np.array([float(leaf.sum()) for leaf in jax.tree.leaves(found)])
    np.testing.assert_allclose(shares.sum(), len(shares) - 1, rtol=SUMS)
    assert ((shares > 0) & (shares < 1)).all()


def test_one_number_for_each_leaf_scores_by_the_mask_and_the_architecture_alone() -> None:
    params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 1))}
    pruned = {**params, "first": params["first"].at[0, 0].set(0.0)}
    found = scores.mean_field_trace(
        lambda params, x: jax.nn.relu(x @ params["first"]) @ params["second"],
        pruned,
        jax.ShapeDtypeStruct((1, 2), "float64"),
        second_moments={"first": 2.0, "second": 0.5},
    )
    # T = 5 · 0.5/2 by the incoming weights and 5 · 2/2 by the outgoing ones
    np.testing.assert_allclose(found["first"], jnp.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]) / 6.25, rtol=SUMS)
    np.testing.assert_allclose(found["second"][:, 0], jnp.array([0.25, 0.5, 0.5]) / 6.25, rtol=SUMS)


def test_rounds_of_pruning_keep_exact_counts() -> None:
    network = networks.build("biased_mlp")
    sparse = pruning.sparsify(
        scores.mean_field_trace, network.apply, network.params, network.x, optax.sgd(0.1), density=0.5, rounds=3
    )
    assert masks.count(sparse.mask) == masks.kept_counts(network.params, density=0.5).item()

    def score(masked: Any, key: Any) -> Any:
        return scores.mean_field_trace(network.apply, masked, network.x, inputs=network.x, prunable=masks.is_kernel)

    mask = pruning.prune(score, network.params, density=0.5, rounds=3)
    assert masks.count(mask) == masks.count(sparse.mask)


def residual(params: Any, x: Any) -> Any:
    """A shortcut with units of mean other than 0, and zeros for units that it does not have, as in a ResNet."""
    stem = jax.nn.relu(x @ params["stem"])
    branch = jax.nn.relu(stem @ params["into"]) @ params["out_of"]
    shortcut = jnp.pad(stem, [(0, 0), (0, branch.shape[1] - stem.shape[1])])
    return jax.nn.relu(shortcut + branch) @ params["outputs"]


def test_a_unit_that_is_dead_behind_a_shortcut_changes_no_score() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"stem": (4, 3), "into": (3, 5), "out_of": (5, 6), "outputs": (6, 2)}
    params = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    params["out_of"] = params["out_of"].at[:, 5].set(0)  # all weights into the last unit are pruned
    score = scores.mean_field_trace(residual, params, jnp.zeros((1, 4)))
    smaller = params | {"out_of": params["out_of"][:, :5], "outputs": params["outputs"][:5]}
    expected = scores.mean_field_trace(residual, smaller, jnp.zeros((1, 4)))
    assert not score["out_of"][:, 5].any() and not score["outputs"][5].any()
    left = score | {"out_of": score["out_of"][:, :5], "outputs": score["outputs"][:5]}
    assert_equal(left, flat(expected))


def test_no_pairs_of_examples_are_formed() -> None:
    params = {"first": jnp.ones((3, 7)), "second": jnp.ones((7, 2))}
    inputs = jnp.ones((64, 3))

    def score(params: Any) -> Any:
        return scores.mean_field_trace(
            lambda params, x: jax.nn.relu(x @ params["first"]) @ params["second"], params, inputs, inputs=inputs
        )

    def sizes(jaxpr: Any) -> Any:
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for part in jax.tree.leaves(equation.params, is_leaf=lambda node: hasattr(node, "eqns")):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)

    assert max(sizes(jax.make_jaxpr(score)(params).jaxpr)) < 64 * 64


def test_what_has_no_expectation_is_refused_with_the_remedy() -> None:
    network = networks.build("max_pool")
    with pytest.raises(UnsupportedPrimitive, match=r"No expectation in closed form for .*`ntk.sign_average`"):
        scores.mean_field_trace(network.apply, network.params, network.x)

    def twice(params: Any, x: Any) -> Any:
        return (x + jnp.flip(x, axis=1)) @ params["kernel"]

    params, x = {"kernel": jnp.ones((3, 2))}, jnp.ones((4, 3))
    with pytest.raises(UnsupportedPrimitive) as caught:
        scores.mean_field_trace(twice, params, x)
    assert "Without `inputs` these are drawn at random" in caught.value.__notes__[-1]
    scores.mean_field_trace(twice, params, x, inputs=x)


def test_bad_arguments_are_refused() -> None:
    network = networks.build("biased_mlp")

    def score(**options: Any) -> Any:
        return scores.mean_field_trace(network.apply, network.params, network.x, **options)

    with pytest.raises(ValueError, match="`inputs` and `input_moments` both came"):
        score(inputs=network.x, input_moments=1.0)
    with pytest.raises(ValueError, match=r"`input_moments` has shape \(9,\)"):
        score(input_moments=jnp.ones(9))
    with pytest.raises(ValueError, match="`input_moments` has an entry that is negative"):
        score(input_moments=-1.0)
    with pytest.raises(ValueError, match="`second_moments` at .* negative, NaN or infinite"):
        score(second_moments=jax.tree.map(lambda leaf: -1.0, network.params))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        score(batch_size=0)
    with pytest.raises(ValueError, match="`inputs` has no examples"):
        score(inputs=network.x[:0])


def test_single_precision_keeps_its_digits() -> None:
    network = networks.build("biased_mlp")
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network.params)
    found = scores.mean_field_trace(network.apply, single, network.x.astype(jnp.float32))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    assert_equal(found, flat(scores.mean_field_trace(network.apply, network.params, network.x)), SINGLE)
