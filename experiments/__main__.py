"""The command line: `python -m experiments report --help`.

A user's mistakes are looked for before anything heavy is imported, and end in one sentence and exit status 2.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from experiments.base import ending
from experiments.base.errors import InputError
from experiments.study import Model, Study, checked, read

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.data.loading import Dataset

__all__ = ["Figures", "Report", "Sweep", "main", "report_study"]


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
    imagenet_resized, tiny_imagenet where they are prepared."""
    network: str = "fc"
    """Network of three hidden ReLU layers with biases: fc (fully connected); conv (3 × 3 convolutions, flattened at the
    end) or conv_pool (averaged there); fc_residual, conv_residual, conv_pool_residual: the same with shortcuts. Or a
    network of the literature: lenet_300_100, lenet_5, vgg_11, vgg_16, resnet_20, resnet_32, resnet_56, resnet_18,
    wrn_16_8, wrn_28_10."""
    density: tuple[float, ...] = (0.5, 0.1, 0.02)
    """Kept shares of the prunable weights, each in (0, 1]. The dense network is always measured too."""
    method: tuple[str, ...] = ("random", "magnitude", "snip", "synflow", "synflow_l2", "synflow_data")
    """Pruning methods: random, magnitude, snip, grasp, synflow, synflow_l2, synflow_data, synflow_data_l2,
    path_kernel_trace, mean_field_trace, px, ntk_sap."""
    seeds: int = 3
    """Number of seeds 0, 1, ...: each draws its own weights, random scores and order of minibatches."""
    out: Path = Path("runs/report")
    """Folder for results.jsonl, summary.csv, associations.csv, figures/ and report.html."""
    data_dir: Path | None = None
    """Folder of prepared data sets; left out, the place where TFDS keeps them."""
    repair: bool = False
    """Move unreadable lines of results.jsonl to results.jsonl.broken and compute their networks again."""
    retry_failed: bool = False
    """Compute networks again that failed; otherwise a failure counts as their result."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Draw the figures and the report of a study, finished or not, from the results in its folder."""

    folder: Positional[Path]
    """Folder that `sweep` writes to; the figures go to its figures/, the page is its report.html."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run a study: prune, measure and train all networks that a config names.

    Every finished network is kept in the output folder: the same command continues where it stopped, and a config with
    more seeds, methods, densities, networks or data sets computes the rest. The exit status is 1 where a network
    failed.
    """

    config: Positional[str]
    """A TOML file, or the name of a ready one: report, digits, fashion-quick, cifar10-quick, paper."""
    out: Path | None = None
    """Folder for results.jsonl; left out, runs/ and the config's name."""
    data_dir: Path | None = None
    """Folder of prepared data sets; left out, the place where TFDS keeps them."""
    list: bool = False
    """Say what would run and about how long it would take, and stop. Nothing is written."""
    repair: bool = False
    """Move unreadable lines of results.jsonl to results.jsonl.broken and compute their networks again."""
    retry_failed: bool = False
    """Compute networks again that failed; otherwise a failure counts as their result."""
    coordinator: str | None = None
    """For several processes that train together, each started with the same command: HOST:PORT of process 0, the port
    free; or auto, where JAX finds the processes itself: Slurm, Open MPI, TPU pods. Process 0 writes and shows the
    results; only it needs the output folder."""
    processes: int | None = None
    """With HOST:PORT: how many processes there are."""
    process: int | None = None
    """With HOST:PORT: which of them this is, from 0."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the exit status."""
    import tyro

    options = tyro.extras.subcommand_cli_from_dict(
        {"report": Report, "sweep": Sweep, "figures": Figures},
        prog="python -m experiments",
        description="The experiments of pathjax.",
        args=arguments,
    )
    try:
        if isinstance(options, Report):
            return _report(options)
        if isinstance(options, Sweep):
            return _sweep(options)
        _draw(options.folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_INPUT
    return 0


def report_study(options: Report, *, datasets: Sequence[str]) -> Study:
    """The study of configs/report.toml, with what the options name in place. Raises InputError as `study.checked`."""
    _, study = read("report", datasets=datasets)
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


def _report(options: Report) -> int:
    from experiments.data.loading import DATASETS, load

    study = report_study(options, datasets=tuple(DATASETS))
    datasets = {name: load(name, data_dir=options.data_dir) for name in study.data}
    status = _run(study, datasets, options.out, options, console=_console())
    _draw(options.out)
    return status


def _sweep(options: Sweep) -> int:
    """Compute what is missing of a study, or say what that is."""
    from experiments.data.loading import DATASETS, load
    from experiments.train import distributed

    with distributed.joined(options.coordinator, processes=options.processes, process=options.process):
        name, study = read(options.config, datasets=tuple(DATASETS))
        datasets = {each: load(each, data_dir=options.data_dir, may_write=not options.list) for each in study.data}
    distributed.check_alike(repr(study), datasets)
    console = _console(quiet=not distributed.is_first())
    out = options.out or Path("runs") / name
    if options.list:
        return _list(study, datasets, out, options, console=console)
    status = _run(study, datasets, out, options, console=console)
    console.print(f"Results: {out / 'results.jsonl'}", soft_wrap=True)
    return status


def _list(study: Study, datasets: dict[str, Dataset], out: Path, options: Sweep, *, console: Console) -> int:
    """Say what would run. The output folder is checked as a run does, and nothing is written."""
    from experiments import cost_estimate, sweep
    from experiments.records.results_folder import looked_at
    from experiments.train import distributed

    with distributed.failing_together():
        claim = sweep.claim(study, out, repair=options.repair, retry_failed=options.retry_failed)
        _check_networks(study, datasets)
        kept = set()
        if distributed.is_first():
            folder = looked_at(claim)
            kept = claim.settings.keys() - folder.missing
            _say(folder.notes, console)
    console.print(cost_estimate.plan(study, datasets, kept))
    return 0


def _run(study: Study, datasets: dict[str, Dataset], out: Path, options: Report | Sweep, *, console: Console) -> int:
    """Compute what the output folder lacks of the study; gives the exit status."""
    from experiments import sweep
    from experiments.records import progress
    from experiments.train import distributed

    with distributed.failing_together():
        claim = sweep.claim(study, out, repair=options.repair, retry_failed=options.retry_failed)
        _check_networks(study, datasets)
    with sweep.held(claim) as folder:
        _say(folder.notes, console)
        total = len(study.data) * len(study.model) * len(study.cells)
        done = total - sum(len(work.missing) for work in sweep.missing_work(study, folder).values())
        with progress.reporting(console, total=total, done=done, below=lambda: sweep.best(folder.trials())) as reporter:
            sweep.run(study, folder, reporter, datasets)
        console.print(sweep.best(folder.trials()))
        _say(sweep.said_of_failures(folder.trials()), console)
        failed = any(trial.has_failed for trial in folder.trials())
        return _FAILED if distributed.first_says(failed) else 0


def _say(sentences: Sequence[str], console: Console) -> None:
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _check_networks(study: Study, datasets: dict[str, Dataset]) -> None:
    """Raise InputError where a network of the study cannot be built, before anything is computed."""
    from experiments.workbench import network_of

    for dataset in datasets.values():
        for model in study.model:
            network_of(model, dataset.train_images.shape[1:], dataset.classes)


def _draw(folder: Path) -> None:
    """Draw the figures and the report of a study, and say where they are."""
    from experiments.records import study_table
    from experiments.report import report

    for line in report.write(study_table.read(folder), folder):
        print(line)


def _console(*, quiet: bool = False) -> Console:
    from rich.console import Console

    if quiet:
        return Console(quiet=True, force_terminal=False)
    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file has no width of its own


if __name__ == "__main__":
    ending.end_at_signals()
    sys.exit(main())
