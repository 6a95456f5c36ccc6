"""What was traced and compiled for a function of the user's, kept as long as that function.

It also serves other functions of equal content (`pathjax._base.content`), and the last few outlive their functions, so
that a lambda that a loop makes anew is not compiled anew. Those that captured large arrays do not.
"""

from __future__ import annotations

import collections
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import jax

from pathjax._base.content import Content, content, owner

__all__ = ["Kept", "Static", "kept_for", "reference"]

T = TypeVar("T", bound="Kept")

# What outlives its functions: how many, and how many bytes the arrays may take that one of them captured.
_LAST = 16
_SMALL = 2**24

# How many compiled programs are kept for one function: masks, for one, may each need their own.
_MOST_PROGRAMS = 64


class Kept:
    """What is kept for a function. It does not hold the function itself, which would then never be let go.

    Attributes:
        function: gives the function, or the one of equal content that was used last; None where both are gone. Who
            calls a compiled program holds the function during the call.
        arguments: what it was made for besides the function.
        identified: the objects by whose identity it is found.
    """

    function: Callable[[], Any]
    arguments: tuple[Hashable, ...] = ()
    identified: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self._programs: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def compiled(self, program: Callable[..., Any], /, **static: Hashable) -> Callable[..., Any]:
        """`jax.jit` of program(kept, ..., **static), made once for each program and its static options."""
        key = program, tuple(sorted(static.items()))
        if key not in self._programs:
            kept = weakref.ref(self)  # not the object itself: a cycle through JAX's caches is never collected
            traces: list[None] = []

            def run(*arguments: Any) -> Any:
                traces.append(None)
                return program(kept(), *arguments, **static)

            run.__name__ = run.__qualname__ = program.__name__
            self._programs[key] = jax.jit(run), traces
            if len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        jitted, traces = self._programs[key]

        def call(*arguments: Any) -> Any:
            result = jitted(*arguments)
            if traces:
                traces.clear()
                self.find_again()
            return result

        return call

    def find_again(self) -> None:
        """Let it be found by what the function captures now: tracing it may have changed that, such as a counter."""
        if (function := self.function()) is not None and (read := content(function)) is not None:
            _keep(function, read, self)


_BY_CONTENT: weakref.WeakValueDictionary[Hashable, Kept] = weakref.WeakValueDictionary()
_BY_OWNER: dict[int, dict[Hashable, Kept]] = {}  # by the id of what must live for it to be kept
_LATEST: collections.OrderedDict[Hashable, Kept] = collections.OrderedDict()


class Static:
    """A function as a static option of a compiled program: equal to functions of equal content.

    One that captures an array that is being traced is equal to itself alone.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        read = content(function)
        self._key: Hashable = id(function) if read is None else read.key
        self._identified = () if read is None else read.identified

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def kept_for(function: Callable[..., Any], kind: type[T], *arguments: Hashable) -> T:
    """kind(*arguments), the same object for functions of equal content and equal arguments.

    A new one for a function that captures an array that is being traced.
    """
    read = content(function)
    found = None if read is None else _BY_CONTENT.get((kind.__name__, read.key, *arguments))
    kept = cast("T | None", found) or kind(*arguments)
    kept.function, kept.arguments = reference(function), arguments
    if read is not None:
        _keep(function, read, kept)
    return kept


def _keep(function: Callable[..., Any], read: Content, kept: Kept) -> None:
    key = (type(kept).__name__, read.key, *kept.arguments)
    held_by = owner(function)
    # what must live for the function to live is not held, so that it can go
    kept.identified = tuple(thing for thing in read.identified if thing is not held_by)
    _BY_CONTENT[key] = kept
    _keep_while_alive(held_by, key, kept)
    # an id is used again after its object is gone, so that what is found by the owner's id must go with it
    if read.size <= _SMALL and len(kept.identified) == len(read.identified):
        _LATEST[key] = kept
        _LATEST.move_to_end(key)
        if len(_LATEST) > _LAST:
            _LATEST.popitem(last=False)


def _keep_while_alive(owner: Any, key: Hashable, kept: Kept) -> None:
    if id(owner) not in _BY_OWNER:
        try:
            weakref.finalize(owner, _BY_OWNER.pop, id(owner), None).atexit = False
        except TypeError:  # it has no weak references: the latest are kept all the same
            return
        _BY_OWNER[id(owner)] = {}
    _BY_OWNER[id(owner)][key] = kept


def reference(function: Callable[..., Any]) -> Callable[[], Any]:
    """What gives the function while it lives, without keeping it alive where Python allows that."""
    try:
        return weakref.WeakMethod(function) if isinstance(function, types.MethodType) else weakref.ref(function)
    except TypeError:
        return lambda: function
