"""Trials and kernels made up for tests, and studies that they run as commands."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.measure.kernel_pictures import KernelPictures
from experiments.records.jsonl import decode, encode
from experiments.records.trial import Trial

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Programs of the same content are compiled once in this context, and kept in the folder."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def sweeping(place: Path, out: Path, *more: str, config: str | Path = "small.toml") -> list[str]:
    """The arguments of a sweep into `out`, of a folder that has its config, and its data sets in `data`."""
    return ["sweep", str(place / config), "--out", str(out), "--data-dir", str(place / "data"), *more]


def started(
    place: Path, out: Path, *more: str, config: str | Path = "small.toml", log: Path | None = None
) -> subprocess.Popen:
    """A sweep in a process of its own, which writes all it says to `log`; its programs are in `place / "compiled"`."""
    environment = {
        "JAX_ENABLE_X64": "1",  # as in the tests
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with open(log or os.devnull, "w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments", *sweeping(place, out, *more, config=config)],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT if log else None,
        )


def trials_of(out: Path) -> list[Trial]:
    """The trials in the lines of results.jsonl, in their order."""
    return [decode(line, Trial) for line in (out / "results.jsonl").read_text().splitlines()]


def plain(out: Path) -> list[str]:
    """The lines of results.jsonl in one order, without what tells when, where and by what they were computed."""
    return sorted(encode(dataclasses.replace(trial, made={})) for trial in trials_of(out))


def stateless(apply: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Any, Any], jax.Array]:
    """A function (params, x) as a network (params, state, x)."""
    return lambda params, state, x: apply(params, x)


def example_trial(**changed: Any) -> Trial:
    """A trial of snip at density 0.1 on digits in which every number is 1.5, with some fields changed."""
    fields: dict[str, Any] = {field.name: 1.5 for field in dataclasses.fields(Trial) if field.type == "float"}
    fields |= {field.name: [1.0, 0.25] for field in dataclasses.fields(Trial) if field.type == "list[float]"}
    fields |= {"data": "digits", "model": "fc", "method": "snip", "density": 0.1, "seed": 2, "kept": 7, "prunable": 70}
    fields |= {"layer_density": {"dense": 0.1}, "dead_units": {"hidden_0": 0.25}, "pruned_stay_zero": True}
    return Trial(**fields | changed)


def example_kernels(seed: int = 0, **changed: Any) -> KernelPictures:
    """Numbers of pictures with 5 modes and 6 examples of 2 classes, with some fields changed."""
    rng = np.random.default_rng(seed)
    fields: dict[str, Any] = {
        "log_eigenvalues": np.array([4.0, 3.0, 2.0, 1.0, -np.inf]),
        "shares": np.array([0.2, 0.1, 0.1, 0.05, 0.0]),
        "log_ntk_eigenvalues": np.append(-np.arange(11.0), -np.inf),
        "bounds": np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        "cosines": rng.uniform(-1, 1, (3, 6, 6)),
        "alignments": np.array([0.3, 0.2, 0.1]),
        "labels": np.array([1, 0, 1, 0, 1, 0]),
    }
    return KernelPictures(**fields | changed)


def example_study(
    *,
    data: tuple[str, ...] = ("digits", "mnist"),
    models: tuple[str, ...] = ("fc", "resnet20"),
    methods: tuple[str, ...] = ("random", "snip", "synflow"),
    densities: tuple[float, ...] = (0.5, 0.1, 0.02),
    seeds: int = 2,
) -> list[Trial]:
    """Trials of every cell, in which later methods and denser networks do better; Π alone predicts too fast."""
    cells = [("dense", 1.0), *((method, density) for method in methods for density in densities)]
    return [
        _trial(
            names, place=methods.index(method) if method in methods else len(methods), places=len(methods), seed=seed
        )
        for dataset in data
        for model in models
        for method, density in cells
        for seed in range(seeds)
        for names in [(dataset, model, method, density)]
    ]


def _trial(names: tuple[str, str, str, float], *, place: int, places: int, seed: int) -> Trial:
    """The trial of one cell and seed; `place` is the method's among `places` methods, from the worst."""
    dataset, model, method, density = names
    rng = np.random.default_rng([*(dataset + model + method).encode(), int(1000 * density), seed])
    share = density ** (0.16 - 0.13 * place / places) * (0.99 if dataset == "digits" else 0.97)
    size = 8 if model == "fc" else 14
    steps = np.arange(101)
    rate = 0.02 * (1 + 0.3 * place) * density**0.2
    real = np.exp(-rate * steps) * 0.9 + 0.1 * np.exp(-0.1 * rate * steps)
    layers = {f"layer_{i}": min(1.0, density * float(np.exp(0.3 * rng.normal() + 0.8 - 0.15 * i))) for i in range(size)}
    dead = {f"layer_{i}": float(max(0.0, 0.3 - density) * (i % 3) / 2) for i in range(size - 1)}
    spectrum = 4 + place - 0.12 * np.arange(40) * (1 + 0.1 * place) + 0.1 * rng.normal(size=40)
    known: dict[str, Any] = {
        field.name: float(rng.normal(5)) for field in dataclasses.fields(Trial) if field.name.startswith("log_")
    }
    lists = {field.name for field in dataclasses.fields(Trial) if field.type == "list[float]"}
    trace = 12 + 2 * place + 3 * np.log(density) + 0.1 * rng.normal()
    known = {name: value for name, value in known.items() if name not in lists}
    return Trial(
        **known
        | {"data": dataset, "model": model, "method": method, "density": density, "seed": seed}
        | {"log_trace_path_kernel": trace, "log_top_path_kernel": trace - 2, "log_path_norm_1": trace / 2},
        kept=round(1000 * density),
        prunable=1000,
        layer_density=layers,
        dead_units=dead,
        effective_rank_path_kernel=50 * density**0.3 + rng.normal(),
        effective_rank_ntk=10 + rng.normal(),
        log_ntk_eigenvalues=np.where(np.arange(40) < 36, np.sort(spectrum)[::-1], -np.inf).tolist(),
        log_path_kernel_nodes=np.append(trace - 2 - 6 * rng.random(20), -np.inf).tolist(),
        path_kernel_weights=np.full(21, 1 / 21).tolist(),
        real_loss=real.tolist(),
        linearized_loss=(real**1.05).tolist(),
        low_rank_loss=(real**0.8).tolist(),
        data_free_loss=(real**2).tolist(),
        no_data_loss=(real**0.7).tolist(),
        moments_loss=(real**0.75).tolist(),
        inputs_loss=(real**0.9).tolist(),
        gap_linearized=0.02 + 0.01 * rng.random(),
        gap_low_rank=0.1 + 0.1 * rng.random(),
        gap_data_free=0.3 + 0.2 * rng.random(),
        gap_no_data=0.2 + 0.1 * rng.random(),
        gap_moments=0.15 + 0.1 * rng.random(),
        gap_inputs=0.1 + 0.1 * rng.random(),
        regression_accuracy=0.4 + 0.3 * rng.random(),
        linearization_error=0.1 + 0.2 * rng.random(),
        kernel_distance=0.05 + 0.1 * rng.random(),
        infinite_distance=0.3 if method == "dense" else float("nan"),
        train_loss=[2.3, 1.0, 0.5],
        steps_to_level=40.0 + 10 * place + 5 * seed,
        test_loss=0.4,
        test_accuracy=min(0.995, float(share + 0.004 * rng.normal())),
        pruned_stay_zero=True,
        ntk_change=0.05 + 0.5 * (1 - density) + 0.05 * rng.random(),
        ntk_distance=0.02 + 0.2 * (1 - density),
        path_kernel_change=0.03 + 0.3 * (1 - density),
        path_kernel_distance=0.01 + 0.1 * (1 - density),
    )
