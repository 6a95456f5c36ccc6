"""A network in Flax NNX, as an example to copy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import jax
from flax import nnx

from experiments.networks.layers import RESHAPES, State
from pathjax.types import Key, Params

__all__ = ["nnx_fully_connected"]


def nnx_fully_connected(
    shape: tuple[int, ...], outputs: int, *, width: int, batch_norm: bool = True
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """`init`, `apply` and `train` of `Network`, of a network in Flax NNX: one hidden layer, as an example to copy."""

    def make(rngs: nnx.Rngs) -> nnx.Module:
        norm: list[Any] = [nnx.BatchNorm(width, rngs=rngs)] if batch_norm else []
        layers: list[Any] = [nnx.Linear(math.prod(shape), width, rngs=rngs), *norm, nnx.relu]
        return nnx.Sequential(RESHAPES["flatten"], *layers, nnx.Linear(width, outputs, rngs=rngs))

    def split(module: nnx.Module) -> Any:
        return nnx.split(module, nnx.Param, ...)

    graph, _, _ = split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key: Key) -> tuple[Params, State]:
        _, params, state = split(make(nnx.Rngs(key)))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def merged(params: Params, state: State, *, train: bool) -> Any:
        module = nnx.merge(graph, nnx.State(params), nnx.State(state))
        module.set_attributes(use_running_average=not train, raise_if_not_found=False)
        return module

    def apply(params: Params, state: State, x: jax.Array) -> jax.Array:
        return cast(jax.Array, merged(params, state, train=False)(x))

    def train(params: Params, state: State, x: jax.Array) -> tuple[jax.Array, State]:
        module = merged(params, state, train=True)
        outputs = module(x)
        return outputs, nnx.to_pure_dict(split(module)[2])

    return init, apply, train
