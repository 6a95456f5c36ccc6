"""Compiled programs that are kept as long as the user's function that they call."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["compiled"]

_PROGRAMS: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def compiled(program: Callable[..., Any], function: Callable[..., Any], *, static: tuple[str, ...]) -> Any:
    """`jax.jit` of program(function, ...), cached for each pair of functions; `static` names its static keywords.

    The compiled program refers to `function` only weakly and is dropped with it, since a function may close over large
    arrays. So the caller must hold `function` until the last call. Nothing is cached for a function that cannot be
    hashed or weakly referenced, nor for one that is equal but not identical to a function with a program, such as a
    bound method, which is a new object at every access.
    """
    try:
        programs = _PROGRAMS.setdefault(function, {})
        reference: Callable[[], Any] = weakref.ref(function)
    except TypeError:
        return _jitted(program, lambda: function, static)
    cached_reference, jitted = programs.get(program, (reference, None))
    if cached_reference() is not function:
        return _jitted(program, lambda: function, static)
    if jitted is None:
        jitted = _jitted(program, reference, static)
        programs[program] = (reference, jitted)
    return jitted


def _jitted(program: Callable[..., Any], reference: Callable[[], Any], static: tuple[str, ...]) -> Any:
    # `reference` gives the function when it is called
    def run(*arguments: Any, **options: Any) -> Any:
        return program(reference(), *arguments, **options)

    return jax.jit(run, static_argnames=static)
