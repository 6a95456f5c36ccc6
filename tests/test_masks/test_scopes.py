"""Counts of each leaf under the scopes, held to seats given one by one."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pathjax import masks, pruning

SCOPES = ("uniform", "erk")
NETWORKS: dict[str, dict[str, tuple[int, ...]]] = {
    "dense": {"a": (784, 30), "b": (30, 10), "c": (10, 10)},
    "convolutional": {"a": (3, 3, 3, 16), "b": (3, 3, 16, 16), "c": (1, 1, 16, 32), "d": (0, 7), "e": (32, 10)},
    "one weight": {"a": (1, 1), "b": (5, 3)},
    "equal": dict.fromkeys("abcdefg", (3, 5)),
}


def everything(path, leaf):
    return True


def like(shapes):
    return {name: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for name, shape in shapes.items()}


def seats(total, shapes, scope):
    """Seats one by one, the next where its threshold (count + 1/2) / share is least; first one seat each."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    shares = sizes if scope == "uniform" else [sum(shape) for shape in shapes]
    counts = [min(size, 1) for size in sizes]
    while sum(counts) < total:
        open_ = [leaf for leaf in range(len(shapes)) if counts[leaf] < sizes[leaf]]
        counts[min(open_, key=lambda leaf: Fraction(2 * counts[leaf] + 1, 2 * shares[leaf]))] += 1
    return counts


@pytest.mark.parametrize("scope", SCOPES)
@given(
    shapes=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=4), min_size=1, max_size=6),
    density=st.floats(0.01, 1.0),
)
@example(shapes=[[3, 5]] * 7, density=0.5)  # all tied
def test_counts_are_those_of_seats_given_one_by_one(scope, shapes, density):
    sizes = [int(np.prod(shape)) for shape in shapes]
    total = round(density * sum(sizes))
    params = like(dict(zip("abcdef", shapes, strict=False)) if len(shapes) < 7 else dict(enumerate(shapes)))
    if total < max(1, sum(size > 0 for size in sizes)):
        with pytest.raises(ValueError):
            masks.kept_counts(params, density=density, scope=scope, prunable=everything)
        return
    counts = masks.kept_counts(params, density=density, scope=scope, prunable=everything)
    assert counts.tolist() == seats(total, shapes, scope)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scope", SCOPES)
def test_counts_add_up_and_never_fall_where_the_density_rises(scope, name):
    sizes = np.array([np.prod(shape) for shape in NETWORKS[name].values()], int)
    last = np.minimum(sizes, 1)
    for total in range(last.sum(), min(sizes.sum(), 250) + 1):
        counts = masks.kept_counts(like(NETWORKS[name]), density=total / sizes.sum(), scope=scope)
        assert counts.sum() == total
        assert (counts >= last).all() and (counts <= sizes).all()
        last = counts


def erdos_renyi_densities(shapes, density):
    """As in the code of Evci et al.: leaves that would be more than dense are dense, until there are none."""
    sizes = np.array([np.prod(shape) for shape in shapes], float)
    raw = np.array([np.sum(shape) for shape in shapes]) / sizes
    dense = np.zeros(len(shapes), bool)
    while True:
        epsilon = (density * sizes.sum() - sizes[dense].sum()) / (raw * sizes)[~dense].sum()
        if not (found := ~dense & (epsilon * raw > 1)).any():
            return np.where(dense, 1.0, epsilon * raw)
        dense |= found


@pytest.mark.parametrize("density", (0.9, 0.5, 0.2, 0.05))
def test_erk_densities_are_those_of_their_authors(density):
    shapes = [(3, 3, 3, 64), (3, 3, 64, 128), (1, 1, 64, 128), (3, 3, 512, 512), (512, 10)]
    counts = masks.kept_counts(like(dict(enumerate(shapes))), density=density, scope="erk")
    wanted = erdos_renyi_densities(shapes, density) * [np.prod(shape) for shape in shapes]
    assert np.abs(counts - wanted).max() <= 1
    assert counts.sum() == round(density * sum(np.prod(shape) for shape in shapes))


def test_uniform_differs_from_local_by_its_exact_total():
    params = like(dict.fromkeys("acd", (1, 7)))
    assert masks.kept_counts(params, density=0.5, scope="local").tolist() == [4, 4, 4]
    assert masks.kept_counts(params, density=0.5, scope="uniform").tolist() == [4, 3, 3]


def test_erk_of_vectors_and_scalars_keeps_them_dense():
    params = like({"bias": (4,), "kernel": (30, 30), "scale": ()})
    counts = masks.kept_counts(params, density=0.1, scope="erk", prunable=lambda path, leaf: True)
    assert counts.tolist() == [4, 85, 1]


@pytest.mark.parametrize("scope", SCOPES)
def test_the_largest_scores_of_each_leaf_are_kept(scope):
    rng = np.random.default_rng(0)
    scores = {name: rng.standard_normal(shape) for name, shape in NETWORKS["convolutional"].items()}
    counts = masks.kept_counts(scores, density=0.3, scope=scope)
    for mask in (
        masks.from_scores(scores, density=0.3, scope=scope),
        jax.jit(lambda scores: masks.from_scores(scores, density=0.3, scope=scope))(scores),
    ):
        for kept, score, count in zip(mask.values(), scores.values(), counts, strict=True):
            assert kept.sum() == count
            if 0 < count < score.size:
                assert score[np.asarray(kept)].min() > score[~np.asarray(kept)].max()


@pytest.mark.parametrize("scope", ("local", *SCOPES))
def test_rounds_of_pruning_end_with_the_counts_of_the_scope(scope):
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in NETWORKS["dense"].items()}
    magnitude = lambda params, key: jax.tree.map(jnp.abs, params)  # noqa: E731
    mask = pruning.prune(magnitude, params, density=0.02, rounds=20, scope=scope)
    counts = masks.kept_counts(params, density=0.02, scope=scope)
    assert [int(leaf.sum()) for leaf in mask.values()] == counts.tolist()


# errors


@pytest.mark.parametrize("scope", SCOPES)
def test_bad_densities_and_predicates_are_refused(scope):
    params = like({"a": (2, 3), "b": (4, 4), "c": (5, 0)})
    for density in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
            masks.kept_counts(params, density=density, scope=scope)
    with pytest.raises(ValueError, match="keeps none of the prunable weights, 22 in number"):
        masks.kept_counts(params, density=0.01, scope=scope)
    with pytest.raises(ValueError, match=r"keeps 1 of the 22 prunable weights, and there are 2 leaves.*about 0\.0909"):
        masks.kept_counts(params, density=0.05, scope=scope)
    with pytest.raises(ValueError, match="leaves no weight to prune"):
        masks.kept_counts(params, density=0.5, scope=scope, prunable=lambda path, leaf: False)
    with pytest.raises(ValueError, match=rf'With scope "{scope}", `counts` must have shape \(1,\)'):
        masks.keep_largest({"w": jnp.ones((2, 3))}, 3, scope=scope)
    with pytest.raises(ValueError, match=r"must be finite; those at \['v'\]"):
        masks.from_scores({"v": jnp.full((2, 3), jnp.nan), "w": jnp.ones((2, 3))}, density=0.5, scope=scope)
