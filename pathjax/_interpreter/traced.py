"""The traced network: every public function traces `apply` once and hands the result on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pathjax._base.arguments import call_note, check_call
from pathjax._base.leaves import ChosenLeaves
from pathjax._base.network import check_apart, check_arrays
from pathjax._base.programs import Kept, kept_for, reference
from pathjax._base.trees import in_own_containers, key_paths
from pathjax._base.weights import check_weights
from pathjax._interpreter.examples import mixtures, raise_first
from pathjax._interpreter.jaxpr import (
    Program,
    Refusal,
    Trace,
    batch_length,
    check_batch,
    check_floating,
    is_concrete,
    trace,
    with_rows_of_outputs,
)
from pathjax._interpreter.kernels import kernel_leaves
from pathjax._interpreter.rules import tied_leaves
from pathjax.types import ApplyFn, Params, State, XLike

__all__ = ["TracedNetwork", "traced"]

# The settings of JAX that decide what a network is traced to, or whether it can be traced.
_SETTINGS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
)


class _Traces(Kept):
    """What was traced of a network for parameters of one tree and of certain types, and what was compiled of it."""

    def __init__(self, structure: Any, leaf_types: tuple[jax.ShapeDtypeStruct, ...]) -> None:
        super().__init__()
        self.structure = structure
        self.leaf_types = leaf_types
        # these by the types of the arguments and by the settings of JAX that decide a trace
        self.whole: dict[Hashable, Trace] = {}
        self.rows: dict[Hashable, Any] = {}
        # these by the types of the arguments alone
        self.row_types: dict[Hashable, jax.ShapeDtypeStruct] = {}
        self.mixtures: dict[Hashable, list[Refusal]] = {}
        self.tied: dict[Hashable, frozenset[int]] = {}
        self.kernels: dict[Hashable, ChosenLeaves] = {}
        self.facts: dict[Hashable, Any] = {}


@jax.tree_util.register_pytree_node_class
class TracedNetwork:
    """A network `apply(params, x)`, or with a state `apply(params, state, x)`, as one value that is handed on.

    Its program is traced once for each shape of its arguments and then remembered, as long as the function lives, for
    functions of equal content too; `apply` must be pure, as under `jax.jit`. It is itself an `apply`: a call evaluates
    the remembered program, so functions that take an `apply` do not trace the user's again.

    A pytree, whose leaves are the state's. Two traced networks are equal if their functions have equal content and
    their parameters the same tree and types; what JAX compiled for one is then used for the other.

    Attributes:
        apply: the function that is traced.
        state: what it reads besides weights and inputs; None where it takes none.
    """

    def __init__(self, apply: ApplyFn, params: Params, state: State = None) -> None:
        check_weights(params)
        check_arrays("state", state, "Keep functions and settings in `apply`, and pass the arrays alone.")
        leaves, structure = jax.tree.flatten(params)
        self.apply = apply
        self.state = in_own_containers(state)
        self._traces = kept_for(apply, _Traces, structure, tuple(map(_type_of, leaves)))

    def tree_flatten(self) -> tuple[tuple[Any], _Static]:
        return (self.state,), _Static(self.apply, self._traces)

    @classmethod
    def tree_unflatten(cls, static: _Static, children: tuple[Any]) -> TracedNetwork:
        network = object.__new__(cls)
        network.apply, network._traces = static.apply, static.traces
        (network.state,) = children
        return network

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedNetwork) and self._traces is other._traces

    def __hash__(self) -> int:
        return hash(self._traces)

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedNetwork:
        return self  # nothing in it changes, and JAX's programs cannot be copied

    def __repr__(self) -> str:
        weights = sum(leaf.size for leaf in self._traces.leaf_types)
        return (
            f"TracedNetwork({getattr(self.apply, '__qualname__', type(self.apply).__qualname__)}, weights={weights:,})"
        )

    @property
    def params_like(self) -> Params:
        """Shape and dtype of each parameter leaf, as a tree like the parameters."""
        return jax.tree.unflatten(self._traces.structure, self._traces.leaf_types)

    def __call__(self, params: Params, x: Any) -> Any:
        """The outputs (n, o), for weights and inputs of any shapes and types that `apply` takes."""
        return self.program(x, params)(params, x)

    def outputs(self, params: Params, x: Any) -> Any:
        """What `apply` returns, of any shape."""
        return self._whole(x, params)(params, self.state, x)

    def outputs_like(self, x: Any, params: Params | None = None) -> Any:
        """Shape and dtype of each array that `apply` returns."""
        return self._whole(x, params).result

    def check_outputs(self, params: Params, x: Any, name: str) -> None:
        """Raise ValueError unless the outputs are rows (n, o), each of which depends on its example alone.

        The second is tested by running the network on each example alone, not while tracing.
        """
        self.program(x, params)
        known = all(map(is_concrete, jax.tree.leaves((params, self.state, x))))
        if batch_length(x) > 1 and known:
            gap, largest = self.compiled(_gap_to_examples_alone)(params, x)
            check_apart(gap, largest, name)

    def compiled(self, program: Callable[..., Any], **static: Hashable) -> Callable[..., Any]:
        """program(network, *arguments, **static) as a function of the arguments, compiled once for their types.

        `program` must be a function of a module, not one made in the call. The arguments may hold this network.
        """

        def run(*arguments: Any) -> Any:
            self._traces.function = reference(self.apply)
            # JAX keeps the trees of the arguments, and would keep the network in them alive
            slots = jax.tree.map(
                lambda node: _Slot(node.state) if _is_network(node) else node, arguments, is_leaf=_is_network
            )
            return self._traces.compiled(_run, program=program, **static)(self.state, *slots)

        return run

    @property
    def facts(self) -> dict[Hashable, Any]:
        """What has been found out about the network, by what it was asked."""
        return self._traces.facts

    def takes(self, params: Params) -> bool:
        """Whether these parameters have the tree and the types of those that the network was made for."""
        return _types(params) == _types(self.params_like)

    def program(self, x: Any, params: Params | None = None) -> Program:
        """The program for a batch of this shape and type, and for weights like those that the network was made for.

        Products in it have the precision that is JAX's default at this moment. With `params`, it is that for weights of
        their types. Raises ValueError unless the outputs are one array of a row for each example; those of more axes
        than (n, o) are brought into rows.
        """
        key, rows = self._key(x, params), self._traces.rows
        if key not in rows:
            rows[key] = with_rows_of_outputs(self._whole(x, params), x)
            (row_type,) = rows[key].out_avals
            self._traces.row_types[key.types] = jax.ShapeDtypeStruct(row_type.shape, row_type.dtype)
        state = tuple(jnp.asarray(leaf) for leaf in jax.tree.leaves(self.state))
        return Program(rows[key], state, len(jax.tree.leaves(x)))

    def output(self, x: Any, params: Params | None = None) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the outputs (n, o) for such arguments. Raises ValueError unless they are (n, o)."""
        types = self._key(x, params).types
        return self._traces.row_types.get(types) or self.program(x, params).output

    def has_traced(self, x: Any, params: Params | None = None) -> bool:
        """Whether `apply` has been traced for arguments of these shapes and types."""
        return self._key(x, params).types in self._traces.row_types

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
        key = self._key(batch, None).types
        if key not in self._traces.mixtures:
            self._traces.mixtures[key] = mixtures(self.program(batch))
        return self._traces.mixtures[key]

    def tied(self, x: XLike) -> frozenset[int]:
        """Positions of the parameter leaves that some path may meet more than once.

        Raises UnsupportedPrimitive where a layer is not piecewise linear.
        """
        key = self._key(x, None).types
        if key not in self._traces.tied:
            program = self.path_program(x)

            def walk_with(state: tuple[Any, ...]) -> None:
                self._traces.tied[key] = tied_leaves(dataclasses.replace(program, state=state))

            jax.eval_shape(walk_with, program.state)  # shapes suffice: the constants of the state are not computed
        return self._traces.tied[key]

    def kernels(self, x: Any, params: Params | None = None) -> ChosenLeaves:
        """The parameter leaves that are kernels: they multiply activations, and the products are summed over."""
        key = self._key(x, params).types
        if key not in self._traces.kernels:
            names = key_paths(self.params_like)
            # of outputs of any shape: neither sums over them nor their axes decide
            equations = self._whole(x, params).closed
            positions = kernel_leaves(Program(equations, tuple(jax.tree.leaves(self.state)), len(jax.tree.leaves(x))))
            self._traces.kernels[key] = ChosenLeaves(frozenset(names[i] for i in positions))
        return self._traces.kernels[key]

    def _whole(self, x: Any, params: Params | None) -> Trace:
        """The network as `apply` gives it, with outputs of any shape."""
        key, whole = self._key(x, params), self._traces.whole
        if key not in whole:
            check_call(self.apply, has_state=self.state is not None)
            batch_length(x)
            params_like = self.params_like if params is None else params
            # types alone, so that weakly typed leaves (plain numbers) count as arrays of their type
            likes = [jax.tree.map(_type_of, tree) for tree in (params_like, self.state, x)]
            self._traces.function = reference(self.apply)
            before = self._traces.content_key()
            try:
                whole[key] = trace(self.apply, *(likes if self.state is not None else (likes[0], likes[2])))
            except Exception as error:
                error.add_note(call_note(error, self.apply, likes[2], has_state=self.state is not None))
                raise
            self._traces.find_again(before)
        return whole[key]

    def _key(self, x: Any, params: Params | None) -> _Key:
        arguments = self.params_like if params is None else params, self.state, x
        # with 64 bits or without, what `apply` converts to a type of its own has another one
        has_64_bits = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
        return _Key(
            (_types(arguments), self.state is None, has_64_bits), tuple(getattr(jax.config, name) for name in _SETTINGS)
        )


class _Key(NamedTuple):
    """What decides a trace: the types of the arguments, and settings of JAX."""

    types: Hashable
    settings: Hashable


class _Static:
    """What of a traced network is no array: equal where what was traced is the same."""

    def __init__(self, apply: ApplyFn, traces: _Traces) -> None:
        self.apply, self.traces = apply, traces

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.traces is other.traces

    def __hash__(self) -> int:
        return hash(self.traces)


@jax.tree_util.register_pytree_node_class
class _Slot:
    """The place of the network among the arguments of a compiled program, with its state."""

    def __init__(self, state: State) -> None:
        self.state = state

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        return (self.state,), None

    @classmethod
    def tree_unflatten(cls, static: None, children: tuple[Any]) -> _Slot:
        return cls(*children)


def _is_network(node: Any) -> bool:
    return isinstance(node, TracedNetwork)


def _run(traces: _Traces, state: State, *arguments: Any, program: Callable[..., Any], **static: Any) -> Any:
    fixed = _Static(traces.function(), traces)

    def with_network(node: Any) -> Any:
        return TracedNetwork.tree_unflatten(fixed, (node.state,)) if isinstance(node, _Slot) else node

    network, *filled = jax.tree.map(
        with_network, (_Slot(state), *arguments), is_leaf=lambda node: isinstance(node, _Slot)
    )
    return program(network, *filled, **static)


def _gap_to_examples_alone(network: TracedNetwork, params: Params, x: Any) -> tuple[jax.Array, jax.Array]:
    """How far outputs of examples in a batch differ from those alone, and the largest output."""
    together = network(params, x)
    alone = jax.vmap(lambda example: network(params, jax.tree.map(lambda leaf: leaf[None], example))[0])(x)
    return jnp.max(jnp.abs(together - alone), initial=0.0), jnp.max(jnp.abs(together), initial=0.0)


def traced(apply: ApplyFn, params: Params, state: State = None) -> TracedNetwork:
    """`apply` as a traced network; `apply` itself if it is one already, for such parameters."""
    if isinstance(apply, TracedNetwork):
        return apply if apply.takes(params) else TracedNetwork(apply.apply, params, apply.state)
    return TracedNetwork(apply, params, state)


def _type_of(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = jnp.result_type(leaf)
    is_extended = jnp.issubdtype(dtype, jax.dtypes.extended)  # such as that of random keys
    return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype if is_extended else jax.dtypes.canonicalize_dtype(dtype))


def _types(tree: Any) -> Hashable:
    """What decides a program: tree, shapes and types of its arguments."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(map(_type_of, leaves))
