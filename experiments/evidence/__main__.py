"""The page of the evidence: `python -m experiments.evidence --help`.

Without arguments it reads docs/study/results and writes docs/study/README.md and its figures. `keep runs/NAME` takes
the results of a study into docs/study/results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.base.errors import InputError
from experiments.base.wording import counted
from experiments.evidence import kept, page

__all__ = ["main"]

_BAD_INPUT = 2
_WIDTHS = page.FOLDER.parent / "widths" / "masks.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the page, or keep results; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "keep":
            _keep(options)
        else:
            print(f"written: {page.write(options.study, options.widths)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evidence",
        description="Draw docs/study, the page of the evidence, from the results that are kept beside it.",
    )
    parser.add_argument("--study", type=Path, default=page.FOLDER, help="folder of the page (docs/study)")
    parser.add_argument("--widths", type=Path, default=_WIDTHS, help="table of widths (docs/widths/masks.csv)")
    keep = parser.add_subparsers(dest="command").add_parser("keep", help="take results of studies into the folder")
    keep.add_argument("folders", nargs="+", type=Path, help="folders that `python -m experiments sweep` writes to")
    keep.add_argument("--name", default="", help="name of the table of one folder; left out, the folder's")
    keep.add_argument("--unfinished", action="store_true", help="keep a study that lacks networks, too")
    return parser


def _keep(options: argparse.Namespace) -> None:
    """Keep the study of each folder, and say how much room all tables take."""
    if options.name and len(options.folders) > 1:
        raise InputError("--name is for one folder; give several folders without it, or one after the other.")
    to = options.study / "results"
    for folder in options.folders:
        study = kept.keep(folder, to, name=options.name, unfinished=options.unfinished)
        table, _ = kept.files_of(to, study.name)
        counts = f"{study.failed} without a result, {study.untrained} did not train"
        print(f"kept: {table}, {counted(len(study.table), 'network')} ({counts}), {table.stat().st_size:,} bytes")
    size = sum(file.stat().st_size for file in to.glob("*.csv.gz"))
    print(f"all tables: {size:,} of {kept.MOST_BYTES:,} bytes")
    if size > kept.MOST_BYTES:
        raise InputError(
            f"The tables in {to} take more than {kept.MOST_BYTES:,} bytes; remove one that no section reads."
        )


if __name__ == "__main__":
    sys.exit(main())
