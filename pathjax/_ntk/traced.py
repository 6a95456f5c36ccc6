"""A network that calls its function `apply` once for each shape of input, however often it is evaluated itself."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pathjax._interpreter.jaxpr import Program
from pathjax.types import ApplyFn, Params

__all__ = ["Traced", "TracedNetwork"]


@dataclass(frozen=True)
class Traced:
    """A network for weights and inputs of certain shapes and dtypes.

    Attributes:
        program: its equations.
        outputs: the shape and the dtype of its outputs, or a pytree of these.
    """

    program: Program
    outputs: Any

    def __call__(self, params: Params, x: Any) -> Any:
        """`apply(params, x)`, without a call of `apply`."""
        results = self.program.results([jnp.asarray(leaf) for leaf in jax.tree.leaves(params)], jnp.asarray(x))
        return jax.tree.unflatten(jax.tree.structure(self.outputs), results)


class TracedNetwork:
    """The function `apply` of weights and inputs, traced at its first call for each shape and dtype of its arguments.

    All later calls evaluate the program that this has given, so `apply` must be pure, as under `jax.jit`. Two networks
    are equal where their functions are, so that a kernel which holds one can be an argument of compiled functions.
    """

    def __init__(self, apply: ApplyFn) -> None:
        self.apply = apply
        self._traced: dict[Hashable, Traced] = {}
        self._outputs: dict[Hashable, Any] = {}

    def __call__(self, params: Params, x: Any) -> Any:
        """`apply(params, x)`."""
        return self.at(params, x)(params, x)

    def at(self, params: Params, x_like: Any) -> Traced:
        """The network for arguments like these; of `x_like` the shape and the dtype are read.

        Its products of matrices have the precision that is JAX's default at this moment.
        """
        kind, precision = _kind(params, x_like), jax.default_matmul_precision.value
        if (kind, precision) not in self._traced:
            batch = jax.ShapeDtypeStruct(x_like.shape, jax.dtypes.canonicalize_dtype(x_like.dtype))
            closed, outputs = jax.make_jaxpr(self.apply, return_shape=True)(params, batch)
            self._traced[kind, precision] = Traced(Program(closed), outputs)
            self._outputs[kind] = outputs
        return self._traced[kind, precision]

    def outputs(self, params: Params, x_like: Any) -> Any:
        """The shape and the dtype of `apply(params, x)`."""
        kind = _kind(params, x_like)
        return self._outputs[kind] if kind in self._outputs else self.at(params, x_like).outputs

    def has_traced(self, params: Params, x_like: Any) -> bool:
        """Whether `apply` has been called for arguments like these."""
        return _kind(params, x_like) in self._outputs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedNetwork) and bool(self.apply == other.apply)

    def __hash__(self) -> int:
        return hash(self.apply)

    def __repr__(self) -> str:
        return f"TracedNetwork({getattr(self.apply, '__qualname__', type(self.apply).__qualname__)})"


def _kind(params: Params, x: Any) -> Hashable:
    return (jax.tree.structure(params), *(_type(leaf) for leaf in (*jax.tree.leaves(params), x)))


def _type(leaf: Any) -> Hashable:
    return jnp.shape(leaf), jnp.result_type(leaf), bool(getattr(leaf, "weak_type", isinstance(leaf, int | float)))
