"""Plain Flax modules, linen or NNX, as networks of a study: they have no table of widths, which `shrink` would read."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from experiments.base import own
from experiments.base.errors import InputError
from experiments.networks.layers import Network, Options, State
from pathjax.types import Key, Params

__all__ = ["network_of_module"]

_KIND = "network"

_IS_TRAINING = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""Arguments by which linen modules are told that they are trained, each with its value then; the opposite otherwise."""

_STATISTICS = "batch_stats"
"""The collection of linen in which batch norm keeps its running statistics."""


def network_of_module(
    name: str, function: Callable[..., Any], shape: tuple[int, ...], outputs: int, options: Mapping[str, Any]
) -> Network:
    """The network that "module:function" gives for images of `shape` (h, w, c) and a number of outputs.

    The function gives a `Network`; a linen module; or, if it has the argument `rngs`, an NNX module, which is made anew
    for each seed. It is given those of the `options` that it takes; one that is set, and that it does not take, is
    refused. Linen modules with batch norm take one of the arguments of `_IS_TRAINING`; NNX modules are told by their
    attributes `use_running_average`. Nothing is computed. Raises InputError at what a study cannot train.
    """
    taken = _taken(name, function, options)
    if "rngs" in _parameters(function):
        functions = _of_nnx(name, lambda rngs: own.called(_KIND, name, function, shape, outputs, rngs=rngs, **taken))
    else:
        given = own.called(_KIND, name, function, shape, outputs, **taken)
        if isinstance(given, Network):
            return given
        if isinstance(given, nnx.Module):
            raise InputError(
                f"{name} gives an NNX module that is drawn already; give the function the argument rngs and draw the "
                "weights from it, so that every seed has its own."
            )
        if not isinstance(given, nn.Module):
            raise InputError(
                f"{name} gives a value of the type {type(given).__name__}; it has to give a Flax module, linen or "
                "NNX, or what layers.build does."
            )
        functions = _of_linen(name, given, shape)
    order = _checked_order(name, functions, shape, outputs)

    def resized(*_: Any, **__: Any) -> Network:
        raise InputError(f"{name} is a plain module without a table of widths, so its widths cannot be changed.")

    return Network(*functions, steps=(), widths={}, options=Options(batch_norm=False), resized=resized, order=order)


class _Functions(NamedTuple):
    """`init`, `apply` and `train` of a `Network`."""

    init: Callable[[Key], tuple[Params, State]]
    apply: Callable[[Params, State, jax.Array], jax.Array]
    train: Callable[[Params, State, jax.Array], tuple[jax.Array, State]]


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a builtin
        return {}


def _taken(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the function takes. Raises InputError where it does not take one that differs from what it is
    left out."""
    parameters = _parameters(function)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(options)
    usual = dataclasses.asdict(Options())
    for key, value in options.items():
        if key not in parameters and value != usual.get(key):
            raise InputError(
                f"{name} does not take {key}, which the config sets; leave it out, or give it that argument."
            )
    return {key: value for key, value in options.items() if key in parameters}


def _of_linen(name: str, module: nn.Module, shape: tuple[int, ...]) -> _Functions:
    x_like = jnp.zeros((1, *shape), jnp.float32)
    argument = next((key for key in _IS_TRAINING if key in _parameters(type(module).__call__)), None)
    told: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    if argument is not None:
        told = {training: {argument: training is _IS_TRAINING[argument]} for training in (True, False)}

    def init(key: Key) -> tuple[Params, State]:
        variables = dict(module.init(key, x_like, **told[False]))
        return variables.pop("params", {}), variables

    def apply(params: Params, state: State, x: jax.Array) -> jax.Array:
        return cast(jax.Array, module.apply({"params": params, **state}, x, **told[False]))

    def train(params: Params, state: State, x: jax.Array) -> tuple[jax.Array, State]:
        outputs, new = module.apply({"params": params, **state}, x, **told[True], mutable=list(state))
        return outputs, dict(new)

    params, state = own.called(_KIND, name, jax.eval_shape, init, jax.random.key(0))
    if others := sorted(set(state) - {_STATISTICS}):
        raise _other_state(name, others[0])
    if state and argument is None:
        raise InputError(
            f"{name} has batch norm, but is not told when it is trained; give its __call__ the argument train."
        )
    return _Functions(init, apply, train)


def _of_nnx(name: str, make: Callable[[nnx.Rngs], Any]) -> _Functions:
    def made(key: Key) -> nnx.Module:
        module = make(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            kind = type(module).__name__
            raise InputError(f"{name} has the argument rngs, but gives a value of the type {kind} and no NNX module.")
        return module

    module = nnx.eval_shape(made, jax.random.key(0))
    graph, _, _, rest = _split(module, nnx.Param, nnx.BatchStat, ...)
    if others := [type(variable).__name__ for _, variable in nnx.to_flat_state(rest)]:
        raise _other_state(name, others[0])

    def init(key: Key) -> tuple[Params, State]:
        _, params, state = _split(made(key), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def merged(params: Params, state: State, *, training: bool) -> Any:
        module = nnx.merge(graph, nnx.State(params), nnx.State(state))
        # as `train` and `eval` of a module, which raise where no part of it asks
        module.set_attributes(deterministic=not training, use_running_average=not training, raise_if_not_found=False)
        return module

    def apply(params: Params, state: State, x: jax.Array) -> jax.Array:
        return cast(jax.Array, merged(params, state, training=False)(x))

    def train(params: Params, state: State, x: jax.Array) -> tuple[jax.Array, State]:
        module = merged(params, state, training=True)
        outputs = module(x)
        return outputs, nnx.to_pure_dict(_split(module, nnx.Param, ...)[2])

    return _Functions(init, apply, train)


def _split(module: nnx.Module, *filters: Any) -> tuple[Any, ...]:
    """The graph of a module, and a state for each of the filters."""
    return cast("tuple[Any, ...]", nnx.split(module, *filters))


def _other_state(name: str, which: str) -> InputError:
    what = "random numbers, as for dropout" if which.startswith("Rng") else f"variables of the kind {which}"
    return InputError(
        f"{name} keeps {what}; beside its weights a network of a study may keep running statistics of batch norm and "
        "nothing else."
    )


def _checked_order(name: str, functions: _Functions, shape: tuple[int, ...], outputs: int) -> tuple[str, ...]:
    """The paths of the weights in the order of their use. Raises InputError at what a study cannot train."""
    params, state = jax.eval_shape(functions.init, jax.random.key(0))
    if not jax.tree.leaves(params):
        raise InputError(f"{name} has no weights, so there is nothing to prune.")
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    try:
        program, like = own.called(_KIND, name, jax.make_jaxpr(functions.apply, return_shape=True), params, state, x)
        own.called(_KIND, name, jax.eval_shape, functions.train, params, state, x)
    except InputError as error:
        if isinstance(error.__cause__, flax.errors.InvalidRngError):
            raise InputError(
                f"{name} draws random numbers when it is applied, as dropout does; take the dropout out for a study."
            ) from error
        raise
    if getattr(like, "shape", None) != (2, outputs):
        what = (
            f"outputs of shape {like.shape}" if hasattr(like, "shape") else f"a value of the type {type(like).__name__}"
        )
        raise InputError(
            f"{name} gives {what} for 2 images of {outputs} classes; it has to give an array (2, {outputs})."
        )
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    places = {path: len(program.eqns) for path in paths}
    for place, equation in reversed([*enumerate(program.eqns)]):
        used = {id(variable) for variable in equation.invars}
        places |= {
            path: place for path, variable in zip(paths, program.jaxpr.invars, strict=False) if id(variable) in used
        }
    return tuple(sorted(paths, key=lambda path: places[path]))
