"""How tests and doctests run: float64, no silent broadcasting, types of public calls checked, bounded memory."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import pytest

# Tests compile thousands of small programs and run each once, so compile them without optimization, in a third of the
# time. XLA ends the process at a flag that it does not know: only versions that were tried with these are given them.
version = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
if version in {"0.10", "0.11", "0.12"}:
    flags = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    if version == "0.10":
        flags += " --xla_cpu_use_fusion_emitters=false"  # gone from 0.11 on
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"

# The workers of `make test` share the cores, so NumPy's linear algebra takes one thread in each. (They inherit this; a
# process that has imported NumPy already does not read it.)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Traces and programs are millions of Python objects: look for garbage among them when memory grows, not all the time.
gc.disable()

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Check the annotations of public modules on every call. The hook must be there before any test imports pathjax. Private
# modules are called by public ones alone, thousands of times in each trace: there the checks cost more than they find.
PUBLIC_MODULES = sorted(
    f"pathjax.{file.stem}" for file in Path(__file__).parent.glob("pathjax/*.py") if not file.stem.startswith("_")
)
install_import_hook(PUBLIC_MODULES, "beartype.beartype")

# Imported as a whole, so that pytest does not load a module a second time where the doctests of one file run alone.
import pathjax  # noqa: E402, F401

# JAX keeps every program that it has compiled. They are dropped after a test that leaves this much memory in use.
MEMORY_LIMIT = 1_500_000_000  # bytes


# The files that take longest, the longest first: a process begins with them, so that none is left over at the end.
LONGEST_FIRST = (
    "tests/test_experiments/test_sweep.py",
    "tests/test_experiments/test_extending.py",
    "tests/test_path_kernel/test_spectrum.py",
    "tests/test_enumeration/test_listing.py",
    "tests/test_paths/test_listed.py",
    "tests/test_factorization/test_factorization.py",
    "tests/test_experiments/test_widths.py",
    "tests/test_experiments/test_figures.py",
    "tests/test_paths/test_architectures.py",
    "tests/test_paths/test_rules.py",
    "tests/test_paths/test_data_gram.py",
    "tests/test_fuzz/test_networks.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest in front, and leave the order of all else as it is."""
    places = {config.rootpath / file: place for place, file in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drop all compiled programs between two tests where the process has grown large."""
    if _memory_in_use() <= MEMORY_LIMIT:
        return
    gc.collect()
    _return_free_memory()
    if _memory_in_use() > 0.8 * MEMORY_LIMIT:
        jax.clear_caches()
        gc.collect()
        _return_free_memory()


def _memory_in_use() -> int:
    """Resident bytes of this process; 0 where the system does not say."""
    try:
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return resident_pages * os.sysconf("SC_PAGE_SIZE")


def _return_free_memory() -> None:
    """Give the memory that the C library holds free back to the system."""
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
