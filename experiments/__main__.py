"""The command line: `python -m experiments compare --help`.

What a user can get wrong is looked at before anything heavy is imported, and ends in one sentence and exit status 2.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.table import Table

    from experiments.options import Compare, Figures
    from experiments.results import Folder
    from experiments.runs import Run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the exit status."""
    import tyro

    from experiments import data
    from experiments.options import Compare, Figures, InputError

    options = tyro.extras.subcommand_cli_from_dict(
        {"compare": Compare, "figures": Figures},
        prog="python -m experiments",
        description="The experiments of pathjax.",
        args=arguments,
    )
    try:
        draw(options) if isinstance(options, Figures) else compare(options)
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

    from rich.console import Console

    from experiments import progress, results

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has no width of its own
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
