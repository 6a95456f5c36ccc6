"""One data set and one network of a study, with the programs that measure and train it under every mask."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base.batching import in_batches, vmap_networks
from experiments.base.names import DENSE, QUANTITIES
from experiments.base.seeds import key_of
from experiments.base.wording import all_digits
from experiments.data.augmentation import MIRRORED, augmented
from experiments.data.loading import Dataset, balanced_batch
from experiments.measure import kernel_pictures
from experiments.measure.changes import KernelChanges, kernel_changes
from experiments.measure.curves import Curves, centered_one_hot, gap, loss_curves
from experiments.measure.expected_gates import ExpectedGates, LabelledImages, expected_gates
from experiments.measure.pruning import check_densities, check_methods, kernel_layers, layer_name
from experiments.measure.quantities import (
    BeforeTraining,
    NtkSpectrum,
    before_training,
    log_above_rounding,
    log_nodes,
    ntk_spectrum,
)
from experiments.models import network_of
from experiments.networks.layers import Network
from experiments.networks.shrink import shrink
from experiments.networks.twins import has_twin, twin_of
from experiments.records.progress import Reporter
from experiments.records.trial import Name, Trial
from experiments.setting import has_curves
from experiments.starts import Start, Starts, keys_of
from experiments.study import Cell, Model, Study
from experiments.train import distributed, training
from pathjax import factorization, ntk
from pathjax.masks import LeafStatistics
from pathjax.types import ApplyFn, Key, Mask, Params, State

__all__ = ["LOSS_IMAGES", "Measured", "Workbench"]

_HAS_LIMITS = importlib.util.find_spec("neural_tangents") is not None
"""Whether there are kernels of infinite width: an extra, whose dependencies are not what it names."""

LOSS_IMAGES = 10_000
"""Train images, at most, over which the train loss and the moments of the data are taken."""


class Measured(NamedTuple):
    """What was measured of some cells: a trial for each seed, cell after cell, and the pictures that seed 0 gives."""

    trials: list[Trial]
    pictures: dict[Cell, kernel_pictures.KernelPictures]


class _Before(NamedTuple):
    """What is measured of one cell before training, the seeds on a leading axis. All of it is on the host."""

    start: Start
    quantities: BeforeTraining
    spectra: list[NtkSpectrum]
    curves: Curves | None
    expected: list[ExpectedGates]
    infinite_distances: np.ndarray
    pictures: kernel_pictures.KernelPictures | None


class Workbench:
    """One data set and one network, with the programs that measure it, compiled once and used for every cell.

    Where networks run one at a time, as on CPUs, the trial of one seed is the same whichever others are computed.

    Attributes:
        study, model: what the workbench is for.
        data: the name of the data set.
        batch_size: how many networks are measured and trained side by side, at most.
    """

    def __init__(self, study: Study, model: Model, dataset: Dataset, checkpoints: Path | None = None) -> None:
        """`checkpoints` is a folder for those of trainings that are longer than the study's `checkpoint_every`, and for
        the levels of lottery tickets."""
        shape, measure = dataset.train_images.shape[1:], study.measure
        self.study, self.data, self.model = study, dataset.name, model
        self._network = network_of(model, shape, dataset.classes)
        params_like, _ = jax.eval_shape(self._network.init, key_of(0))
        check_densities(study.density, model.name, params_like)
        check_methods(study.method, model.name, params_like)
        self.batch_size = _networks_at_a_time(study, self._network, shape)
        apply = self._network.apply
        images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
        per_class = math.ceil(measure.ntk_images / dataset.classes)
        fixed = balanced_batch(dataset.train_labels, per_class)[: measure.ntk_images]
        self._batch = images[fixed]
        self._before_training = self._batched(before_training(apply, self._batch))
        self._pictures = kernel_pictures.measurer(apply, self._batch, labels[fixed])
        targets = centered_one_hot(labels[fixed], dataset.classes)
        self._curves = self._batched(loss_curves(apply, self._batch, targets, steps=measure.curve_steps))
        tested = dataset.test_images[: measure.regression_images], dataset.test_labels[: measure.regression_images]
        self._expected_gates = expected_gates(
            apply,
            LabelledImages(self._batch, labels[fixed]),
            LabelledImages(images[:LOSS_IMAGES], labels[:LOSS_IMAGES]),
            LabelledImages(*map(jnp.asarray, tested)),
            classes=dataset.classes,
            steps=measure.curve_steps,
            key=key_of(0, "normal images"),
        )
        self._low_rank = self._batched(_low_rank(apply, self._batch, measure.rank))
        self._changes = self._batched(kernel_changes(self._network, self._batch))
        self._steps_per_epoch = len(labels) // min(study.train.batch_size, len(labels))
        trained = training.trainer(
            self._network,
            (images, labels),
            (jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)),
            study.train,
            augment=functools.partial(augmented, flip=dataset.name in MIRRORED) if study.train.augment else None,
            measured=LOSS_IMAGES,
            mesh=training.all_devices(),
            checkpoints=checkpoints if study.train.epochs > study.train.checkpoint_every else None,
        )
        self._trained = self._batched(trained)
        self._starts = Starts(study, model, dataset, self._trained, self._batched, checkpoints)
        self._chance = training.chance(dataset.train_labels, dataset.test_labels, measured=LOSS_IMAGES)

    def _batched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`in_batches` of the size that the workbench has when the function is called; options go to every batch."""

        def run(*networks: Any, **options: Any) -> Any:
            return in_batches(functools.partial(function, **options), self.batch_size)(*networks)

        return run

    def measured(self, cells: Sequence[Cell], seeds: Sequence[int], reporter: Reporter) -> Measured:
        """These seeds of some cells, which are trained together."""
        for cell in cells:
            words = f"{self._title(*cell)}: level"
            say = functools.partial(lambda words, level, of: reporter.stage(f"{words} {level} of {of}"), words)
            self._starts.search(cell, seeds, say)
        with distributed.failing_together():  # a process that fails in a score must not be waited for in training
            before = [self._before(cell, seeds, reporter) for cell in cells]
        reporter.stage(f"{self._title(*cells[0])}: training", 0.4)
        starts = [each.start for each in before]
        params, state, mask = _joined([each.network for each in starts])
        trained = self._trained_from(starts, seeds)
        reporter.stage(f"{self._title(*cells[0])}: changes", 0.9)
        zero = training.pruned_stay_zero(trained.params, mask)
        changes = KernelChanges(*np.full((len(KernelChanges._fields), len(zero)), np.nan))
        if self.study.measure.changes:
            kernel = np.concatenate([each.quantities.ntk for each in before])
            keys = jnp.concatenate([keys_of(seeds, "order")] * len(cells))
            after = trained.params, trained.state
            changes = jax.device_get(self._changes(params, state, *after, mask, kernel, keys))
        trials = []
        for at, (number, place) in enumerate(itertools.product(range(len(cells)), range(len(seeds)))):
            after, changed = jax.tree.map(
                lambda leaf, at=at: leaf[at], (trained._replace(params=None, state=None), changes)
            )
            name = (self.data, self.model.name, *cells[number], seeds[place])
            trials.append(self._trial(name, place, before[number], after, bool(zero[at]), changed))
        pictures = {cell: each.pictures for cell, each in zip(cells, before, strict=True) if each.pictures is not None}
        return Measured(trials, pictures)

    def _trained_from(self, starts: Sequence[Start], seeds: Sequence[int]) -> training.Trained:
        """The networks after training, on the host; those that begin at one epoch are trained together."""
        parts = []
        for epoch, group in itertools.groupby(starts, key=lambda start: start.epoch):
            alike = list(group)
            keys = jnp.concatenate([keys_of(seeds, "order")] * len(alike))
            trained = jax.device_get(self._trained(*_joined([each.network for each in alike]), keys, start=epoch))
            losses = np.concatenate([_joined([each.losses for each in alike]), trained.train_loss], axis=1)
            parts.append(trained._replace(train_loss=losses))
        return _joined(parts)

    def _title(self, method: str, density: float) -> str:
        return f"{self.data} {self.model.name} {method} {all_digits(density)}"

    def _before(self, cell: Cell, seeds: Sequence[int], reporter: Reporter) -> _Before:
        """All that is measured of these seeds of a cell before their training."""
        reporter.stage(f"{self._title(*cell)}: scores")
        start = self._starts.of(cell, seeds)
        network = start.network
        reporter.stage(f"{self._title(*cell)}: kernels", 0.2)
        quantities = jax.device_get(self._before_training(*network, keys_of(seeds, "lanczos")))
        spectra = [ntk_spectrum(kernel) for kernel in quantities.ntk]
        pictures = None
        if self.study.measure.kernel_pictures and 0 in seeds:
            place = seeds.index(0)
            params, state, mask, before = jax.tree.map(lambda leaf: leaf[place:], (*network, quantities))
            pictures = self._pictures(params, state, mask, key_of(0, "kernels"), before, spectra[place])
        curves, expected = None, []
        if has_curves(self.study, cell):
            reporter.stage(f"{self._title(*cell)}: curves", 0.3)
            top = np.array([spectrum.eigenvalues[0] for spectrum in spectra], np.float32)
            low_rank = self._low_rank(*network, keys_of(seeds, "modes"))
            spectral = (quantities.ntk, top, quantities.nodes, quantities.weights, quantities.parameters)
            curves = jax.device_get(self._curves(*network, *spectral, low_rank))
            if self.study.measure.expected:  # one by one: that of one seed may not exist
                ones = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 1], network) for at in range(len(seeds))]
                expected = [self._expected_gates(*one) for one in ones]
        distances = np.full(len(spectra), np.nan)
        if cell[0] == DENSE and has_twin(self._network) and _HAS_LIMITS:
            infinite = ntk.infinite(twin_of(self._network).kernel_fn, self._batch)
            distances = np.array([ntk.relative_distance(jnp.asarray(kernel), infinite) for kernel in quantities.ntk])
        params, state, mask = jax.device_get(network)
        start = Start(params, state, mask, start.epoch, start.losses)
        return _Before(start, quantities, spectra, curves, expected, distances, pictures)

    def _trial(
        self, name: Name, place: int, before: _Before, after: training.Trained, zero: bool, changes: KernelChanges
    ) -> Trial:
        """The record of one network, which has this place in `before`; `after` and `changes` are those of it alone."""
        (params, state, mask), quantities, curves = jax.tree.map(
            lambda leaf: leaf[place], (before.start.network, before.quantities, before.curves)
        )
        spectrum = before.spectra[place]
        layers = _in_order(self._network, kernel_layers(mask))
        units = shrink(self._network, params, state, mask).units if self._network.widths else {}
        nodes = log_nodes(quantities.nodes[None], quantities.log_top_path_kernel[None]).ravel()
        order = np.argsort(-nodes, kind="stable")
        numbers = quantities._asdict() | spectrum._asdict()
        measured: dict[str, Any] = {key: float(numbers[key]) for key in QUANTITIES if key in numbers}
        measured |= {name: float(value) for name, value in changes._asdict().items()}
        if curves is not None:
            measured |= _of_curves(curves)
        if curves is not None and before.expected:
            measured |= _of_expected_gates(before.expected[place], curves.real)
        reason = _why_not_trained(after.train_loss)
        return Trial.partial(
            name,
            kept=sum(layer.kept for layer in layers),
            prunable=sum(layer.size for layer in layers),
            layer_density={layer_name(layer.path): layer.density for layer in layers},
            dead_units={unit: 1.0 - len(units[unit]) / self._network.widths[unit] for unit in self._network.units},
            infinite_distance=float(before.infinite_distances[place]),
            log_ntk_eigenvalues=log_above_rounding(spectrum.eigenvalues, quantities.ntk.dtype).tolist(),
            log_path_kernel_nodes=nodes[order].tolist(),
            path_kernel_weights=(quantities.weights.ravel()[order] / len(quantities.weights)).tolist(),
            train_loss=np.asarray(after.train_loss, float).tolist(),
            steps_to_level=training.steps_to_level(
                after.train_loss, level=self.study.measure.loss_level, steps_per_epoch=self._steps_per_epoch
            ),
            test_loss=float(after.test_loss),
            test_accuracy=float(after.test_accuracy),
            pruned_stay_zero=zero,
            reason=reason,
            did_not_train=""
            if reason
            else training.why_untrained(after.train_loss, float(after.test_accuracy), self._chance),
            absent=_absent(self._network, name, state),
            **measured,
        )


def _in_order(network: Network, layers: list[LeafStatistics]) -> list[LeafStatistics]:
    """The layers from the input on."""
    paths = {path: place for place, path in enumerate(network.order)}
    names = {layer.name: place for place, layer in enumerate(network.layers)}
    return sorted(layers, key=lambda layer: paths.get(layer.path, names.get(layer_name(layer.path), len(paths))))


def _absent(network: Network, name: Name, state: Any) -> str:
    """What is not measured of a network: of a plain module, and of one whose limit needs what is not installed."""
    if network.widths:
        lacks_limit = name[2] == DENSE and has_twin(network) and not _HAS_LIMITS
        words = "the distance to infinite width is not measured, as neural-tangents is not installed"
        return words if lacks_limit else ""
    words = "dead units are not counted, as a plain module has no table of widths"
    if jax.tree.leaves(state):
        words += (
            "; the change of Π is not measured, as the batch norm of a plain module cannot be moved into its weights"
        )
    return words


def _of_curves(curves: Curves) -> dict[str, Any]:
    """The fields of a trial that come from the loss curves of one network."""
    fields: dict[str, Any] = {
        f"{name}_loss": np.asarray(getattr(curves, name), float).tolist()
        for name in ("real", "linearized", "low_rank", "data_free")
    }
    fields |= {
        f"gap_{name}": gap(getattr(curves, name), curves.real) for name in ("linearized", "low_rank", "data_free")
    }
    return fields | {name: float(getattr(curves, name)) for name in ("linearization_error", "kernel_distance")}


def _of_expected_gates(expected: ExpectedGates, real: jax.Array) -> dict[str, Any]:
    """The fields of a trial that come from the kernel of expected gates of one network."""
    if expected.why_not:
        return {"why_not_expected": expected.why_not}
    losses = {name: getattr(expected, name)[0] for name in ("no_data", "moments", "inputs")}
    fields: dict[str, Any] = {f"{name}_loss": np.asarray(loss, float).tolist() for name, loss in losses.items()}
    fields |= {f"gap_{name}": gap(loss, real) for name, loss in losses.items()}
    fields |= {f"log_top_{name}": float(top) for name, top in zip(losses, expected.log_tops[0], strict=True)}
    return fields | {"regression_accuracy": float(expected.regression_accuracy[0])}


def _why_not_trained(train_loss: np.ndarray) -> str:
    """Why a training failed; nothing where it did not."""
    not_finite = np.flatnonzero(~np.isfinite(train_loss))
    return f"the training loss is not finite from epoch {not_finite[0]} on" if not_finite.size else ""


def _networks_at_a_time(study: Study, network: Network, shape: tuple[int, ...]) -> int:
    """How many networks are measured and trained side by side: as many as fit the study's memory, on CPUs one.

    Convolutions are many times slower side by side on CPUs, and other layers gain little.
    """
    if jax.default_backend() == "cpu":
        return 1
    params, state = jax.eval_shape(network.init, key_of(0))
    x = jax.ShapeDtypeStruct((study.train.batch_size, *shape), jnp.float32)
    equations = jax.make_jaxpr(network.train)(params, state, x).eqns
    activations = sum(variable.aval.size for equation in equations for variable in equation.outvars)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    # weights, gradient and momentum with their next values; activations and their cotangents; in float32
    bytes_of_one = 4 * (6 * weights + 2 * activations)
    return max(1, int(study.memory_gib * 2**30 / bytes_of_one))


def _low_rank(apply: ApplyFn, batch: jax.Array, rank: int) -> Callable[[Params, State, Mask, Key], jax.Array]:
    """A compiled function (params, state, mask, keys) -> Θ's part of some rank in the eigenbasis of Π."""

    def low_rank(params: Params, state: State, mask: Mask, key: Key) -> jax.Array:
        given: dict[str, Any] = {"state": state, "mask": mask, "rank": rank, "key": key}
        return factorization.recompose(factorization.factorize(apply, params, batch, **given))

    return jax.jit(vmap_networks(low_rank))


def _joined(trees: Sequence[Any]) -> Any:
    """Networks of several trees on one leading axis, on the host."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)
