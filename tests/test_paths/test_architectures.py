"""Whole networks of four frameworks: their open sums, written by hand in the framework, are the sums over paths."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import paths

from .. import architectures
from ..tolerances import EXACT

NAMES = list(architectures.ARCHITECTURES)


def powers(params: Any, q: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.abs(leaf) ** q, params)


def assert_close(ours: Any, theirs: Any) -> None:
    scale = max(1e-300, np.max(np.abs(theirs), initial=0.0))
    np.testing.assert_allclose(ours, theirs, rtol=EXACT, atol=EXACT * scale)


# Not compiled as a whole, which takes long for deep networks: each operation is compiled once for all its layers.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("q", [1, 2])
def test_path_norm_is_the_networks_open_sum(name: str, q: int) -> None:
    network = architectures.build(name)
    ones = jnp.ones_like(network.x[:1])
    opened = np.asarray(network.opened(q)(powers(network.params, q), ones))
    assert_close(paths.log_path_norm(network.apply, network.params, network.x, q=q), np.log(opened.sum()))
    assert_close(paths.path_sum(network.apply, network.params, ones, q=q), opened)


@pytest.mark.parametrize("name", NAMES)
def test_sum_of_signed_paths_is_the_network_and_has_its_jacobian(name: str) -> None:
    network = architectures.build(name)
    point = (network.params, network.x)

    def signed(params: Any) -> Any:
        return paths.lift(network.apply, params, network.x, phi=lambda v: v, points=[point]).value()

    ours, pull_ours = jax.vjp(signed, network.params)
    theirs, pull_theirs = jax.vjp(lambda params: network.apply(params, network.x), network.params)
    assert_close(ours, theirs)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=theirs.shape))
    jax.tree.map(assert_close, pull_ours(cotangent), pull_theirs(cotangent))
