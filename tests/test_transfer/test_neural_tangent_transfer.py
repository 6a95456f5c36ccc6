"""Neural Tangent Transfer: its loss and steps against dense Jacobians, its masks, and what it is for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathjax import masks, ntk, scores, transfer

from ..tolerances import EXACT, SINGLE

KEY = jax.random.key(7)


def initial(seed=0, width=9, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    shapes = {"bias": (width,), "first": (4, width), "second": (width, 3)}
    scales = {"bias": 0.1, "first": 0.7, "second": (2 / width) ** 0.5}
    return {name: jnp.asarray(scales[name] * rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def apply(params, x):
    return jax.nn.relu(x @ params["first"] + params["bias"][None]) @ params["second"]


def inputs(n=6, seed=3):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, 4)))


def keep_all(params):
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)


def magnitude_mask(params, density):
    return masks.from_scores(scores.magnitude(params), density=density, scope="local")


def dense_kernel(params, x, mask):
    """Θ of kept weights from whole Jacobians, (n·o, n·o)."""
    jacobian = jax.jacobian(lambda params: apply(params, x))(params)
    rows = [jnp.where(mask[name][None, None], part, 0).reshape(x.shape[0] * 3, -1) for name, part in jacobian.items()]
    joined = jnp.concatenate(rows, axis=1)
    return joined @ joined.T


def formula(weights, mask, teacher, x, density, trace=False):
    """The loss at masked weights, as the paper writes it."""
    gap = dense_kernel(weights, x, mask) - dense_kernel(teacher, x, keep_all(teacher))
    if trace:
        gap = jnp.einsum("iaja->ij", gap.reshape(len(x), 3, len(x), 3))
    outputs = apply(weights, x) - apply(teacher, x)
    norm = sum(jnp.sum(weights[name] ** 2) for name in ("first", "second"))
    return 1e-3 * jnp.sum(gap**2) / gap.size + jnp.sum(outputs**2) / outputs.size + 1e-5 / density * norm


def test_batches_may_be_tokens_and_trees():
    """The first loss of a network of two inputs, one of them integers, from whole Jacobians."""

    def network(params, x):
        h = jnp.tanh(params["table"][x["tokens"]].sum(1) + x["numbers"] @ params["first"])
        return jnp.stack([h @ params["second"], (h**2) @ params["second"]], axis=1)

    rng = np.random.default_rng(0)
    shapes = {"table": (5, 4), "first": (2, 4), "second": (4, 3)}
    params = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
    batch = {"tokens": jnp.asarray(rng.integers(0, 5, (3, 2))), "numbers": jnp.asarray(rng.standard_normal((3, 2)))}
    student = transfer.neural_tangent_transfer(network, params, [batch], density=0.5, steps=1, key=KEY)
    # of the three leaves the table is looked up, and so no kernel
    mask = keep_all(params) | {name: magnitude_mask({name: params[name]}, 0.5)[name] for name in ("first", "second")}
    jax.tree.map(np.testing.assert_array_equal, student.mask, mask)
    masked = masks.apply_mask(mask, params)

    def kernel(weights, mask):
        parts = jax.jacrev(lambda weights: network(weights, batch).reshape(-1))(weights)
        rows = jnp.concatenate([jnp.where(mask[name], parts[name], 0).reshape(18, -1) for name in parts], axis=1)
        return rows @ rows.T

    gap = kernel(masked, mask) - kernel(params, keep_all(params))
    outputs = network(masked, batch) - network(params, batch)
    norm = sum(jnp.sum(masked[name] ** 2) for name in ("first", "second"))
    expected = 1e-3 * jnp.mean(gap**2) + jnp.mean(outputs**2) + 1e-5 / 0.5 * norm
    np.testing.assert_allclose(student.losses[0], expected, rtol=EXACT)
    with pytest.raises(TypeError, match=r"one dictionary, but must be an array or an iterable of batches: \[inputs\]"):
        transfer.neural_tangent_transfer(network, params, batch, density=0.5, steps=1, key=KEY)


STILL, DIVERGING = optax.sgd(0.0), optax.sgd(1e80)


def run(params, x, **options):
    given = {"density": 0.4, "steps": 3, "key": KEY, "optimizer": STILL, **options}
    return transfer.neural_tangent_transfer(apply, params, x, **given)


@pytest.mark.parametrize("straight_through", (False, True))
@pytest.mark.parametrize("trace", (False, True))
def test_first_loss_is_its_formula(trace, straight_through):
    params, x = initial(), inputs()
    mask = magnitude_mask(params, 0.4)
    expected = formula(masks.apply_mask(mask, params), mask, params, x, 0.4, trace)
    found = run(params, x, trace=trace, straight_through=straight_through, steps=1)
    np.testing.assert_allclose(found.losses, [expected], rtol=EXACT)
    jax.tree.map(np.testing.assert_array_equal, found.mask, mask)


@pytest.mark.parametrize("straight_through", (False, True))
def test_steps_and_masks_follow_the_gradient_at_the_masked_weights(straight_through):
    teacher, x, rate = initial(), inputs(), 0.3
    initial_mask = mask = magnitude_mask(teacher, 0.4)
    weights, losses, velocity = teacher, [], jax.tree.map(jnp.zeros_like, teacher)
    for step in range(1, 8):
        at = masks.apply_mask(mask, weights)
        loss, slopes = jax.value_and_grad(formula)(at, mask, teacher, x, 0.4)
        losses.append(loss)
        if not straight_through:
            slopes = masks.apply_mask(mask, slopes)
        velocity = jax.tree.map(lambda moving, slope: 0.5 * moving + slope, velocity, slopes)
        # momentum must not move what is pruned
        moved = velocity if straight_through else masks.apply_mask(mask, velocity)
        weights = jax.tree.map(lambda leaf, moving: leaf - rate * moving, weights, moved)
        if step < 6:  # every step, while more than one is left
            mask = magnitude_mask(weights, 0.4)
    optimizer = optax.sgd(rate, momentum=0.5)
    found = run(teacher, x, steps=7, refresh=1, optimizer=optimizer, straight_through=straight_through)
    np.testing.assert_allclose(found.losses, losses, rtol=EXACT)
    jax.tree.map(np.testing.assert_array_equal, found.mask, mask)
    expected = masks.apply_mask(mask, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT), found.params, expected)
    assert any(bool(jnp.any(mask[name] & ~initial_mask[name])) for name in ("first", "second"))  # some came back


def test_at_density_one_the_loss_is_the_penalty_and_everything_is_kept():
    params, x = initial(), inputs()
    found = run(params, x, density=1, steps=2)
    norm = sum(float(jnp.sum(params[name] ** 2)) for name in ("first", "second"))
    np.testing.assert_allclose(found.losses, [1e-5 * norm] * 2, rtol=EXACT)
    assert all(bool(leaf.all()) for leaf in jax.tree.leaves(found.mask))
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    free = run(params, x, density=1, steps=2, penalty=0, optimizer=None)
    np.testing.assert_allclose(free.losses, 0, rtol=0, atol=EXACT**2)


@pytest.mark.parametrize("density", (0.5, 0.3, 0.05))
def test_masks_have_the_exact_counts_of_each_leaf(density):
    found = run(initial(), inputs(), density=density, steps=5, refresh=2, optimizer=optax.adam(0.1))
    assert [entry.kept for entry in masks.statistics(found.mask)] == [
        9,
        *(round(density * size) for size in (36, 27)),
    ]
    for name, kept in found.mask.items():
        assert not np.any(np.asarray(found.params[name])[~np.asarray(kept)])


def test_global_scope_ranks_all_leaves_together():
    found = run(initial(), inputs(), density=0.3, scope="global", steps=1)
    expected = masks.from_scores(scores.magnitude(initial()), density=0.3)
    jax.tree.map(np.testing.assert_array_equal, found.mask, expected)


def test_only_prunable_leaves_are_pruned_and_penalized():
    params, x = initial(), inputs()
    found = run(params, x, density=1, steps=1, prunable=lambda path, leaf: path[0].key == "second")
    np.testing.assert_allclose(found.losses, [1e-5 * jnp.sum(params["second"] ** 2)], rtol=EXACT)


def test_each_pass_draws_every_batch_once_and_batches_are_read_again():
    params, x = initial(), inputs(7)
    given = [x[:2], x[2:4], x[4:]]
    frozen = {"steps": 7}
    each = [run(params, batch, steps=1).losses[0] for batch in given]
    np.testing.assert_allclose(run(params, given, **frozen).losses, [*each, *each, each[0]], rtol=EXACT)
    single = sorted(float(run(params, x[i : i + 1], steps=1).losses[0]) for i in range(7))
    one, other = (run(params, x, batch_size=1, **frozen | {"key": key}).losses for key in jax.random.split(KEY))
    np.testing.assert_allclose(np.sort(one), single, rtol=EXACT)
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(
        run(params, x, batch_size=1, **frozen | {"key": jax.random.split(KEY)[0]}).losses, one
    )


def test_progress_sees_every_loss():
    seen = []
    found = run(initial(), inputs(), progress=lambda *report: seen.append(report))
    assert [report[:2] for report in seen] == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_array_equal([report[2] for report in seen], found.losses)


def test_single_precision_follows_double():
    options = {"steps": 3, "refresh": 1, "optimizer": optax.sgd(0.1)}
    double = run(initial(), inputs(), **options)
    single = run(initial(dtype=jnp.float32), inputs().astype(jnp.float32), **options)
    assert single.losses.dtype == jnp.float32
    np.testing.assert_allclose(single.losses, double.losses, rtol=SINGLE)


def test_jit_and_vmap_over_seeds_equal_eager():
    seeds, keys = [initial(seed) for seed in range(3)], jax.random.split(KEY, 3)

    optimizer = optax.sgd(0.2)

    def transferred(params, key, steps=3):
        return run(params, inputs(), key=key, batch_size=4, refresh=1, steps=steps, optimizer=optimizer)

    def assert_close(got, want):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT), got, want)

    eager = [transferred(params, key) for params, key in zip(seeds, keys, strict=True)]
    once = functools.partial(transferred, steps=1)
    assert_close(jax.jit(once)(seeds[0], keys[0]), once(seeds[0], keys[0]))
    together = jax.vmap(transferred)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds), keys)
    for index, expected in enumerate(eager):
        assert_close(jax.tree.map(lambda leaf, i=index: leaf[i], together), expected)


# what it is for


def deep(params, x):
    return jax.nn.relu(jax.nn.relu(x @ params[0]) @ params[1]) @ params[2]


def teacher_of(key):
    """Weights of `deep` for eight inputs."""
    first, second, third = jax.random.split(key, 3)
    return [
        jax.random.normal(first, (8, 24)) / 2,
        jax.random.normal(second, (24, 24)) / 12**0.5,
        jax.random.normal(third, (24, 3)) / 24**0.5,
    ]


def distance(weights, mask, teacher, x):
    """Relative distance of a student's kernel to the teacher's."""
    student = ntk.empirical(deep, weights, x, mask=mask)
    dense = ntk.empirical(deep, teacher, x)
    return jnp.linalg.norm((student - dense).ravel()) / jnp.linalg.norm(dense.ravel())


def test_students_have_kernels_nearer_to_the_teachers_than_pruning_alone_leaves():
    keys = jax.random.split(KEY, 6)
    x, held_out = jax.random.normal(keys[4], (64, 8)), jax.random.normal(keys[5], (30, 8))
    optimizer = optax.adam(5e-3)
    for teacher, key in zip(map(teacher_of, keys[:2]), keys[2:4], strict=True):
        student = transfer.neural_tangent_transfer(
            deep,
            teacher,
            x,
            density=0.2,
            steps=400,
            key=key,
            batch_size=16,
            kernel_weight=1e-2,
            optimizer=optimizer,
            refresh=50,
        )
        by_chance = masks.from_scores(scores.random(teacher, key=key), density=0.2, scope="local")
        near = distance(student.params, student.mask, teacher, held_out)
        assert float(near) < 0.9 * float(distance(teacher, magnitude_mask(teacher, 0.2), teacher, held_out))
        assert float(near) < 0.9 * float(distance(teacher, by_chance, teacher, held_out))
        assert float(student.losses[-20:].mean()) < 0.6 * float(student.losses[:20].mean())


# errors


def test_what_cannot_be_is_refused():
    params, x = initial(), inputs()
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
        run(params, x, density=0)
    with pytest.raises(ValueError, match=r"keeps none of \['second'\], 27 in number"):
        run(params, x, density=0.015)
    with pytest.raises(ValueError, match="`steps` must be 1 or more; it is 0"):
        run(params, x, steps=0)
    with pytest.raises(ValueError, match="`refresh` must be 1 or more; it is 0"):
        run(params, x, refresh=0)
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        run(params, x, batch_size=0)
    with pytest.raises(ValueError, match="leaves no weight to prune"):
        run(params, x, prunable=lambda path, leaf: False)


def test_inputs_that_cannot_be_are_refused():
    params, x = initial(), inputs()
    nones: list = [iter(()), [], iter([x])]
    for none in nones:
        with pytest.raises(ValueError, match="`inputs` has no more batches"):
            run(params, none)
    for nothing in (x[:0], [x, x[:0]]):
        with pytest.raises(ValueError, match="`inputs` has a batch without examples"):
            run(params, nothing)
    with pytest.raises(ValueError, match="`inputs` holds NaN, first in example 2"):
        run(params, x.at[2, 1].set(jnp.nan))
    with pytest.raises(ValueError, match=r"one array of shape \(n, o\).*it returned \(6,\)"):
        transfer.neural_tangent_transfer(
            lambda params, x: apply(params, x)[:, 0], params, x, density=0.5, steps=1, key=KEY
        )


def test_what_is_not_finite_names_the_leaf_or_the_step():
    params, x = initial(), inputs()
    with pytest.raises(ValueError, match=r"At the start, of the weights: .* those at \['second'\]"):
        run(params | {"second": params["second"].at[0, 0].set(jnp.nan)}, x)
    with pytest.raises(ValueError, match="The loss is (nan|inf) in step [2-4] of 5. Lower the learning rate"):
        run(params, x, steps=5, optimizer=DIVERGING)
    with pytest.raises(ValueError, match=r"After step [123] of 8, of the weights: .* those at \['first'\]"):
        run(params, x, steps=8, optimizer=DIVERGING, refresh=1)
