"""The traced network: every public function traces `apply` once and hands the result on."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp

from pathjax._interpreter.examples import mixtures, raise_first
from pathjax._interpreter.jaxpr import Program, Refusal, check_batch, check_floating, trace
from pathjax._interpreter.rules import tied_leaves
from pathjax.types import ApplyFn, Params, XLike

__all__ = ["TracedNetwork", "traced"]


class TracedNetwork:
    """A network `apply(params, x)`, whose program is traced once for each shape of its arguments and then remembered.

    It is itself an `apply`: a call evaluates the remembered program, so functions that take an `apply` do not trace the
    user's again; `apply` must be pure, as under `jax.jit`. Two traced networks are equal if they have the same
    function, tree of parameters and leaf types; what JAX compiled for one is then reused for the other.

    Attributes:
        apply: the function that is traced.
        structure: the tree of the parameters.
        leaf_types: shape and dtype of each parameter leaf.
    """

    def __init__(self, apply: ApplyFn, params: Params) -> None:
        leaves, structure = jax.tree.flatten(params)
        self.apply = apply
        self.structure: Any = structure
        self.leaf_types = tuple(map(_type_of, leaves))
        self._programs: dict[Hashable, Program] = {}  # by the types of the arguments and the precision of products
        self._outputs: dict[Hashable, jax.ShapeDtypeStruct] = {}  # by the types of the arguments
        self._mixtures: dict[Hashable, list[Refusal]] = {}  # by the program
        self._tied: dict[Hashable, frozenset[int]] = {}  # by the program

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedNetwork) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        weights = sum(leaf.size for leaf in self.leaf_types)
        return (
            f"TracedNetwork({getattr(self.apply, '__qualname__', type(self.apply).__qualname__)}, weights={weights:,})"
        )

    @property
    def _identity(self) -> Hashable:
        return self.apply, self.structure, tuple((leaf.shape, leaf.dtype) for leaf in self.leaf_types)

    @property
    def params_like(self) -> Params:
        """Shape and dtype of each parameter leaf, as a tree like the parameters."""
        return jax.tree.unflatten(self.structure, self.leaf_types)

    def __call__(self, params: Params, x: Any) -> Any:
        """The outputs (n, o), for weights and inputs of any shapes and types that `apply` takes."""
        return self.program(x, params)(params, x)

    def takes(self, params: Params) -> bool:
        """Whether these parameters have the tree and the types of those that the network was made for."""
        return _types(params, None) == _types(self.params_like, None)

    def program(self, x: XLike, params: Params | None = None) -> Program:
        """The program for a batch of this shape and type, and for weights like those that the network was made for.

        Products in it have the precision that is JAX's default at this moment. With `params`, it is that for weights of
        their types. Raises ValueError unless the outputs are (n, o).
        """
        types, precision = self._key(x, params), jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        if (types, precision) not in self._programs:
            check_batch(x)
            batch = jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
            # types alone, so that weakly typed leaves (plain numbers) count as arrays of their type
            params_like = self.params_like if params is None else jax.tree.map(_type_of, params)
            program = trace(self.apply, params_like, batch)
            self._programs[types, precision], self._outputs[types] = program, program.output
        return self._programs[types, precision]

    def output(self, x: XLike, params: Params | None = None) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the outputs (n, o) for such arguments. Raises ValueError unless they are (n, o)."""
        types = self._key(x, params)
        return self._outputs[types] if types in self._outputs else self.program(x, params).output

    def has_traced(self, x: XLike, params: Params | None = None) -> bool:
        """Whether `apply` has been traced for arguments of these shapes and types."""
        return self._key(x, params) in self._outputs

    def _key(self, x: XLike, params: Params | None) -> Hashable:
        return _types(self.params_like if params is None else params, x)

    def path_program(self, x: XLike) -> Program:
        """The program for a batch of this shape, checked to be one that paths can be defined for.

        Raises UnsupportedPrimitive if an equation mixes examples, and ValueError if weights or inputs are not of a
        floating-point type.
        """
        check_batch(x)
        check_floating(self.params_like, x)
        program = self.program(x)
        raise_first(program, self.mixtures(x))
        return program

    def mixtures(self, x: XLike) -> list[Refusal]:
        """Every equation that mixes the examples of a batch. One example cannot show it: two are traced then."""
        batch = jax.ShapeDtypeStruct((max(2, x.shape[0]), *x.shape[1:]), x.dtype)
        key = self._key(batch, None)
        if key not in self._mixtures:
            self._mixtures[key] = mixtures(self.program(batch))
        return self._mixtures[key]

    def tied(self, x: XLike) -> frozenset[int]:
        """Positions of the parameter leaves that some path may meet more than once.

        Raises UnsupportedPrimitive where a layer is not piecewise linear.
        """
        key = self._key(x, None)
        if key not in self._tied:
            self._tied[key] = tied_leaves(self.path_program(x))
        return self._tied[key]


def traced(apply: ApplyFn, params: Params) -> TracedNetwork:
    """`apply` as a traced network; `apply` itself if it is one already, for such parameters."""
    if isinstance(apply, TracedNetwork) and apply.takes(params):
        return apply
    return TracedNetwork(apply, params)


def _type_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _types(params: Params, x: Any) -> Hashable:
    """What decides a program: tree, shapes and types of its arguments."""
    leaves, structure = jax.tree.flatten((params, x))
    return structure, tuple((jnp.shape(leaf), jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))) for leaf in leaves)
