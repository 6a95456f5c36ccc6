"""The command line: `python -m experiments compare --help`.

What a user can get wrong is looked at before anything heavy is imported, and ends in one sentence and exit status 2.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from experiments.options import Compare, Figures, Sweep
    from experiments.records.results_folder import Folder
    from experiments.records.runs import Run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the exit status."""
    import tyro

    from experiments.data import loading
    from experiments.options import Compare, Figures, InputError, Sweep

    options = tyro.extras.subcommand_cli_from_dict(
        {"compare": Compare, "sweep": Sweep, "figures": Figures},
        prog="python -m experiments",
        description="The experiments of pathjax.",
        args=arguments,
    )
    try:
        if isinstance(options, Sweep):
            sweep(options)
        elif isinstance(options, Figures):
            draw(options)
        else:
            compare(options)
    except (InputError, loading.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(options: Compare) -> None:
    """The main job: compute the missing runs, then write the summary, the figures and the report."""
    from experiments.data import loading
    from experiments.options import validated

    options = validated(options, datasets=tuple(loading.DATASETS))
    dataset = loading.load(options.dataset, data_dir=options.data_dir)
    loading.balanced_batch(dataset.train_labels, options.ntk_per_class)

    from experiments.records import progress, results_folder

    console = _console()
    with results_folder.claimed(results_folder.comparison(options)) as folder:
        from experiments import compare as job

        cells, missing = job.cells_of(options), job.missing_cells(options, folder)
        with progress.reporting(console, total=len(cells) + 1, done=len(cells) - len(missing)) as reporter:
            job.compute(options, dataset, folder, reporter)
            reporter.stage("report")
            conclusion = _write_report(folder, cells)
            reporter.advance("report")
        console.print(*conclusion, sep="\n", soft_wrap=True)


def draw(options: Figures) -> None:
    """Draw the figures and the report of a study."""
    from experiments.records import reading
    from experiments.report import report

    for line in report.write(reading.read(options.folder), options.folder):
        print(line)


def sweep(options: Sweep) -> None:
    """A study: compute what is missing of it, or say what that is."""
    from experiments import study
    from experiments.data import loading
    from experiments.train import distributed

    with distributed.joined(options.coordinator, processes=options.processes, process=options.process):
        name, wanted = study.read(options.config, datasets=tuple(loading.DATASETS))
        datasets = {each: loading.load(each, data_dir=options.data_dir) for each in wanted.data}

    from experiments import sweep as job
    from experiments.records import progress, results_folder

    distributed.check_alike(wanted, datasets)
    console = _console(quiet=not distributed.first())
    claim = job.claim(wanted, options.out or Path("runs") / name, repair=options.repair)
    with distributed.in_step():
        for each, model in itertools.product(datasets.values(), wanted.model):
            job.network_of(model, each.train_images.shape[1:], each.classes)
        already = results_folder.kept(claim) if options.list and distributed.first() else set()
    if options.list:
        from experiments import cost_estimate

        console.print(cost_estimate.plan(wanted, datasets, already))
        return
    with job.held(claim) as folder:
        kept = {trial.name[:4] for trial in folder.runs()}
        total = len(wanted.data) * len(wanted.model) * len(study.cells_of(wanted))
        with progress.reporting(
            console, total=total, done=len(kept), below=lambda: job.best(folder.runs())
        ) as reporter:
            job.run(wanted, folder, reporter, datasets)
        console.print(job.best(folder.runs()))
        failed = [trial for trial in folder.runs() if trial.reason]
        if failed:
            console.print(f"{len(failed)} failed; the first: {failed[0].title}: {failed[0].reason}", soft_wrap=True)
        console.print(f"Results: {folder.path / 'results.jsonl'}", soft_wrap=True)


def _console(*, quiet: bool = False) -> Console:
    from rich.console import Console

    if quiet:
        return Console(quiet=True, force_terminal=False)
    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file has no width of its own


def _write_report(folder: Folder[Run], cells: Sequence[tuple[str, float]]) -> list[Table | str]:
    """Summary, figures and report, from what is kept of the finished runs; gives what the console shows at the end."""
    from experiments.measure import factorization_check, kernel_pictures
    from experiments.records import results_folder, summary
    from experiments.report import comparison

    runs = summary.by_run(folder.runs(), folder.config)
    table = summary.cells(runs)
    ranks = summary.rankings(table)
    error = factorization_check.factorization_error()
    kept = {cell: kernel_pictures.load(kernel_pictures.file_of(folder.path, *cell)) for cell in cells}
    shown = comparison.illustrations(runs, table, ranks, kept, folder.config)
    (folder.path / "figures").mkdir(exist_ok=True)
    for picture in shown:
        results_folder.write(folder.path / "figures" / f"{picture.name}.png", picture.png)
        results_folder.write(folder.path / "figures" / f"{picture.name}.svg", picture.svg)
    results_folder.write(folder.path / "summary.csv", table.to_csv(index=False, na_rep="nan"))
    results_folder.write(folder.path / "rankings.csv", summary.rankings_table(ranks).to_csv(index=False, na_rep="nan"))
    results_folder.write(folder.path / "report.html", comparison.page(table, ranks, shown, folder.config, error))
    return [
        comparison.console_table(table),
        f"Θ = J Π Jᵀ on listed paths: relative error {error:.1e}, in float64",
        f"Report: {folder.path / 'report.html'}",
    ]


def _interrupted(*_: Any) -> NoReturn:
    """End at once, as a kill would: an exception might be swallowed by JAX's callbacks, or meet its threads at work."""
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the cursor, which the progress bar had hidden
    os.write(2, b"Interrupted; every finished run is kept. The same command continues.\n")
    os._exit(130)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupted)
    sys.exit(main())
