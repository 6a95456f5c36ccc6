"""What was traced and compiled for a function of the user's, kept as long as that function.

It also serves other functions of equal content (`pathjax._base.content`), and the last few outlive their functions, so
that a lambda that a loop makes anew is not compiled anew. Those that captured large arrays do not.
"""

from __future__ import annotations

import collections
import threading
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

# Of how many contents programs are kept for one function: what it captures may be another array at every call.
_MOST_CONTENTS = 8

# Held while the tables are changed; while they are searched, equalities of the user's may run.
_LOCK = threading.RLock()


class Kept:
    """What is kept for a function. It does not hold the function itself, which would then never be let go.

    Attributes:
        function: gives the function, or the one of equal content that was used last; None where both are gone. Who
            calls a compiled program holds the function during the call.
        arguments: what it was made for besides the function.
        identified: the objects by whose identity it is, or was, found.
    """

    function: Callable[[], Any]
    arguments: tuple[Hashable, ...] = ()
    identified: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self._programs: collections.OrderedDict[Hashable, _Compiled] = collections.OrderedDict()

    def compiled(self, program: Callable[..., Any], /, **static: Hashable) -> Callable[..., Any]:
        """`jax.jit` of program(kept, ..., **static), made once for each program and its static options."""
        key = program, tuple(sorted(static.items()))
        with _LOCK:
            compiled = self._programs.get(key)
            if compiled is None:
                compiled = _Compiled(self, program, static)
                if all(map(_may_be_kept, jax.tree.leaves(tuple(static.values())))):
                    self._programs[key] = compiled
            if key in self._programs:
                self._programs.move_to_end(key)
            if len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
            # options of equal content may have changed since, such as what a loss of the same code captures
            compiled.static = static

        def call(*arguments: Any) -> Any:
            result = compiled.jitted(*arguments)
            while compiled.traced:
                self.find_again(compiled.traced.pop())
            return result

        return call

    def content_key(self) -> Hashable:
        """What the function computes now; None if that is not known, and if this is not what is kept for it."""
        function = self.function()
        read = None if function is None else content(function)
        return read.key if read is not None and _BY_CONTENT.get(self._full_key(read)) is self else None

    def find_again(self, key: Hashable) -> None:
        """Let it be found by what the function captures now: tracing it may have changed that, such as a counter.

        `key` is the `content_key` before tracing: where it is None, what is kept may be of an earlier content.
        """
        if key is not None and (function := self.function()) is not None and (read := content(function)) is not None:
            _keep(function, read, self)

    def _full_key(self, read: Content) -> Hashable:
        return (type(self).__name__, read.key, *self.arguments)


class _Compiled:
    """A program under `jax.jit`, with its static options.

    Attributes:
        jitted: the compiled program.
        static: its options. Those of the latest call serve where it is traced again.
        traced: the content of the function before each trace that has not been looked at yet.
    """

    def __init__(self, kept: Kept, program: Callable[..., Any], static: dict[str, Hashable]) -> None:
        self.static = static
        self.traced: list[Hashable] = []
        reference = weakref.ref(kept)  # not the object itself: a cycle through JAX's caches is never collected

        def run(*arguments: Any) -> Any:
            held = cast(Kept, reference())
            self.traced.append(held.content_key())
            return program(held, *arguments, **self.static)

        run.__name__ = run.__qualname__ = program.__name__
        self.jitted = jax.jit(run)


_BY_CONTENT: weakref.WeakValueDictionary[Hashable, Kept] = weakref.WeakValueDictionary()
# by the id of what must live for it to be kept, and then by content
_BY_OWNER: dict[int, collections.OrderedDict[Hashable, dict[Hashable, Kept]]] = {}
_LATEST: collections.OrderedDict[Hashable, Kept] = collections.OrderedDict()


class Static:
    """A function as a static option of a compiled program: equal to functions of equal content.

    One that captures an array that is being traced is equal to itself alone.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        read = content(function)
        self.is_known = read is not None
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
    key, held_by = kept._full_key(read), owner(function)
    with _LOCK:
        # what must live for the function to live is not held, so that it can go
        identified = tuple(thing for thing in read.identified if thing is not held_by)
        known = set(map(id, kept.identified))  # by which it is found under another key
        kept.identified += tuple(thing for thing in identified if id(thing) not in known)
        _BY_CONTENT[key] = kept
        _keep_while_alive(held_by, read.key, key, kept)
        # an id is used again after its object is gone, so that what is found by the owner's id must go with it
        if read.size <= _SMALL and len(identified) == len(read.identified):
            _LATEST[key] = kept
            _LATEST.move_to_end(key)
            if len(_LATEST) > _LAST:
                _LATEST.popitem(last=False)


def _keep_while_alive(owner: Any, content_key: Hashable, key: Hashable, kept: Kept) -> None:
    if id(owner) not in _BY_OWNER:
        try:
            weakref.finalize(owner, _BY_OWNER.pop, id(owner), None).atexit = False
        except TypeError:  # it has no weak references: the latest are kept all the same
            return
        _BY_OWNER[id(owner)] = collections.OrderedDict()
    contents = _BY_OWNER[id(owner)]
    contents.setdefault(content_key, {})[key] = kept
    contents.move_to_end(content_key)
    if len(contents) > _MOST_CONTENTS:
        contents.popitem(last=False)


def _may_be_kept(option: Any) -> bool:
    """Whether a static option may be held after the call: no function that captures an array that is being traced."""
    return not isinstance(option, Static) or option.is_known


def reference(function: Callable[..., Any]) -> Callable[[], Any]:
    """What gives the function while it lives, without keeping it alive where Python allows that."""
    try:
        return weakref.WeakMethod(function) if isinstance(function, types.MethodType) else weakref.ref(function)
    except TypeError:
        return lambda: function
