"""Searches and densities say where they are, compiled or not, and what they give does not depend on it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from pathjax import factorization, ntk, path_kernel

KEY = jax.random.key(0)
DEFAULT_TOLERANCE = inspect.signature(path_kernel.top_eigenpairs).parameters["tolerance"].default
# more than 512 weights and outputs, so that nothing is formed
PARAMS = {"first": jax.random.normal(KEY, (30, 20)), "second": jax.random.normal(jax.random.key(1), (20, 3))}
X = jax.random.normal(jax.random.key(2), (200, 30))


def apply(params, x):
    return jax.nn.relu(x @ params["first"]) @ params["second"]


class Told:
    """What was told, in the order of the numbers."""

    def __init__(self):
        self.calls = []

    def __call__(self, *numbers):
        self.calls.append(numbers)

    def take(self):
        jax.effects_barrier()
        calls, self.calls = sorted(self.calls), []
        return calls


def check_search(calls):
    rounds, most, residuals = zip(*calls, strict=True)
    assert rounds == tuple(range(1, len(calls) + 1))
    assert set(most) == {52}  # by default rank + 50
    assert residuals[-1] <= DEFAULT_TOLERANCE
    assert {type(number) for number in (*rounds, *most)} == {int}


def test_searches_tell_each_round():
    told, kernel = Told(), path_kernel.path_kernel(apply, PARAMS, X)
    pairs = path_kernel.top_eigenpairs(kernel, 2, key=KEY, progress=told)
    check_search(told.take())
    np.testing.assert_array_equal(pairs.eigenvalues, path_kernel.top_eigenpairs(kernel, 2, key=KEY).eigenvalues)
    assert told.take() == []
    jax.jit(lambda kernel: path_kernel.top_eigenpairs(kernel, 2, key=KEY, progress=told))(kernel)
    check_search(told.take())
    ntk.top_eigenpairs(ntk.operator(apply, PARAMS, X), 2, key=KEY, progress=told)
    check_search(told.take())
    factorization.factorize(apply, PARAMS, X[:2], rank=2, key=KEY, progress=told)
    check_search(told.take())


def test_another_listener_of_the_same_kernel_is_told():
    first, second, kernel = Told(), Told(), path_kernel.path_kernel(apply, PARAMS, X)
    for told in (first, second):
        path_kernel.top_eigenpairs(kernel, 2, key=KEY, progress=told)
    check_search(first.take())
    check_search(second.take())


def test_spectral_densities_tell_each_start():
    told, kernel = Told(), path_kernel.path_kernel(apply, PARAMS, X)
    density = path_kernel.spectral_density(kernel, order=3, samples=4, key=KEY, progress=told)
    assert told.take() == [(1, 4), (2, 4), (3, 4), (4, 4)]
    expected = path_kernel.spectral_density(kernel, order=3, samples=4, key=KEY)
    np.testing.assert_array_equal(density.nodes, expected.nodes)
    assert jnp.all(density.weights == expected.weights)
