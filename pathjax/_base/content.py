"""What a function computes, as far as Python can tell: its code, and everything that it captures or reads by name.

Two functions of equal content compute the same, so that what was traced or compiled for one serves the other: a lambda
that a loop makes anew, or a network whose captured arrays are the same objects. Where a captured list, an attribute of
a captured object or a global variable has changed since, the content differs.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import sysconfig
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["Content", "content", "owner"]

# Beyond these limits an object is compared by identity.
_MOST_OBJECTS = 20_000
_MOST_LEVELS = 100
_MOST_BYTES = 2**24

_ATOMS = (type(None), bool, int, str, bytes, type(Ellipsis), type, np.dtype, types.BuiltinFunctionType)
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


class Content(NamedTuple):
    """What a function computes.

    Attributes:
        key: equal for functions of equal content.
        identified: the objects whose identity is part of the key; while they live, no other object has it.
        size: how many bytes the arrays among them take.
    """

    key: Hashable
    identified: tuple[Any, ...]
    size: int


def content(function: Callable[..., Any]) -> Content | None:
    """The content of a function; None if it captures an array that is being traced.

    Functions count by their code and by what they capture; arrays of JAX by identity, since they do not change, NumPy's
    by their entries. Lists, dictionaries and objects, which may change, count by identity and by what they hold;
    modules, classes, and functions of installed packages that capture nothing, by identity alone. Attributes of modules
    and of classes are not looked at. The key does not hold the function, nor the object of a bound method.
    """
    reader = _Reader(owner(function))
    try:
        key = reader.read(function)
    except _Traced:
        return None
    size = sum(thing.nbytes for thing in reader.identified if isinstance(thing, jax.Array | np.ndarray))
    return Content(key, tuple(reader.identified), size)


def owner(function: Callable[..., Any]) -> Any:
    """What must live for a function to live: of a bound method, which is made at every access, its object."""
    return function.__self__ if isinstance(function, types.MethodType) else function


class _Traced(Exception):
    """An array that is being traced is captured."""


class _Reader:
    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self.identified: list[Any] = []
        self._numbers: dict[int, int] = {}  # the number of each object that was looked into, by id
        self._looked_into: list[Any] = []  # so that no id is used twice
        self._level = 0

    def read(self, thing: Any) -> Hashable:
        if isinstance(thing, jax.core.Tracer):
            raise _Traced
        if isinstance(thing, _ATOMS):
            return type(thing), thing
        if isinstance(thing, float | complex | np.generic):
            return type(thing), repr(thing)  # NaN is not equal to itself
        if isinstance(thing, np.ndarray) and thing.dtype != object and thing.nbytes <= _MOST_BYTES:
            return np.ndarray, str(thing.dtype), thing.shape, hashlib.blake2b(thing.tobytes()).digest()
        is_beyond = len(self._numbers) > _MOST_OBJECTS or self._level > _MOST_LEVELS
        if is_beyond or isinstance(thing, types.ModuleType | jax.Array | np.ndarray):
            return self._identity(thing)
        if id(thing) in self._numbers:
            return "seen", self._numbers[id(thing)]
        self._numbers[id(thing)] = len(self._numbers)
        self._looked_into.append(thing)
        self._level += 1
        try:
            return type(thing), self._inside(thing)
        finally:
            self._level -= 1

    def _inside(self, thing: Any) -> Hashable:
        match thing:
            case types.FunctionType():
                return self._function(thing)
            case types.MethodType():
                return self.read(thing.__func__), self.read(thing.__self__)
            case functools.partial():
                return tuple(map(self.read, (thing.func, thing.args, tuple(thing.keywords.items()))))
            case tuple():
                return tuple(map(self.read, thing))
            case frozenset():
                return frozenset(map(self.read, thing))
            case list() | set():
                return (self._identity(thing), *map(self.read, thing))
            case dict():
                items = ((self.read(key), self.read(value)) for key, value in thing.items())
                return (self._identity(thing), *items)
        if callable(wrapped := getattr(thing, "__wrapped__", None)) and _is_of(type(thing), "jax"):
            return self.read(wrapped)  # a function under jax.jit
        if _has_equality(thing):
            return _Equal(thing, is_weak=thing is self._owner)
        return self._attributes(thing)

    def _function(self, function: types.FunctionType) -> Hashable:
        is_installed = function.__code__.co_filename.startswith(_INSTALLED)
        if is_installed and not function.__closure__:
            return self._identity(function)
        captured = tuple(_cell(cell) for cell in function.__closure__ or ())
        names = () if is_installed else _names(function.__code__, function.__globals__)
        read_by_name = tuple(function.__globals__[name] for name in names)
        defaults = function.__defaults__, tuple((function.__kwdefaults__ or {}).items())
        return (function.__code__, *map(self.read, (defaults, captured, read_by_name)))

    def _attributes(self, thing: Any) -> Hashable:
        slots = itertools.chain.from_iterable(getattr(cls, "__slots__", ()) for cls in type(thing).__mro__)
        names = [name for name in slots if isinstance(name, str) and hasattr(thing, name)]
        attributes = {name: getattr(thing, name) for name in names} | getattr(thing, "__dict__", {})
        attributes.pop("__weakref__", None)
        return (self._identity(thing), *((name, self.read(value)) for name, value in attributes.items()))

    def _identity(self, thing: Any) -> Hashable:
        self.identified.append(thing)
        return "identity", id(thing)


class _Equal:
    """An object with an equality of its own. One that is held weakly is equal to nothing when it is gone."""

    def __init__(self, thing: Any, is_weak: bool) -> None:
        self._hash = hash(thing)
        self._thing: Callable[[], Any] = weakref.ref(thing) if is_weak else lambda: thing

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, _Equal) or type(self._thing()) is not type(other._thing()) or self._thing() is None:
            return False
        try:
            return bool(self._thing() == other._thing())
        except Exception:  # an equality of the user's that does not compare these
            return False


def _has_equality(thing: Any) -> bool:
    """Whether objects of this type are compared by value, and this one can be hashed."""
    is_by_identity: bool = getattr(type(thing), "__eq__", None) is getattr(object, "__eq__", None)
    if is_by_identity:
        return False
    try:
        hash(thing)
    except TypeError:
        return False
    return True


def _names(code: types.CodeType, variables: dict[str, Any]) -> Iterator[str]:
    """The names in the code, or in functions that it defines, that are global variables."""
    yield from (name for name in code.co_names if name in variables)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant, variables)


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None


def _is_of(cls: type, package: str) -> bool:
    return cls.__module__.partition(".")[0] in (package, package + "lib")
