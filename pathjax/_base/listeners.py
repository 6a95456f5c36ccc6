"""Functions that compiled programs call to say where they are.

A program is given the number of its listener, not the function: then it need not be compiled again for another one.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["number_of", "tell"]

# A program that a user compiled may run long after the call that made it, so that the last listeners are kept.
_LAST = 256

_LISTENERS: collections.OrderedDict[int, Callable[..., None]] = collections.OrderedDict()
_NUMBERS = itertools.count()


def number_of(listener: Callable[..., None] | None) -> Any:
    """The number by which programs call a function; None if there is none."""
    if listener is None:
        return None
    number = next(_NUMBERS)
    _LISTENERS[number] = listener
    if len(_LISTENERS) > _LAST:
        _LISTENERS.popitem(last=False)
    return jnp.asarray(number, jnp.int32)


def tell(number: Any, *facts: Any) -> None:
    """Call the function with this number; `facts` are its arguments, numbers that may be traced."""
    if number is not None:
        jax.debug.callback(_call, number, *facts)


def _call(number: Any, *facts: Any) -> None:
    listener = _LISTENERS.get(int(number))
    if listener is not None:
        listener(*(np.asarray(fact).item() for fact in facts))
