"""No program for a CPU gives LAPACK a batch, which can hang it; others do. Checked in the programs, then by running."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pathjax import dynamics, factorization, isometry, ntk, path_kernel, paths
from pathjax._linalg import lapack

pytestmark = pytest.mark.skipif(not lapack._WAITS, reason="this jaxlib's batched LAPACK calls do not wait")

KEY = jax.random.key(0)
SEEDS = 3
CALL = re.compile(r"custom_call @lapack_\w+\(.*\) -> .*")
SHAPE = re.compile(r"tensor<((?:\d+x)+)\w+>")


def program(function: Any, *stacked: Any, platform: str = "cpu") -> str:
    return jax.jit(jax.vmap(function)).trace(*stacked).lower(lowering_platforms=(platform,)).as_text()


def matrices_per_call(text: str) -> list[int]:
    """For each call of LAPACK in a program, how many matrices it takes."""
    calls = [SHAPE.findall(call) for call in CALL.findall(text)]
    return [max(math.prod(map(int, shape.split("x")[:-3])) for shape in shapes) for shapes in calls]


def apply(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params[0]) @ params[1]


def weights(*widths: int) -> list[jax.Array]:
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    return [jax.random.normal(jax.random.key(i), (SEEDS, *shape)) for i, shape in enumerate(pairs)]


X = jax.random.normal(KEY, (5, 4))
Y = jnp.ones((5, 2))
TIMES = jnp.array([0.0, 1.0])
SMALL = weights(4, 3, 2)
LARGE = weights(4, 100, 2)  # more weights than are decomposed densely


def theta(params: Any, x: Any = X) -> Any:
    return ntk.empirical(apply, params, x)


def twin(params: Any) -> Any:
    return path_kernel.path_kernel(apply, params, X)


def factored(params: Any) -> Any:
    return factorization.factorize(apply, params, X, rank=3, key=KEY)


def top_of_operator(params: Any) -> Any:
    x = jnp.concatenate([X] * 60)
    return ntk.top_eigenpairs(ntk.operator(apply, params, x), 2, key=KEY)


def predicted(params: Any) -> Any:
    return dynamics.linearized(theta(params), apply(params, X), Y, TIMES, learning_rate=0.1)


def bounds(params: Any) -> Any:
    return factorization.bounds(theta(params), twin(params), paths.log_data_gram(apply, params, X), key=KEY)


CASES = {
    "linearized": (predicted, SMALL),
    "its derivative": (jax.grad(lambda params: jnp.sum(predicted(params))), SMALL),
    "critical_learning_rate": (lambda params: dynamics.critical_learning_rate(theta(params)), SMALL),
    "spectrum of the NTK": (lambda params: ntk.spectrum(theta(params)), SMALL),
    "its second derivative": (jax.hessian(lambda params: ntk.spectrum(theta(params))[0]), SMALL),
    "eigenpairs of the NTK": (lambda params: ntk.top_eigenpairs(ntk.operator(apply, params, X), 2, key=KEY), SMALL),
    "the same, by iteration": (top_of_operator, SMALL),
    "eigenpairs of G": (lambda params: path_kernel.top_eigenpairs(twin(params), 2, key=KEY), SMALL),
    "the same by iteration": (lambda params: path_kernel.top_eigenpairs(twin(params), 2, key=KEY), LARGE),
    "spectral_density": (
        lambda params: path_kernel.spectral_density(twin(params), order=4, samples=2, key=KEY).nodes,
        SMALL,
    ),
    "condition_number": (lambda params: path_kernel.condition_number(twin(params), key=KEY), LARGE),
    "factorize": (factored, SMALL),
    "alignment": (lambda params: factorization.alignment(factored(params), theta(params), rank=2), SMALL),
    "bounds": (bounds, SMALL),
    "singular values of layers": (isometry.layer_singular_values, SMALL),
    "singular values of Jacobians": (lambda params: isometry.jacobian_singular_values(apply, params, X), SMALL),
    "their derivative": (
        jax.grad(lambda params: jnp.sum(isometry.jacobian_singular_values(apply, params, X))),
        SMALL,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_under_vmap_each_matrix_is_decomposed_by_itself(name: str) -> None:
    function, params = CASES[name]
    found = matrices_per_call(program(function, params))
    assert found and set(found) == {1}, found


def test_batches_of_examples_frequencies_and_outputs_are_taken_one_by_one() -> None:
    kernel = {"kernel": jnp.ones((1, 3, 3, 2, 2))}
    for function, params in (
        (lambda params: isometry.layer_singular_values(params, spatial=(4, 4)), kernel),
        (lambda params: isometry.jacobian_singular_values(apply, params, X), SMALL),
        (bounds, SMALL),
    ):
        alone = jax.tree.map(lambda leaf: leaf[0], params)
        found = matrices_per_call(jax.jit(function).lower(alone).as_text())
        assert found and set(found) == {1}, found


def test_other_devices_take_the_batch_at_once() -> None:
    text = program(lapack.eigvalsh, jnp.ones((SEEDS, 4, 4)), platform="tpu")
    assert "while" not in text and "tensor<3x4x4x" in text
    assert "while" in program(lapack.eigvalsh, jnp.ones((SEEDS, 4, 4)))


def test_calls_of_batches_are_seen() -> None:
    assert matrices_per_call(program(jnp.linalg.eigh, jnp.ones((SEEDS, 4, 4)))) == [SEEDS]
    assert matrices_per_call(program(jax.vmap(jnp.linalg.cholesky), jnp.ones((SEEDS, 2, 4, 4)))) == [2 * SEEDS]


def test_calls_outside_of_jit_trace_once() -> None:
    traced = []

    @lapack.one_by_one
    def doubled(matrix: Any) -> Any:
        traced.append(matrix)
        return 2 * matrix

    matrices = jnp.ones((SEEDS, 3, 3))
    jax.vmap(doubled)(matrices)
    before = len(traced)
    jax.vmap(doubled)(matrices)
    assert len(traced) == before


PREDICTIONS = """
import faulthandler
import jax, jax.numpy as jnp
from pathjax import dynamics

count, seeds, n, o = 24, 3, 20, 5
jacobians = jax.random.normal(jax.random.key(0), (count, seeds, n * o, 120))
outputs, targets, times = jnp.zeros((n, o)), jnp.ones((n, o)), jnp.array([0.0, 1.0])

@jax.jit
@jax.vmap
def predict(*jacobians):
    kernels = [(jacobian @ jacobian.T).reshape(n, o, n, o).swapaxes(1, 2) for jacobian in jacobians]
    return [dynamics.linearized(kernel, outputs, targets, times, learning_rate=1e-3) for kernel in kernels]

predict = predict.lower(*jacobians).compile()
for _ in range(30):
    faulthandler.dump_traceback_later(60, exit=True)
    jax.block_until_ready(predict(*jacobians))
"""


def test_many_predictions_under_vmap_in_one_program_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # threads of the BLAS beside those of XLA: on few cores they would take turns, at a hundredth of the speed
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    done = subprocess.run([sys.executable, "-c", PREDICTIONS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
