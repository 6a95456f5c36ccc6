"""Kernels that would not fit are refused before they are begun, with the chunks that fit."""

from __future__ import annotations

import re
import sys
from typing import Any, cast

import jax
import jax.numpy as jnp
import pytest

from pathjax import ntk
from pathjax._ntk import memory as _memory


def apply(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["out"]


def shapes(n, width=100, outputs=10):
    """A network and a batch, by their shapes alone, in float32."""
    like = {"hidden": (20, width), "out": (width, outputs)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in like.items()}
    return params, jax.ShapeDtypeStruct((n, 20), jnp.float32)


def request(n, kernel=ntk.empirical, **options):
    """Trace a kernel: nothing is computed."""
    return jax.eval_shape(lambda params, x: kernel(apply, params, x, **options), *shapes(n))


@pytest.fixture
def free(monkeypatch):
    def set_free(size):
        monkeypatch.setattr(_memory, "available", lambda: size)

    return set_free


def test_what_does_not_fit_names_the_chunk_that_does(free):
    free(36_000_000)  # the kernel of 200 examples has 16 MB, and its sum over layers as much again
    with pytest.raises(MemoryError, match=r"needs about 32 MB for its result.*200 examples.*36 MB are free") as refused:
        request(200)
    (named,) = re.findall(r"`batch_size=(\d+)`", str(refused.value))
    assert request(200, batch_size=int(named)).shape == (200, 200, 10, 10)
    with pytest.raises(MemoryError):
        request(200, batch_size=int(named) + 1)


def test_a_result_that_does_not_fit_points_to_the_operator(free):
    free(20_000_000)
    with pytest.raises(MemoryError, match=r"^The result alone does not fit.*`ntk.operator`.*`ntk.empirical_trace`"):
        request(200, batch_size=1)
    assert request(200, ntk.empirical_trace).shape == (200, 200)
    assert request(200, ntk.empirical_diagonal).shape == (200, 10, 10)


def test_one_example_that_does_not_fit_is_said_to(free):
    free(2_000)
    with pytest.raises(MemoryError, match=r"^One example at a time does not fit either.*2 kB are free"):
        request(1)


def test_arrays_that_are_there_are_refused_too(free):
    free(250_000)
    params, x = (jax.tree.map(lambda like: jnp.ones(like.shape), tree) for tree in shapes(10))
    with pytest.raises(MemoryError, match="Pass `batch_size"):
        ntk.empirical(apply, params, x)


@pytest.mark.parametrize(("method", "needed"), [("jacobian", "40 MB"), ("products", "16 MB")])
def test_methods_without_chunks_are_refused_with_the_one_that_has_them(free, method, needed):
    free(10_000_000)
    with pytest.raises(MemoryError, match=f"method '{method}' needs about {needed}.*Leave the method out"):
        request(200, method=method)


def test_estimates_are_near_what_xla_plans(monkeypatch):
    planned = []
    monkeypatch.setattr(_memory, "check", lambda result, working, n, size: planned.append(result + working(size or n)))
    cases: Any = ((ntk.empirical, {}), (ntk.empirical, {"batch_size": 20}), (ntk.empirical_trace, {}))
    for n, (function, options) in ((100, case) for case in cases):
        kernel = jax.jit(lambda params, x, of=function, given=options: of(apply, params, x, **given))
        analysis = cast(Any, kernel.lower(*shapes(n)).compile().memory_analysis())
        actual = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        assert 0.4 < planned[-1] / actual < 2.5


def test_memory_is_what_the_device_says_or_the_machine(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    monkeypatch.setattr(jax, "local_devices", lambda: [Device({"bytes_limit": 1000, "bytes_in_use": 300})])
    assert _memory.available() == 700
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None)])
    assert (_memory.available() or 0) > 10**6


# Containers

SCALE = 10**6
NAMES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def make_group(folder, version, limit, used, droppable):
    """The files of a control group; limits and use in MB."""
    folder.mkdir(parents=True, exist_ok=True)
    limit_name, used_name, droppable_name = NAMES[version]
    (folder / limit_name).write_text(f"{limit * SCALE if isinstance(limit, int) else limit}\n")
    (folder / used_name).write_text(f"{used * SCALE}\n")
    (folder / "memory.stat").write_text(f"anon 12\n{droppable_name} {droppable * SCALE}\nslab 7\n")


@pytest.fixture(params=[1, 2])
def groups(request, tmp_path):
    """The version, the folder of its outermost group, and what tells the free megabytes for a group's path."""
    root = tmp_path / "cgroup"
    folder, membership = root / "memory" if request.param == 1 else root, tmp_path / "membership"

    def free_at(path):
        line = f"0::{path}" if request.param == 2 else f"9:cpu,cpuacct:/elsewhere\n4:memory:{path}"
        membership.write_text(f"{line}\n")
        return _memory.free_in_container(root, membership) / SCALE

    return request.param, folder, free_at


def test_a_containers_limit_counts_less_what_is_used_and_not_droppable(groups):
    version, folder, free_at = groups
    make_group(folder, version, 1000, 700, 150)
    assert free_at("/") == 450
    make_group(folder, version, 1000, 1200, 150)  # beyond its limit, as for a moment after a change of the limit
    assert free_at("/") == 0


def test_the_tightest_of_nested_groups_counts(groups):
    version, folder, free_at = groups
    make_group(folder, version, 1000, 700, 0)
    make_group(folder / "jobs", version, 800, 700, 50)
    make_group(folder / "jobs" / "one", version, 900, 100, 0)
    make_group(folder / "jobs" / "two", version, 300, 290, 0)
    assert free_at("/") == 300
    assert free_at("/jobs") == free_at("/jobs/one") == 150
    assert free_at("/jobs/two") == 10
    # the path outside of the container, which is its own root inside
    assert free_at("/docker/3f2a") == free_at("/../../host") == 300


def test_without_a_limit_the_machines_memory_counts(groups, tmp_path, monkeypatch):
    version, folder, free_at = groups
    unlimited = sys.maxsize / SCALE
    assert free_at("/") == unlimited  # no such files
    make_group(folder, version, "max" if version == 2 else 9223372036854771712 // SCALE, 700, 0)
    assert free_at("/") > 10**12
    missing = tmp_path / "missing"
    assert _memory.free_in_container(missing, missing) == sys.maxsize
    monkeypatch.setattr(_memory, "free_in_container", lambda: 123)
    assert _memory.available() == 123
    monkeypatch.setattr(_memory, "free_in_container", lambda: sys.maxsize)
    assert 10**6 < (_memory.available() or 0) < sys.maxsize


# Kernels that have been compiled


@pytest.mark.parametrize("mask_is_given", [False, True])
def test_memory_is_checked_again_when_a_compiled_kernel_is_called(free, mask_is_given):
    calls = []

    def counted(params, x):
        calls.append(x.shape)
        return apply(params, x)

    params, x = (jax.tree.map(lambda like: jnp.ones(like.shape), tree) for tree in shapes(20, width=30))
    mask = jax.tree.map(lambda leaf: leaf > 0, params) if mask_is_given else None
    free(10**9)
    expected = ntk.empirical(counted, params, x, mask=mask)
    traced = len(calls)
    free(690_000)  # the result has 320 kB, and the sum over layers as much again
    with pytest.raises(MemoryError, match="690 kB are free") as refused:
        ntk.empirical(counted, params, x, mask=mask)
    (named,) = re.findall(r"`batch_size=(\d+)`", str(refused.value))
    assert ntk.empirical(counted, params, x, mask=mask, batch_size=int(named)).shape == expected.shape
    free(10**9)
    assert (ntk.empirical(counted, params, x, mask=mask) == expected).all()
    free(None)
    assert (ntk.empirical(counted, params, x, mask=mask) == expected).all()
    assert len(calls) == traced


def test_where_memory_is_unknown_nothing_is_refused(free):
    free(None)
    assert request(200).shape == (200, 200, 10, 10)
