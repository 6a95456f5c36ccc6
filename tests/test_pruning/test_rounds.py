"""Pruning in rounds: exact counts, nothing revived, one program for all rounds."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import masks, pruning, scores

from ..tolerances import SUMS

SIZE = 4 * 9 + 9 * 3


def initial(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "bias": jnp.ones(9),
        "first": jax.random.normal(keys[0], (4, 9)),
        "second": jax.random.normal(keys[1], (9, 3)),
    }


def apply(params, x):
    return jax.nn.relu(x @ params["first"] + params["bias"][None, :]) @ params["second"]


X, Y = jax.random.normal(jax.random.key(8), (6, 4)), jnp.array([0, 1, 2, 0, 1, 2])


def magnitude(params, key):
    return scores.magnitude(params)


def snip(params, key):
    return scores.snip(apply, params, [(X, Y)])


def by_chance(params, key):
    return scores.random(params, key=key)


@pytest.mark.parametrize("rounds", (1, 2, 7))
@pytest.mark.parametrize("density", (1.0, 0.5, 0.1, 0.02))
def test_schedules_are_their_formulas_and_end_at_the_density(density, rounds):
    steps = np.arange(1, rounds + 1) / rounds
    exponential = pruning.densities(density=density, rounds=rounds)
    linear = pruning.densities(density=density, rounds=rounds, schedule="linear")
    np.testing.assert_allclose(exponential, density**steps, rtol=SUMS)
    np.testing.assert_allclose(linear, 1 - (1 - density) * steps, rtol=SUMS)
    assert exponential[-1] == linear[-1] == density


@pytest.mark.parametrize("density", (1.0, 0.5, 0.1, 0.02, 1 / SIZE))
@pytest.mark.parametrize(
    ("score", "schedule"), ((magnitude, "linear"), (snip, "exponential"), (by_chance, "exponential"))
)
def test_every_round_keeps_the_exact_count_and_revives_nothing(score, density, schedule):
    params, seen, reports = initial(), [], []

    def watched(params, key):
        seen.append(jax.tree.map(lambda leaf: leaf != 0, params))
        return score(params, key)

    mask = pruning.prune(
        watched,
        params,
        density=density,
        rounds=5,
        schedule=schedule,
        key=jax.random.key(1),
        progress=lambda *report: reports.append(report),
        jit=False,
    )
    counts = [round(reached * SIZE) for reached in pruning.densities(density=density, rounds=5, schedule=schedule)]
    assert [int(masks.count(now)) for now in (*seen[1:], mask)] == counts
    assert reports == [(t, 5, counts[t - 1] / SIZE) for t in range(1, 6)]
    for before, after in zip(seen, (*seen[1:], mask), strict=True):
        jax.tree.map(lambda old, new: np.testing.assert_array_equal(old & new, new), before, after)
    assert mask["bias"].all()


def test_a_pruned_weight_stays_pruned_though_its_score_is_the_largest():
    params = {"w": jnp.arange(1.0, 13.0).reshape(3, 4)}
    mask = pruning.prune(
        lambda params, key: {"w": jnp.where(params["w"] == 0, 1e9, params["w"])}, params, density=0.25, rounds=4
    )
    np.testing.assert_array_equal(mask["w"], params["w"] > 9)


def test_ties_at_zero_stay_among_the_kept():
    params = {"w": jnp.arange(1.0, 13.0).reshape(3, 4)}
    scored = {"w": jnp.where(params["w"] <= 6, 0.0, 1.0)}
    mask = pruning.prune(
        lambda params, key: {"w": jnp.where(params["w"] == 12, 2.0, scored["w"] * (params["w"] > 8))},
        params,
        density=0.75,
        rounds=2,
    )
    assert int(mask["w"].sum()) == 9
    assert mask["w"][2].all()
    assert mask["w"].ravel().tolist() == [True] * 5 + [False] * 3 + [True] * 4


@pytest.mark.parametrize("schedule", ("exponential", "linear"))
@pytest.mark.parametrize("density", (0.5, 0.1))
def test_iterative_magnitude_equals_one_shot(density, schedule):
    params = initial()
    rounds = pruning.prune(magnitude, params, density=density, rounds=6, schedule=schedule)
    at_once = masks.from_scores(scores.magnitude(params), density=density)
    jax.tree.map(np.testing.assert_array_equal, rounds, at_once)


def test_local_scope_keeps_the_share_of_each_leaf():
    mask = pruning.prune(magnitude, initial(), density=0.25, rounds=3, scope="local")
    assert [entry.kept for entry in masks.statistics(mask)] == [9, round(0.25 * 36), round(0.25 * 27)]


def test_only_prunable_leaves_are_pruned():
    mask = pruning.prune(
        magnitude, initial(), density=0.5, rounds=3, prunable=lambda path, leaf: path[0].key == "second"
    )
    assert [entry.kept for entry in masks.statistics(mask)] == [9, 36, 14]


def test_empty_leaves_and_a_single_weight_are_pruned_like_others():
    params = {"empty": jnp.zeros((0, 3)), "one": jnp.ones((1, 1))}
    mask = pruning.prune(magnitude, params, density=1.0, rounds=2)
    assert mask["one"].all()
    assert mask["empty"].shape == (0, 3)


def test_each_round_gets_its_own_key_and_a_key_repeats():
    params, seen = initial(), []

    def watched(params, key):
        seen.append(key)
        return by_chance(params, key)

    key = jax.random.key(5)
    mask = pruning.prune(watched, params, density=0.5, rounds=3, key=key, jit=False)
    assert len({tuple(jax.random.key_data(each).tolist()) for each in seen}) == 3
    again = pruning.prune(by_chance, params, density=0.5, rounds=3, key=key)
    jax.tree.map(np.testing.assert_array_equal, mask, again)


def test_without_a_key_none_is_passed_on():
    def keyless(params, key):
        assert key is None
        return scores.magnitude(params)

    pruning.prune(keyless, initial(), density=0.5, rounds=2)


@pytest.mark.parametrize("score", (magnitude, snip, by_chance))
def test_jit_and_vmap_over_seeds_equal_eager(score):
    seeds, keys = [initial(seed) for seed in range(3)], jax.random.split(jax.random.key(2), 3)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)

    def run(params, key):
        return pruning.prune(score, params, density=0.1, rounds=2, key=key)

    eager = [run(params, key) for params, key in zip(seeds, keys, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, jax.jit(run)(seeds[0], keys[0]), eager[0])
    together = jax.vmap(run)(stacked, keys)
    for index, expected in enumerate(eager):
        jax.tree.map(lambda got, want, i=index: np.testing.assert_array_equal(got[i], want), together, expected)


@pytest.mark.parametrize("over_seeds", (False, True))
def test_score_is_traced_once_for_all_rounds_and_densities(over_seeds):
    traced: list[None] = []

    def counted(params, key):
        traced.append(None)
        return scores.magnitude(params)

    params, key = initial(), jax.random.key(0)
    if over_seeds:
        params, key = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params), jax.random.split(key, 2)
    for density in (0.5, 0.1):

        def run(params, key, density=density):
            return pruning.prune(counted, params, density=density, rounds=6, key=key)

        (jax.vmap(run) if over_seeds else run)(params, key)
    assert len(traced) == 1


def test_another_predicate_with_the_same_answers_compiles_nothing():
    traced: list[None] = []

    def counted(params, key):
        traced.append(None)
        return scores.magnitude(params)

    for _ in range(3):
        pruning.prune(counted, initial(), density=0.5, rounds=2, prunable=lambda path, leaf: leaf.ndim > 1)
    assert len(traced) == 1


@dataclasses.dataclass
class Weighed:
    """A score that can neither be hashed nor told apart by its fields."""

    weight: float

    def __call__(self, params, key):
        return jax.tree.map(lambda leaf: self.weight * jnp.abs(leaf), params)


class Slotted:
    __slots__ = ()

    def __call__(self, params, key):
        return scores.magnitude(params)


@pytest.mark.parametrize("score", (Weighed(2.0), Slotted(), Slotted().__call__), ids=("unhashable", "slots", "method"))
def test_scores_may_be_any_callable(score):
    found = pruning.prune(score, initial(), density=0.3, rounds=3)
    jax.tree.map(np.testing.assert_array_equal, found, pruning.prune(magnitude, initial(), density=0.3, rounds=3))


def test_a_score_and_what_it_closes_over_are_let_go():
    def closing_over(data):
        return lambda params, key: jax.tree.map(lambda leaf: jnp.abs(leaf) * data, params)

    score = closing_over(jnp.float64(3.0))
    seen = weakref.ref(score)
    pruning.prune(score, initial(), density=0.5, rounds=2)
    del score
    gc.collect()
    assert seen() is None


def test_uncompiled_score_reads_its_data_in_every_round():
    reads: list[None] = []

    def batches():
        reads.append(None)
        yield X[:4], Y[:4]
        yield X[4:], Y[4:]

    streamed = pruning.prune(
        lambda params, key: scores.snip(apply, params, batches()), initial(), density=0.2, rounds=3, jit=False
    )
    assert len(reads) == 3
    jax.tree.map(np.testing.assert_array_equal, streamed, pruning.prune(snip, initial(), density=0.2, rounds=3))


@pytest.mark.parametrize("planned", ((0.5, 0.5, 0.1), [0.3], (1, 0.9, 0.02)))
def test_given_densities_are_those_of_the_rounds(planned):
    reports = []
    mask = pruning.prune(
        snip,
        initial(),
        density=planned[-1],
        schedule=planned,
        progress=lambda *report: reports.append(report),
    )
    counts = [round(reached * SIZE) for reached in planned]
    assert reports == [(t, len(planned), kept / SIZE) for t, kept in enumerate(counts, start=1)]
    assert int(masks.count(mask)) == counts[-1]
    assert pruning.densities(density=planned[-1], rounds=len(planned), schedule=planned) == tuple(planned)


def test_given_exponential_densities_prune_as_the_named_schedule():
    planned = pruning.densities(density=0.1, rounds=4)
    named, given = (
        pruning.prune(snip, initial(), density=0.1, rounds=4, schedule=schedule)
        for schedule in ("exponential", planned)
    )
    jax.tree.map(np.testing.assert_array_equal, named, given)


# revival


def force_of(params):
    """The score that FORCE prunes by, of weights that were not pruned yet."""

    def score(masked, key):
        return scores.force(apply, params, [(X, Y)], mask=nonzero(masked))

    return score


def chance_of(params):
    return lambda masked, key: scores.random(params, key=key)


def nonzero(masked):
    return jax.tree.map(lambda leaf: leaf != 0, masked)


@pytest.mark.parametrize("schedule", ("exponential", "linear", (0.2, 0.7, 0.1)))
@pytest.mark.parametrize("score_of", (force_of, chance_of))
def test_revival_keeps_the_exact_count_and_lets_weights_return(score_of, schedule):
    seen, params = [], initial(1)
    assert all(bool(jnp.all(leaf != 0)) for leaf in jax.tree.leaves(params))

    def watched(masked, key):
        seen.append(nonzero(masked))
        return score_of(params)(masked, key)

    mask = pruning.prune(
        watched, params, density=0.1, rounds=3, schedule=schedule, key=jax.random.key(1), revive=True, jit=False
    )
    planned = pruning.densities(density=0.1, rounds=3, schedule=schedule)
    assert [int(masks.count(now)) for now in (*seen, mask)] == [SIZE, *(round(reached * SIZE) for reached in planned)]
    returned = [
        bool(jnp.any(after["first"] & ~before["first"])) or bool(jnp.any(after["second"] & ~before["second"]))
        for before, after in zip(seen, (*seen[1:], mask), strict=True)
    ]
    assert any(returned)


@pytest.mark.parametrize("rounds", (1, 4))
def test_force_in_rounds_is_its_formula(rounds):
    params = initial()
    masked = params
    for reached in pruning.densities(density=0.2, rounds=rounds):
        slopes = jax.grad(lambda weights: scores.cross_entropy(apply(weights, X), Y))(masked)
        saliency = np.concatenate([np.abs(params[name] * slopes[name]).ravel() for name in ("first", "second")])
        # no two saliencies are equal but those of 0, which are never among so few
        kept = saliency >= np.sort(saliency)[-round(reached * SIZE)]
        expected = {"first": kept[:36].reshape(4, 9), "second": kept[36:].reshape(9, 3)}
        masked = params | {name: jnp.where(expected[name], params[name], 0.0) for name in expected}
    mask = pruning.prune(force_of(params), params, density=0.2, rounds=rounds, revive=True)
    for name, kept in expected.items():
        np.testing.assert_array_equal(mask[name], kept)


def test_jit_and_vmap_over_seeds_equal_eager_with_revival():
    seeds = [initial(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)

    def run(params):
        return pruning.prune(force_of(params), params, density=0.1, rounds=3, revive=True)

    eager = [run(params) for params in seeds]
    jax.tree.map(np.testing.assert_array_equal, jax.jit(run)(seeds[0]), eager[0])
    together = jax.vmap(run)(stacked)
    for index, expected in enumerate(eager):
        jax.tree.map(lambda got, want, i=index: np.testing.assert_array_equal(got[i], want), together, expected)


# errors


def test_given_densities_that_cannot_be_are_refused():
    def run(schedule, density=0.1, **options):
        pruning.prune(magnitude, initial(), density=density, schedule=schedule, **options)

    with pytest.raises(ValueError, match="rises from 0.2 to 0.5 in round 3, but a pruned weight never returns"):
        run((0.3, 0.2, 0.5, 0.1))
    with pytest.raises(ValueError, match="ends at 0.2, but `density` is 0.1"):
        run((0.5, 0.2))
    with pytest.raises(ValueError, match="gives the densities of 2 rounds, but `rounds` is 3"):
        run((0.5, 0.1), rounds=3)
    with pytest.raises(ValueError, match="`schedule` is an empty sequence"):
        run(())
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\].*it is 1.5"):
        run((1.5, 0.1))
    with pytest.raises(ValueError, match='The schedule "linear" needs the number of `rounds`'):
        run("linear")


def test_with_revival_scores_of_pruned_weights_must_be_finite():
    def where_pruned(masked, key):
        return jax.tree.map(lambda leaf: jnp.where(leaf != 0, jnp.abs(leaf), jnp.nan), masked)

    with pytest.raises(ValueError, match=r"In round 2 of 3: Scores must be finite; those at \['first'\]"):
        pruning.prune(where_pruned, initial(), density=0.2, rounds=3, revive=True)


def test_densities_and_rounds_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
        pruning.prune(magnitude, initial(), density=0.0, rounds=2)
    with pytest.raises(ValueError, match="rounds must be 1 or more; it is 0"):
        pruning.prune(magnitude, initial(), density=0.5, rounds=0)
    with pytest.raises(ValueError, match='Unknown schedule "cosine". The schedules are "exponential" and "linear"'):
        pruning.prune(magnitude, initial(), density=0.5, rounds=2, schedule="cosine")
    with pytest.raises(ValueError, match='Unknown scope "layer"'):
        pruning.prune(magnitude, initial(), density=0.5, rounds=2, scope="layer")
    with pytest.raises(ValueError, match="keeps none of the prunable weights, 63 in number"):
        pruning.prune(magnitude, initial(), density=0.001, rounds=2)
    with pytest.raises(ValueError, match="leaves no weight to prune"):
        pruning.prune(magnitude, {"bias": jnp.ones(3)}, density=0.5, rounds=2)


@pytest.mark.parametrize("jit", (False, True))
def test_a_score_of_another_tree_is_refused(jit):
    with pytest.raises(ValueError, match=r"`score` has no leaf at \['bias'\]"):
        pruning.prune(lambda params, key: {"first": params["first"]}, initial(), density=0.5, rounds=2, jit=jit)
    with pytest.raises(ValueError, match=r"`score` at \['first'\] has shape \(9, 4\)"):
        pruning.prune(
            lambda params, key: {**params, "first": params["first"].T}, initial(), density=0.5, rounds=2, jit=jit
        )


def test_scores_that_are_not_finite_name_the_leaf_and_the_round():
    def overflowing(params, key):
        pruned = jnp.any(params["first"] == 0)
        return {**params, "second": jnp.where(pruned, jnp.inf, jnp.abs(params["second"]))}

    with pytest.raises(ValueError, match=r"In round 2 of 3: Scores must be finite; those at \['second'\]"):
        pruning.prune(overflowing, initial(), density=0.2, rounds=3)
    empty = jax.jit(lambda params: pruning.prune(overflowing, params, density=0.2, rounds=3))(initial())
    assert int(masks.count(empty)) == 0


def test_scores_of_pruned_weights_may_be_infinite():
    logarithmic = pruning.prune(
        lambda params, key: jax.tree.map(lambda leaf: jnp.log(jnp.abs(leaf)), params), initial(), density=0.2, rounds=4
    )
    jax.tree.map(np.testing.assert_array_equal, logarithmic, pruning.prune(magnitude, initial(), density=0.2, rounds=4))


def test_scores_that_were_computed_once_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"`score` is a dict, but each round calls it.*lambda masked, key.*from_scores"):
        pruning._check_score(scores.magnitude(initial()))  # not through `prune`, whose types the tests check


def test_a_score_of_other_arguments_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"takes the arguments \(params.*score\(masked_params, key\).*Wrap it"):
        pruning._check_score(scores.magnitude)


def test_revival_by_scores_of_masked_weights_is_refused():
    with pytest.raises(ValueError, match=r"In round 2 every pruned weight has the score 0.*scores.force"):
        pruning.prune(lambda masked, key: scores.magnitude(masked), initial(), density=0.2, rounds=3, revive=True)
    pruning.prune(lambda masked, key: scores.magnitude(masked), initial(), density=0.2, rounds=1, revive=True)


def test_densities_in_messages_are_short():
    with pytest.raises(ValueError, match=r"density 0.0001 keeps none"):
        pruning.prune(lambda masked, key: scores.magnitude(masked), initial(), density=0.1**4, rounds=1)
