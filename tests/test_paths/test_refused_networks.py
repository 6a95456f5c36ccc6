"""Networks that people write and that have no paths: each is refused in words that fit its layer."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax
from jax.experimental import sparse

from pathjax import paths
from pathjax._interpreter.jaxpr import check_batch


class Body(nn.Module):
    """A Flax linen network from a function that calls layers."""

    body: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return self.body(x)


class Network(NamedTuple):
    apply: Callable[[Any, Any], Any]
    params: Any
    x: Any


class Refused(NamedTuple):
    """A network without paths, what its error must match, in this order, and what it must not match."""

    build: Callable[[], Network]
    says: tuple[str, ...]
    never: tuple[str, ...] = ()


def without_paths(function: Callable[[Any], Any], shape: tuple[int, ...] = ()) -> Callable[[], Network]:
    """Hidden activations (n, *shape, 4) become `function(h)`, of the same number of axes; all are outputs."""

    def apply(params: Any, x: Any) -> Any:
        h = function(x @ params["first"])
        return h.reshape(len(h), -1)

    params = {"first": jnp.ones((3, 4))}
    return lambda: Network(apply, params, jnp.ones((5, *shape, 3)))


def of_weights(function: Callable[[Any], Any]) -> Callable[[], Network]:
    """A dense layer whose kernel is `function(weights)`, behind a ReLU layer."""
    params = {"first": jnp.ones((3, 4)), "second": jnp.ones((4, 2))}
    return lambda: Network(lambda p, x: jax.nn.relu(x @ p["first"]) @ function(p["second"]), params, jnp.ones((5, 3)))


def linen(body: Callable[[Any], Any], shape: tuple[int, ...] = (3,), **rngs: Any) -> Callable[[], Network]:
    """A Flax linen network `body(x)` of layers; all of its results are outputs."""

    def build() -> Network:
        model = Body(lambda x: body(x).reshape(len(x), -1))
        x = jnp.ones((5, *shape), jnp.float32)
        variables = model.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, x)
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def apply(params: Any, x: Any) -> Any:
            return model.apply({"params": params} | rest, x, mutable=list(rest), rngs={"dropout": jax.random.key(1)})[0]

        return Network(apply, variables["params"], x)

    return build


def nnx_layers(make: Callable[[nnx.Rngs], list[Any]]) -> Callable[[], Network]:
    """A Flax NNX network of layers in a row."""

    def build() -> Network:
        model = nnx.Sequential(*make(nnx.Rngs(0)))
        structure, params, rest = cast("tuple[Any, Any, Any]", nnx.split(model, nnx.Param, ...))
        return Network(
            lambda params, x: nnx.merge(structure, params, rest, copy=True)(x), params, jnp.ones((5, 3), jnp.float32)
        )

    return build


def equinox_layers(make: Callable[[Any], list[Any]], shape: tuple[int, ...] = (3,)) -> Callable[[], Network]:
    """An Equinox network of layers in a row, mapped over the batch."""

    def build() -> Network:
        params, structure = eqx.partition(make(jax.random.split(jax.random.key(0), 4)), eqx.is_inexact_array)

        def one(params: Any, row: Any) -> Any:
            for layer in eqx.combine(params, structure):
                row = layer(row)
            return row.reshape(-1)

        return Network(lambda p, x: jax.vmap(functools.partial(one, p))(x), params, jnp.ones((5, *shape)))

    return build


def squeeze_and_excite(x: Any) -> Any:
    h = nn.Conv(4, (3, 3))(x)
    scale = jax.nn.sigmoid(nn.Dense(4)(nn.relu(nn.Dense(2)(h.mean(axis=(1, 2))))))
    return h * scale[:, None, None]


def vision_transformer(x: Any) -> Any:
    h = nn.Conv(4, (2, 2), strides=2)(x).reshape(len(x), -1, 4)
    h = h + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(h))
    return h + nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(h))))


def attention_by_hand(h: Any) -> Any:
    weights = jax.nn.softmax(jnp.einsum("ntd,nsd->nts", h, h))
    return jnp.einsum("nts,nsd->ntd", weights, h)


def norm_by_hand(h: Any) -> Any:
    mean, variance = h.mean(axis=-1, keepdims=True), h.var(axis=-1, keepdims=True)
    return (h - mean) / jnp.sqrt(variance + 1e-5)


def batch_norm_by_hand(h: Any) -> Any:
    return (h - h.mean(axis=0, keepdims=True)) / jnp.sqrt(h.var(axis=0, keepdims=True) + 1e-5)


def dropout_by_hand(h: Any) -> Any:
    return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, h.shape), h, 0.0)


def standardized_weights(w: Any) -> Any:
    return (w - w.mean(axis=0, keepdims=True)) / jnp.sqrt(w.var(axis=0, keepdims=True) + 1e-5)


def spectral(w: Any) -> Any:
    return w / jnp.linalg.norm(w, ord=2)


@jax.custom_jvp
def rounded(x: Any) -> Any:
    return jnp.round(x)


rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))


def sparse_product() -> Network:
    adjacency = sparse.BCOO.fromdense(jnp.eye(4))
    return without_paths(lambda h: (adjacency @ h.T).T)()


def outputs_of(function: Callable[[Any], Any]) -> Callable[[], Network]:
    return lambda: Network(lambda p, x: function(x @ p), jnp.ones((3, 2)), jnp.ones((5, 3)))


def with_input(function: Callable[[Any, Any], Any], x: Any, shape: tuple[int, ...] = (3, 2)) -> Callable[[], Network]:
    return lambda: Network(function, jnp.ones(shape), x)


_CURVED = ("curved, not piecewise linear", "Use a ReLU")
_OF_WEIGHTS = ("computed from parameters alone", "Close over it as a constant, or make what it computes the parameter")
_NORM_WORDS = ("divides by the size of the activations", "Use batch norm with running statistics, or no norm")
_BATCH_NORM = ("Batch norm in training mode mixes the examples", "use_running_average=True, model.eval")
_DROPOUT = ("Dropout is on", "deterministic=True, model.eval")
_SOFTMAX = ("`softmax`", "takes exponentials", "return the logits", "inside the network use a ReLU")

REFUSED: dict[str, Refused] = {
    # activations
    "GELU": Refused(without_paths(jax.nn.gelu), ("`gelu`", *_CURVED), ("integer_pow",)),
    "exact GELU": Refused(without_paths(lambda h: jax.nn.gelu(h, approximate=False)), ("GELU is", *_CURVED)),
    "GELU of linen": Refused(linen(lambda x: nn.gelu(nn.Dense(4)(x))), ("`gelu`", *_CURVED), ("integer_pow",)),
    "GELU of NNX": Refused(
        nnx_layers(lambda rngs: [nnx.Linear(3, 4, rngs=rngs), nnx.gelu]), ("`gelu`", *_CURVED), ("integer_pow",)
    ),
    "GELU of Equinox": Refused(
        equinox_layers(lambda keys: [eqx.nn.Linear(3, 4, key=keys[0]), jax.nn.gelu]),
        ("`gelu`", *_CURVED),
        ("integer_pow",),
    ),
    "SiLU": Refused(without_paths(jax.nn.silu), ("SiLU", *_CURVED)),
    "swish": Refused(without_paths(jax.nn.swish), ("(Swish|SiLU)", *_CURVED)),
    "mish": Refused(without_paths(jax.nn.mish), ("Mish is", *_CURVED), ("softmax", "logits")),
    "softplus": Refused(without_paths(jax.nn.softplus), ("Softplus is", *_CURVED), ("softmax", "logits")),
    "ELU": Refused(without_paths(jax.nn.elu), ("ELU is", *_CURVED), ("softmax", "logits")),
    "SELU": Refused(without_paths(jax.nn.selu), ("SELU is", *_CURVED), ("softmax", "logits")),
    "CELU": Refused(without_paths(jax.nn.celu), ("CELU is", *_CURVED), ("softmax", "logits")),
    "tanh": Refused(without_paths(jnp.tanh), ("`tanh`", *_CURVED)),
    "sigmoid": Refused(without_paths(jax.nn.sigmoid), ("`logistic`", *_CURVED)),
    "log sigmoid": Refused(without_paths(jax.nn.log_sigmoid), ("logarithm of a sigmoid", *_CURVED), ("logits",)),
    "Fourier features": Refused(
        with_input(lambda p, x: jnp.concatenate([jnp.sin(x), jnp.cos(x)], axis=1) @ p, jnp.ones((5, 3)), (6, 2)),
        ("`sin`", "compute them before the network and pass them as x"),
    ),
    "sine": Refused(without_paths(jnp.sin), ("`sin`", "curved", "features of the input")),
    "ReLU6": Refused(without_paths(jax.nn.relu6), ("clipped at a constant other than 0", r"Clip at 0 \(ReLU\)")),
    "hard tanh": Refused(without_paths(jax.nn.hard_tanh), ("clipped|compared with a constant", "0")),
    "hard sigmoid": Refused(without_paths(jax.nn.hard_sigmoid), ("clipped at a constant other than 0", "Clip at 0")),
    "hard swish": Refused(without_paths(jax.nn.hard_swish), ("clipped at|multiplies two", "ReLU")),
    "squared ReLU": Refused(
        without_paths(lambda h: jnp.square(jax.nn.relu(h))),
        ("`square`", "not of first order in the input", "Use a ReLU"),
    ),
    "gated linear unit": Refused(
        without_paths(lambda h: jax.nn.glu(jnp.tile(h, 2))), ("gated linear unit", "multiplies two activations")
    ),
    "soft sign": Refused(without_paths(jax.nn.soft_sign), ("Soft sign is curved",)),
    # norms
    "layer norm of linen": Refused(
        linen(lambda x: nn.LayerNorm()(nn.Dense(4)(x))), ("`LayerNorm`", "Layer norm", *_NORM_WORDS), ("Use a ReLU",)
    ),
    "group norm of linen": Refused(
        linen(lambda x: nn.GroupNorm(2)(nn.Dense(4)(x))), ("`GroupNorm`", "Group norm", *_NORM_WORDS), ("Use a ReLU",)
    ),
    "RMS norm of linen": Refused(
        linen(lambda x: nn.RMSNorm()(nn.Dense(4)(x))), ("`RMSNorm`", "RMS norm", *_NORM_WORDS), ("Use a ReLU",)
    ),
    "instance norm of linen": Refused(
        linen(lambda x: nn.InstanceNorm()(nn.Conv(4, (3, 3))(x)), (6, 6, 2)),
        ("`InstanceNorm`", "Instance norm", *_NORM_WORDS),
        ("Use a ReLU",),
    ),
    "layer norm of NNX": Refused(
        nnx_layers(lambda rngs: [nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)]),
        ("`LayerNorm`", *_NORM_WORDS),
        ("Use a ReLU",),
    ),
    "RMS norm of NNX": Refused(
        nnx_layers(lambda rngs: [nnx.Linear(3, 4, rngs=rngs), nnx.RMSNorm(4, rngs=rngs)]),
        ("`RMSNorm`", *_NORM_WORDS),
        ("Use a ReLU",),
    ),
    "layer norm of Equinox": Refused(
        equinox_layers(lambda keys: [eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.LayerNorm(4)]),
        ("Layer norm", *_NORM_WORDS),
        ("Use a ReLU", "infinite"),
    ),
    "group norm of Equinox": Refused(
        equinox_layers(lambda keys: [eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.GroupNorm(2, 4)]),
        ("Group norm", *_NORM_WORDS),
        ("Use a ReLU", "infinite"),
    ),
    "RMS norm of Equinox": Refused(
        equinox_layers(lambda keys: [eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.RMSNorm(4)]),
        ("RMS norm", *_NORM_WORDS),
        ("Use a ReLU",),
    ),
    "layer norm by hand": Refused(
        without_paths(norm_by_hand),
        ("variance of activations", "Use batch norm with running statistics, or no norm"),
        ("Use a ReLU", "infinite"),
    ),
    "standardized by jax.nn": Refused(without_paths(jax.nn.standardize), _NORM_WORDS, ("Use a ReLU", "infinite")),
    "divided by its norm": Refused(
        without_paths(lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True)),
        ("A norm of activations", "or no norm"),
        ("Use a ReLU", "attention"),
    ),
    "divided by its size": Refused(
        without_paths(lambda h: h / jnp.abs(h).sum(axis=-1, keepdims=True)), ("divides by an activation",)
    ),
    "batch norm of linen in training": Refused(
        linen(lambda x: nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))),
        ("`BatchNorm`", *_BATCH_NORM),
        ("Use a ReLU",),
    ),
    "batch norm of NNX in training": Refused(
        nnx_layers(lambda rngs: [nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)]),
        ("`BatchNorm`", *_BATCH_NORM),
    ),
    "batch norm by hand": Refused(without_paths(batch_norm_by_hand), ("mixes the examples", "running statistics")),
    "statistics of batch norm among the weights": Refused(
        lambda: Network(
            (model := nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])).apply,
            model.init(jax.random.key(0), jnp.ones((5, 3))),
            jnp.ones((5, 3)),
        ),
        ("collection .batch_stats. beside the weights", r"params=variables\[.params.\]"),
    ),
    # dropout
    "dropout of linen": Refused(
        linen(lambda x: nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))), _DROPOUT, ("statistics",)
    ),
    "dropout of NNX": Refused(
        nnx_layers(lambda rngs: [nnx.Linear(3, 4, rngs=rngs), nnx.Dropout(0.5, rngs=nnx.Rngs(1))]),
        _DROPOUT,
        ("statistics",),
    ),
    "dropout by hand": Refused(
        without_paths(dropout_by_hand),
        ("by their position, as the random mask of dropout", "Leave dropout out"),
        ("statistics",),
    ),
    # weights computed from weights
    "weight standardization": Refused(of_weights(standardized_weights), _OF_WEIGHTS, ("infinite",)),
    "weight norm": Refused(of_weights(lambda w: w / jnp.sqrt((w**2).sum(axis=0, keepdims=True))), _OF_WEIGHTS),
    "weight norm of linen": Refused(linen(lambda x: nn.WeightNorm(nn.Dense(4))(x)), _OF_WEIGHTS),
    "spectral norm": Refused(of_weights(spectral), _OF_WEIGHTS),
    "spectral norm of linen": Refused(
        linen(lambda x: nn.SpectralNorm(nn.Dense(4))(x, update_stats=False)), ("parameter",)
    ),
    "quantized weights": Refused(of_weights(jnp.round), _OF_WEIGHTS, ("Leave the rounding",)),
    "straight-through rounding": Refused(of_weights(lambda w: w + lax.stop_gradient(jnp.round(w) - w)), _OF_WEIGHTS),
    "straight-through rule": Refused(without_paths(rounded), ("Its derivative rule is not the derivative",)),
    "positive weights by exp": Refused(of_weights(jnp.exp), _OF_WEIGHTS, ("softmax",)),
    "clipped weights": Refused(of_weights(lambda w: jnp.clip(w, -1.0, 1.0)), _OF_WEIGHTS, ("activation",)),
    # outputs
    "softmax head": Refused(without_paths(jax.nn.softmax), _SOFTMAX, ("stop_gradient", "derivative")),
    "log softmax head": Refused(
        without_paths(jax.nn.log_softmax), ("takes exponentials", "return the logits"), ("stop_gradient", "derivative")
    ),
    "softmax head of linen": Refused(
        linen(lambda x: nn.softmax(nn.Dense(4)(x))), _SOFTMAX, ("stop_gradient", "derivative")
    ),
    "softmax by hand": Refused(
        without_paths(lambda h: jnp.exp(h) / jnp.exp(h).sum(axis=-1, keepdims=True)),
        ("`exp`", "not homogeneous", "return the logits"),
    ),
    "sigmoid head": Refused(without_paths(nn.sigmoid), ("`logistic`", *_CURVED)),
    "several heads in a dict": Refused(
        outputs_of(lambda h: {"class": h, "box": 2.0 * h}),
        ("must return one array of shape", "a pytree of arrays", "Concatenate"),
    ),
    "outputs without an axis": Refused(
        outputs_of(lambda h: h.sum(axis=1)), ("must return one array of shape", r"\(n, 1\)")
    ),
    # sequences
    "attention by hand": Refused(
        without_paths(attention_by_hand, (6,)), ("multiplies two activations", "attention"), ("stop_gradient",)
    ),
    "attention of jax.nn": Refused(
        without_paths(lambda h: jax.nn.dot_product_attention(h[:, :, None], h[:, :, None], h[:, :, None]), (6,)),
        ("multiplies two activations",),
    ),
    "attention of linen": Refused(
        linen(lambda x: nn.MultiHeadDotProductAttention(2)(nn.Dense(4)(x)), (6, 3)),
        ("multiplies two activations", "MLP-Mixer"),
    ),
    "attention of Equinox": Refused(
        equinox_layers(lambda keys: [lambda h: eqx.nn.MultiheadAttention(1, 3, key=keys[0])(h, h, h)], (6, 3)),
        ("multiplies two activations",),
    ),
    "vision transformer": Refused(linen(vision_transformer, (6, 6, 2)), ("Layer norm", *_NORM_WORDS), ("Use a ReLU",)),
    "LSTM of linen": Refused(linen(lambda x: nn.RNN(nn.LSTMCell(4))(x), (6, 3)), ("recurrent cell", "SimpleCell")),
    "GRU of linen": Refused(linen(lambda x: nn.RNN(nn.GRUCell(4))(x), (6, 3)), ("recurrent cell", "SimpleCell")),
    "GRU of Equinox": Refused(
        equinox_layers(lambda keys: [lambda h: eqx.nn.GRUCell(3, 4, key=keys[0])(h, jnp.zeros(4))]),
        ("recurrent cell", "SimpleCell"),
    ),
    "embedded tokens": Refused(
        lambda: Network(
            (model := nn.Embed(7, 4)).apply, model.init(jax.random.key(0), jnp.ones((5,), int)), jnp.ones((5,), int)
        ),
        ("dtype int", "paths start at real-valued inputs", "paths start after the embedding"),
    ),
    "tokens as rounded floats": Refused(
        with_input(lambda p, x: p[x.astype(int)].sum(axis=1), jnp.ones((5, 2))),
        ("`convert_element_type`", "rounded to whole numbers", "embedding"),
        ("examples",),
    ),
    "one-hot of rounded floats": Refused(
        with_input(lambda p, x: jax.nn.one_hot(x[:, 0].astype(int), 3) @ p, jnp.ones((5, 2))),
        ("`convert_element_type`", "rounded to whole numbers"),
        ("examples",),
    ),
    # products of two functions of x
    "learned gates": Refused(
        without_paths(lambda h: h * h[:, ::-1]), ("multiplies two activations", "Replace one factor")
    ),
    "bilinear layer": Refused(
        with_input(lambda p, x: jnp.einsum("ni,ij,nj->n", x, p, x)[:, None], jnp.ones((5, 3)), (3, 3)),
        ("multiplies two activations",),
    ),
    "squeeze and excitation": Refused(linen(squeeze_and_excite, (6, 6, 2)), ("curved|multiplies two activations",)),
    # order and choice
    "sorted": Refused(without_paths(jnp.sort), ("`sort`", "order of activations", "jnp.max")),
    "top k": Refused(without_paths(lambda h: lax.top_k(h, 2)[0]), ("`top_k`", "order of activations"), ("examples",)),
    "median": Refused(
        without_paths(lambda h: jnp.median(h, axis=-1, keepdims=True)),
        ("`median`|`reduce_or`", "order of activations"),
        ("examples",),
    ),
    "threshold": Refused(
        without_paths(lambda h: jnp.where(h > 0.5, h, 0.0)), ("`gt`", "compared with a constant other than 0")
    ),
    "a branch of the whole batch": Refused(
        without_paths(lambda h: lax.cond(h.sum() > 0, lambda a: a, lambda a: -a, h)),
        ("`reduce_sum`", "mixes the examples"),
    ),
    "a branch of x": Refused(
        without_paths(lambda h: lax.map(lambda a: lax.cond(a.sum() > 0, lambda b: b, lambda b: -b, a), h)),
        ("Which branch runs|used as a number|rounded",),
        ("examples",),
    ),
    "a loop of x": Refused(
        without_paths(lambda h: lax.while_loop(lambda a: a.sum() > 0, lambda a: a - 1, h)),
        ("`while`", "How often the loop runs"),
        ("examples",),
    ),
    "stop_gradient of the user": Refused(
        without_paths(lambda h: lax.stop_gradient(h)), ("`stop_gradient`", "no derivative")
    ),
    # what pathjax does not know
    "multiplied at entries by activations": Refused(
        without_paths(lambda h: h.at[:, 1].multiply(h[:, 0])), ("`scatter-mul`",), ("examples",)
    ),
    "maximum at entries": Refused(
        without_paths(lambda h: h.at[:, 1].max(0.0)),
        ("`scatter-max`", "at some entries has no path rule"),
        ("examples",),
    ),
    "a sparse product": Refused(sparse_product, ("`bcoo_dot_general`", "sparse", "dense array"), ("examples",)),
    "a Fourier transform": Refused(
        without_paths(lambda h: jnp.fft.fft(h).real), ("complex numbers", "real matrices"), ("examples", "rounded")
    ),
    "complex numbers": Refused(
        without_paths(lambda h: jnp.abs(lax.complex(h, h))), ("`complex`", "complex numbers"), ("examples",)
    ),
    "a matrix inverse": Refused(
        without_paths(lambda h: h @ jnp.linalg.inv(jnp.eye(4) + h.T @ h)), ("`lu`|`dot_general`",), ("parameters",)
    ),
    # examples
    "examples reversed": Refused(
        without_paths(lambda h: h[jnp.arange(len(h))[::-1]]), ("`gather`", "changes? their order|mixes the examples")
    ),
    "another unit for each example": Refused(
        without_paths(lambda h: h + h[jnp.arange(len(h)), jnp.arange(len(h)) % 4][:, None]), ("`gather`", "examples")
    ),
    "one example written twice": Refused(
        without_paths(lambda h: h.at[jnp.zeros(len(h), int)].add(h)), ("`scatter-add`", "examples")
    ),
    "padded with examples": Refused(
        without_paths(lambda h: jnp.pad(h, ((1, 0), (0, 0)), mode="edge")[1:]), ("examples",)
    ),
    "contrastive similarities": Refused(without_paths(lambda h: h @ h.T), ("examples|two activations",)),
}


def message_of(network: Network) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        paths.log_path_norm(network.apply, network.params, network.x)
    return str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_paths_is_refused_in_words_that_fit(name: str) -> None:
    message = message_of(REFUSED[name].build())
    for phrase in REFUSED[name].says:
        assert re.search(phrase, message), message
    for phrase in REFUSED[name].never:
        assert not re.search(phrase, message), message


@pytest.mark.parametrize("x", [{"image": jnp.ones((5, 3))}, (jnp.ones((5, 3)), jnp.ones(5))], ids=["dict", "tuple"])
def test_several_inputs_are_refused_with_the_way_to_write_them(x: Any) -> None:
    with pytest.raises(ValueError, match=rf"is a {type(x).__name__} of .* arrays, but .*close over the others in"):
        check_batch(x)


def test_the_table_is_long_enough() -> None:
    assert len(REFUSED) >= 60
