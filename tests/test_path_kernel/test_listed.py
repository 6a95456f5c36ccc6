"""Products and functions of the spectrum equal those of listed paths."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import tree_flatten_with_path

from pathjax import path_kernel
from pathjax._path_kernel import twin

from .. import networks, oracles
from ..tolerances import EXACT, SUMS

EPSILON = 0.1


class Case(NamedTuple):
    """One network of the table with two sets of weights and a mask."""

    network: networks.Network
    other: Any
    mask: Any
    theta: np.ndarray
    other_theta: np.ndarray
    kept: np.ndarray


def case(name: str) -> Case:
    network, theta, other = networks.build(name), networks.build(name).theta, networks.build(name, 1).theta
    kept = np.random.default_rng(3).random(theta.size) < 0.8
    sizes = np.cumsum([leaf.size for leaf in jax.tree.leaves(network.params)])[:-1]
    structure = jax.tree.structure(network.params)

    def tree(vector: np.ndarray) -> Any:
        pieces = zip(np.split(vector, sizes), jax.tree.leaves(network.params), strict=True)
        return jax.tree.unflatten(structure, [jnp.asarray(piece.reshape(leaf.shape)) for piece, leaf in pieces])

    return Case(network, tree(other), tree(kept), theta, other, kept)


def assert_close(ours: Any, theirs: Any) -> None:
    size = np.max(np.abs(theirs), initial=1e-300)
    np.testing.assert_allclose(ours, theirs, rtol=EXACT, atol=EXACT * size, equal_nan=True)


@pytest.mark.parametrize("name", networks.names())
def test_products_of_parts_equal_those_of_listed_paths(name: str) -> None:
    """(J_θ v)ᵀ of the first leaf times J_θ v at other weights, over the paths to the last output."""
    network, other, mask, theta, other_theta, kept = case(name)
    first = tree_flatten_with_path(network.params)[0][0][0]
    last = len(network.graph.outputs) - 1

    def products(params: Any, other: Any, mask: Any) -> Any:
        options = {"mask": mask, "outputs": [last]}
        left = path_kernel.path_kernel(network.apply, params, network.x, where=lambda path, _: path == first, **options)
        right = path_kernel.path_kernel(network.apply, other, network.x, **options)
        _, unravel = ravel_pytree(params)
        product = twin.cross(left, right)
        rows = jax.vmap(lambda row: ravel_pytree(product(unravel(row)))[0])(jnp.eye(theta.size))
        exponents = jnp.stack([twin.with_exponent(kernel).exponent for kernel in (left, right)]).astype(float)
        return rows.T * jnp.exp2(jnp.floor(exponents.mean()))

    paths = [path for path in networks.listed(name) if path.output == last]
    left, right = (oracles.jacobian(paths, each, kept) for each in (theta, other_theta))
    left = left * (np.arange(theta.size) < jax.tree.leaves(network.params)[0].size)
    assert_close(jax.jit(products)(network.params, other, mask), left.T @ right)


class Found(NamedTuple):
    diagonal: Any
    largest: Any
    log_determinant: Any
    effective_rank: Any
    cosine: Any
    change: Any
    overlap: Any


def found(apply: Any, params: Any, other: Any, mask: Any, x: Any, rank: int) -> Found:
    kernel, second = (path_kernel.path_kernel(apply, each, x, mask=mask) for each in (params, other))
    key = jax.random.key(0)
    pairs, others = (path_kernel.top_eigenpairs(each, rank, key=key) for each in (kernel, second))
    return Found(
        diagonal=ravel_pytree(kernel.diagonal())[0],
        largest=pairs.eigenvalues,
        log_determinant=path_kernel.log_determinant(kernel, EPSILON, key=key).value,
        effective_rank=path_kernel.effective_rank(kernel, key=key).value,
        cosine=path_kernel.cosine(kernel, second, key=key).value,
        change=path_kernel.relative_change(second, kernel, key=key).value,
        overlap=path_kernel.overlap(kernel, pairs, second, others),
    )


def top_space(kernel: np.ndarray, rank: int) -> np.ndarray:
    values, vectors = np.linalg.eigh(kernel)
    assert values[-rank] > 1.01 * values[-rank - 1]
    return vectors[:, -rank:]


def listed(name: str, theta: np.ndarray, other: np.ndarray, kept: np.ndarray, rank: int) -> Found:
    paths = networks.listed(name)
    jacobian, second = (oracles.jacobian(paths, each, kept) for each in (theta, other))
    twin, kernel, other_kernel = jacobian.T @ jacobian, jacobian @ jacobian.T, second @ second.T
    eigenvalues = np.linalg.eigvalsh(twin[np.ix_(kept, kept)])
    bases = [top_space(each, rank) for each in (kernel, other_kernel)]
    return Found(
        np.diag(twin),
        eigenvalues[::-1][:rank],
        np.sum(np.log(eigenvalues + EPSILON)),
        np.trace(twin) ** 2 / np.sum(twin**2),
        np.sum(kernel * other_kernel) / np.linalg.norm(kernel) / np.linalg.norm(other_kernel),
        np.linalg.norm(kernel - other_kernel) / np.linalg.norm(other_kernel),
        np.sum((bases[0].T @ bases[1]) ** 2) / rank,
    )


# dimensions of top eigenspaces which are defined: no eigenvalue of theirs is repeated outside of them
RANKS = {
    "biased_mlp": 2,
    "zero_weights": 3,
    "tied_transpose": 3,
    "residual_dense": 2,
    "batch_norm_dense": 2,
    "max_pool_at_ties": 2,
}


@pytest.mark.parametrize("name", RANKS)
def test_functions_of_small_kernels_equal_those_of_listed_paths(name: str) -> None:
    network, other, mask, theta, other_theta, kept = case(name)
    ours = jax.jit(lambda p, o, m: found(network.apply, p, o, m, network.x, RANKS[name]))(network.params, other, mask)
    theirs = listed(name, theta, other_theta, kept, RANKS[name])
    for mine, exact in zip(ours[:-1], theirs[:-1], strict=True):
        assert_close(mine, exact)
    # a share of 1, which may be zero up to rounding
    np.testing.assert_allclose(ours.overlap, theirs.overlap, rtol=EXACT, atol=SUMS)
