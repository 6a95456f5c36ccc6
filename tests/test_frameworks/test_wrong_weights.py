"""What is handed over as `params` and is more than weights is refused with the remedy of its framework."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze

from pathjax._base.weights import check_weights


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=True)(x))


class Net(nnx.Module):
    def __init__(self, rngs, *, norm=False, dropout=False):
        self.inner = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs) if norm else None
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if dropout else None


VARIABLES = Linen().init(jax.random.key(0), jnp.ones((1, 3)))
MLP = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))

REFUSED = {
    "linen variables": (VARIABLES, "the collection 'batch_stats' beside the weights", "params=variables['params']"),
    "frozen variables": (freeze(VARIABLES), "the collection 'batch_stats'", "params=variables['params']"),
    "linen caches": (
        {"params": VARIABLES["params"], "cache": {}},
        "the collection 'cache'",
        "params=variables['params']",
    ),
    "linen module": (Linen(), "`params` at its top is a Linen, not an array", "model.init(key, x)['params']"),
    "nnx model with statistics": (
        Net(nnx.Rngs(0), norm=True),
        "at .norm.mean is a variable of the type BatchStat",
        "nnx.split(model, nnx.Param, ...)",
    ),
    "nnx state with statistics": (
        nnx.state(Net(nnx.Rngs(0), norm=True)),
        "at ['norm']['mean'] is a variable of the type BatchStat",
        "nnx.split(model, nnx.Param, ...)",
    ),
    "nnx model with dropout": (
        Net(nnx.Rngs(0), dropout=True),
        "at .dropout.rngs.count is a variable of the type RngCount",
        "nnx.merge(graphdef, params, state)(x)",
    ),
    "equinox model": (
        MLP,
        "at .activation is the function `relu`, not an array",
        "eqx.partition(model, eqx.is_inexact",
    ),
    "key": ({"w": jnp.ones(2), "key": jax.random.key(0)}, "at ['key'] is a PRNG key (key<fry>)", "pass it as `state`"),
    "raw key": ({"key": jax.random.PRNGKey(0)}, "at ['key'] has dtype uint32; weights must be floating", "as `state`"),
    "counter": ({"w": jnp.ones(2), "step": jnp.zeros((), int)}, "at ['step'] has dtype int64", "close over it"),
    "flag": ({"flag": True}, "at ['flag'] has dtype bool", "close over it"),
    "name": ({"name": "mlp"}, "at ['name'] is a str, not an array", "close over it"),
    "complex": ({"w": jnp.ones(2, complex)}, "at ['w'] has dtype complex128", "close over it"),
}

WEIGHTS = {
    "linen": VARIABLES["params"],
    "linen variables of one collection": {"params": VARIABLES["params"]},
    "nnx": nnx.state(Net(nnx.Rngs(0), norm=True), nnx.Param),
    "nnx model of parameters alone": Net(nnx.Rngs(0)),
    "nnx arrays": nnx.to_pure_dict(nnx.state(Net(nnx.Rngs(0)), nnx.Param)),
    "equinox": eqx.filter(MLP, eqx.is_inexact_array),
    "shapes": jax.eval_shape(lambda: VARIABLES["params"]),
    "half precision and numbers": [jnp.ones(2, jnp.bfloat16), (0.5, None)],
    "a name of a collection alone": {"cache": jnp.ones(2)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_weight_is_refused_with_the_remedy(name):
    params, what, remedy = REFUSED[name]
    kind = TypeError if "not an array" in what else ValueError
    with pytest.raises(kind, match=re.escape(what)) as caught:
        check_weights(params)
    assert remedy in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_every_framework_pass(name):
    check_weights(WEIGHTS[name])


def test_types_are_told_while_tracing():
    jax.jit(lambda params: check_weights(params))(VARIABLES["params"])
    with pytest.raises(ValueError, match="batch_stats"):
        jax.jit(lambda params: check_weights(params))(VARIABLES)


def test_remedies_run():
    x = jnp.ones((5, 3))
    state = {name: value for name, value in VARIABLES.items() if name != "params"}
    outputs: Any = Linen().apply({"params": VARIABLES["params"], **state}, x)
    assert outputs.shape == (5, 2)
    graphdef, params, *rest = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param, ...)
    assert nnx.merge(graphdef, params, *rest)(x).shape == (5, 2)
    params, static = eqx.partition(MLP, eqx.is_inexact_array)
    assert jax.vmap(eqx.combine(params, static))(x).shape == (5, 2)
