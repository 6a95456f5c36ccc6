"""What is handed over in place of a network, a batch of inputs or an optimizer: told in words, with the remedy."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from typing import Any

import jax

__all__ = [
    "WRAPPED",
    "call_note",
    "check_call",
    "check_has_numbers",
    "check_no_list",
    "check_no_shape",
    "check_not_function",
    "is_a",
    "parameter_names",
    "takes",
]

# How a model of each framework becomes a function of weights and inputs.
WRAPPED = {
    "flax.linen": "apply = lambda params, x: model.apply({'params': params}, x)",
    "flax.nnx": (
        "graphdef, params = nnx.split(model, nnx.Param), with apply = lambda params, x: nnx.merge(graphdef, params)(x)"
    ),
    "equinox": (
        "params, static = eqx.partition(model, eqx.is_inexact_array), with apply = lambda params, x: "
        "jax.vmap(eqx.combine(params, static))(x)"
    ),
}

# Errors of Flax linen where `model.apply` or the module itself gets the weights in place of all variables.
_LINEN_ERRORS = {"ApplyScopeInvalidVariablesTypeError", "CallCompactUnboundModuleError", "ScopeCollectionNotFound"}


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments by position; True where it does not tell."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def parameter_names(function: Callable[..., Any]) -> str:
    """The names of a function's arguments, such as (params, x)."""
    return f"({', '.join(inspect.signature(function).parameters)})"


def check_call(apply: Callable[..., Any], *, has_state: bool) -> None:
    """Raise TypeError unless `apply` takes the arguments that it is called with: (params, x) or (params, state, x)."""
    called = f"apply(params, {'state, ' if has_state else ''}x)"
    if takes(apply, 3 if has_state else 2):
        return
    names = parameter_names(apply)
    remedy = _remedy(apply)
    if remedy is not None:
        problem = f"`apply` is a model, which takes {names}, but is called as {called}. Write {remedy}."
    elif has_state:
        problem = (
            f"A `state=` was given, so `apply` is called as {called}, but it takes {names}. Leave `state=` out, or let "
            "`apply` take the state as its second argument."
        )
    elif takes(apply, 3):
        problem = (
            f"`apply` takes the arguments {names}, but no `state=` was given, so it is called as {called}. Pass "
            "`state=`, or close over what is no weight and no input: lambda params, x: apply(params, ..., x)."
        )
    else:
        problem = (
            f"`apply` takes the arguments {names}, but is called as {called}. Wrap it in a function of the weights and "
            "a batch of inputs: lambda params, x: ..."
        )
    raise TypeError(problem)


def _remedy(model: Any) -> str | None:
    """How a model of a known framework is wrapped; None for any other function."""
    return next((remedy for package, remedy in WRAPPED.items() if is_a(model, "Module", package)), None)


def is_a(thing: Any, name: str, package: str) -> bool:
    """Whether it is of the class `name` of a package that need not be installed, or of a subclass."""
    return any(each.__name__ == name and each.__module__.startswith(package) for each in type(thing).__mro__)


def call_note(error: Exception, apply: Callable[..., Any], x_like: Any, *, has_state: bool) -> str:
    """What is added to an error of the user's network: how it was called, and a remedy for frequent mistakes."""
    if type(error).__name__ in _LINEN_ERRORS:
        if has_state:
            return (
                "pathjax calls apply(params, state, x) with the weights and the state, not with all variables of a "
                "Flax model: apply = lambda params, state, x: model.apply({'params': params, **state}, x)."
            )
        return f"pathjax calls apply(params, x) with the weights alone: {WRAPPED['flax.linen']}."
    remedy = _remedy(apply)
    if remedy is not None and not has_state:
        return f"`apply` is a model, but is called as apply(params, x) with the weights. Write {remedy}."
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in jax.tree.leaves(x_like))
    return (
        f"This came from `apply(params, {'state, ' if has_state else ''}x)` with x of shape {shapes}, whose first axis "
        "counts the examples; of these, one or two may be tried alone. Give a single example that axis: x[None]."
    )


def check_no_shape(name: str, x: Any) -> None:
    """Raise TypeError for a shape in place of an array: a tuple of two integers or more."""
    are_integers = isinstance(x, tuple) and len(x) > 1 and all(isinstance(part, numbers.Integral) for part in x)
    if are_integers:
        raise TypeError(
            f"`{name}` is a tuple of {len(x)} integers, a shape: pass jnp.zeros(shape) or jax.ShapeDtypeStruct(shape, "
            "jnp.float32)."
        )


def check_has_numbers(name: str, tree: Any) -> None:
    """Raise TypeError for the shape of an array where its numbers are read."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"`{name}` is a shape alone, {leaf}, and its numbers are read here. Pass an array. Without data, draw "
                f"one: jax.random.normal(jax.random.key(0), {leaf.shape})."
            )


def check_not_function(name: str, batches: Any) -> None:
    """Raise TypeError for a function in place of what it yields."""
    if callable(batches) and not hasattr(batches, "__iter__"):
        function = getattr(batches, "__name__", "batches")
        raise TypeError(
            f"`{name}` is the function `{function}`, but must be what can be iterated over. If it is a generator "
            f"function, call it: {function}()."
        )


def check_no_list(x: Any) -> None:
    """Raise unless `x` may be one array of inputs; TypeError for a shape, ValueError for other trees."""
    check_no_shape("x", x)
    if hasattr(x, "shape") or isinstance(x, int | float) or not jax.tree.leaves(x):
        return
    kind = f"a {type(x).__name__}"
    leaves = jax.tree.leaves(x)
    if isinstance(x, list | tuple) and all(isinstance(leaf, int | float) for leaf in leaves):
        raise ValueError(
            f"`x` is {kind} of numbers, but paths start at one array of real inputs, (n, ...). Convert it: "
            "jnp.asarray(x)."
        )
    advice = "Pass"
    if isinstance(x, list | tuple) and (_is_pair(x) or all(isinstance(part, list | tuple) for part in x)):
        advice = (
            "If these are batches of inputs and targets: this function reads inputs alone, so pass x, not batches "
            "[(x, y)]. Otherwise pass"
        )
    raise ValueError(
        f"`x` is {kind} of {len(leaves)} arrays, but paths start at one array of real inputs, (n, ...). {advice} "
        "the array that the layers multiply, and close over the others in `apply`, or pass them in `state`."
    )


def _is_pair(x: Any) -> bool:
    """Whether it may be a batch (x, y): two arrays with as many rows."""
    rows = [tuple(getattr(part, "shape", ()))[:1] for part in x]
    return len(rows) == 2 and rows[0] == rows[1] != ()
