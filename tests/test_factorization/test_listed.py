"""The factorization against listed paths, on the whole table of small networks, with masks."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pathjax import factorization, path_kernel, paths

from .. import networks, oracles
from ..tolerances import EXACT, SUMS


class Case(NamedTuple):
    """A masked network of the table, its factorization at full rank, and the same from the list of its paths."""

    found: factorization.Factorization
    mask: Any
    activations: np.ndarray
    jacobian: np.ndarray
    gram: np.ndarray
    kernel: np.ndarray
    parts: list[np.ndarray]

    @property
    def twin(self) -> np.ndarray:
        return self.jacobian.T @ self.jacobian


@cache
def case(name: str) -> Case:
    network, listed = networks.build(name), networks.listed(name)
    x, flat = np.asarray(network.x), network.theta
    kept = np.random.default_rng(3).random(flat.size) < 0.8
    kept[0] = True
    _, unravel = ravel_pytree(network.params)
    mask = jax.tree.map(lambda leaf: leaf > 0.5, unravel(jnp.asarray(kept, flat.dtype)))

    @jax.jit
    def found(params: Any, x: Any) -> Any:
        rank = int(kept.sum())
        return factorization.factorize(network.apply, params, x, rank=rank, key=jax.random.key(0), mask=mask)

    activations = oracles.activations(network.graph, listed, flat, x, kept)
    jacobian = oracles.jacobian(listed, flat, kept)
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(network.params)])
    parts = [np.einsum("iap,jbp->ijab", part, part) for part in np.split(activations @ jacobian, ends[:-1], axis=2)]
    there = activations * oracles.is_kept(listed, kept)
    return Case(
        found(network.params, network.x),
        mask,
        activations,
        jacobian,
        gram=np.einsum("nok,mok->nmo", there, there),
        kernel=np.sum(parts, axis=0),
        parts=parts,
    )


def largest(of: Case) -> list[float]:
    """Largest eigenvalue and trace of Θ, of Π and of K_v."""
    n, _, o, _ = of.kernel.shape
    ntk = np.linalg.eigvalsh(np.swapaxes(of.kernel, 1, 2).reshape(n * o, n * o))
    path = np.linalg.eigvalsh(of.twin)
    grams = np.linalg.eigvalsh(np.moveaxis(of.gram, 2, 0))
    return [ntk[-1], ntk.sum(), path[-1], path.sum(), grams.max(), grams.sum()]


def close(actual: Any, exact: Any) -> None:
    """Equal to 1e-9 of the largest entry."""
    exact = np.asarray(exact)
    np.testing.assert_allclose(actual, exact, rtol=0, atol=EXACT * max(np.abs(exact).max(), 1e-300))


@pytest.mark.parametrize("name", networks.covering())
def test_recomposed_kernel_is_that_of_listed_paths(name: str) -> None:
    of = case(name)
    close(factorization.recompose(of.found), of.kernel)


@pytest.mark.parametrize("name", networks.covering())
def test_eigenvalues_are_those_of_listed_paths(name: str) -> None:
    of = case(name)
    exact = np.linalg.eigvalsh(of.twin)[::-1][: len(of.found.eigenvalues)]
    close(of.found.eigenvalues, exact)


@pytest.mark.parametrize("name", networks.covering())
def test_traces_are_those_of_listed_paths_layer_by_layer(name: str) -> None:
    of = case(name)
    trace = np.einsum("iiaa->", of.kernel)
    close(of.found.trace, trace)
    close(jax.tree.leaves(of.found.layer_traces), [np.einsum("iiaa->", part) for part in of.parts])
    # nothing is left out: not in G's null space either
    assert abs(of.found.remainder) <= EXACT * trace
    np.testing.assert_allclose(of.found.cumulative[-1], 1.0 if trace else 0.0, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", networks.covering())
def test_layer_shares_split_the_path_kernel(name: str) -> None:
    of = case(name)
    sizes = [leaf.size for leaf in jax.tree.leaves(networks.build(name).params)]
    diagonal = np.split(np.diag(of.twin), np.cumsum(sizes)[:-1])
    eigenvalues = of.found.eigenvalues
    close([shares @ eigenvalues for shares in jax.tree.leaves(of.found.layer_shares)], [d.sum() for d in diagonal])


@pytest.mark.parametrize("name", networks.covering())
def test_modes_of_no_eigenvalue_are_zero(name: str) -> None:
    found = case(name).found
    dead = np.asarray(found.eigenvalues) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert not np.asarray(found.data_modes)[..., dead].any()
    totals = np.sum(jax.tree.leaves(found.layer_shares), axis=0)
    np.testing.assert_allclose(totals, np.where(dead, 0.0, 1.0), rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", networks.covering())
def test_each_mode_is_an_eigenvector_of_the_path_kernel_seen_through_the_data(name: str) -> None:
    of = case(name)
    values, vectors = np.linalg.eigh(of.twin)
    values, vectors = values[::-1], vectors[:, ::-1]
    gaps = np.minimum(np.abs(np.diff(values, prepend=np.inf)), np.abs(np.diff(values, append=-np.inf)))
    for i in np.flatnonzero((gaps > 1e-3 * values[0]) & (values > 1e-3 * values[0]))[:4]:
        exact = of.activations @ (of.jacobian @ vectors[:, i]) / np.sqrt(values[i])
        mode = np.asarray(of.found.data_modes[..., i])
        sign = np.sign(np.sum(mode * exact))
        np.testing.assert_allclose(mode * sign, exact, rtol=0, atol=EXACT * np.abs(of.activations).max())


@pytest.mark.parametrize("name", networks.covering())
def test_bounds_hold(name: str) -> None:
    ntk, trace_ntk, path, trace_path, gram, trace_gram = largest(case(name))
    assert ntk <= path * gram * (1 + EXACT)
    assert trace_ntk <= min(gram * trace_path, path * trace_gram) * (1 + EXACT)


@pytest.mark.parametrize("name", networks.COVERING[1::2])
def test_bounds_are_those_of_listed_paths(name: str) -> None:
    of, network = case(name), networks.build(name)

    @jax.jit
    def found(params: Any, x: Any, ntk: Any) -> Any:
        kernel = path_kernel.path_kernel(network.apply, params, x, mask=of.mask)
        gram = paths.log_data_gram(network.apply, params, x, mask=of.mask)
        return factorization.bounds(ntk, kernel, gram, key=jax.random.key(0))

    bounds, exact = found(network.params, network.x, of.kernel), largest(of)
    np.testing.assert_allclose(np.exp(list(bounds)), exact, rtol=EXACT, atol=SUMS)
    products = [exact[2] * exact[4], exact[3] * exact[4], exact[2] * exact[5]]
    np.testing.assert_allclose(
        bounds.slack, np.log10(products) - np.log10([exact[0], exact[1], exact[1]]), rtol=0, atol=EXACT
    )
