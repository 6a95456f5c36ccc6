"""What a type checker knows of calls that users write: `make types` fails where it differs from what stands here."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import jax
import jax.numpy as jnp
import optax
import pytest

import pathjax
from pathjax import connectivity, dynamics, masks, ntk, path_kernel, paths, pruning, scores


def apply(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["hidden"]) @ params["outputs"]


PARAMS = {"hidden": jnp.ones((3, 5)), "outputs": jnp.ones((5, 2))}
X = jnp.ones((4, 3))


def test_results_have_the_types_that_a_checker_reads() -> None:
    theta = assert_type(ntk.empirical(apply, PARAMS, X), jax.Array)
    kernel = assert_type(path_kernel.path_kernel(apply, PARAMS, X), path_kernel.PathKernel)
    arrays = [
        assert_type(kernel.log_trace(), jax.Array),
        assert_type(paths.log_path_norm(apply, PARAMS, X), jax.Array),
        assert_type(dynamics.critical_learning_rate(theta), jax.Array),
        theta,
    ]
    assert all(isinstance(array, jax.Array) for array in arrays) and isinstance(kernel, path_kernel.PathKernel)
    mask = masks.from_scores(scores.magnitude(PARAMS), density=0.5)
    left = connectivity.connectivity(apply, PARAMS, X, mask=mask)
    assert isinstance(assert_type(left.density, float), float) and isinstance(assert_type(left.units, int), int)


def test_arguments_of_other_types_are_errors_of_a_checker_and_of_the_call() -> None:
    with pytest.raises((TypeError, ValueError), match="density"):
        pruning.sparsify(scores.synflow, apply, PARAMS, X, optax.sgd(0.1), density="half", rounds=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="exponnt"):
        paths.log_path_norm(apply, PARAMS, X, exponnt=1)  # type: ignore[call-arg]


def test_checkers_are_told_to_read_the_types() -> None:
    assert (Path(pathjax.__file__).parent / "py.typed").exists()
