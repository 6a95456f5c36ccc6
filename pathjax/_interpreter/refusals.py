"""The words of refusals: why a layer or a primitive has no paths, and what to do instead.

A refused equation is told by the layer that it belongs to where that is known: by the names of the functions whose
code it stands in, such as `LayerNorm.__call__` or `gelu`. Otherwise it is told by its primitive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pathjax._interpreter.jaxpr import Equation, UnsupportedPrimitive

__all__ = [
    "ANY_REASON",
    "COMPLEX",
    "OF_WEIGHTS",
    "REASONS",
    "Words",
    "refusal",
    "refusal_of_mixing",
    "refusal_of_position",
]


class Words(NamedTuple):
    """Why there are no paths, and the remedy."""

    reason: str
    remedy: str


class _Layer(NamedTuple):
    """A layer that is known by its name in the code.

    Attributes:
        names: its names, in lower case and without underscores.
        words: what is said of it.
        activations: the activations inside it that are told as this layer; others are told by their own name.
        mixes_examples: whether what it does wrong is to mix the examples of a batch.
    """

    names: frozenset[str]
    words: Words
    activations: frozenset[str] = frozenset()
    mixes_examples: bool = False


def refusal(equation: Equation, words: Words, *, of_weights: bool = False) -> UnsupportedPrimitive:
    """The error for an equation that the path rules refuse; `words` are those of its primitive.

    `of_weights` says that the equation computes from weights alone, so that the layer is not to blame.
    """
    named = _layer_of(equation)
    if of_weights:
        has_statistics = named is not None and named[1] is _TRAINED_BATCH_NORM
        return equation.refuse(*(_STATISTICS_AMONG_WEIGHTS if has_statistics else words))
    if named is None:
        return equation.refuse(*words)
    name, words_of_layer = named
    return equation.refuse(*words_of_layer, name=name if equation.name in _ARITHMETIC else None)


def refusal_of_mixing(equation: Equation) -> UnsupportedPrimitive:
    """The error for an equation that combines several examples of a batch."""
    return _refusal_of_examples(equation, _MIXING)


def refusal_of_position(equation: Equation) -> UnsupportedPrimitive:
    """The error for an equation that treats examples differently, by their position in the batch."""
    return _refusal_of_examples(equation, _POSITION)


def _refusal_of_examples(equation: Equation, words: Words) -> UnsupportedPrimitive:
    named = _layer_of(equation, of_examples=True)
    return equation.refuse(*words) if named is None else equation.refuse(*named[1], name=named[0])


def _layer_of(equation: Equation, *, of_examples: bool = False) -> tuple[str, Words] | None:
    """The innermost layer, or else the outermost activation, that the equation belongs to: its name and its words.

    With `of_examples`, only layers that treat the examples of a batch otherwise than alone.
    """
    activation: tuple[str, Words] | None = None
    plain_activation = ""
    for name in (part for function in equation.functions for part in _class_and_function(function)):
        plain = name.replace("_", "").lower()
        if plain in _ACTIVATIONS:
            activation, plain_activation = (name, _ACTIVATIONS[plain]), plain  # the outermost: mish calls softplus
        for layer in _LAYERS:
            explains = (
                plain_activation in layer.activations if plain_activation else equation.name not in _NOT_OF_LAYERS
            )
            if plain in layer.names and (layer.mixes_examples if of_examples else explains):
                return name, layer.words
    return None if of_examples else activation


def _class_and_function(qualified_name: str) -> Sequence[str]:
    """`LayerNorm` and `__call__` of `build.<locals>.LayerNorm.__call__`."""
    return qualified_name.rsplit("<locals>.", 1)[-1].split(".")


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Of examples

_MIXING = Words(
    "It mixes the examples of a batch, as batch statistics do, or changes their order; paths are those of one example.",
    "Let every example go through the network alone, with running statistics for instance.",
)
_POSITION = Words(
    "It treats the examples of a batch differently, by their position, as the random mask of dropout or a bias for "
    "each place in the batch does; paths are those of one example alone.",
    "Leave dropout out, and use constants that are the same for every example.",
)

# Layers

_USE_RELU = (
    "Use a ReLU or another piecewise-linear activation instead. `scores.snip` and `ntk.empirical` take any layer."
)
_NO_NORM = "Use batch norm with running statistics, or no norm."
_TRAINED_BATCH_NORM = Words(
    "Batch norm in training mode mixes the examples of a batch: it normalizes by their mean and variance, but paths "
    "are those of one example.",
    "Use its running statistics: use_running_average=True, model.eval() or inference mode.",
)
_STATISTICS_AMONG_WEIGHTS = Words(
    "It is computed from parameters alone, the running statistics of batch norm, but path values are products of "
    "parameters.",
    "Pass variables['params'] as `params`, and the statistics as `state` or by closing over them.",
)


def _norm(title: str) -> Words:
    return Words(
        f"{title} divides by the size of the activations, a root or power of an activation, which makes the network "
        "curved in its input.",
        _NO_NORM,
    )


_LAYERS = (
    _Layer(_names("batchnorm batchnormalization"), _TRAINED_BATCH_NORM, mixes_examples=True),
    _Layer(
        _names("dropout dropout1d dropout2d dropout3d droppath stochasticdepth"),
        Words(
            "Dropout is on: its random mask is another one at each place in the batch, but paths are those of one "
            "example alone.",
            "Turn it off: deterministic=True, model.eval() or inference mode.",
        ),
        mixes_examples=True,
    ),
    _Layer(_names("layernorm layernormalization"), _norm("Layer norm"), _names("var std")),
    _Layer(_names("groupnorm"), _norm("Group norm"), _names("var std")),
    _Layer(_names("rmsnorm"), _norm("RMS norm"), _names("var std")),
    _Layer(_names("instancenorm"), _norm("Instance norm"), _names("var std")),
    _Layer(
        _names(
            "attention selfattention crossattention multiheadattention multiheadselfattention dotproductattention "
            "multiheaddotproductattention dotproductattentionweights "
            "scaleddotproductattention causalselfattention"
        ),
        Words(
            "It is a part of attention, which multiplies two activations: queries by keys, and values by the softmax "
            "of these products. All are functions of the input, so that the result is not of first order in it.",
            "Mix positions by parameters, as an MLP-Mixer does, or by constants.",
        ),
        _names("softmax"),
    ),
    _Layer(
        _names("lstmcell optimizedlstmcell convlstmcell grucell mgucell lstm gru"),
        Words(
            "The gates of a recurrent cell are sigmoids and tanhs of activations, curved and multiplied with each "
            "other.",
            "Use a plain recurrent cell with a ReLU, such as nn.SimpleCell(activation_fn=nn.relu).",
        ),
        _names("sigmoid tanh"),
    ),
    _Layer(
        _names("seblock squeezeexcitation squeezeexcite squeezeandexcitation squeezeandexcite se"),
        Words(
            "Squeeze and excitation multiplies two activations, one of them a sigmoid of the others; that is not of "
            "first order in the input.",
            "Leave the block out, or scale the channels by parameters.",
        ),
        _names("sigmoid hardsigmoid"),
    ),
)


# Activations and other functions

_ORDER = Words("The order of activations has no slope of its own.", "Use jnp.max or max pooling.")


def _curved(title: str) -> Words:
    return Words(f"{title} is curved, not piecewise linear.", _USE_RELU)


def _softmax(title: str) -> Words:
    return Words(
        f"{title} is not homogeneous: it takes exponentials of activations.",
        "If it is the network's last layer, return the logits from `apply`; inside the network use a ReLU instead.",
    )


def _product(title: str) -> Words:
    return Words(
        f"{title} multiplies two activations, which is not of first order in the input.",
        _USE_RELU,
    )


_ACTIVATIONS: dict[str, Words] = {
    "gelu": _curved("GELU"),
    "silu": _curved("SiLU (swish)"),
    "swish": _curved("Swish (SiLU)"),
    "mish": _curved("Mish"),
    "softplus": _curved("Softplus"),
    "elu": _curved("ELU"),
    "celu": _curved("CELU"),
    "selu": _curved("SELU"),
    "sigmoid": _curved("A sigmoid"),
    "tanh": _curved("Tanh"),
    "logsigmoid": _curved("The logarithm of a sigmoid"),
    "softsign": _curved("Soft sign"),
    "squareplus": _curved("Squareplus"),
    "sparseplus": _curved("Sparse plus"),
    "sparsesigmoid": _curved("A sparse sigmoid"),
    "hardswish": _product("Hard swish"),
    "hardsilu": _product("Hard SiLU (hard swish)"),
    "glu": _product("A gated linear unit"),
    "geglu": _product("A gated linear unit"),
    "swiglu": _product("A gated linear unit"),
    "softmax": _softmax("Softmax"),
    "logsoftmax": _softmax("The logarithm of softmax"),
    "logsumexp": _softmax("The logarithm of a sum of exponentials"),
    "standardize": _norm("Standardization"),
    "norm": Words("A norm of activations, a root or power of an activation, is curved.", _NO_NORM),
    **dict.fromkeys(("median", "quantile", "percentile", "nanmedian"), _ORDER),
    "var": Words("A variance of activations is not of first order in the input.", _NO_NORM),
    "std": Words("A standard deviation of activations, a root or power of an activation, is curved.", _NO_NORM),
}

# Primitives that no known layer is refused for: they are told as themselves.
_NOT_OF_LAYERS = {
    "min", "clamp", "gt", "ge", "lt", "le", "eq", "ne", "sort", "argmax", "argmin", "top_k", "floor", "ceil", "round",
    "convert_element_type",
}  # fmt: skip

# Primitives that say nothing of the layer: the layer's name stands in their place.
_ARITHMETIC = {
    "add", "sub", "mul", "div", "neg", "integer_pow", "square", "stop_gradient", "select_n", "reduce_sum", "max", "min",
    "gt", "ge", "lt", "le", "abs", "sign",
}  # fmt: skip


# Primitives

COMPLEX = Words(
    "It computes with complex numbers, but paths are products of real ones.", "Write it with real matrices."
)
ANY_REASON = Words(
    "pathjax does not know this operation. Paths are defined for piecewise-linear, positively homogeneous layers.",
    "Replace it by piecewise-linear operations of jax.numpy or jax.lax; an activation that acts on each entry alone "
    "can be declared with `paths.declare_gate`.",
)
OF_WEIGHTS = Words(
    "It is computed from parameters alone, as in weight norm, spectral norm, weight standardization or quantization, "
    "but path values are products of parameters, not of weights that are computed from weights.",
    "Close over it as a constant, or make what it computes the parameter.",
)

REASONS: dict[str, Words] = {
    **dict.fromkeys(
        ("exp", "exp2", "expm1", "log", "log1p", "logsumexp"),
        Words(
            "An exponential or logarithm of activations is not homogeneous.",
            "If it is the softmax of the last layer, return the logits from `apply`; inside the network use a ReLU.",
        ),
    ),
    **dict.fromkeys(
        ("tanh", "logistic", "erf", "erfc", "erf_inv", "atan2", "asinh", "sinh", "cosh", "atan"),
        Words("It is curved, not piecewise linear.", _USE_RELU),
    ),
    **dict.fromkeys(
        ("sin", "cos", "tan"),
        Words(
            "It is curved, not piecewise linear.",
            "If these are features of the input, compute them before the network and pass them as x; inside the "
            "network use a ReLU instead.",
        ),
    ),
    **dict.fromkeys(
        ("sqrt", "rsqrt", "cbrt", "pow"),
        Words(
            "A root or power of an activation, as normalization by an example's own statistics takes, is curved.",
            _NO_NORM,
        ),
    ),
    **dict.fromkeys(
        ("sort", "argmax", "argmin", "top_k", "approx_top_k"),
        _ORDER,
    ),
    **dict.fromkeys(
        ("floor", "ceil", "round", "rem", "is_finite"),
        Words("It steps where paths are continuous.", "Leave the rounding out, or use a piecewise-linear activation."),
    ),
    **dict.fromkeys(
        ("reduce_prod", "cumprod", "cummax", "cummin", "cumlogsumexp"),
        Words("A running product or extremum of activations has no path rule.", _USE_RELU),
    ),
    **dict.fromkeys(
        ("complex", "real", "imag", "conj", "fft"),
        COMPLEX,
    ),
    **dict.fromkeys(
        ("reduce_or", "reduce_and", "reduce_xor"),
        Words(
            "It combines the comparisons of several activations, which says nothing of a single path.",
            "Select with a comparison of each activation, as in jnp.where(x > 0, ...).",
        ),
    ),
    **dict.fromkeys(
        ("bcoo_dot_general", "bcoo_spdot_general", "bcsr_dot_general"),
        Words("Products with sparse arrays have no path rule.", "Multiply by the dense array, matrix.todense()."),
    ),
    **dict.fromkeys(
        ("scatter-min", "scatter-max"),
        Words(
            "A maximum or minimum at some entries has no path rule.",
            "Take jnp.maximum or jnp.minimum of the whole array, and select the entries with jnp.where.",
        ),
    ),
    "while": Words(
        "How often the loop runs may depend on data.",
        "Use lax.scan or lax.fori_loop with a constant number of steps.",
    ),
    "stop_gradient": Words(
        "It has a value but no derivative, so that the Jacobian is not that of the paths.",
        "Take it out of `apply`, or close over the stopped value.",
    ),
}
