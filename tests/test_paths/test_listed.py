"""Path sums without listing equal the sums over the oracle's listed paths, on every network of the table."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import path_kernel, paths
from pathjax._interpreter import lifting
from pathjax._interpreter.traced import traced

from .. import networks, oracles
from ..tolerances import EXACT

NAMES = networks.names()
MASKED = [(name, masked) for name in NAMES for masked in (False, True)]


class Sums(NamedTuple):
    log_norms: Any
    log_count: Any
    open_sums: Any
    data_sums: Any
    share: Any
    outputs: Any
    twin: Any
    diagonal: Any
    trace: Any


def everything(apply: Any, params: Any, x: Any, mask: Any) -> Sums:
    """All path quantities of one network, in one program."""
    kernel = path_kernel.path_kernel(apply, params, x, mask=mask)
    flat, unravel = ravel_pytree(params)
    columns = jax.vmap(lambda row: ravel_pytree(kernel.matvec(unravel(row)))[0])(jnp.eye(flat.size))
    derivative = jax.grad(lambda p: paths.log_path_norm(apply, p, x, q=2, mask=mask))(params)
    kept = jax.tree.map(lambda m, p: jnp.where(m, p, 0), mask, params)
    return Sums(
        log_norms=jnp.stack([paths.log_path_norm(apply, params, x, q=q, mask=mask) for q in (1, 2)]),
        log_count=paths.log_path_count(apply, params, x, mask=mask),
        open_sums=jnp.stack([paths.path_sum(apply, params, x, q=q, mask=mask) for q in (1, 2)]),
        data_sums=jnp.stack([paths.path_sum(apply, params, x, q=q, mask=mask, gates="data") for q in (1, 2)]),
        share=ravel_pytree(derivative)[0] * flat / 2,
        outputs=lifting.lift(traced(apply, kept).path_program(x), kept, x, phi=lambda v: v, points=[(kept, x)]).value(),
        twin=columns,
        diagonal=ravel_pytree(kernel.diagonal())[0],
        trace=kernel.trace(),
    )


def mask_of(network: networks.Network, masked: bool) -> tuple[Any, np.ndarray]:
    """A mask as a tree and as a vector: everything, or about two thirds of the weights."""
    flat, unravel = ravel_pytree(network.params)
    kept = np.random.default_rng(7).random(flat.size) < (0.67 if masked else 1.1)
    return jax.tree.map(lambda leaf: leaf > 0.5, unravel(jnp.asarray(kept, flat.dtype))), kept


@cache
def program(name: str) -> Any:
    apply = networks.build(name).apply
    return jax.jit(lambda params, x, mask: everything(apply, params, x, mask))


@cache
def computed(name: str, masked: bool) -> Sums:
    network = networks.build(name)
    return jax.tree.map(np.asarray, program(name)(network.params, network.x, mask_of(network, masked)[0]))


def assert_close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=EXACT, atol=EXACT * max(1e-300, np.max(np.abs(theirs), initial=0.0)))


def log(number: float) -> float:
    return np.log(number) if number > 0 else -np.inf


@pytest.mark.parametrize(("name", "masked"), MASKED)
def test_norms_and_counts_equal_those_of_listed_paths(name: str, masked: bool) -> None:
    network, listed, sums = networks.build(name), networks.listed(name), computed(name, masked)
    _, mask = mask_of(network, masked)
    norms = [log(oracles.path_norm(listed, network.theta, q, mask)) for q in (1, 2)]
    np.testing.assert_allclose(sums.log_norms, norms, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(sums.log_count, log(oracles.path_count(listed, mask)), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("name", "masked"), MASKED)
@pytest.mark.parametrize("gates", ["open", "data"])
def test_sums_per_output_equal_those_of_listed_paths(name: str, masked: bool, gates: str) -> None:
    network, listed, sums = networks.build(name), networks.listed(name), computed(name, masked)
    _, mask = mask_of(network, masked)
    x = np.asarray(network.x)
    for q, ours in zip((1, 2), {"open": sums.open_sums, "data": sums.data_sums}[gates], strict=True):
        theirs = oracles.path_sum(network.graph, listed, network.theta, x, q=q, gates=gates, mask=mask)
        assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "masked"), MASKED)
def test_sum_of_signed_paths_is_the_network(name: str, masked: bool) -> None:
    network = networks.build(name)
    mask, _ = mask_of(network, masked)
    kept = jax.tree.map(lambda m, p: jnp.where(m, p, 0), mask, network.params)
    assert_close(computed(name, masked).outputs, np.asarray(network.apply(kept, network.x)))


@pytest.mark.parametrize(("name", "masked"), MASKED)
def test_derivative_is_the_share_of_paths_through_each_weight(name: str, masked: bool) -> None:
    network, listed = networks.build(name), networks.listed(name)
    _, mask = mask_of(network, masked)
    norm = oracles.path_norm(listed, network.theta, 2, mask)
    share = oracles.path_mass(listed, network.theta, 2, mask) / norm if norm > 0 else np.zeros(len(network.theta))
    assert_close(computed(name, masked).share, share)


@pytest.mark.parametrize(("name", "masked"), MASKED)
def test_path_kernel_equals_that_of_listed_paths(name: str, masked: bool) -> None:
    network, listed, sums = networks.build(name), networks.listed(name), computed(name, masked)
    _, mask = mask_of(network, masked)
    twin = oracles.twin(listed, network.theta, mask)
    assert_close(sums.twin, twin)
    assert_close(sums.diagonal, np.diag(twin))
    assert_close(sums.trace, np.trace(twin))


def test_eager_sums_equal_jitted_ones() -> None:
    network = networks.build("leaky_mlp")
    mask, _ = mask_of(network, True)
    jitted = computed("leaky_mlp", True)
    assert_close(paths.log_path_norm(network.apply, network.params, network.x, mask=mask), jitted.log_norms[0])
    data = paths.path_sum(network.apply, network.params, network.x, q=2, mask=mask, gates="data")
    assert_close(data, jitted.data_sums[1])


def test_vmapped_sums_equal_single_ones() -> None:
    network = networks.build("leaky_mlp")
    mask, _ = mask_of(network, True)
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), network.params, networks.build("leaky_mlp", 1).params)
    over_seeds = jax.jit(jax.vmap(lambda p: everything(network.apply, p, network.x, mask)))(stacked)
    jax.tree.map(lambda a, b: assert_close(a[0], b), over_seeds, computed("leaky_mlp", True))
    assert np.all(np.abs(over_seeds.log_norms[0] - over_seeds.log_norms[1]) > 1e-3)
