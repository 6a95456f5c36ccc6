"""What was traced and compiled serves functions of equal content, and is let go with what it was made for."""

import collections
import copy
import dataclasses
import functools
import gc
import threading
import types
import weakref
from typing import Any

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
from pathjax._interpreter.traced import traced

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


@dataclasses.dataclass(frozen=True)
class Settings:
    scale: object
    unit: float = dataclasses.field(default=1.0, compare=False)


class Slotted:
    __slots__ = "value"
    value: float


class Private:
    __slots__ = ("__value",)

    def __init__(self, value):
        self.set(value)

    def set(self, value):
        self.__value = value

    def get(self):
        return self.__value


class Named:
    """Compared by its name alone."""

    def __init__(self, value):
        self.name, self.value = "name", value

    def __eq__(self, other):
        return isinstance(other, Named) and self.name == other.name

    def __hash__(self):
        return hash(self.name)


class Wrapper:
    """An object that finds attributes by keys, and raises KeyError for those that are not there."""

    def __init__(self, **values):
        self.__dict__["values"] = values

    def __getattr__(self, name):
        return self.__dict__["values"][name]


class Table(dict):
    scale: float


USER_MODULE = """
import flax.linen as nn
from flax import nnx

SCALE = 1.0

class Classy:
    scale = 1.0

    def __call__(self, params, x):
        return SCALE * apply(params, x)

    @property
    def unit(self):
        return SCALE

    @staticmethod
    def constant():
        return SCALE

    def scaled(self, params, x):
        return self.scale * apply(params, x)

class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return SCALE * x

class Nnx(nnx.Module):
    def __call__(self, x):
        return SCALE * x

def read(params, x):
    return SCALE * apply(params, x)
"""


def user_module():
    module = types.ModuleType("user")
    module.__dict__["apply"] = apply
    exec(USER_MODULE, module.__dict__)
    return module


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
        (Settings(1), Settings(1.0)),
        (Settings(0.0), Settings(-0.0)),
        (Settings(1.0, unit=1.0), Settings(1.0, unit=2.0)),
        (np.eye(2).view(np.recarray), np.eye(2)),
    ]
    + [(jnp.ones(2), jnp.ones(2)), (network(1.0), network(2.0)), (Holder(1), Holder(1)), ({"a": 1}, {"a": 1})],
)
def test_functions_that_capture_something_else_differ(left, right):
    assert key(network(left)) != key(network(right))


def test_variables_that_are_called_like_attributes_are_not_part_of_the_content():
    module = user_module()
    exec("holder, value = None, 1\ndef reads(params, x):\n    return holder.value", module.__dict__)
    before = key(module.reads)
    module.__dict__["value"] = 2
    assert key(module.reads) == before
    module.__dict__["holder"] = Holder(1.0)
    assert key(module.reads) != before


def test_derivative_rules_of_the_users_own_are_part_of_the_content():
    def clipped(slope):
        @jax.custom_jvp
        def activation(x):
            return jnp.maximum(x, 0)

        activation.defjvps(lambda tangent, result, x: slope * tangent)
        return lambda params, x: activation(x @ params["first"]) @ params["second"]

    def trace(slope):
        return ntk.empirical_trace(clipped(slope), {"first": PARAMS["first"], "second": PARAMS["second"]}, X)[0, 0]

    first, second, none = trace(1.0), trace(2.0), trace(0.0)
    np.testing.assert_allclose(second - none, 4 * (first - none), rtol=EXACT)


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


@pytest.mark.parametrize(
    "change",
    [
        "list",
        "dict",
        "attribute",
        "method",
        "array",
        "global",
        "nnx",
        "global of a method",
        "global of a property",
        "global of a static method",
    ]
    + ["global of a linen module", "global of an nnx module", "attribute of a class", "attribute of a module"]
    + ["attribute of a function", "slot", "private slot", "deque", "proxy", "method of a dict", "attribute of a dict"]
    + ["array of objects", "equal object", "wrapper", "bytes"],
)
def test_what_the_network_reads_may_change_between_calls(change):
    holder, items, table, array = Holder(1.0), [1.0], {"scale": 1.0}, np.ones(())
    model = nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    model.kernel[...] = jnp.ones((3, 4))
    module = user_module()
    change_global = functools.partial(setattr, module, "SCALE", 2.0)
    classy, linen = module.Classy(), module.Linen()
    graphdef = nnx.graphdef(module.Nnx())
    slotted, private, deque, named = Slotted(), Private(1.0), collections.deque([1.0]), Named(1.0)
    slotted.value = 1.0
    proxy, get, wrapper, objects = types.MappingProxyType(table), table.get, Wrapper(scale=1.0), np.array([1.0, None])
    attributed, array_of_bytes = Table(), bytearray([1])
    attributed.scale = 1.0

    def marked(params, x):
        return vars(marked)["scale"] * apply(params, x)

    vars(marked)["scale"] = 1.0
    functions: dict[str, tuple[Any, Any]] = {
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
        "global of a method": (classy, change_global),
        "global of a property": (lambda params, x: classy.unit * apply(params, x), change_global),
        "global of a static method": (lambda params, x: module.Classy.constant() * apply(params, x), change_global),
        "global of a linen module": (lambda params, x: linen.apply({}, apply(params, x)), change_global),
        "global of an nnx module": (lambda params, x: nnx.merge(graphdef, {})(apply(params, x)), change_global),
        "attribute of a class": (classy.scaled, lambda: setattr(module.Classy, "scale", 2.0)),
        "attribute of a module": (lambda params, x: module.SCALE * apply(params, x), change_global),
        "attribute of a function": (marked, lambda: vars(marked).update(scale=2.0)),
        "slot": (lambda params, x: slotted.value * apply(params, x), lambda: setattr(slotted, "value", 2.0)),
        "private slot": (lambda params, x: private.get() * apply(params, x), lambda: private.set(2.0)),
        "deque": (lambda params, x: deque[0] * apply(params, x), lambda: deque.__setitem__(0, 2.0)),
        "proxy": (lambda params, x: proxy["scale"] * apply(params, x), lambda: table.update(scale=2.0)),
        "method of a dict": (lambda params, x: get("scale") * apply(params, x), lambda: table.update(scale=2.0)),
        "attribute of a dict": (
            lambda params, x: attributed.scale * apply(params, x),
            lambda: vars(attributed).update(scale=2.0),
        ),
        "array of objects": (lambda params, x: objects[0] * apply(params, x), lambda: objects.__setitem__(0, 2.0)),
        "equal object": (lambda params, x: named.value * apply(params, x), lambda: setattr(named, "value", 2.0)),
        "wrapper": (lambda params, x: wrapper.scale * apply(params, x), lambda: wrapper.values.update(scale=2.0)),
        "bytes": (lambda params, x: array_of_bytes[0] * apply(params, x), lambda: array_of_bytes.__setitem__(0, 2)),
    }
    function, after = functions[change]
    before = paths.log_path_norm(function, PARAMS, X)
    np.testing.assert_allclose(paths.log_path_norm(function, PARAMS, X), before, rtol=EXACT)
    after()
    np.testing.assert_allclose(paths.log_path_norm(function, PARAMS, X), before + np.log(2.0), rtol=EXACT)


def test_options_of_equal_content_are_those_of_the_latest_call():
    def ratio(n):
        """Of the scores of two losses w·L, the first of which becomes the second at the end of the loop."""
        weight, sizes = 0.0, []

        def loss(outputs, labels):
            return weight * scores.cross_entropy(outputs, labels)

        for each in (1.0, 2.0):
            weight = each
            sizes.append(scores.snip(apply, PARAMS, [(X[:n], jnp.arange(n) % 3)], loss=loss)["first"].sum())
        return sizes[1] / sizes[0]

    # the second batch is of another size, so that the loss is traced again
    np.testing.assert_allclose([ratio(4), ratio(3)], 2.0, rtol=EXACT)


def test_programs_of_an_earlier_content_are_not_found_by_the_present_one():
    module = user_module()
    kernel = path_kernel.path_kernel(module.read, PARAMS, X)
    module.SCALE = 2.0
    kernel.trace()  # compiles while the network is another one already
    doubled = path_kernel.path_kernel(module.read, PARAMS, X).trace()
    np.testing.assert_allclose(doubled, 4 * path_kernel.path_kernel(apply, PARAMS, X).trace(), rtol=EXACT)


def test_what_a_function_captured_long_ago_is_let_go(monkeypatch):
    monkeypatch.setattr(programs, "_SMALL", 8)
    box: list[jax.Array] = []

    def boxed(params, x):
        return box[0] * apply(params, x)

    captured = []
    for scale in range(programs._MOST_CONTENTS + 3):
        box[:] = [jnp.full((1, 3), float(scale))]
        captured.append(weakref.ref(box[0]))
        scores.synflow(boxed, PARAMS, X)
    gc.collect()
    assert [array() is None for array in captured[:3]] == [True] * 3
    assert sum(array() is not None for array in captured) == programs._MOST_CONTENTS


def test_a_loss_that_captures_traced_arrays_is_not_kept():
    def total(weight):
        def loss(outputs, labels):
            return weight * scores.cross_entropy(outputs, labels)

        return scores.snip(apply, PARAMS, [(X, jnp.arange(5) % 3)], loss=loss)["first"].sum()

    with jax.checking_leaks():
        np.testing.assert_allclose(jax.jit(total)(2.0), 2 * jax.jit(total)(1.0), rtol=EXACT)


def test_settings_of_jax_decide_what_a_network_is_traced_to():
    def noisy(params, x):
        return apply(params, x) + jax.random.normal(jax.random.key(0), (3,))

    def promoted(params, x):
        return apply(params, x) + jnp.ones(3)

    network = traced(noisy, PARAMS)
    with jax.numpy_rank_promotion("allow"):
        assert (network(PARAMS, X) == noisy(PARAMS, X)).all()
        with jax.default_prng_impl("rbg"):
            assert (network(PARAMS, X) == noisy(PARAMS, X)).all()
        traced(promoted, PARAMS)(PARAMS, X)
    with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="rank_promotion"):
        traced(promoted, PARAMS)(PARAMS, X)


def test_functions_are_kept_from_several_threads():
    functions = [network(float(scale)) for scale in range(3 * programs._LAST)]
    errors: list[Exception] = []

    def keep(first):
        try:
            for function in functions[first:] + functions[:first]:
                programs.kept_for(function, programs.Kept).compiled(jax.tree.map)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=keep, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


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
        lambda: scores.prospr(counted, PARAMS, [(X, labels)] * 3, steps=2),
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


def test_kernels_can_be_copied():
    kernel = path_kernel.path_kernel(apply, PARAMS, X)
    np.testing.assert_array_equal(copy.deepcopy(kernel).trace(), kernel.trace())


def test_outputs_have_the_type_that_the_setting_of_64_bits_gives_them():
    def converts(params, x):
        return apply(params, x).astype(float)

    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (PARAMS, X))
    for is_wide in (True, False):
        with jax.enable_x64(is_wide):
            expected = jnp.float64 if is_wide else jnp.float32
            assert ntk.operator(converts, params, x).matvec(jnp.ones((5, 3))).dtype == expected
            assert ntk.empirical(converts, params, x[:0]).dtype == expected
