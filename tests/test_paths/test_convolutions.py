"""Convolutions as products of matrices, against JAX's own."""

import jax
import numpy as np
import pytest
from jax import lax

from pathjax import scores
from pathjax._interpreter import convolutions
from pathjax._interpreter.algebra import Convolution

from .. import networks, oracles
from ..tolerances import EXACT

CASES = {
    "same": ((2, 6, 7, 3), (3, 2, 3, 4), (1, 1), [(1, 1), (0, 1)], ("NHWC", "HWIO", "NHWC")),
    "strides": ((1, 8, 9, 2), (3, 3, 2, 5), (2, 3), [(0, 1), (2, 0)], ("NHWC", "HWIO", "NHWC")),
    "channels first": ((2, 3, 6, 5), (4, 3, 2, 2), (2, 1), [(0, 0), (0, 0)], ("NCHW", "OIHW", "NCHW")),
    "mixed": ((3, 6, 5, 2), (3, 3, 4, 3), (1, 2), [(1, 0), (1, 1)], ("CHWN", "HWOI", "HNWC")),
    "one axis": ((2, 9, 3), (4, 3, 5), (2,), [(1, 2)], ("NHC", "HIO", "NHC")),
    "three axes": ((1, 4, 5, 4, 2), (2, 2, 3, 2, 3), (1, 2, 1), [(0, 0), (1, 0), (1, 1)], ("NDHWC", "DHWIO", "NDHWC")),
    "one by one": ((2, 5, 5, 3), (1, 1, 3, 4), (2, 2), [(0, 0), (0, 0)], ("NHWC", "HWIO", "NHWC")),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_jax_with_derivatives(name):
    shape, kernel, strides, padding, spec = CASES[name]
    numbers = lax.conv_dimension_numbers(shape, kernel, spec)
    ones = (1,) * len(strides)
    convolution = Convolution(strides, padding, ones, ones, numbers, 1)
    assert convolutions.is_plain(convolution)
    left, right = (jax.random.normal(jax.random.key(seed), size) for seed, size in enumerate((shape, kernel)))
    found, back = jax.vjp(lambda a, b: convolutions.by_patches(a, b, convolution), left, right)
    expected, expected_back = jax.vjp(lambda a, b: lax.conv_general_dilated(a, b, **convolution._asdict()), left, right)
    np.testing.assert_allclose(found, expected, rtol=EXACT, atol=EXACT)
    cotangent = jax.random.normal(jax.random.key(2), found.shape)
    for ours, theirs in zip(back(cotangent), expected_back(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    "change",
    [{"feature_group_count": 2}, {"lhs_dilation": (2, 1)}, {"rhs_dilation": (1, 2)}, {"padding": [(0, -1), (0, 0)]}],
)
def test_what_is_not_plain_is_left_to_jax(change):
    numbers = lax.conv_dimension_numbers((1, 6, 6, 2), (3, 3, 2, 2), ("NHWC", "HWIO", "NHWC"))
    plain = Convolution((1, 1), [(0, 0), (0, 0)], (1, 1), (1, 1), numbers, 1)
    assert not convolutions.is_plain(plain._replace(**change))


@pytest.mark.parametrize("name", [name for name in networks.names() if "conv" in name])
def test_sums_over_paths_through_patches(name, monkeypatch):
    monkeypatch.setattr(convolutions, "_LARGE", 1)
    network, listed = networks.build(name), networks.listed(name)
    shares = jax.jit(lambda params: scores.synflow(network.apply, params, network.x))(network.params)
    masses = oracles.path_mass(listed, network.theta, 1) / oracles.path_norm(listed, network.theta, 1)
    found = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(shares)])
    np.testing.assert_allclose(found, masses, rtol=EXACT, atol=EXACT)
