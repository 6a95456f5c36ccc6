"""A kernel spread over the devices of a mesh is the kernel on one."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pathjax import ntk

from ..tolerances import SUMS
from . import on_devices

ROOT = Path(__file__).parents[2]


def test_eight_devices_give_the_kernels_of_one(tmp_path):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    file = tmp_path / "found.npz"
    subprocess.run([sys.executable, on_devices.__file__, str(file)], env=environment, check=True)
    found, expected = np.load(file), on_devices.kernels(None)
    assert found["count"] == 8
    for name, kernel in expected.items():
        np.testing.assert_allclose(found[name], kernel, rtol=0, atol=SUMS * np.abs(kernel).max(), err_msg=name)
    np.testing.assert_array_equal(found["symmetric"], found["symmetric"].transpose(1, 0, 3, 2))


def test_one_device_is_a_mesh_too():
    apply, params, mask, x = on_devices.example()
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))  # without types of axes

    def kernel(params, mesh):
        return ntk.empirical_trace(apply, params, x, mask=mask, mesh=mesh)

    with_mesh, without = (jax.jit(kernel, static_argnums=1)(params, each) for each in (mesh, None))
    np.testing.assert_allclose(with_mesh, without, rtol=SUMS)


def test_methods_that_run_on_one_device_are_refused():
    apply, params, _, x = on_devices.example()
    mesh = jax.make_mesh((1,), ("devices",))
    with pytest.raises(ValueError, match="method 'products' runs on one device.*Leave it or the method out"):
        inspect.unwrap(ntk.empirical)(apply, params, x, method="products", mesh=mesh)
