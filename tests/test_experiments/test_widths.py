"""The sweep over widths: kernels approach their limits as one over the root of the width, pruned ones too."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import widths
from experiments.networks import twins
from pathjax import ntk


def test_dense_kernels_approach_their_limit_as_one_over_the_root_of_the_width():
    sweep = widths.measure("fc", density=1.0, widths=(16, 256), seeds=24)
    assert sweep.distances.shape == (2, 24)
    assert len({*sweep.distances[0].tolist()}) == 24
    slope, error = sweep.slope
    assert -0.65 < slope < -0.35 and error < 0.1


@pytest.mark.parametrize(("model", "sizes"), [("fc", (64, 512)), ("conv_pool_residual", (8, 64))])
def test_pruned_kernels_approach_the_rescaled_limit_and_not_the_dense_one(model, sizes):
    sweep = widths.measure(model, density=0.25, widths=sizes, seeds=16)
    slope, _ = sweep.slope
    assert -0.75 < slope < -0.3
    assert sweep.distances[-1].mean() < 0.35
    built = twins.MODELS[model](widths._SHAPE, widths._OUTPUTS, width=sizes[-1])
    x = 100 * jax.random.normal(jax.random.key(0), (3, *widths._SHAPE))
    pruned, dense = (ntk.infinite(built.twin(density).kernel_fn, x) for density in (0.25, 1.0))
    assert jnp.linalg.norm(pruned - dense) > 0.5 * jnp.linalg.norm(dense)


def test_of_one_layer_the_rescaled_limit_is_that_of_the_kept_weights():
    # W₂ adds ρN·E[relu²], W₁ and its bias ρ·2·(x·x + 1)·E[step], the last bias 1
    shape, width, density = (2, 2, 1), 50, 0.3
    x = jnp.ones((1, *shape))
    model = twins.fully_connected(shape, 3, width=width, depth=1)
    # x·x = 4 and z ~ N(0, 2): E[relu²] = 1, E[step] = 1/2
    expected = density * width * 1.0 + density * 2 * (4 + 1) * 0.5 + 1
    np.testing.assert_allclose(ntk.infinite(model.twin(density).kernel_fn, x), [[expected]], rtol=1e-6)


def test_slopes_are_means_over_seeds_with_their_errors():
    sizes = np.array([4.0, 16.0, 64.0])
    distances = np.stack([sizes**-0.5, 3 * sizes**-0.7], axis=1)
    sweep = widths.Sweep("fc", 1.0, (4, 16, 64), distances)
    np.testing.assert_allclose(sweep.slope, (-0.6, 0.1), rtol=1e-12)
    assert np.isnan(widths.Sweep("fc", 1.0, (4, 16, 64), distances[:, :1]).slope[1])


def test_the_command_draws_and_keeps_what_it_measured(tmp_path, capsys):
    out = tmp_path / "widths"
    widths.main(["--model", "fc", "--density", "1", "0.5", "--width", "4", "8", "--seeds", "2", "--out", str(out)])
    assert capsys.readouterr().out.count("slope") == 2
    with (out / "widths.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 and {row["density"] for row in rows} == {"1", "0.5"}
    assert (out / "widths.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (out / "widths.svg").read_bytes()
