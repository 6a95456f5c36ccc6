"""What was traced and compiled serves functions of equal content, and is let go with what it was made for."""

import collections
import functools
import gc
import types
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pathjax import masks, ntk, path_kernel, paths, pruning, scores
from pathjax._base import programs
from pathjax._base.content import content

from ..tolerances import EXACT

X = jax.random.normal(jax.random.key(1), (5, 3))
PARAMS = {"first": jax.random.normal(jax.random.key(2), (3, 4)), "second": jax.random.normal(jax.random.key(3), (4, 3))}


def apply(params, x):
    return jax.nn.relu(x @ params["first"]) @ params["second"]


def network(scale):
    return lambda params, x: scale * apply(params, x)


class Holder:
    def __init__(self, value):
        self.value = value

    def __call__(self, params, x):
        return self.value * apply(params, x)

    def method(self, params, x):
        return self.value * apply(params, x)


class Dense(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)


def key(function):
    read = content(function)
    assert read is not None
    return read.key


@pytest.mark.parametrize(
    "captured", [2.0, "text", None, (1, 2.0), np.arange(3.0), jnp, jax.nn.relu, float("nan"), Dense(2)]
)
def test_functions_of_one_code_that_capture_the_same_are_equal(captured):
    assert key(network(captured)) == key(network(captured))
    assert key(functools.partial(network, captured)) == key(functools.partial(network, captured))
    assert key(jax.jit(network(captured))) == key(jax.jit(network(captured)))
    assert key(Dense(2).apply) == key(Dense(2).apply) != key(Dense(3).apply)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (2.0, 3.0),
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        (np.arange(3.0), np.arange(3.0) + 1),
        (Dense(2), Dense(3)),
        ([1], [1]),
    ]
    + [(jnp.ones(2), jnp.ones(2)), (network(1.0), network(2.0)), (Holder(1), Holder(1)), ({"a": 1}, {"a": 1})],
)
def test_functions_that_capture_something_else_differ(left, right):
    assert key(network(left)) != key(network(right))


def test_what_is_deep_or_cannot_be_compared_is_told_by_identity():
    class Awkward:
        def __eq__(self, other):
            raise RuntimeError("not comparable")

        def __hash__(self):
            return 1

    assert key(network(Awkward())) != key(network(Awkward()))
    deep: tuple[object, ...] = ()
    for _ in range(10_000):
        deep = (deep,)
    assert key(network(deep)) == key(network(deep))
    loop: list[object] = []
    loop.append(loop)
    assert key(network(loop)) == key(network(loop))


def test_functions_of_other_code_differ():
    assert key(lambda params, x: x + 1) != key(lambda params, x: x + 2)
    assert key(lambda params, x, scale=1: x) != key(lambda params, x, scale=2: x)


@pytest.mark.parametrize("change", ["list", "dict", "attribute", "method", "array", "global", "nnx"])
def test_what_the_network_reads_may_change_between_calls(change):
    holder, items, table, array = Holder(1.0), [1.0], {"scale": 1.0}, np.ones(())
    model = nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    model.kernel[...] = jnp.ones((3, 4))
    module = types.ModuleType("user")
    exec("SCALE = 1.0\nread = lambda params, x: SCALE * apply(params, x)", module.__dict__)
    module.__dict__["apply"] = apply
    functions = {
        "list": (lambda params, x: items[0] * apply(params, x), lambda: items.__setitem__(0, 2.0)),
        "dict": (lambda params, x: table["scale"] * apply(params, x), lambda: table.update(scale=2.0)),
        "attribute": (holder, lambda: setattr(holder, "value", 2.0)),
        "method": (holder.method, lambda: setattr(holder, "value", 2.0)),
        "array": (lambda params, x: jnp.asarray(array) * apply(params, x), lambda: array.__imul__(2.0)),
        "global": (module.read, lambda: setattr(module, "SCALE", 2.0)),
        "nnx": (
            lambda params, x: model(x)[:, :1] * 0 + model.kernel[0, 0] * apply(params, x),
            lambda: model.kernel.__setitem__(..., 2 * jnp.ones((3, 4))),
        ),
    }
    function, after = functions[change]
    before = paths.log_path_norm(function, PARAMS, X)
    np.testing.assert_allclose(paths.log_path_norm(function, PARAMS, X), before, rtol=EXACT)
    after()
    np.testing.assert_allclose(paths.log_path_norm(function, PARAMS, X), before + np.log(2.0), rtol=EXACT)


def test_a_lambda_made_anew_is_traced_once():
    traces: list[tuple[int, ...]] = []

    def counted(params, x):
        traces.append(x.shape)
        return apply(params, x)

    for _ in range(3):
        scores.synflow(lambda params, x: counted(params, x), PARAMS, X)
    assert sorted(traces) == [(1, 3), (2, 3)]  # one example, and two, which show whether examples are mixed


def test_a_score_made_anew_is_compiled_once():
    traces: list[tuple[int, ...]] = []

    def counted(params):
        traces.append(())
        return jax.tree.map(jnp.abs, params)

    for density in (0.5, 0.25):
        pruning.prune(lambda params, key: counted(params), PARAMS, density=density, rounds=3)
    assert len(traces) == 1


def test_seeds_with_states_of_their_own_are_pruned_by_one_program():
    traces: list[tuple[int, ...]] = []

    def with_state(params, state, x):
        traces.append(x.shape)
        return state["scale"][None] * apply(params, x)

    for seed in range(3):
        params = jax.tree.map(lambda leaf, seed=seed: leaf + seed, PARAMS)
        state = {"scale": jnp.arange(1.0, 4.0) + seed}
        sparse = pruning.sparsify(
            scores.synflow, with_state, params, X, optax.sgd(0.1), density=0.5, rounds=4, state=state
        )

        def score(masked, key, state=state):
            return scores.synflow(with_state, masked, X, state=state)

        expected = pruning.prune(score, params, density=0.5, rounds=4)
        assert all(map(np.array_equal, jax.tree.leaves(sparse.mask), jax.tree.leaves(expected)))
    assert sorted(traces) == [(1, 3), (2, 3), (5, 3)]  # the batch itself, of which the kernels are read


def test_second_calls_neither_trace_nor_compile():
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return apply(params, x)

    mask = masks.from_scores(scores.magnitude(PARAMS), density=0.5)
    labels = jnp.array([0, 1, 2, 0, 1])
    calls = (
        lambda: scores.synflow(counted, PARAMS, X),
        lambda: scores.snip(counted, PARAMS, [(X, labels)]),
        lambda: scores.grasp(counted, PARAMS, [(X, labels)]),
        lambda: scores.px(counted, PARAMS, X),
        lambda: ntk.empirical(counted, PARAMS, X, mask=mask),
        lambda: paths.log_data_gram(counted, PARAMS, X),
        lambda: paths.path_sum(counted, PARAMS, X, gates="data"),
        lambda: path_kernel.path_kernel(counted, PARAMS, X, mask=mask).trace(),
    )
    for call in calls:
        call()
    traces.clear()
    with jax.log_compiles(False), jax.checking_leaks():
        for call in calls:
            call()
    assert traces == []


@pytest.mark.parametrize("size", ["small", "large"])
def test_programs_go_with_what_they_were_made_for(size, monkeypatch):
    monkeypatch.setattr(programs, "_SMALL", 2**10)
    monkeypatch.setattr(programs, "_LATEST", collections.OrderedDict())
    array = jnp.ones((3, 3)) if size == "small" else jnp.ones((3, 100))

    def captures(params, x):
        return apply(params, x) * array[0, 0]

    scores.synflow(captures, PARAMS, X)
    ntk.empirical(captures, PARAMS, X)
    function, captured = weakref.ref(captures), weakref.ref(array)
    del captures, array
    gc.collect()
    assert function() is None
    # small ones are the latest, which outlive their function
    assert (captured() is None) == (size == "large")
    for other in range(programs._LAST):
        scores.synflow(network(float(other)), PARAMS, X)
    gc.collect()
    assert captured() is None


def test_a_network_that_captures_traced_arrays_is_not_kept():
    @jax.jit
    def norm(scale):
        return paths.log_path_norm(lambda params, x: scale * apply(params, x), PARAMS, X)

    with jax.checking_leaks():
        difference = norm(2.0) - norm(1.0)
    np.testing.assert_allclose(difference, np.log(2.0), rtol=EXACT)
    gradient = jax.grad(lambda scale: paths.log_path_norm(lambda p, x: scale * apply(p, x), PARAMS, X))(2.0)
    np.testing.assert_allclose(gradient, 0.5, rtol=EXACT)
