"""The command line: `python -m experiments report --help`.

A user's mistakes are looked for before anything heavy is imported, and end in one sentence and exit status 2.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional, UseAppendAction

from experiments.base import compile_cache, ending, own
from experiments.base.errors import InputError
from experiments.base.options import check_options
from experiments.base.shards import WHOLE, Shard
from experiments.study import Model, Study, checked, config_file, read, ready_configs

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.data.loading import Dataset
    from experiments.workers.driver import Workers

__all__ = ["Figures", "Merge", "Report", "Sweep", "main", "report_study"]


_FAILED, _BAD_INPUT = 1, 2
"""Exit statuses: a network of the study failed, and something the user gave cannot be used."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Compare prunings of one network on one data set, before and after training, and write a report.

    Everything that is not an option stands in configs/report.toml. Every finished network is kept in the output
    folder: the same command continues where it stopped, and one with more seeds, methods or densities computes the
    rest. The exit status is 1 where a network failed.
    """

    dataset: str = "digits"
    """Data set to train on: digits, made here; or mnist, fashion_mnist, cifar10, cifar100, svhn_cropped,
    imagenet_resized, tiny_imagenet, or any other of TFDS by name or name/config, where they are prepared; or one of
    your own, module:function or a .npz file."""
    network: str = "fc"
    """Network of three hidden ReLU layers with biases: fc (fully connected); conv (3 × 3 convolutions, flattened at the
    end) or conv_pool (averaged there); fc_residual, conv_residual, conv_pool_residual: the same with shortcuts. Or a
    network of the literature: lenet_300_100, lenet_5, vgg_11, vgg_16, resnet_20, resnet_32, resnet_56, resnet_18,
    wrn_16_8, wrn_28_10. Or one of your own, module:function."""
    density: tuple[float, ...] = (0.5, 0.1, 0.02)
    """Kept shares of the prunable weights, each in (0, 1]. The dense network is always measured too."""
    method: tuple[str, ...] = ("random", "magnitude", "snip", "synflow", "synflow_l2", "synflow_data")
    """Pruning methods: random, magnitude, snip, snip_iterative, grasp, prospr, synflow, synflow_l2,
    synflow_l2_absolute, synflow_data, synflow_data_l2, path_kernel_trace, mean_field_trace, px, ntk_sap,
    lottery_ticket; each also with a variant, as snip+shuffled: shuffled, reinitialized, inverted, 2of4."""
    seeds: int = 3
    """Number of seeds 0, 1, ...: each draws its own weights, random scores and order of minibatches."""
    out: Path = Path("runs/report")
    """Folder for results.jsonl, summary.csv, associations.csv, figures/ and report.html."""
    data_dir: Path | None = None
    """Folder of prepared data sets; left out, the place where TFDS keeps them."""
    set: UseAppendAction[tuple[str, ...]] = ()
    """Another value for a key of configs/report.toml that is no option here, as --set train.learning_rate=0.1; may be
    given several times. Values are TOML; a word needs no quotes."""
    resume: bool = True
    """Go on with the results that are in the output folder. With --no-resume a folder that has some is refused."""
    repair: bool = False
    """Move unreadable lines of results.jsonl to results.jsonl.broken and compute their networks again."""
    retry_failed: bool = False
    """Compute networks again that failed; otherwise a failure counts as their result."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Draw the figures and the report of a study, finished or not, from the results in its folder."""

    folder: Positional[Path]
    """Folder that `sweep` writes to."""
    out: Path | None = None
    """Folder for figures/, report.html and the tables trials.csv, trials.parquet, summary.csv and associations.csv;
    left out, the study's own, which is only read otherwise."""
    track: Literal["tensorboard", "wandb"] | None = None
    """Send all finished networks to TensorBoard, in tensorboard/ beside the page, or to Weights & Biases."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run a study: prune, measure and train all networks that a config names.

    Every finished network is kept in the output folder: the same command continues where it stopped, and a config with
    more seeds, methods, densities, networks or data sets computes the rest. The exit status is 1 where a network
    failed.
    """

    config: Positional[str]
    """A TOML file, or the name of a ready one of experiments/configs, as report, digits or paper."""
    out: Path | None = None
    """Folder for results.jsonl; left out, runs/ and the config's name, for a part with -shard-2-of-8."""
    data_dir: Path | None = None
    """Folder of prepared data sets; left out, the place where TFDS keeps them."""
    list: bool = False
    """Say what would run and about how long it would take, and stop. Nothing is written."""
    set: UseAppendAction[tuple[str, ...]] = ()
    """Another value for a key of the config, as --set train.learning_rate=0.1, --set seeds=5 or
    --set 'method=["snip", "synflow"]'; may be given several times. model.KEY is that of every model. Values are TOML; a
    word needs no quotes."""
    resume: bool = True
    """Go on with the results that are in the output folder. With --no-resume a folder that has some is refused."""
    repair: bool = False
    """Move unreadable lines of results.jsonl to results.jsonl.broken and compute their networks again."""
    retry_failed: bool = False
    """Compute networks again that failed; otherwise a failure counts as their result."""
    track: Literal["tensorboard", "wandb"] | None = None
    """Send each network, when it is finished, to TensorBoard, in the output folder, or to Weights & Biases."""
    shard: str | None = None
    """Compute one of several parts of the study, as 2/8, counted from 1: every eighth cell from the second on, a cell
    being all seeds of one data set, model, method and density. Each part has a folder of its own; merge joins them."""
    workers: int = 1
    """Processes on this machine that compute side by side, a cell each."""
    ray: str | None = None
    """Compute on a cluster of Ray, a cell in each task: its address, auto for the one that this machine belongs to, or
    local for one of this machine alone, which ends with the command. Only this process writes."""
    gpus_per_trial: float = 0.0
    """With --ray: GPUs of each task, 1 or a part of one; 0 computes on CPUs."""
    coordinator: str | None = None
    """For several processes that train together, each started with the same command: HOST:PORT of process 0, the port
    free; or auto, where JAX finds the processes itself: Slurm, Open MPI, TPU pods. Process 0 writes and shows the
    results; only it needs the output folder."""
    processes: int | None = None
    """With HOST:PORT: how many processes there are."""
    process: int | None = None
    """With HOST:PORT: which of them this is, from 0."""


@dataclasses.dataclass(frozen=True)
class Merge:
    """Join folders that hold parts of one study into one.

    The folders are only read, also while sweeps write to them. What the joined folder has already counts too; what
    does not agree is refused, and nothing is then written.
    """

    out: Positional[Path]
    """Folder to join into, new or with results."""
    folders: Positional[tuple[Path, ...]]
    """Folders that `sweep` wrote to."""


_COMMANDS: dict[str, Any] = {"report": Report, "sweep": Sweep, "merge": Merge, "figures": Figures}


def _options(kind: type) -> list[str]:
    """The options of a command, without what it takes by its place."""
    return [field.name for field in dataclasses.fields(kind) if not str(field.type).startswith("Positional")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the exit status."""
    import tyro

    given = sys.argv[1:] if arguments is None else arguments
    try:
        check_options(given, {name: _options(kind) for name, kind in _COMMANDS.items()})
        options = tyro.extras.subcommand_cli_from_dict(
            _COMMANDS, prog="python -m experiments", description="The experiments of pathjax.", args=given
        )
        if isinstance(options, Report):
            return _report(options)
        if isinstance(options, Sweep):
            return _sweep(options)
        if isinstance(options, Merge):
            return _merge(options)
        _draw(options.folder, options.out, options.track)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_INPUT
    return 0


def report_study(options: Report, *, datasets: Sequence[str]) -> Study:
    """The study of configs/report.toml, with what the options name in place. Raises InputError as `study.checked`."""
    for change in options.set:
        key = change.partition("=")[0].strip()
        option = _OPTION_OF_KEY.get(key.partition(".")[0])
        if option is not None:
            raise InputError(f"{key} is not set by --set in report, which has the option --{option} for it.")
    _, study = read("report", datasets=datasets, changes=options.set)
    study = dataclasses.replace(
        study,
        data=(options.dataset,),
        model=(Model(options.network, options.network),),
        method=options.method,
        density=options.density,
        seeds=options.seeds,
        measure=dataclasses.replace(study.measure, curve_density=options.density),
    )
    return checked(study, datasets=datasets)


_OPTION_OF_KEY = {"data": "dataset", "model": "network", "method": "method", "density": "density", "seeds": "seeds"}
"""The options of `report` that stand for keys of its config."""


def _report(options: Report) -> int:
    from experiments.checks import datasets_of, names_of_data

    study = report_study(options, datasets=names_of_data(options.data_dir))
    _check_new(options.out, resume=options.resume)
    datasets = datasets_of(study, options.data_dir)
    status = _run(study, datasets, options.out, options, console=_console())
    _draw(options.out)
    return status


def _sweep(options: Sweep) -> int:
    """Compute what is missing of a study, or say what that is."""
    from experiments.workers import joining

    shard = _shard(options)
    joining.check_options(
        options.workers, ray=options.ray, gpus_per_trial=options.gpus_per_trial, coordinator=options.coordinator
    )
    from experiments.checks import datasets_of, names_of_data
    from experiments.train import distributed

    with distributed.joined(options.coordinator, processes=options.processes, process=options.process):
        if (beside := _modules(options)) is not None:
            own.look_beside(beside)
        name, study = read(options.config, datasets=names_of_data(options.data_dir), changes=options.set)
        cells = len(study.data) * len(study.model) * len(study.cells)
        if shard.number > cells:
            print(f"Part {shard} has no cells, since the study has {cells}: there is nothing to compute.")
            return 0
        of_part = "" if options.shard is None else f"-shard-{shard.number}-of-{shard.parts}"
        out = options.out or Path("runs") / f"{name}{of_part}"
        _check_new(out, resume=options.resume)
        datasets = datasets_of(study, options.data_dir, may_write=not options.list)
    with joining.joined(None if options.list else options.ray):
        if options.gpus_per_trial:
            import jax

            jax.config.update("jax_platforms", "cpu")  # before any backend begins: the GPUs are the workers'
        distributed.check_alike(repr(study), datasets)
        console = _console(quiet=not distributed.is_first())
        if options.list:
            return _list(study, datasets, out, options, console=console)
        status = _run(study, datasets, out, options, console=console)
        console.print(f"Results: {out / 'results.jsonl'}", soft_wrap=True)
    return status


def _shard(options: Report | Sweep) -> Shard:
    """The part of the study that is computed. Raises InputError where --shard means none."""
    words = getattr(options, "shard", None)
    if words is None:
        return WHOLE
    if getattr(options, "coordinator", None) is not None:
        raise InputError(
            "--shard is for jobs that do not know of each other, and --coordinator for processes that train together: "
            "leave one of them out."
        )
    return Shard.read(words)


def _check_new(out: Path, *, resume: bool) -> None:
    """Raise InputError where a folder has results that the user does not want to go on with."""
    if not resume and (out / "results.jsonl").exists():
        raise InputError(
            f"{out} has results of a study already; leave --no-resume out to go on, or give another --out."
        )


def _list(study: Study, datasets: dict[str, Dataset], out: Path, options: Sweep, *, console: Console) -> int:
    """Say what would run. The output folder is checked as a run does, and nothing is written."""
    from experiments import checks, cost_estimate, sweep
    from experiments.records.results_folder import looked_at
    from experiments.train import distributed

    with distributed.failing_together():
        claim = sweep.claim(study, out, repair=options.repair, retry_failed=options.retry_failed, shard=_shard(options))
        checks.check_networks(study, datasets)
        kept, finished = set(), []
        if distributed.is_first():
            folder = looked_at(claim)
            missing = {
                (*place, *cell, seed)
                for place, work in sweep.missing_work(study, folder).items()
                for cell, seeds in work.missing.items()
                for seed in seeds
            }
            kept, finished = claim.settings.keys() - missing, folder.trials()
            _say([*folder.notes, *sweep.said_of_failures(folder.trials())], console)
    console.print(cost_estimate.plan(study, datasets, claim.settings, kept, finished))
    return 0


def _run(study: Study, datasets: dict[str, Dataset], out: Path, options: Report | Sweep, *, console: Console) -> int:
    """Compute what the output folder lacks of the study; gives the exit status."""
    from experiments import checks, sweep
    from experiments.records import progress, trackers, trial_table
    from experiments.train import distributed
    from experiments.workers import driver

    with distributed.failing_together():
        checks.check_networks(study, datasets)
        workers = _workers(options)
        computed_by = None if workers is None else workers.origin
        claim = sweep.claim(
            study,
            out,
            repair=options.repair,
            retry_failed=options.retry_failed,
            shard=_shard(options),
            computed_by=computed_by,
        )
        track = getattr(options, "track", None)
        finished = None if track is None else trackers.tracker(track, out, claim.options)
    with sweep.held(claim) as folder:
        _say(folder.notes, console)
        total = len({name[:4] for name in claim.settings})
        done = total - sum(len(work.missing) for work in sweep.missing_work(study, folder).values())
        with progress.reporting(console, total=total, done=done, below=lambda: sweep.best(folder.trials())) as reporter:
            if workers is None:
                sweep.run(study, folder, reporter, datasets, finished)
            else:
                driver.run(study, folder, reporter, datasets, _modules(options), workers, finished)
        if distributed.is_first():
            _say([trial_table.write(out, map(trial_table.as_kept, folder.trials()), claim.options)], console)
        console.print(sweep.best(folder.trials()))
        _say(sweep.said_of_failures(folder.trials()), console)
        failed = any(trial.has_failed for trial in folder.trials())
        return _FAILED if distributed.first_says(failed) else 0


def _workers(options: Report | Sweep) -> Workers | None:
    """Who computes a study; None where this process does."""
    from experiments.workers import cluster, pool

    if isinstance(options, Report):
        return None
    if options.ray is not None:
        return cluster.at_hand(options.gpus_per_trial)
    return pool.at_hand(options.workers) if options.workers > 1 else None


def _modules(options: Report | Sweep) -> Path | None:
    """The file beside which modules of one's own are found; None for a ready config."""
    config = getattr(options, "config", None)
    return None if config is None or config in ready_configs() else config_file(config)


def _merge(options: Merge) -> int:
    """Join folders of one study, and say what there is now."""
    from experiments.records import merging

    for sentence in merging.merged(options.out, options.folders):
        print(sentence)
    return 0


def _say(sentences: Sequence[str], console: Console) -> None:
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _draw(folder: Path, out: Path | None = None, track: str | None = None) -> None:
    """Draw the figures and the report of a study, and say where they are."""
    from experiments.records import study_table, trackers
    from experiments.report import report

    study = study_table.read(folder)
    finished = None if track is None else trackers.tracker(track, out or folder, study.config["options"])
    for line in report.write(study, folder, out):
        print(line)
    if finished is not None:
        finished([*study.failed, *study.finished()])


def _console(*, quiet: bool = False) -> Console:
    from rich.console import Console

    if quiet:
        return Console(quiet=True, force_terminal=False)
    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file has no width of its own


if __name__ == "__main__":
    ending.end_at_signals()
    compile_cache.use()
    sys.exit(main())
