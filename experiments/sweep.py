"""The study: every network of data × model × method × density × seed, measured, trained and kept."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg.cython_lapack  # noqa: F401  # XLA's LAPACK; loaded now, so that the limit below holds for it too
import threadpoolctl  # type: ignore[import-untyped]
from rich.table import Table

from experiments import compare
from experiments.base.batching import in_lanes, side_by_side
from experiments.base.seeds import key_of
from experiments.data import loading
from experiments.data.loading import Dataset
from experiments.measure import curves, kernel_pictures, pruning, quantities
from experiments.networks import shrink
from experiments.networks.architectures import named
from experiments.networks.layers import OUTPUTS, Network, bind
from experiments.options import DENSE, InputError
from experiments.records import results_folder
from experiments.records.progress import Reporter
from experiments.records.results_folder import Claim, Folder, Unkept
from experiments.records.runs import QUANTITIES
from experiments.records.trial import Trial
from experiments.study import Model, Name, Study, cells_of
from experiments.train import distributed, training
from pathjax import dynamics, factorization, ntk, path_kernel
from pathjax.types import Key, Mask, Params

__all__ = ["MEASURED", "Bench", "Group", "best", "claim", "held", "network_of", "part", "run"]

MEASURED = 10_000
"""Train images, at most, over which the train loss is taken."""

_INPUTS = 1000
"""Train images, at most, whose mean a score may read."""

_SAMPLES = 4
"""Random vectors by which changes of Π are estimated."""

Cell = tuple[str, float]


class Group(NamedTuple):
    """Cells of one data set and one model that are trained together."""

    data: str
    model: Model
    cells: tuple[Cell, ...]

    def names(self, seeds: int) -> list[Name]:
        """The trials of the group."""
        return [(self.data, self.model.name, *cell, seed) for cell in self.cells for seed in range(seeds)]


def claim(study: Study, out: Path, *, repair: bool) -> Claim[Trial]:
    """What the study wants of its output folder."""
    options = json.loads(json.dumps(dataclasses.asdict(study)))  # as a folder gives them back
    del options["memory_gib"]
    for table in ("train", "measure"):
        options |= {f"{table}.{key}": value for key, value in options.pop(table).items()}
    parts = itertools.product(study.data, (model.name for model in study.model), cells_of(study), range(study.seeds))
    expected = {(name, model, *cell, seed) for name, model, cell, seed in parts}
    return Claim(out, Trial, options, expected, repair)


@contextlib.contextmanager
def held(claim: Claim[Trial]) -> Iterator[Folder[Trial]]:
    """The output folder of a study. Of several processes the first holds it for all. Raises as `results.claimed`."""
    with contextlib.ExitStack() as stack:
        with distributed.in_step():
            if distributed.first():
                folder = stack.enter_context(results_folder.claimed(claim))
            else:
                folder = Unkept(claim.out, claim.options, [], claim.kind)
        yield folder


def network_of(model: Model, shape: tuple[int, ...], outputs: int) -> Network:
    """The network that a model of a study names. Raises InputError where it cannot be built."""
    options: dict[str, Any] = {"activation": model.activation, "init": model.init}
    if model.batch_norm is not None:
        options["batch_norm"] = model.batch_norm
    if model.depth:
        options["depth"] = model.depth
    try:
        network = named(model.network)(shape, outputs, **options)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"The model {model.name} cannot be built: {str(error).rstrip('.')}.") from error
    if not isinstance(network, Network):
        raise InputError(f"{model.network} gives a {type(network).__name__}; it has to give what steps.build does.")
    if model.factor == 1.0:
        return network
    return network.resized(
        {name: math.ceil(model.factor * width) for name, width in network.widths.items() if name != OUTPUTS}
    )


def _groups(study: Study, name: str, model: Model, lanes: int) -> list[Group]:
    """The groups of one data set and one model. They depend on the study alone, not on what is kept of it."""
    size, cells = max(1, lanes // study.seeds), cells_of(study)
    return [Group(name, model, tuple(cells[at : at + size])) for at in range(0, len(cells), size)]


def run(study: Study, folder: Folder[Trial], reporter: Reporter, datasets: dict[str, Dataset]) -> None:
    """Compute the trials that the folder lacks, and keep each group as soon as it is finished."""
    kept = _kept(study, folder)
    for name, model in itertools.product(study.data, study.model):
        if kept.issuperset(Group(name, model, tuple(cells_of(study))).names(study.seeds)):
            continue
        reporter.stage(f"{name} {model.name}: building")
        # matrices this small take one thread; on a shared machine several wait for each other fifty times as long
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            with distributed.in_step():
                bench = Bench(study, model, part(study, datasets[name]), folder.path / "checkpoints")
            for group in _groups(study, name, model, bench.lanes):
                if not kept.issuperset(group.names(study.seeds)):
                    _keep(bench, group, study.seeds, folder, reporter)


def _kept(study: Study, folder: Folder[Trial]) -> set[Name]:
    """The trials that the folder of process 0 holds."""
    parts = itertools.product(study.data, study.model)
    names = [one for name, model in parts for one in Group(name, model, tuple(cells_of(study))).names(study.seeds)]
    known = {trial.name for trial in folder.runs()}
    return set(itertools.compress(names, distributed.word(np.array([name in known for name in names]))))


def _keep(bench: Bench, group: Group, seeds: int, folder: Folder[Trial], reporter: Reporter) -> None:
    known = {trial.name for trial in folder.runs()}
    for trials in _computed(bench, group, seeds, reporter):
        with distributed.in_step():
            folder.add(trials)
        if any(trial.name not in known for trial in trials):
            reporter.advance(_words(trials))


def _computed(bench: Bench, group: Group, seeds: int, reporter: Reporter) -> Iterator[list[Trial]]:
    """The trials of a group, all of them; of cells that fail together, each by itself."""
    try:
        with distributed.in_step():
            trials = bench.trials(group.cells, reporter)
    except InputError:
        raise
    except Exception as error:  # whatever fails, the rest of the study goes on
        if len(group.cells) > 1:
            for cell in group.cells:
                yield from _computed(bench, group._replace(cells=(cell,)), seeds, reporter)
            return
        words = str(error).strip().splitlines() or ["no message"]
        reason = f"{type(error).__name__}: {words[0]}"
        yield [Trial.of(name, reason=reason) for name in group.names(seeds)]
        return
    for at in range(0, len(trials), seeds):
        yield trials[at : at + seeds]


def _words(trials: Sequence[Trial]) -> str:
    one = trials[0]
    accuracy = np.mean([trial.test_accuracy for trial in trials])
    outcome = one.reason if one.reason else f"accuracy {100 * accuracy:.1f}%"
    return f"{one.data} {one.model} {one.method} {one.density:g}: {outcome}"


def best(trials: Sequence[Trial]) -> Table:
    """The best method so far for each data set, model and density, by the mean accuracy of its seeds."""
    by_cell: dict[tuple[str, str, float], dict[str, list[float]]] = {}
    for trial in trials:
        if not trial.reason:
            cell = by_cell.setdefault((trial.data, trial.model, trial.density), {})
            cell.setdefault(trial.method, []).append(trial.test_accuracy)
    table = Table("data", "model", "density", "best so far", "accuracy", "of", title="Best so far")
    for (name, model, density), found in sorted(by_cell.items(), key=lambda item: (*item[0][:2], -item[0][2])):
        method = max(found, key=lambda method: float(np.mean(found[method])))
        table.add_row(name, model, f"{density:g}", method, f"{100 * np.mean(found[method]):.1f}%", str(len(found)))
    return table


def part(study: Study, dataset: Dataset) -> Dataset:
    """The images of a data set that a study uses."""
    train, test = study.train_images or None, study.test_images or None
    return dataclasses.replace(
        dataset,
        train_images=dataset.train_images[:train],
        train_labels=dataset.train_labels[:train],
        test_images=dataset.test_images[:test],
        test_labels=dataset.test_labels[:test],
    )


class _Before(NamedTuple):
    """What is found of one cell before training, the seeds on a leading axis."""

    mask: Mask
    known: quantities.BeforeTraining
    spectra: list[quantities.NtkSpectrum]
    losses: curves.Curves | None


class Bench:
    """One data set and one network, with the programs that measure it, compiled once and used for every cell."""

    def __init__(self, study: Study, model: Model, dataset: Dataset, checkpoints: Path | None = None) -> None:
        shape = dataset.train_images.shape[1:]
        self._study, self._name, self._model = study, dataset.name, model
        self._network = network_of(model, shape, dataset.classes)
        compare.check_densities(study.density, model.name, jax.eval_shape(self._network.init, key_of(0))[0])
        self.lanes = _lanes(study, self._network, shape)
        self._params, self._state = jax.jit(jax.vmap(self._network.init))(self._keys("init"))
        state = jax.tree.map(lambda leaf: leaf[0], self._state)  # running statistics begin alike
        apply = bind(self._network, state)
        images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
        few = loading.balanced_batch(dataset.train_labels, study.measure.score_per_class)
        evidence = pruning.Evidence(
            images[:_INPUTS], (images[few], labels[few]), lambda key: self._network.init(key)[0]
        )
        self._masked = pruning.masked_seeds(apply, evidence, rounds=study.measure.rounds)
        per_class = math.ceil(study.measure.ntk_images / dataset.classes)
        fixed = loading.balanced_batch(dataset.train_labels, per_class)[: study.measure.ntk_images]
        self._batch = images[fixed]
        self._known = in_lanes(quantities.before_training(apply, self._batch), self.lanes)
        targets = curves.centred_one_hot(labels[fixed], dataset.classes)
        self._curves = in_lanes(
            curves.loss_curves(apply, self._batch, targets, steps=study.measure.curve_steps), self.lanes
        )
        self._part = in_lanes(_low_rank(apply, self._batch, study.measure.rank), self.lanes)
        self._changes = in_lanes(_changes(self._network, state, self._batch), self.lanes)
        augment = (
            functools.partial(loading.augmented, flip=dataset.name in loading.FLIPPED) if study.train.augment else None
        )
        trained = training.trainer(
            self._network,
            (images, labels),
            (jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)),
            study.train,
            augment=augment,
            measured=MEASURED,
            mesh=training.all_devices(),
            checkpoints=checkpoints if study.train.epochs > study.train.checkpoint_every else None,
        )
        self._trained = in_lanes(trained, self.lanes)

    def trials(self, cells: Sequence[Cell], reporter: Reporter) -> list[Trial]:
        """All seeds of some cells, cell after cell; they are trained together."""
        with distributed.in_step():  # those that score alone must not be waited for in training
            before = [self._before(*cell, reporter) for cell in cells]
        count = len(cells)
        reporter.stage(f"{self._title(*cells[0])}: training", 0.4)
        params, state = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * count), (self._params, self._state))
        mask = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *[found.mask for found in before])
        keys = jnp.concatenate([self._keys("order")] * count)
        trained = jax.device_get(self._trained(params, state, mask, keys))
        reporter.stage(f"{self._title(*cells[0])}: changes", 0.9)
        zero = training.pruned_stay_zero(trained.params, mask)
        changes = np.full((len(zero), 4), np.nan)
        if self._study.measure.changes:
            kernel = jnp.concatenate([found.known.ntk for found in before])
            changes = np.asarray(self._changes(params, trained.params, trained.state, mask, kernel, keys))
        found = []
        for number, (cell, seed) in enumerate(itertools.product(range(count), range(self._study.seeds))):
            after = jax.tree.map(lambda leaf, at=number: leaf[at], trained._replace(params=None, state=None))
            found.append(self._trial(cells[cell], seed, before[cell], after, bool(zero[number]), changes[number]))
        return found

    def _title(self, method: str, density: float) -> str:
        return f"{self._name} {self._model.name} {method} {density:g}"

    def _keys(self, *names: str | float) -> jax.Array:
        return jnp.stack([key_of(seed, *names) for seed in range(self._study.seeds)])

    def _before(self, method: str, density: float, reporter: Reporter) -> _Before:
        reporter.stage(f"{self._title(method, density)}: scores")
        mask = pruning.dense_mask(self._params)
        if method != DENSE:
            masked = in_lanes(functools.partial(self._masked, method, density), self.lanes)
            mask = masked(self._params, self._keys(method, density))
        reporter.stage(f"{self._title(method, density)}: kernels", 0.2)
        known = jax.device_get(self._known(self._params, mask, self._keys("lanczos")))
        spectra = [quantities.ntk_spectrum(kernel) for kernel in known.ntk]
        chosen = self._study.measure.curve_density
        losses = None
        if density in chosen or (chosen and method == DENSE):
            reporter.stage(f"{self._title(method, density)}: curves", 0.3)
            top = np.array([spectrum.eigenvalues[0] for spectrum in spectra], np.float32)
            part = self._part(self._params, mask, self._keys("modes"))
            spectral = (known.ntk, top, known.nodes, known.weights, known.parameters)
            losses = jax.device_get(self._curves(self._params, mask, *spectral, part))
        return _Before(jax.device_get(mask), known, spectra, losses)

    def _trial(self, cell: Cell, seed: int, before: _Before, after: Any, zero: bool, changes: np.ndarray) -> Trial:
        name = (self._name, self._model.name, *cell, seed)
        mask, known, losses, params, state = jax.tree.map(
            lambda leaf: leaf[seed], (before.mask, before.known, before.losses, self._params, self._state)
        )
        spectrum = before.spectra[seed]
        layers = compare.layers(mask)
        units = shrink.shrink(self._network, params, state, mask).units
        widths = {name: width for name, width in self._network.widths.items() if name != OUTPUTS}
        nodes = kernel_pictures.log_nodes(known.nodes[None], known.log_top_path_kernel[None]).ravel()
        order = np.argsort(-nodes, kind="stable")
        numbers = known._asdict() | spectrum._asdict()
        found: dict[str, Any] = {key: float(numbers[key]) for key in QUANTITIES if key in numbers}
        if losses is not None:
            for key in ("real", "linearized", "low_rank", "data_free"):
                found[f"{key}_loss"] = np.asarray(getattr(losses, key), float).tolist()
            for key in ("linearized", "low_rank", "data_free"):
                found[f"gap_{key}"] = curves.gap(getattr(losses, key), losses.real)
        changed = ("ntk_change", "ntk_distance", "path_kernel_change", "path_kernel_distance")
        found |= dict(zip(changed, changes.tolist(), strict=True))
        return Trial.of(
            name,
            kept=sum(layer.kept for layer in layers),
            prunable=sum(layer.size for layer in layers),
            layer_density={compare.layer_name(layer.path): layer.density for layer in layers},
            dead_units={key: 1.0 - len(units[key]) / width for key, width in widths.items()},
            log_ntk_eigenvalues=kernel_pictures.log_above_rounding(spectrum.eigenvalues, known.ntk.dtype).tolist(),
            log_path_kernel_nodes=nodes[order].tolist(),
            path_kernel_weights=(known.weights.ravel()[order] / len(known.weights)).tolist(),
            train_loss=np.asarray(after.train_loss, float).tolist(),
            test_loss=float(after.test_loss),
            test_accuracy=float(after.test_accuracy),
            pruned_stay_zero=zero,
            reason=compare.reason(after.train_loss),
            **found,
        )


def _lanes(study: Study, network: Network, shape: tuple[int, ...]) -> int:
    """How many networks are measured and trained side by side: what fits the study's memory; on CPUs one.

    Convolutions are many times slower there side by side, and the rest gains little.
    """
    if jax.default_backend() == "cpu":
        return 1
    params, state = jax.eval_shape(network.init, key_of(0))
    x = jax.ShapeDtypeStruct((study.train.batch_size, *shape), jnp.float32)
    values = jax.make_jaxpr(network.train)(params, state, x).eqns
    active = sum(variable.aval.size for value in values for variable in value.outvars)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    # weights, gradient, momentum and what becomes of each; activations and their cotangents; in float32
    each = 4 * (6 * weights + 2 * active)
    return max(1, int(study.memory_gib * 2**30 / each))


def _low_rank(apply: Any, batch: jax.Array, rank: int) -> Any:
    """A compiled function (params, mask, keys) -> Θ's part of some rank in the eigenbasis of Π."""

    def low_rank(params: Params, mask: Mask, key: Key) -> jax.Array:
        return factorization.recompose(factorization.factorize(apply, params, batch, rank=rank, key=key, mask=mask))

    return jax.jit(side_by_side(low_rank))


def _changes(network: Network, begun_state: Any, batch: jax.Array) -> Any:
    """A compiled function of the networks before and after training: changes of Θ and of Π, (s, 4)."""
    begun = bind(network, begun_state)

    def changes(initial: Params, params: Params, state: Any, mask: Mask, kernel: jax.Array, key: Key) -> jax.Array:
        end = ntk.empirical(bind(network, state), params, batch, mask=mask)
        folded = _folded(params, state, begun_state)
        paths = [path_kernel.path_kernel(begun, each, batch[:1], mask=mask) for each in (initial, folded)]
        change, cosine = path_kernel.change_and_cosine(*paths, key=key, samples=_SAMPLES)
        found = (
            dynamics.kernel_change(kernel, end),
            dynamics.kernel_distance(kernel, end),
            change.value,
            1.0 - cosine.value,
        )
        return jnp.stack(found)

    return jax.jit(side_by_side(changes))


def _folded(params: Params, state: Any, begun: Any) -> Params:
    """The parameters with which a network in the state `begun` is the same function: statistics go into norms."""
    folded = dict(params)
    for name, found in state.get("batch_stats", {}).items():
        old, norm = begun["batch_stats"][name], params[name]
        scale = norm["scale"] * jnp.sqrt(old["var"] + shrink.EPSILON) / jnp.sqrt(found["var"] + shrink.EPSILON)
        shift = old["mean"] / jnp.sqrt(old["var"] + shrink.EPSILON) * scale
        mean = found["mean"] / jnp.sqrt(found["var"] + shrink.EPSILON) * norm["scale"]
        folded[name] = {"scale": scale, "bias": norm["bias"] + shift - mean}
    return folded
