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

    What is compiled does not hold `function`, and goes when that does: it may close over much. A function that cannot
    be hashed, or not be referred to weakly, gets a program for this call alone.
    """
    try:
        of_function = _PROGRAMS.setdefault(function, {})
        reference: Callable[[], Any] = weakref.ref(function)
    except TypeError:
        return _jitted(program, lambda: function, static)
    if program not in of_function:
        of_function[program] = _jitted(program, reference, static)
    return of_function[program]


def _jitted(program: Callable[..., Any], reference: Callable[[], Any], static: tuple[str, ...]) -> Any:
    def run(*arguments: Any, **options: Any) -> Any:
        return program(reference(), *arguments, **options)

    return jax.jit(run, static_argnames=static)
