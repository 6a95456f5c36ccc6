"""The sweep over widths: kernels approach their limits as one over the root of the width, pruned ones too."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import widths as command
from experiments.measure import widths
from experiments.networks.layers import OUTPUTS
from experiments.networks.twins import TWINS, fully_connected, twin_of
from pathjax import ntk


def test_dense_kernels_approach_their_limit_as_one_over_the_root_of_the_width():
    sweep = widths.measure("fc", density=1.0, widths=(16, 256), seeds=96)
    assert sweep.distances.shape == (2, 96)
    assert len({*sweep.distances[0].tolist()}) == 96
    # three standard errors of 0.02: seeds differ this much
    assert abs(sweep.slope.mean + 0.5) < 0.06 and sweep.slope.error < 0.025


@pytest.mark.parametrize(
    ("model", "sizes", "seeds", "window"),
    [("fc", (32, 256), 64, 0.08), pytest.param("conv_pool_residual", (8, 64), 96, 0.1, marks=pytest.mark.long)],
)
def test_pruned_kernels_approach_the_rescaled_limit_and_not_the_dense_one(model, sizes, seeds, window):
    sweep = widths.measure(model, density=0.25, widths=sizes, seeds=seeds)
    assert 3 * sweep.slope.error < 1.1 * window  # the window is that of three standard errors
    assert abs(sweep.slope.mean + 0.5) < window
    network = TWINS[model](widths._SHAPE, widths._OUTPUTS)
    network = network.resized({name: sizes[-1] for name in network.widths if name != OUTPUTS})
    x = 100 * jax.random.normal(jax.random.key(0), (3, *widths._SHAPE))
    pruned, dense = (ntk.infinite(twin_of(network, density).kernel_fn, x) for density in (0.25, 1.0))
    assert jnp.linalg.norm(pruned - dense) > 0.5 * jnp.linalg.norm(dense)


def test_of_one_layer_the_rescaled_limit_is_that_of_the_kept_weights():
    # W₂ adds ρN·E[relu²], W₁ and its bias ρ·2·(x·x + 1)·E[step], the last bias 1
    shape, width, density = (2, 2, 1), 50, 0.3
    x = jnp.ones((1, *shape))
    network = fully_connected(shape, 3, widths={"hidden_0": width}, depth=1)
    # x·x = 4 and z ~ N(0, 2): E[relu²] = 1, E[step] = 1/2
    expected = density * width * 1.0 + density * 2 * (4 + 1) * 0.5 + 1
    np.testing.assert_allclose(ntk.infinite(twin_of(network, density).kernel_fn, x), [[expected]], rtol=1e-6)


def test_slopes_are_means_over_seeds_with_their_errors():
    sizes = np.array([4.0, 16.0, 64.0])
    distances = np.stack([sizes**-0.5, 3 * sizes**-0.7], axis=1)
    sweep = widths.WidthSweep("fc", 1.0, (4, 16, 64), distances)
    np.testing.assert_allclose(sweep.slope, (-0.6, 0.1), rtol=1e-12)
    assert str(sweep.slope) == "slope −0.60 ± 0.10"
    assert np.isnan(widths.WidthSweep("fc", 1.0, (4, 16, 64), distances[:, :1]).slope.error)


def test_the_command_draws_and_keeps_what_it_measured(tmp_path, capsys):
    out = tmp_path / "widths"
    command.main(["--model", "fc", "--density", "1", "0.5", "--width", "4", "8", "--seeds", "2", "--out", str(out)])
    assert capsys.readouterr().out.count("slope") == 2
    with (out / "widths.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 and {row["density"] for row in rows} == {"1", "0.5"}
    assert (out / "widths.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (out / "widths.svg").read_bytes()
