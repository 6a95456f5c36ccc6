"""Results of studies made up for the page of the evidence, with differences between methods that are known."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records.jsonl import encode
from experiments.records.trial import Trial

SEEDS = 5

UNTRAINED = 0.82
"""Made-up runs of lower accuracy did not train: those of random pruning at low density."""

QUALITIES = {
    "random": 0.0,
    "magnitude": 0.2,
    "snip": 0.4,
    "synflow": 0.7,
    "synflow_l2": 0.75,
    "synflow_l2_absolute": 0.75,
    "synflow_data": 0.8,
    "synflow_data_l2": 0.9,
    "lottery_ticket": 1.2,
}
"""Methods with what they add to accuracy at the lowest density, in units of 0.2."""


def accuracy(method: str, density: float, seed: int) -> float:
    """Of a made-up network: shuffled masks keep 0.6 of the lead over random, and inverted ones lose it."""
    base, _, variant = method.partition("+")
    quality = QUALITIES.get(base, 0.5) * {"shuffled": 0.6, "inverted": -0.5}.get(variant, 1.0)
    noise = np.random.default_rng([*method.encode(), int(1000 * density), seed]).normal(scale=0.003)
    return float(0.95 + 0.03 * np.log(density) * (1.5 - quality) + noise)


def trial(data: str, model: str, method: str, density: float, seed: int, *, right: float | None = None) -> Trial:
    """A made-up network: sums over paths grow with its quality, Θ's numbers with nothing; Π predicts far too fast."""
    right = accuracy(method, density, seed) if right is None else right
    rng = np.random.default_rng([*(data + model + method).encode(), int(1000 * density), seed, 1])
    quality = QUALITIES.get(method.partition("+")[0], 0.5)
    known = {
        name: 10 * quality + 0.1 * rng.normal()
        for name in ("log_trace_path_kernel", "log_top_path_kernel", "log_path_norm_1", "log_path_norm_2")
    }
    known |= {name: 5 + rng.normal() for name in ("log_path_count", "log_trace_ntk", "log_top_ntk")}
    known |= {"log_condition_ntk": 5 - 10 * quality + 0.1 * rng.normal(), "effective_rank_ntk": 5 + rng.normal()}
    drop = 1.0 + quality + 0.01 * rng.normal()
    gaps = {"data_free": 3.0, "no_data": 0.5, "moments": 0.4, "inputs": 0.3, "low_rank": 0.4, "linearized": 0.05}
    gaps["data_free"] += 0.4 * (model != "fc")  # networks differ
    predicted = {f"{name}_loss": [1.0, float(10 ** -(drop + gap))] for name, gap in gaps.items()}
    tops = {f"log_top_{name}": known["log_top_ntk"] + 0.5 for name in ("no_data", "moments", "inputs")}
    return Trial.partial(
        (data, model, method, density, seed),
        kept=round(1000 * density),
        prunable=1000,
        layer_density={"a": min(1.0, density * (1 + 0.1 * rng.random())), "b": density},
        effective_rank_path_kernel=50 + 10 * quality,
        real_loss=[1.0, float(10**-drop)],
        train_loss=[2.3, 0.3],
        test_loss=0.4,
        test_accuracy=right,
        pruned_stay_zero=True,
        did_not_train="" if right > UNTRAINED else "the test accuracy is that of chance",
        made={"device": "cpu", "commit": "0" * 40, "seconds": 36.0, "finished": "2021-01-02T03:04:05+00:00"},
        **known,
        **{f"gap_{name}": gap + 0.01 * rng.normal() for name, gap in gaps.items()},
        **predicted,
        **tops,
    )


def folder_of(
    place: Path,
    name: str,
    *,
    data: Sequence[str],
    models: Sequence[str],
    methods: Sequence[str],
    densities: Sequence[float],
    seeds: int = SEEDS,
    right: Callable[[str, str, float, int], float] | None = None,
    **options: object,
) -> Path:
    """A folder as a sweep leaves it; `right(model, method, density, seed)` is the accuracy of a network."""
    cells = [("dense", 1.0), *((method, density) for density in densities for method in methods)]
    trials = [
        trial(
            *(each, model, method, density, seed),
            right=None if right is None else right(model, method, density, seed),
        )
        for each in data
        for model in models
        for method, density in cells
        for seed in range(seeds)
    ]
    study = {
        "data": list(data),
        "model": [{"name": model, "network": model, "factor": 1.0} for model in models],
        "method": list(methods),
        "density": list(densities),
        "seeds": seeds,
        "train_images": 54000,
        "test_images": 0,
        "train.epochs": 10,
        "train.batch_size": 100,
        "train.learning_rate": 0.1,
        "train.schedule": "step",
        "train.momentum": 0.9,
        "train.weight_decay": 5e-4,
        "measure.ntk_images": 10,
        "measure.curve_steps": 1,
    }
    folder = place / name
    folder.mkdir(parents=True)
    config = {"format": Trial.FORMAT, "options": study | options, "versions": {"pathjax": "0.1.0", "jax": "0.10.2"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.jsonl").write_text("".join(encode(each) + "\n" for each in trials))
    return folder


def all_folders(place: Path, *, seeds: int = SEEDS) -> dict[str, Path]:
    """A folder of each study that the page reads."""
    lenets, nets = ("lenet_300_100", "lenet_5"), ("fc", "vgg_11")
    methods = list(QUALITIES)
    before = [method for method in methods if method != "lottery_ticket"]
    varied = [
        f"{method}{variant}" for method in methods for variant in ("", "+shuffled", "+reinitialized", "+inverted")
    ]
    studies = {
        "mnist-snip": ("mnist", lenets[:1], ["snip"], [0.05, 0.02]),
        "mnist-snip-lenet-5": ("mnist", lenets[1:], ["snip"], [0.02, 0.01]),
        "mnist-sgd": ("mnist", lenets, ["snip"], [0.5, 0.3, 0.2, 0.1]),
        "mnist-settled": ("mnist", lenets[:1], ["snip"], [0.05, 0.02]),
        "mnist-long": ("mnist", lenets[:1], ["snip"], [0.05, 0.02]),
        "mnist-methods": ("mnist", lenets, methods, [0.1, 0.02]),
        "digits": ("digits", nets, methods, [0.2, 0.05]),
        "digits-sanity": ("digits", nets, varied, [0.05]),
        "fashion": ("fashion_mnist", ("lenet_5",), methods, [0.05]),
        "cifar10": ("cifar10", ("resnet_20",), before, [0.05]),
        "ladder": ("digits", nets, before, [0.05]),
    }
    changed: dict[str, dict[str, Any]] = {
        "mnist-settled": {"train.epochs": 20},
        "mnist-long": {
            "train.epochs": 50,
            "right": lambda _, method, density, seed: accuracy(method, density, seed) + 0.003 * (seed + 1),
        },
        "cifar10": {"right": lambda *_: 0.3},
    }
    return {
        name: folder_of(
            place,
            name,
            data=[data],
            models=models,
            methods=names,
            densities=densities,
            seeds=seeds,
            **changed.get(name, {}),
        )
        for name, (data, models, names, densities) in studies.items()
    }
