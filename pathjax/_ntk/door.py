"""Imports neural-tangents, which a plain `import` cannot do on current JAX. Nothing else in pathjax imports it.

neural-tangents 0.6.5, its last release, uses names that JAX has since moved or removed, and imports TensorFlow for a
part that pathjax does not need. `load` imports it with stand-ins: modules that have those names and pass on to JAX for
all others. Only the modules of neural-tangents see the stand-ins, since each of them gets an `__import__` of its own;
`jax` itself is never changed. The stand-ins remain after the import, because neural-tangents looks up some names only
when a function is called.

After `load`, `import neural_tangents` gives the same package anywhere in the process.
"""

from __future__ import annotations

import builtins
import importlib
import math
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, NoReturn

import jax
import jax.core
import jax.extend.core
import jax.interpreters.ad
import jax.numpy

__all__ = ["load"]

_PACKAGE = "neural_tangents"
_TENSORFLOW_PART = "neural_tangents.experimental"
_LOCK = threading.RLock()


def load() -> Any:
    """The package neural_tangents, imported on first use.

    These parts work: `stax`, `predict`, `monte_carlo_kernel_fn`, `linearize`, and `empirical_ntk_fn` with
    implementations 1 and 2. Implementations 0 and 3 raise NotImplementedError when called, and
    `neural_tangents.experimental`, which needs TensorFlow, is an empty module. If the process has imported
    neural_tangents before, that package is returned unchanged.

    Raises ModuleNotFoundError if neural-tangents is not installed; the message says what to install.
    """
    with _LOCK:
        if _PACKAGE not in sys.modules:
            _import_package()
        return sys.modules[_PACKAGE]


def _import_package() -> None:
    _remove_from_sys_modules()  # an earlier plain import that failed may have left some modules
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(_PACKAGE)
    except ModuleNotFoundError as error:
        _remove_from_sys_modules()
        raise ModuleNotFoundError(_missing(error.name), name=error.name) from error
    except BaseException:
        _remove_from_sys_modules()
        raise
    finally:
        sys.meta_path.remove(finder)
    _refuse_unsupported_implementations()


def _remove_from_sys_modules() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]


def _missing(name: str | None) -> str:
    return (
        "Infinite-width kernels, and the methods 'jacobian' and 'products' of the finite one, need neural-tangents, "
        f"but the module `{name}` is not installed. Install it with `pip install pathjax[infinite]`, or, without "
        "TensorFlow, which neural-tangents declares but pathjax does not need, with "
        "`pip install --no-deps neural-tangents && pip install frozendict`."
    )


def _refuse_unsupported_implementations() -> None:
    """Replace implementations 0 and 3, which would fail inside neural-tangents' jaxpr interpreter, by a clear error."""
    empirical = sys.modules[f"{_PACKAGE}._src.empirical"]
    for number, name in ((0, "AUTO"), (3, "STRUCTURED_DERIVATIVES")):
        empirical._implementation_to_ntk_fn[number] = _refusal(name, number)


def _refusal(name: str, number: int) -> Any:
    def refuse(**_: Any) -> NoReturn:
        raise NotImplementedError(
            f"neural-tangents' implementation {name} ({number}) uses internals that JAX {jax.__version__} no longer "
            "has. Use implementation 1 (JACOBIAN_CONTRACTION) or 2 (NTK_VECTOR_PRODUCTS); in pathjax.ntk.empirical, "
            "method='jacobian' or method='products'."
        )

    return refuse


class _Finder(MetaPathFinder):
    """Gives the modules of neural-tangents a loader with stand-ins; leaves all other imports alone."""

    def __init__(self) -> None:
        self.stand_ins = _stand_ins()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != _PACKAGE:
            return None
        if fullname == _TENSORFLOW_PART:
            return ModuleSpec(fullname, _EmptyModuleLoader())
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _StandInLoader(fullname, spec.loader.path, self.stand_ins)
        return spec


class _EmptyModuleLoader(Loader):
    """Creates a module with nothing in it."""

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = "Left empty: this part of neural-tangents needs TensorFlow."


class _StandInLoader(SourceFileLoader):
    """Runs a module whose `import` statements give stand-ins in place of the modules of these names."""

    def __init__(self, fullname: str, path: str, stand_ins: dict[str, ModuleType]) -> None:
        super().__init__(fullname, path)
        self.stand_ins = stand_ins

    def exec_module(self, module: ModuleType) -> None:
        # An `import` statement calls `__import__` from its module's `__builtins__`; Python keeps one that is set here.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        # `import a.b` needs the module a, `from a.b import c` the module a.b
        result_name = name if fromlist else name.partition(".")[0]
        stand_in = self.stand_ins.get(result_name) if level == 0 else None
        if stand_in is None or result_name != name:
            module = builtins.__import__(name, globals, locals, fromlist, level)
        return module if stand_in is None else stand_in


class _StandIn(ModuleType):
    """A module with the names `added`; any other attribute is read from the real module."""

    def __init__(self, name: str, real: ModuleType | None, **added: Any) -> None:
        super().__init__(name)
        self.__dict__.update(added, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _stand_ins() -> dict[str, ModuleType]:
    """The stand-ins by module name: JAX modules with the names that neural-tangents expects in them."""
    extend = jax.extend.core
    core = _StandIn(
        "jax.core",
        jax.core,
        Jaxpr=extend.Jaxpr,
        JaxprEqn=extend.JaxprEqn,
        Literal=extend.Literal,
        Primitive=extend.Primitive,
        Var=extend.Var,
        Value=Any,  # used in type annotations only
        AbstractValue=getattr(jax.core, "AbstractValue", Any),
        ShapedArray=type(jax.typeof(0.0)) if hasattr(jax, "typeof") else jax.core.ShapedArray,
        eval_context=jax.ensure_compile_time_eval,
    )
    util = _StandIn("jax.util", None, safe_map=_safe_map, safe_zip=_safe_zip)
    # a new primitive for the removed `zeros_like_p`, which is only a key in the table of rules of implementation 3
    ad = _StandIn("jax.interpreters.ad", jax.interpreters.ad, zeros_like_p=extend.Primitive("zeros_like"))
    interpreters = _StandIn("jax.interpreters", jax.interpreters, ad=ad)
    numpy = _StandIn("jax.numpy", jax.numpy, size=_size)
    top = _StandIn("jax", jax, core=core, interpreters=interpreters, numpy=numpy)
    return {module.__name__: module for module in (top, core, util, interpreters, ad, numpy)}


def _size(array: Any, axis: int | None = None) -> int:
    # neural-tangents calls it on ShapeDtypeStruct, which jnp.size no longer accepts
    return math.prod(array.shape) if axis is None else int(array.shape[axis])


def _safe_zip(*sequences: Any) -> list[Any]:
    return list(zip(*sequences, strict=True))


def _safe_map(function: Any, *sequences: Any) -> list[Any]:
    return [function(*row) for row in _safe_zip(*sequences)]
