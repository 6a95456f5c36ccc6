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
    from experiments.results import Folder
    from experiments.runs import Run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the exit status."""
    import tyro

    from experiments import data
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
    except (InputError, data.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(options: Compare) -> None:
    """The main job: compute the missing runs, then write the summary, the figures and the report."""
    from experiments import data
    from experiments.options import validated

    options = validated(options, datasets=tuple(data.DATASETS))
    dataset = data.load(options.dataset, data_dir=options.data_dir)
    data.balanced_batch(dataset.train_labels, options.ntk_per_class)

    from experiments import progress, results

    console = _console()
    with results.claimed(results.comparison(options)) as folder:
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
    from experiments import study_report, study_results

    for line in study_report.write(study_results.read(options.folder), options.folder):
        print(line)


def sweep(options: Sweep) -> None:
    """A study: compute what is missing of it, or say what that is."""
    from experiments import data, processes, study

    with processes.joined(options.coordinator, processes=options.processes, process=options.process):
        name, wanted = study.read(options.config, datasets=tuple(data.DATASETS))
        datasets = {each: data.load(each, data_dir=options.data_dir) for each in wanted.data}

    from experiments import progress, results
    from experiments import sweep as job

    processes.check_alike(wanted, datasets)
    console = _console(quiet=not processes.first())
    claim = job.claim(wanted, options.out or Path("runs") / name, repair=options.repair)
    with processes.in_step():
        for each, model in itertools.product(datasets.values(), wanted.model):
            job.network_of(model, each.train_images.shape[1:], each.classes)
        already = results.kept(claim) if options.list and processes.first() else set()
    if options.list:
        from experiments import plans

        console.print(plans.plan(wanted, datasets, already))
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
    from experiments import kernels, listed, report, results, summary

    runs = summary.by_run(folder.runs(), folder.config)
    table = summary.cells(runs)
    ranks = summary.rankings(table)
    error = listed.factorization_error()
    kept = {cell: kernels.load(kernels.file_of(folder.path, *cell)) for cell in cells}
    shown = report.illustrations(runs, table, ranks, kept, folder.config)
    (folder.path / "figures").mkdir(exist_ok=True)
    for picture in shown:
        results.write(folder.path / "figures" / f"{picture.name}.png", picture.png)
        results.write(folder.path / "figures" / f"{picture.name}.svg", picture.svg)
    results.write(folder.path / "summary.csv", table.to_csv(index=False, na_rep="nan"))
    results.write(folder.path / "rankings.csv", summary.rankings_table(ranks).to_csv(index=False, na_rep="nan"))
    results.write(folder.path / "report.html", report.page(table, ranks, shown, folder.config, error))
    return [
        report.console_table(table),
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
