"""The one door to neural-tangents, which does not import on current JAX by itself.

neural-tangents 0.6.5 is the last release. It takes names that JAX has since moved or removed, and imports TensorFlow
for a part that nothing here needs. `load` imports it with stand-ins for those names. The stand-ins are seen by the
modules of neural-tangents alone, through an `import` of their own, so that `jax` itself is never changed, not even
for a moment. They stay for as long as those modules live, for some names are looked up when a function is called.

Afterwards `import neural_tangents` gives the same package anywhere in the process.
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

    Served: `stax`, `predict`, `monte_carlo_kernel_fn`, `linearize`, and `empirical_ntk_fn` with implementations 1 and
    2. Not served: the TensorFlow part, left empty, and implementations 0 and 3 of the empirical kernel, refused when
    asked for. A neural_tangents that the process had imported before is returned as it is.

    Raises ModuleNotFoundError where neural-tangents is missing, naming what to install.
    """
    with _LOCK:
        if _PACKAGE not in sys.modules:
            _import_package()
        return sys.modules[_PACKAGE]


def _import_package() -> None:
    _forget()  # what an earlier plain import left half done
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(_PACKAGE)
    except ModuleNotFoundError as error:
        _forget()
        raise ModuleNotFoundError(_missing(error.name), name=error.name) from error
    except BaseException:
        _forget()
        raise
    finally:
        sys.meta_path.remove(finder)
    _refuse_what_cannot_run()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]


def _missing(name: str | None) -> str:
    return (
        "Infinite-width kernels, and the methods 'jacobian' and 'products' of the finite one, need neural-tangents, "
        f"but the module `{name}` is not installed. Install it with `pip install pathjax[infinite]`, or without "
        "TensorFlow, which neural-tangents asks for and does not need here: "
        "`pip install --no-deps neural-tangents && pip install frozendict`."
    )


def _refuse_what_cannot_run() -> None:
    """Name the remedy where neural-tangents would fail deep inside its own jaxpr interpreter."""
    empirical = sys.modules[f"{_PACKAGE}._src.empirical"]
    for number, name in ((0, "AUTO"), (3, "STRUCTURED_DERIVATIVES")):
        empirical._implementation_to_ntk_fn[number] = _refusal(name, number)


def _refusal(name: str, number: int) -> Any:
    def refuse(**_: Any) -> NoReturn:
        raise NotImplementedError(
            f"neural-tangents' implementation {name} ({number}) reads internals that JAX {jax.__version__} no longer "
            "has. Use implementation 1 (JACOBIAN_CONTRACTION) or 2 (NTK_VECTOR_PRODUCTS); in pathjax.ntk.empirical, "
            "method='jacobian' or method='products'."
        )

    return refuse


class _Finder(MetaPathFinder):
    """Finds the modules of neural-tangents, and nothing else, while they are being imported."""

    def __init__(self) -> None:
        self.stand_ins = _stand_ins()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != _PACKAGE:
            return None
        if fullname == _TENSORFLOW_PART:
            return ModuleSpec(fullname, _Empty())
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path, self.stand_ins)
        return spec


class _Empty(Loader):
    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = "Left empty: this part of neural-tangents needs TensorFlow."


class _Loader(SourceFileLoader):
    """Runs a module whose `import` statements meet the stand-ins first."""

    def __init__(self, fullname: str, path: str, stand_ins: dict[str, ModuleType]) -> None:
        super().__init__(fullname, path)
        self.stand_ins = stand_ins

    def exec_module(self, module: ModuleType) -> None:
        # Python reads `__import__` from the `__builtins__` of the importing module, and keeps ours if it finds one.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        # `import a.b` binds a, `from a.b import c` asks a.b
        asked = name if fromlist else name.partition(".")[0]
        stand_in = self.stand_ins.get(asked) if level == 0 else None
        if stand_in is None or asked != name:
            module = builtins.__import__(name, globals, locals, fromlist, level)
        return module if stand_in is None else stand_in


class _StandIn(ModuleType):
    """A module with names added; every other name is the real module's."""

    def __init__(self, name: str, real: ModuleType | None, **added: Any) -> None:
        super().__init__(name)
        self.__dict__.update(added, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _stand_ins() -> dict[str, ModuleType]:
    """What neural-tangents expects of JAX modules, by module name."""
    extend = jax.extend.core
    core = _StandIn(
        "jax.core",
        jax.core,
        Jaxpr=extend.Jaxpr,
        JaxprEqn=extend.JaxprEqn,
        Literal=extend.Literal,
        Primitive=extend.Primitive,
        Var=extend.Var,
        Value=Any,  # an annotation, no more
        AbstractValue=getattr(jax.core, "AbstractValue", Any),
        ShapedArray=type(jax.typeof(0.0)) if hasattr(jax, "typeof") else jax.core.ShapedArray,
        eval_context=jax.ensure_compile_time_eval,
    )
    util = _StandIn("jax.util", None, safe_map=_safe_map, safe_zip=_safe_zip)
    # the removed primitive is only a key in a table of rules for implementation 3
    ad = _StandIn("jax.interpreters.ad", jax.interpreters.ad, zeros_like_p=extend.Primitive("zeros_like"))
    interpreters = _StandIn("jax.interpreters", jax.interpreters, ad=ad)
    numpy = _StandIn("jax.numpy", jax.numpy, size=_size)
    top = _StandIn("jax", jax, core=core, interpreters=interpreters, numpy=numpy)
    return {module.__name__: module for module in (top, core, util, interpreters, ad, numpy)}


def _size(array: Any, axis: int | None = None) -> int:
    # jnp.size no longer takes the shape structs on which neural-tangents calls it
    return math.prod(array.shape) if axis is None else int(array.shape[axis])


def _safe_zip(*sequences: Any) -> list[Any]:
    return list(zip(*sequences, strict=True))


def _safe_map(function: Any, *sequences: Any) -> list[Any]:
    return [function(*row) for row in _safe_zip(*sequences)]
