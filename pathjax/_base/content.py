"""What a function computes, as far as Python can tell: its code, and everything that it captures or reads by name.

Two functions of equal content compute the same, so that what was traced or compiled for one serves the other: a lambda
that a loop makes anew, or a network whose captured arrays are the same objects. Where a captured list, an attribute of
a captured object or a global variable has changed since, the content differs.
"""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import dis
import functools
import hashlib
import os
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["Content", "content", "owner"]

# Beyond these limits an object is compared by identity.
_MOST_OBJECTS = 20_000
_MOST_LEVELS = 100
_MOST_BYTES = 2**24

_ATOMS = (type(None), bool, int, str, bytes, type(Ellipsis), np.dtype)
_READS_VARIABLE = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType)
_COMPILED: type[Any] = type(jax.jit(lambda: None))

# The folders of installed packages, and of this one, whose code does not change.
_FOLDERS = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
_INSTALLED = tuple(os.path.join(folder, "") for folder in {*_FOLDERS, os.path.dirname(os.path.dirname(__file__))})


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
    by their entries. Lists, dictionaries and objects, which may change, count by identity and by what they hold, but
    objects with an equality of their own by that in place of identity. Classes count by their methods and attributes,
    modules by the attributes that the function names. Of installed packages, classes, modules, and functions that
    capture nothing count by identity alone. The key does not hold the function, nor the object of a bound method.
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
        self._modules: set[Hashable] = set()  # the modules that were looked into, with the names that were looked up
        self._by_value = False  # whether lists and dictionaries count by what they hold alone

    def read(self, thing: Any) -> Hashable:
        if isinstance(thing, jax.core.Tracer):
            raise _Traced
        if isinstance(thing, _ATOMS):
            return type(thing), thing
        if isinstance(thing, float | complex | np.generic):
            return type(thing), repr(thing)  # NaN is not equal to itself
        if isinstance(thing, np.ndarray) and thing.dtype != object and thing.nbytes <= _MOST_BYTES:
            return type(thing), str(thing.dtype), thing.shape, hashlib.blake2b(thing.tobytes()).digest()
        if isinstance(thing, type) and _is_installed(thing):
            return type, thing
        is_beyond = len(self._numbers) > _MOST_OBJECTS or self._level > _MOST_LEVELS
        is_large = isinstance(thing, np.ndarray) and thing.dtype != object
        if is_beyond or is_large or isinstance(thing, types.ModuleType | jax.Array):
            return self._identity(thing)
        if id(thing) in self._numbers:
            return "seen", self._numbers[id(thing)]
        self._numbers[id(thing)] = len(self._numbers)
        self._looked_into.append(thing)
        self._level += 1
        try:
            return self.read(type(thing)), self._inside(thing)
        finally:
            self._level -= 1

    def _inside(self, thing: Any) -> Hashable:
        match thing:
            case type():
                return self._class(thing)
            case types.FunctionType():
                return self._function(thing)
            case types.MethodType():
                return self.read(thing.__func__), self.read(thing.__self__)
            case types.BuiltinFunctionType():  # such as the method `get` of a dictionary
                return thing, self.read(thing.__self__)
            case functools.partial():
                return tuple(map(self.read, (thing.func, thing.args, tuple(thing.keywords.items()))))
            case tuple():
                return tuple(map(self.read, thing))
            case frozenset():
                return frozenset(map(self.read, thing))
            case dict() | types.MappingProxyType():
                return self._entries(thing, ((self.read(key), self.read(value)) for key, value in thing.items()))
            case list() | set() | collections.deque():
                return self._entries(thing, map(self.read, thing))
            case np.ndarray():
                return self._entries(thing, map(self.read, thing.flat))
            case bytearray() | array.array():
                return self._identity(thing), bytes(thing)
        if isinstance(thing, _COMPILED):
            return self.read(thing.__wrapped__)  # a function under jax.jit
        if _has_equality(thing):
            return _Equal(thing, is_weak=thing is self._owner), self._held_by_value(thing)
        return self._identity(thing), self._attributes(thing)

    def _function(self, function: types.FunctionType) -> Hashable:
        is_installed = function.__code__.co_filename.startswith(_INSTALLED)
        if is_installed and not function.__closure__:
            return self._identity(function)
        captured = [_cell(cell) for cell in function.__closure__ or ()]
        names = _Names((), ()) if is_installed else _names(function.__code__)
        variables = {name: function.__globals__[name] for name in names.variables if name in function.__globals__}
        defaults = function.__defaults__, tuple((function.__kwdefaults__ or {}).items())
        modules = [self._named(value, names.attributes) for value in (*captured, *variables.values())]
        attributes = tuple(function.__dict__.items())
        read = map(self.read, (defaults, tuple(captured), tuple(variables.items()), attributes))
        return (function.__code__, *read, *modules)

    def _named(self, module: Any, names: tuple[str, ...]) -> Hashable:
        """The attributes of a module that have one of these names; nothing of other things and installed modules."""
        if not isinstance(module, types.ModuleType) or _is_installed(module) or (id(module), names) in self._modules:
            return ()
        self._modules.add((id(module), names))
        attributes = {name: vars(module)[name] for name in names if name in vars(module)}
        return tuple((name, self.read(value), self._named(value, names)) for name, value in attributes.items())

    def _class(self, cls: type) -> Hashable:
        """A class by its methods and attributes, and by its bases."""
        members: list[Hashable] = [cls, *map(self.read, cls.__bases__)]
        for name, value in vars(cls).items():
            member = _function_of(value)
            is_method = callable(member) or hasattr(type(member), "__get__")
            if not isinstance(value, _DESCRIPTORS) and (is_method or not name.startswith("__")):
                members.append((name, self.read(member)))
        return tuple(members)

    def _entries(self, container: Any, entries: Iterable[Hashable]) -> Hashable:
        attributes = tuple((name, self.read(value)) for name, value in getattr(container, "__dict__", {}).items())
        return () if self._by_value else self._identity(container), attributes, *entries

    def _held_by_value(self, thing: Any) -> Hashable:
        """What an object with an equality holds, which need not notice that all of it is the same, such as 1 and 1.0.

        Objects of installed packages, which may hold more than what they are compared by, must be dataclasses. Of a
        graph definition of Flax NNX, which is compared by hundreds of parts, the classes of its modules suffice.
        """
        if type(thing).__name__ == "GraphDef" and _is_installed(type(thing)):
            classes = dict.fromkeys(getattr(node, "type", None) for node in getattr(thing, "nodes", ()))
            return tuple(map(self.read, classes))
        before, self._by_value = self._by_value, True
        try:
            if dataclasses.is_dataclass(thing):
                names = [field.name for field in dataclasses.fields(thing)]
                return tuple((name, self.read(getattr(thing, name, None))) for name in names)
            return () if _is_installed(type(thing)) else self._attributes(thing)
        finally:
            self._by_value = before

    def _attributes(self, thing: Any) -> Hashable:
        attributes = dict(_slots(thing)) | getattr(thing, "__dict__", {})
        return tuple((name, self.read(value)) for name, value in attributes.items())

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


class _Names(NamedTuple):
    """The names of the global variables that a code reads, and all others in it, which may be those of attributes."""

    variables: tuple[str, ...]
    attributes: tuple[str, ...]


@functools.lru_cache(2**12)
def _names(code: types.CodeType) -> _Names:
    """The names in the code, and in functions and classes that it defines."""
    variables = [each.argval for each in dis.get_instructions(code) if each.opname in _READS_VARIABLE]
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    variables += [name for names in inner for name in names.variables]
    attributes = [*code.co_names, *(name for names in inner for name in names.attributes)]
    return _Names(tuple(dict.fromkeys(variables)), tuple(dict.fromkeys(attributes)))


def _function_of(member: Any) -> Any:
    """The function of a method, a property or the like; other members of a class as they are."""
    match member:
        case staticmethod() | classmethod():
            return member.__func__
        case property():
            return member.fget
        case functools.cached_property():
            return member.func
    return member


def _slots(thing: Any) -> Iterator[tuple[str, Any]]:
    """The attributes that have slots."""
    for cls in type(thing).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            is_private = name.startswith("__") and not name.endswith("__")
            mangled = f"_{cls.__name__.lstrip('_')}{name}" if is_private else name
            if name not in ("__weakref__", "__dict__"):
                with contextlib.suppress(AttributeError):  # no value yet
                    yield mangled, getattr(thing, mangled)


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None


def _is_installed(thing: types.ModuleType | type) -> bool:
    """Whether a module, or the module of a class, is of Python or of an installed package."""
    name = str(thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__)
    package = name.partition(".")[0]
    module = thing if isinstance(thing, types.ModuleType) else sys.modules.get(name, sys.modules.get(package))
    file = getattr(module, "__file__", None)
    return package in sys.stdlib_module_names if file is None else str(file).startswith(_INSTALLED)
