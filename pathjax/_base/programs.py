"""Compiled programs that live as long as the functions they are made for."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["compiled"]

_PROGRAMS: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def compiled(program: Callable[..., Any], function: Callable[..., Any], *, static: tuple[str, ...]) -> Any:
    """`jax.jit` of program(function, ...), the same one for the same two functions; `static` are keywords of it.

    What is compiled does not hold `function`, and goes when that does, for it may close over much: the caller holds it
    until the last call. A function that cannot be hashed or be referred to weakly, or equals another one that has a
    program, gets a program for this call alone; so does a method, which is a new object each time it is named.
    """
    try:
        of_function = _PROGRAMS.setdefault(function, {})
        reference: Callable[[], Any] = weakref.ref(function)
    except TypeError:
        return _jitted(program, lambda: function, static)
    first, made = of_function.get(program, (reference, None))
    if first() is not function:
        return _jitted(program, lambda: function, static)
    if made is None:
        made = _jitted(program, reference, static)
        of_function[program] = (reference, made)
    return made


def _jitted(program: Callable[..., Any], reference: Callable[[], Any], static: tuple[str, ...]) -> Any:
    def run(*arguments: Any, **options: Any) -> Any:
        return program(reference(), *arguments, **options)

    return jax.jit(run, static_argnames=static)
