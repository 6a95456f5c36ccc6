"""The traced network: every public function traces `apply` once and hands the result on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pathjax._interpreter.examples import mixtures
from pathjax._interpreter.jaxpr import Program, Refusal, check_batch, check_floating, trace
from pathjax._interpreter.rules import tied_leaves
from pathjax.types import ApplyFn, Params, XLike

__all__ = ["TracedNetwork", "traced"]


class TracedNetwork:
    """A network `apply(params, x)`, whose program is traced once for each shape of inputs and then remembered.

    It is itself an `apply`: on weights and inputs of the traced types it evaluates the program, so that functions which
    take an `apply` do not trace the user's again. Two traced networks are equal if they have the same function, the
    same tree of parameters and the same leaf types; what JAX compiled for one is then reused for the other.

    Attributes:
        apply: the function that was traced.
        structure: the tree of the parameters.
        leaf_types: shape and dtype of each parameter leaf.
    """

    def __init__(self, apply: ApplyFn, params: Params) -> None:
        leaves, structure = jax.tree.flatten(params)
        self.apply = apply
        self.structure: Any = structure
        self.leaf_types = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        self._programs: dict[Any, Program] = {}
        self._mixtures: dict[Any, list[Refusal]] = {}
        self._tied: dict[Any, frozenset[int]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedNetwork) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        weights = sum(leaf.size for leaf in self.leaf_types)
        return f"TracedNetwork({getattr(self.apply, '__name__', type(self.apply).__name__)}, weights={weights:,})"

    @property
    def _identity(self) -> tuple[Any, ...]:
        return self.apply, self.structure, tuple((leaf.shape, leaf.dtype) for leaf in self.leaf_types)

    def __call__(self, params: Params, x: Any) -> Any:
        """The outputs (n, o). For weights of other types than the traced ones it calls `apply`."""
        if not self.takes(params):
            return self.apply(params, x)
        return self.program(x).evaluate(jax.tree.leaves(params), x)

    def takes(self, params: Params) -> bool:
        """Whether `params` has the tree and the leaf types for which the network is traced."""
        leaves, structure = jax.tree.flatten(params)
        return structure == self.structure and all(
            jnp.shape(leaf) == like.shape and jnp.result_type(leaf) == like.dtype
            for leaf, like in zip(leaves, self.leaf_types, strict=True)
        )

    def program(self, x: XLike) -> Program:
        """The program for a batch of this shape and type. Raises ValueError unless the outputs are (n, o)."""
        key = _program_key(x)
        if key not in self._programs:
            shape, dtype, _ = key
            like = jax.tree.unflatten(self.structure, self.leaf_types)
            self._programs[key] = trace(self.apply, like, jax.ShapeDtypeStruct(shape, dtype))
        return self._programs[key]

    def path_program(self, x: XLike) -> Program:
        """The program for a batch of this shape, checked to be one that paths can be defined for.

        Raises UnsupportedPrimitive if an equation mixes examples, and ValueError if weights or inputs are not of a
        floating-point type.
        """
        check_batch(x)
        check_floating(jax.tree.unflatten(self.structure, self.leaf_types), x)
        program = self.program(x)
        for refusal in self.mixtures(x):
            raise refusal.error
        return program

    def mixtures(self, x: XLike) -> list[Refusal]:
        """Every equation that mixes the examples of a batch. A batch of one cannot show it, so two are traced then."""
        key = _program_key(jax.ShapeDtypeStruct((max(2, x.shape[0]), *x.shape[1:]), x.dtype))
        if key not in self._mixtures:
            self._mixtures[key] = mixtures(self.program(jax.ShapeDtypeStruct(*key[:2])))
        return self._mixtures[key]

    def tied(self, x: XLike) -> frozenset[int]:
        """Positions of the parameter leaves that some path may meet more than once.

        Raises UnsupportedPrimitive where a layer is not piecewise linear.
        """
        key = _program_key(x)
        if key not in self._tied:
            self._tied[key] = tied_leaves(self.path_program(x))
        return self._tied[key]


def traced(apply: ApplyFn, params: Params) -> TracedNetwork:
    """`apply` as a traced network; `apply` itself if it is one already, for such parameters."""
    if isinstance(apply, TracedNetwork) and apply.takes(params):
        return apply
    return TracedNetwork(apply, params)


def _program_key(x: XLike) -> tuple[tuple[int, ...], Any, Any]:
    """What a program depends on: the shape and dtype of x, and JAX's default precision of matrix products."""
    check_batch(x)
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return tuple(x.shape), jax.dtypes.canonicalize_dtype(x.dtype), precision
