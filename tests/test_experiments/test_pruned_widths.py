"""Pruned networks over the width: their kernels approach those expected under their masks, of the right moments."""

import csv

import jax
import jax.numpy as jnp
import numpy as np

from experiments import widths as command
from experiments.measure import pruned_widths
from experiments.measure.widths import images, of_width
from experiments.networks.layers import bind

from ..tolerances import SINGLE


def drawn_masks(model, width, density, *kinds):
    """The masks of some kinds of one network, as a dictionary of its kernels for each, and its weights likewise."""
    network = of_width(model, width)
    params, _ = network.init(jax.random.key(0))
    case = pruned_widths._Case(network, bind(network, {}), images(), density)
    names = [layer.name for layer in network.layers]

    def kernels(tree):
        return {name: np.asarray(tree[name]["kernel"]) for name in names}

    trees = [pruned_widths.KINDS[kind](case, params, jax.random.key(1)) for kind in kinds]
    assert all(jax.tree.all(jax.tree.map(lambda leaf: leaf.all() | (leaf.ndim > 1), tree)) for tree in trees)
    return [kernels(tree) for tree in trees], kernels(params)


def test_kernels_approach_those_of_the_initialization_unless_weights_were_picked_by_size_and_those_of_squares_always():
    sweeps = pruned_widths.measure("fc", kinds=("blocks", "magnitude"), density=0.25, widths=(32, 256), seeds=24)
    blocks, magnitude, blocks_of_squares, magnitude_of_squares = sweeps
    assert [(sweep.kind, sweep.moments) for sweep in (magnitude, blocks_of_squares)] == [
        ("magnitude", pruned_widths.INITIALIZATION),
        ("blocks", pruned_widths.SQUARES),
    ]
    for sweep in (blocks, blocks_of_squares, magnitude_of_squares):
        # three standard errors of 0.05: seeds differ this much
        assert abs(sweep.slope.mean + 0.5) < 0.15 and sweep.slope.error < 0.05
        assert sweep.distances[1].mean() < 0.4
    # the largest quarter of normal weights has 2.6 times the mean square of all, in each of three layers
    assert magnitude.distances[1].min() > 2


def test_masks_of_places_are_blocks_and_a_ring_and_spare_the_first_and_the_last_layer():
    for model, hidden in (("fc", "Dense_1"), ("conv", "Conv_2")):
        (blocks, band), _ = drawn_masks(model, 16, 0.25, "blocks", "band")
        first, *_, last = blocks
        assert all(mask[first].all() and mask[last].all() for mask in (blocks, band))
        places = np.arange(16)
        np.testing.assert_array_equal(
            blocks[hidden][..., :, :], np.broadcast_to(places[:, None] // 4 == places // 4, blocks[hidden].shape)
        )
        apart = (places[:, None] - places) % 16
        near = np.minimum(apart, 16 - apart) < 2
        np.testing.assert_array_equal(band[hidden], np.broadcast_to(near, band[hidden].shape))


def test_random_masks_keep_their_shares_of_each_layer_and_others_the_share_of_all():
    kinds = ("dense", "random", "random by layer", "magnitude", "synflow", "snip")
    (dense, random, by_layer, *of_weights), weights = drawn_masks("fc", 32, 0.25, *kinds)
    assert all(mask.all() for mask in dense.values())
    first, *others = random
    assert random[first].all() and by_layer[first].all()
    np.testing.assert_allclose([random[name].mean() for name in others], 0.25)
    np.testing.assert_allclose([by_layer[name].mean() for name in others], [0.5, 0.25, 0.125])
    total = sum(weights[name].size for name in others)
    for mask in of_weights:
        assert mask[first].all() and sum(mask[name].sum() for name in others) == round(0.25 * total)
    magnitude = of_weights[0]
    kept, pruned = (
        np.concatenate([np.abs(weights[name])[magnitude[name] == which] for name in others]) for which in (True, False)
    )
    assert kept.min() >= pruned.max()
    assert len({tuple(np.concatenate([mask[name].ravel() for name in others])) for mask in of_weights}) == 3


def test_the_distance_counts_kernels_between_two_outputs_against_zero():
    expected = jnp.array([[[3.0, 4.0]]])
    kernel = jnp.array([[[[3.0, 3.0], [4.0, 4.0]]]])
    np.testing.assert_allclose(pruned_widths._relative_distance(kernel, expected), 1.0, rtol=SINGLE)


def test_the_command_draws_masks_of_the_kinds_that_it_is_told(tmp_path, capsys):
    sizes = ["--model", "fc", "--width", "4", "8", "--seeds", "2", "--density", "0.5"]
    command.main(["--mask", "dense", "synflow", *sizes, "--out", str(tmp_path)])
    assert capsys.readouterr().out.count("slope") == 4
    with (tmp_path / "masks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 2
    assert {(row["mask"], row["density"]) for row in rows} == {("dense", "1"), ("synflow", "0.5")}
    assert {(row["mask"], row["moments"]) for row in rows} == {
        (mask, moments) for mask in ("dense", "synflow") for moments in ("initialization", "squares")
    }
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "masks.svg").read_bytes()
