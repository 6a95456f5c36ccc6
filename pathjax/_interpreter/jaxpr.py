"""The interpreter's engine: trace a network, walk its equations, step into calls. No mathematics.

The caller of `walk` decides what a value is: it passes a `step` function that computes the results of an equation. Only
this file depends on how JAX represents programs.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from pathjax._base.arguments import check_no_list
from pathjax._interpreter.known import is_concrete, known_results
from pathjax.types import Params, XLike

__all__ = [
    "Equation",
    "Program",
    "Refusal",
    "Trace",
    "UnsupportedPrimitive",
    "batch_length",
    "check_batch",
    "check_floating",
    "evaluate",
    "is_concrete",
    "trace",
    "walk",
    "with_rows_of_outputs",
]

T = TypeVar("T")

# Primitives that call a program, which is walked, and the name of the parameter that holds the program.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
_TRANSFORMATION = re.compile(r"^(?:vmap|jvp|transpose|checkpoint|remat)\((.*)\)$")
_CUSTOM_DERIVATIVE = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
_UNKNOWN = "unknown line"
_LIBRARIES = ("jax", "jaxlib", "flax", "haiku", "equinox", "neural_tangents", "pathjax")


class UnsupportedPrimitive(ValueError):
    """Raised for an operation of the network for which paths are not defined, such as a tanh.

    The message names the primitive, the line of the user's code, the reason and the remedy. `paths.layers` lists all
    such operations of a network without raising. `ntk.empirical`, `ntk.operator` and SNIP, FORCE, GraSP, ProsPr and
    NTK-SAP of `pathjax.scores` take any layer.
    """


@dataclass(frozen=True)
class LoopOperands(Generic[T]):
    """The operands of a `scan`: constant in all steps, carried from step to step, or sliced along the first axis."""

    constants: Sequence[T]
    carry: Sequence[T]
    stacked: Sequence[T]


@dataclass(frozen=True)
class Equation:
    """One application of a primitive, and the calls that it stands in, the outermost first."""

    source: JaxprEqn
    callers: tuple[JaxprEqn, ...]

    @property
    def has_own_derivative(self) -> bool:
        """Whether it calls a function with a custom derivative rule."""
        return self.source.primitive.name in _CUSTOM_DERIVATIVE

    @property
    def derivative_owner(self) -> JaxprEqn | None:
        """The outermost call around it of a function with a custom derivative rule: JAX uses that rule."""
        owners = (caller for caller in self.callers if caller.primitive.name in _CUSTOM_DERIVATIVE)
        return next(owners, None)

    @property
    def name(self) -> str:
        """The primitive's name, as JAX prints it; for a call, the name of the called function, if it has one."""
        name = str(self.source.primitive.name)
        return (_called(self.source) or name) if name in _CALLS else name

    @property
    def layer(self) -> str:
        """The layer's name if the framework gives one, else the file and line."""
        return self._scope or self._line

    @property
    def _scope(self) -> str:
        """The names of the scopes around it, such as `block_1/Dense_0`."""
        stacks = (str(eqn.source_info.name_stack) for eqn in (*self.callers, self.source))
        # vmap(Dense) is the layer Dense; vmap() is none, and neither is the ij,jk->ik of an einsum
        names = (_TRANSFORMATION.sub(r"\1", name) for stack in stacks for name in stack.split("/"))
        return "/".join(name for name in names if name and "->" not in name)

    @property
    def _line(self) -> str:
        """The user's file and line: of the equation, or of the innermost call around it that the user's code makes."""
        frames = (_user_frame(eqn) for eqn in (self.source, *reversed(self.callers)))
        frame = next((frame for frame in frames if frame is not None), None)
        return f"{os.path.basename(frame.file_name)}:{frame.line_num}" if frame else _UNKNOWN

    @property
    def params(self) -> dict[str, Any]:
        """The primitive's static parameters. Sizes and axes that the network gives as NumPy's integers are Python's."""
        return {name: _with_python_integers(value) for name, value in self.source.params.items()}

    @property
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shape and dtype of each operand."""
        avals: list[Any] = [var.aval for var in self.source.invars]
        return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]

    def loop_operands(self, values: Sequence[T]) -> LoopOperands[T]:
        """The values of a `scan`'s operands, grouped by their part in the loop.

        The versions of JAX name the parts by different parameters, so they are told by their axes: an array of which
        each step takes, or gives, one slice has one axis more outside of the loop than inside.
        """
        body = _inner(self.source.params["jaxpr"])
        first_stacked = _count_unsliced(self.source.invars, body.invars)
        first_carry = first_stacked - _count_unsliced(self.source.outvars, body.outvars)
        return LoopOperands(values[:first_carry], values[first_carry:first_stacked], values[first_stacked:])

    @property
    def is_of_jax(self) -> bool:
        """Whether it calls one of JAX's own activations, such as `jax.nn.relu`, with JAX's own derivative rule."""
        if self.source.primitive.name != "custom_jvp_call":
            return False
        inner = _inner(self.source.params[_CALLS["custom_jvp_call"]])
        file = str(inner.debug_info.func_filename)
        in_jax_nn = file.startswith(_folders(("jax",))) and file.endswith(os.path.join("nn", "functions.py"))
        # a user's rule around `jax.nn.relu` has its file too, but calls a function with JAX's rule inside
        return in_jax_nn and not any(eqn.primitive.name in _CUSTOM_DERIVATIVE for eqn in inner.eqns)

    def body(self, *arrays: Any) -> list[Any]:
        """The results of a call, computed by the equations inside it, without its custom derivative rule."""
        return list(jaxpr_as_fun(self.source.params[_CALLS[self.source.primitive.name]])(*arrays))

    @property
    def outputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shape and dtype of each result."""
        avals: list[Any] = [var.aval for var in self.source.outvars]
        return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]

    def bind(self, *arrays: Any, **changed: Any) -> list[Any]:
        """The results of the primitive on arrays; `changed` replaces some of its static parameters."""
        primitive = self.source.primitive
        results = primitive.bind(*arrays, **primitive.get_bind_params(self.source.params | changed))
        return list(results) if primitive.multiple_results else [results]

    @property
    def called_around(self) -> list[str]:
        """The names of the called functions that it stands in, the outermost first."""
        return [_called(caller) for caller in self.callers]

    @property
    def functions(self) -> list[str]:
        """The qualified names of the functions whose code it stands in, the innermost first, up to `apply`."""
        names: list[str] = []
        for eqn in (self.source, *reversed(self.callers)):
            names += [frame.function_name for frame in _frames_inside_apply(eqn)]
            names += [_called(eqn)] if eqn is not self.source else []
        return names

    def refuse(
        self, reason: str, remedy: str, *, name: str | None = None, missing: str = "path rule"
    ) -> UnsupportedPrimitive:
        """The error that refuses this equation, under the primitive's name or `name`; `missing` is what it lacks."""
        layer = f"in layer `{self._scope}`" if self._scope else ""
        site = f"{self._line}, {layer}" if self._line != _UNKNOWN and layer else layer or self._line
        return UnsupportedPrimitive(f"No {missing} for `{name or self.name}` ({site}). {reason} {remedy}")


@dataclass(frozen=True)
class Refusal:
    """An equation for which paths are not defined, recorded by a walk that continues after it.

    `is_unknown` says that its primitive is not in any table of this package.
    """

    layer: str
    error: UnsupportedPrimitive
    is_unknown: bool = False


@dataclass(frozen=True)
class Program:
    """The equations of a traced network, with the state that it reads.

    Its arguments are the parameter leaves, the leaves of the state and, last, those of the batch of inputs.

    Attributes:
        closed: the equations.
        state: the leaves of the state, which are constants on its paths.
        inputs: the number of arrays that the batch of inputs consists of.
    """

    closed: ClosedJaxpr
    state: tuple[Any, ...] = ()
    inputs: int = 1

    @property
    def parameter_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each parameter leaf."""
        variables = self.closed.jaxpr.invars
        return [tuple(var.aval.shape) for var in variables[: len(variables) - self.inputs - len(self.state)]]

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each array of the batch of inputs, (n, ...)."""
        return [tuple(var.aval.shape) for var in self.closed.jaxpr.invars[-self.inputs :]]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the batch of inputs, where it is one array."""
        (shape,) = self.input_shapes
        return shape

    @property
    def output(self) -> jax.ShapeDtypeStruct:
        """Shape (n, o) and dtype of the outputs."""
        (aval,) = self.closed.out_avals
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype)

    def arguments(self, weights: Sequence[T], inputs: Sequence[T], constant: Callable[[Any], T]) -> list[T]:
        """Values of the arguments, from those of the weights and of the inputs, and of constants for the state."""
        return [*weights, *map(constant, self.state), *inputs]

    def __call__(self, params: Params, x: Any) -> Any:
        """The outputs (n, o) of weights and inputs of the types that were traced, without a call of `apply`."""
        weights, inputs = ([jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (params, x))
        return jaxpr_as_fun(self.closed)(*self.arguments(weights, inputs, jnp.asarray))[0]


class Trace(NamedTuple):
    """The equations of a function, and shape and dtype of each array of its result."""

    closed: ClosedJaxpr
    result: Any

    def __call__(self, *arguments: Any) -> Any:
        """The result for arguments of the types that were traced, without a call of the function."""
        results = jaxpr_as_fun(self.closed)(*map(jnp.asarray, jax.tree.leaves(arguments)))
        return jax.tree.unflatten(jax.tree.structure(self.result), results)


def trace(function: Callable[..., Any], *arguments_like: Any) -> Trace:
    """The equations of `function(*arguments)`; only shapes and dtypes are read."""

    def fresh(*arguments: Any) -> Any:
        # a new function each time: JAX would hand out an old trace of the function, which may read what has changed
        return function(*arguments)

    return Trace(*jax.make_jaxpr(fresh, return_shape=True)(*arguments_like))


def with_rows_of_outputs(traced: Trace, x_like: Any) -> ClosedJaxpr:
    """The equations of a network, with outputs of more than one axis, (n, ...), made to a row (n, o) for each example.

    Raises ValueError unless its result is one array with a row for each example.
    """
    n, result = batch_length(x_like), traced.result
    shape = tuple(getattr(result, "shape", ()))
    if not isinstance(result, jax.ShapeDtypeStruct) or len(shape) < 2 or shape[0] != n:
        shapes = [str(tuple(leaf.shape)) for leaf in jax.tree.leaves(result)]
        is_array = isinstance(result, jax.ShapeDtypeStruct)
        result_was = shapes[0] if is_array else f"a pytree of arrays {', '.join(shapes)}" if shapes else "no array"
        x_shapes = ", ".join(str(tuple(leaf.shape)) for leaf in jax.tree.leaves(x_like))
        of_pair = (
            " If it returned a pair of the outputs and a new state, as in training mode: take [0] of it, and let batch "
            "norm use its running statistics."
            if isinstance(result, tuple) and len(result) == 2
            else ""
        )
        may_be_one = all(len(leaf.shape) == 1 for leaf in jax.tree.leaves(x_like))
        raise ValueError(
            f"{'Give x an axis of examples, x[None], if it is a single one. ' if may_be_one else ''}"
            "`apply(params, x)` must return one array of shape (n, o), a row of outputs for each example, or (n, ...) "
            f"of more axes, whose entries are all outputs; but for x of shape {x_shapes} it returned {result_was}. "
            "Reshape the outputs inside `apply`; give a single output the shape (n, 1)."
            f"{'' if is_array else ' Concatenate several heads along the last axis, or return one.'}{of_pair}"
        )
    if len(shape) == 2:
        return traced.closed

    def rows(*arguments: Any) -> Any:
        (output,) = jaxpr_as_fun(traced.closed)(*arguments)
        return output.reshape(n, -1) if n else output.reshape(0, math.prod(shape[1:]))

    return jax.make_jaxpr(rows)(*traced.closed.in_avals)


def batch_length(x: Any) -> int:
    """The number of examples of a batch: an array (n, ...), or a tree of such arrays.

    Raises ValueError for what is no such thing.
    """
    leaves = jax.tree.leaves(x)
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
    if not leaves or not all(shapes):
        came = "no array" if not leaves else f"{type(leaves[shapes.index(())]).__name__} without axes"
        raise ValueError(
            f"`x` must be a batch of examples, an array of shape (n, ...) or a tree of such arrays, but holds {came}. "
            "Convert it with jnp.asarray; give a single example an axis of its own: x[None]."
        )
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f"The arrays of `x` have the shapes {', '.join(map(str, shapes))}, but the first axis of each counts the "
            "examples, and they must have as many. What does not depend on the example belongs into `state`."
        )
    return int(shapes[0][0])


def check_batch(x: Any) -> None:
    """Raise unless `x` is one array of examples, (n, ...), or its shape and dtype: paths start there."""
    check_no_list(x)
    if not getattr(x, "shape", ()):
        raise ValueError(
            "`x` must be an array of shape (n, ...), a batch of examples, or its ShapeDtypeStruct, but is "
            f"{type(x).__name__ if not hasattr(x, 'shape') else 'of shape ()'}. Convert it with jnp.asarray; make "
            "several inputs one array, and split it inside `apply`."
        )


def check_floating(params_like: Params, x_like: XLike) -> None:
    """Raise ValueError unless x and all weights are of floating-point types: paths are products of them."""
    if not jnp.issubdtype(x_like.dtype, jnp.floating):
        raise ValueError(
            f"`x` has dtype {x_like.dtype}; paths start at real-valued inputs. If these are tokens: paths start after "
            "the embedding, so pass the rest of the network, with the embedded vectors as x; layers such as attention "
            "and layer norm have no paths in any case, and the functions of `ntk` take tokens. Convert images first, "
            "as in x.astype(jnp.float32)."
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(params_like)[0]:
        if not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"`params` at {jax.tree_util.keystr(path)} has dtype {dtype}; weights must be floating-point. Close "
                "over counters and other state in `apply`."
            )


def walk(
    program: ClosedJaxpr | Jaxpr,
    arguments: Sequence[Any],
    *,
    step: Callable[[Equation, list[Any]], list[Any]],
    constant: Callable[[Any], Any],
    opaque: Callable[[Equation], bool] = lambda equation: False,
    enter: Callable[[Equation], None] = lambda equation: None,
    callers: tuple[JaxprEqn, ...] = (),
    skip_empty: bool = False,
) -> list[Any]:
    """The results of a program on `arguments`, which are values of any kind.

    Equations on which no result depends are skipped. Calls are walked, down to the equations inside them.

    Args:
        step: step(equation, values of its operands) gives the values of its results.
        constant: makes a value of an array that the program closes over.
        opaque: whether a call is one step, and not walked.
        enter: called before a call of a function with a custom derivative rule is walked.
        callers: the calls that the program stands in, the outermost first.
        skip_empty: do not walk equations whose results have no entries, nor what only they need: their results are
            made by `constant`.
    """
    if isinstance(program, ClosedJaxpr):
        jaxpr, consts = program.jaxpr, [constant(value) for value in program.consts]
    else:
        jaxpr, consts = program, []
    environment = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    for eqn in _needed(jaxpr, skip_empty):
        if skip_empty and _gives_no_entries(eqn):
            environment.update((var, constant(np.zeros(_shape(var), np.bool_))) for var in eqn.outvars)
            continue
        equation = Equation(eqn, callers)
        inputs = [_read(environment, atom, constant) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in _CALLS and not opaque(equation):
            if equation.has_own_derivative:
                enter(equation)
            inner, inner_callers = eqn.params[_CALLS[name]], (*callers, eqn)
            results = walk(
                inner,
                inputs,
                step=step,
                constant=constant,
                opaque=opaque,
                enter=enter,
                callers=inner_callers,
                skip_empty=skip_empty,
            )
        else:
            results = step(equation, inputs)
        environment.update(zip(eqn.outvars, results, strict=True))
    return [_read(environment, atom, constant) for atom in jaxpr.outvars]


def _read(environment: dict[Any, Any], atom: Any, constant: Callable[[Any], Any]) -> Any:
    return constant(atom.val) if isinstance(atom, Literal) else environment[atom]


def _inner(jaxpr: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _count_unsliced(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many operands, or results, of a loop have as many axes in a step as outside of the loop."""
    return sum(len(outer.aval.shape) == len(inner.aval.shape) for outer, inner in zip(outside, inside, strict=True))


def _with_python_integers(value: Any) -> Any:
    """The static parameter with Python's integers in place of NumPy's, in tuples and named tuples too."""
    if isinstance(value, np.integer):
        return int(value)
    if not isinstance(value, tuple):
        return value
    entries = [_with_python_integers(entry) for entry in value]
    return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)


def _called(eqn: JaxprEqn) -> str:
    """The name of the called function, or an empty string."""
    return str(eqn.params.get("name", ""))


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))


def _gives_no_entries(eqn: JaxprEqn) -> bool:
    """Whether every result is an array with an axis of size 0."""
    return all(0 in _shape(var) for var in eqn.outvars)


def _needed(jaxpr: Jaxpr, skip_empty: bool) -> list[JaxprEqn]:
    """The equations on which the results depend, in order."""
    wanted = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            kept.append(eqn)
            if skip_empty and _gives_no_entries(eqn):
                continue
            wanted.update(atom for atom in eqn.invars if not isinstance(atom, Literal))
    return kept[::-1]


def evaluate(equation: Equation, arrays: Sequence[Any]) -> list[Any]:
    """The results on constants, computed at once if these are known while tracing, so that rules can read them."""
    if not all(is_concrete(array) for array in arrays):
        return equation.bind(*arrays)
    results = known_results(equation.name, equation.source.params, arrays, equation.outputs)
    if results is not None:
        return results
    with jax.ensure_compile_time_eval():
        return equation.bind(*arrays)


def _user_frame(eqn: JaxprEqn) -> Any:
    """The innermost frame outside of `_LIBRARIES`, or None."""
    traceback = eqn.source_info.traceback
    frames: list[Any] = list(traceback.frames) if traceback is not None else []
    return next((frame for frame in frames if not frame.file_name.startswith(_folders(_LIBRARIES))), None)


def _frames_inside_apply(eqn: JaxprEqn) -> list[Any]:
    """The frames of the code that made the equation, the innermost first, down to the call of `apply`."""
    traceback = eqn.source_info.traceback
    frames: list[Any] = list(traceback.frames) if traceback is not None else []
    ours = _folders(("pathjax",))
    return list(itertools.takewhile(lambda frame: not frame.file_name.startswith(ours), frames))


def _folders(packages: Sequence[str]) -> tuple[str, ...]:
    """The folders of those packages that this process has imported."""
    files = [getattr(sys.modules.get(package), "__file__", None) for package in packages]
    return tuple(os.path.dirname(file) + os.sep for file in files if file)
