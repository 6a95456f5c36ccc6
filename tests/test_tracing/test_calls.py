"""A public function calls the user's network at most once for each shape of inputs, and products not at all."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import connectivity, enumeration, factorization, masks, path_kernel, paths, scores, transfer

from ..tolerances import EXACT

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 3))
LABELS = jnp.array([0, 1, 2, 0, 1])
PARAMS = {"first": jax.random.normal(jax.random.key(2), (3, 4)), "second": jax.random.normal(jax.random.key(3), (4, 3))}
MASK = {"first": jnp.ones((3, 4), bool).at[0, 1].set(False), "second": jnp.ones((4, 3), bool)}


def init(key):
    return {"first": jax.random.normal(key, (3, 4)), "second": jax.random.normal(key, (4, 3))}


class Counted:
    """A network that counts how often it is called with each shape of inputs."""

    def __init__(self):
        self.calls: collections.Counter[tuple[int, ...]] = collections.Counter()

    def __call__(self, params, x):
        self.calls[x.shape] += 1
        return jax.nn.relu(x @ params["first"]) @ params["second"]


CALLS = {
    "log_path_norm": lambda apply: paths.log_path_norm(apply, PARAMS, X, mask=MASK),
    "log_path_count": lambda apply: paths.log_path_count(apply, PARAMS, X, mask=MASK),
    "path_sum": lambda apply: paths.path_sum(apply, PARAMS, X, gates="data"),
    "log_data_gram": lambda apply: paths.log_data_gram(apply, PARAMS, X),
    "layers": lambda apply: paths.layers(apply, PARAMS, X),
    "enumerate_paths": lambda apply: enumeration.enumerate_paths(apply, PARAMS, X, limit=100),
    "path_kernel": lambda apply: path_kernel.path_kernel(apply, PARAMS, X, mask=MASK),
    "factorize": lambda apply: factorization.factorize(apply, PARAMS, X, rank=3, key=KEY, mask=MASK),
    "layer_kernels": lambda apply: factorization.layer_kernels(apply, PARAMS, X),
    "effective_mask": lambda apply: connectivity.effective_mask(apply, PARAMS, X, mask=MASK),
    "connectivity": lambda apply: connectivity.connectivity(apply, PARAMS, X, mask=MASK),
    "snip": lambda apply: scores.snip(apply, PARAMS, [(X, LABELS), (X, LABELS)]),
    "force": lambda apply: scores.force(apply, PARAMS, [(X, LABELS), (X, LABELS)], mask=MASK),
    "grasp": lambda apply: scores.grasp(apply, PARAMS, [(X, LABELS), (X[:2], LABELS[:2])]),
    "prospr": lambda apply: scores.prospr(apply, PARAMS, [(X, LABELS), (X[:2], LABELS[:2]), (X, LABELS)], steps=2),
    "synflow": lambda apply: scores.synflow(apply, PARAMS, X),
    "synflow_l2": lambda apply: scores.synflow_l2(apply, PARAMS, X, factor="absolute"),
    "synflow_data": lambda apply: scores.synflow_data(apply, PARAMS, X),
    "path_kernel_trace": lambda apply: scores.path_kernel_trace(apply, PARAMS, X, prunable=masks.is_kernel),
    "mean_field_trace": lambda apply: scores.mean_field_trace(apply, PARAMS, X, inputs=[X, X[:2]]),
    "px": lambda apply: scores.px(apply, PARAMS, [X, X[:2]]),
    "ntk_sap": lambda apply: scores.ntk_sap(apply, PARAMS, X, init=init, key=KEY, repeats=2),
}


@pytest.mark.parametrize("name", CALLS)
def test_network_is_called_at_most_once_for_each_shape(name):
    apply = Counted()
    CALLS[name](apply)
    assert apply.calls
    assert set(apply.calls.values()) == {1}, apply.calls


def test_products_do_not_call_the_network():
    apply = Counted()
    kernel = path_kernel.path_kernel(apply, PARAMS, X, mask=MASK)
    apply.calls.clear()
    kernel.matvec(PARAMS)
    kernel.trace()
    path_kernel.spectral_density(kernel, order=3, samples=2, key=KEY)
    path_kernel.top_eigenpairs(kernel, 2, key=KEY)
    assert not apply.calls


def test_a_transfer_calls_the_network_for_its_check_and_for_its_compiled_step():
    apply = Counted()
    transfer.neural_tangent_transfer(apply, PARAMS, X, density=0.5, steps=3, key=KEY)
    assert set(apply.calls.values()) <= {1, 2}, apply.calls


def test_what_the_network_reads_may_change_between_calls():
    scale = {"of outputs": 1.0}

    def apply(params, x):
        return scale["of outputs"] * (jax.nn.relu(x @ params["first"]) @ params["second"])

    before = paths.log_path_norm(apply, PARAMS, X)
    scale["of outputs"] = 2.0
    np.testing.assert_allclose(paths.log_path_norm(apply, PARAMS, X), before + np.log(2.0), rtol=EXACT)
