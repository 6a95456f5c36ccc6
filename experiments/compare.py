"""The main job: prune, measure, train and hold the predictions against what happened, cell by cell."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg.cython_lapack  # noqa: F401  # XLA's LAPACK; loaded now, so that the limit below holds for it too
import threadpoolctl  # type: ignore[import-untyped]

from experiments.base.seeds import key_of
from experiments.data.loading import Dataset, balanced_batch
from experiments.measure import curves, kernel_pictures, pruning, quantities
from experiments.measure.kernel_pictures import Cell
from experiments.networks import twins
from experiments.options import DENSE, Compare, InputError, Recipe
from experiments.records.progress import Reporter
from experiments.records.results_folder import Folder
from experiments.records.runs import Run
from experiments.train import training
from pathjax import masks, ntk
from pathjax.types import Mask, Params

__all__ = ["Bench", "cells_of", "check_densities", "compute", "layer_name", "layers", "missing_cells", "reason"]

_SCORE_PER_CLASS = 10


def cells_of(options: Compare) -> list[Cell]:
    """All cells of a comparison, the dense network first."""
    return [(DENSE, 1.0), *((method, density) for density in options.density for method in options.method)]


def missing_cells(options: Compare, folder: Folder[Run]) -> list[Cell]:
    """The cells of which the folder lacks a seed, or the kernels."""
    kept = {run.name for run in folder.runs()}
    return [
        cell
        for cell in cells_of(options)
        if any((*cell, seed) not in kept for seed in range(options.seeds))
        or not kernel_pictures.file_of(folder.path, *cell).exists()
    ]


def compute(options: Compare, dataset: Dataset, folder: Folder[Run], reporter: Reporter) -> None:
    """Compute the cells that the folder lacks, and keep each as soon as it is finished."""
    missing = missing_cells(options, folder)
    if not missing:
        return
    reporter.stage("building")
    # matrices this small take one thread; on a shared machine several wait for each other fifty times as long
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        bench = Bench(options, dataset)
        for method, density in missing:
            # a cell is always computed for all its seeds: another batch of seeds would round otherwise
            runs, shown = bench.measured(method, density, reporter)
            kernel_pictures.save(kernel_pictures.file_of(folder.path, method, density), shown)
            folder.add(runs)
            accuracy = np.mean([run.test_accuracy for run in runs])
            reporter.advance(f"{method} {density:g}: accuracy {100 * accuracy:.1f}%")


class _Measured(NamedTuple):
    """All that was measured of one cell and seed."""

    spectrum: quantities.NtkSpectrum
    mask: Mask
    known: quantities.BeforeTraining
    losses: curves.Curves
    trained: training.Trained
    pruned_stay_zero: np.ndarray
    infinite_distance: np.ndarray


class Bench:
    """One data set and one network, with the programs that measure it, compiled once and used for every cell."""

    def __init__(self, options: Compare, dataset: Dataset) -> None:
        images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
        build = twins.MODELS[options.model]
        self._options = options
        self._model = build(dataset.train_images.shape[1:], dataset.classes, width=options.width)
        check_densities(options.density, options.model, jax.eval_shape(self._model.init, key_of(0)))
        self._params = jax.jit(jax.vmap(self._model.init))(self._keys("init"))
        few = balanced_batch(dataset.train_labels, _SCORE_PER_CLASS)
        self._masked = pruning.masked_seeds(
            self._model.apply,
            pruning.Evidence(images, (images[few], labels[few]), self._model.init),
            rounds=options.rounds,
        )
        fixed = balanced_batch(dataset.train_labels, options.ntk_per_class)
        self._batch = images[fixed]
        self._known = quantities.before_training(self._model.apply, self._batch)
        self._kernels = kernel_pictures.measurer(self._model.apply, self._batch, labels[fixed])
        targets = curves.centred_one_hot(labels[fixed], dataset.classes)
        self._curves = curves.loss_curves(self._model.apply, self._batch, targets, steps=options.curve_steps)
        self._steps_per_epoch = len(labels) // min(options.batch_size, len(labels))
        self._trained = training.trainer(
            training.stateless(self._model.apply),
            (images, labels),
            (jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)),
            Recipe(epochs=options.epochs, batch_size=options.batch_size, learning_rate=options.learning_rate),
        )

    def measured(self, method: str, density: float, reporter: Reporter) -> tuple[list[Run], kernel_pictures.Kernels]:
        """All seeds of one cell, from scores to the trained network, and what the pictures of its kernels show."""
        name = f"{method} {density:g}"
        reporter.stage(f"{name}: scores")
        mask = self.mask(method, density)
        reporter.stage(f"{name}: kernels", 0.2)
        known = jax.device_get(self._known(self._params, mask, self._keys("lanczos")))
        spectra = [quantities.ntk_spectrum(kernel) for kernel in known.ntk]
        shown = self._kernels(self._params, mask, key_of(0, "kernels"), known, spectra[0])
        reporter.stage(f"{name}: curves", 0.5)
        top = np.array([spectrum.eigenvalues[0] for spectrum in spectra], np.float32)
        losses = self._curves(self._params, mask, known.ntk, top, known.nodes, known.weights, known.parameters)
        reporter.stage(f"{name}: training", 0.6)
        trained = self._trained(self._params, {}, mask, self._keys("order"))
        reporter.stage(f"{name}: writing", 0.95)
        zero = training.pruned_stay_zero(trained.params, mask)
        distances = self._infinite_distances(known.ntk) if method == DENSE else np.full(len(spectra), np.nan)
        stacked = jax.device_get((mask, known, losses, trained, zero, distances))
        runs = []
        for seed, spectrum in enumerate(spectra):
            of_seed = _Measured(spectrum, *jax.tree.map(lambda leaf, seed=seed: leaf[seed], stacked))
            runs.append(self._run(method, density, seed, of_seed))
        return runs, shown

    def mask(self, method: str, density: float) -> Mask:
        """The masks of one cell, the seeds on a leading axis."""
        if method == DENSE:
            return pruning.dense_mask(self._params)
        return self._masked(method, density, self._params, self._keys(method, density))

    def _keys(self, *names: str | float) -> jax.Array:
        return jnp.stack([key_of(seed, *names) for seed in range(self._options.seeds)])

    def _infinite_distances(self, kernels: np.ndarray) -> np.ndarray:
        infinite = ntk.infinite(self._model.kernel_fn, self._batch)
        return np.array([ntk.relative_distance(jnp.asarray(kernel), infinite) for kernel in kernels])

    def _run(self, method: str, density: float, seed: int, measured: _Measured) -> Run:
        kernels_of = layers(measured.mask)
        losses, train_loss = measured.losses, measured.trained.train_loss
        fields = {field.name for field in dataclasses.fields(Run)}
        known = measured.known._asdict() | measured.spectrum._asdict()
        return Run(
            method=method,
            density=density,
            seed=seed,
            kept=sum(layer.kept for layer in kernels_of),
            prunable=sum(layer.size for layer in kernels_of),
            layer_density={layer_name(layer.path): layer.density for layer in kernels_of},
            infinite_distance=float(measured.infinite_distance),
            train_loss=train_loss.astype(float).tolist(),
            test_accuracy=float(measured.trained.test_accuracy),
            steps_to_level=training.steps_to_level(
                train_loss, level=self._options.loss_level, steps_per_epoch=self._steps_per_epoch
            ),
            pruned_stay_zero=bool(measured.pruned_stay_zero),
            real_loss=np.asarray(losses.real, float).tolist(),
            linearized_loss=np.asarray(losses.linearized, float).tolist(),
            data_free_loss=np.asarray(losses.data_free, float).tolist(),
            gap_linearized=curves.gap(losses.linearized, losses.real),
            gap_data_free=curves.gap(losses.data_free, losses.real),
            linearization_error=float(losses.linearization_error),
            kernel_distance=float(losses.kernel_distance),
            reason=reason(train_loss),
            **{name: float(value) for name, value in known.items() if name in fields},
        )


def check_densities(densities: Sequence[float], model: str, params_like: Params) -> None:
    """Raise InputError at a density that keeps no weight, before any cell is computed."""
    for density in densities:
        try:
            masks.kept_counts(params_like, density=density)
        except ValueError as error:
            raise InputError(f"Density {density:g} cannot be had of {model}: {error}") from error


def layers(mask: Mask) -> Sequence[masks.LeafStatistics]:
    """What a mask keeps of each kernel."""
    leaves = jax.tree_util.tree_flatten_with_path(mask)[0]
    prunable = [masks.is_kernel(path, leaf) for path, leaf in leaves]
    return [layer for layer, chosen in zip(masks.statistics(mask), prunable, strict=True) if chosen]


def layer_name(path: str) -> str:
    """`Dense_0` of `['params']['Dense_0']['kernel']`."""
    words = re.findall(r"'([^']+)'", path)
    return words[-2] if len(words) > 1 else path


def reason(train_loss: Any) -> str:
    """Why a training is none, or nothing."""
    broken = np.flatnonzero(~np.isfinite(train_loss))
    return f"the training loss is not finite from epoch {broken[0]} on" if broken.size else ""
