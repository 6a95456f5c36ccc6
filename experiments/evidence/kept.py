"""The results that are kept beside the page: for each study one flat table, compressed, and a file that says of what.

`NAME.csv.gz` has a row for each network of the study, also for those that failed or did not train. `NAME.json` has the
config of the study, the versions that computed it, what is the same in every row, and when and how long it ran.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.base.errors import InputError
from experiments.base.files import write_atomically
from experiments.base.wording import all_digits
from experiments.records import study_table, trial_table
from experiments.records.trial import Trial
from experiments.records.trial_summaries import SUMMARIES

__all__ = ["MOST_BYTES", "Kept", "files_of", "keep", "read", "read_all"]

MOST_BYTES = 2 * 2**20
"""The tables of all studies together take no more than this."""

_DERIVED = tuple(name for name in SUMMARIES if name.endswith("_halving") or name.startswith("top_gap_"))
"""Numbers that no section of the page reads, or that follow from others of the row."""

_SCALARS = ("str", "int", "float", "bool", "ExactFloat")
_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Trial) if str(field.type) in _SCALARS}
_COLUMNS = {
    **_FIELDS,
    **dict.fromkeys((name for name in SUMMARIES if name not in _DERIVED), "float"),
    "test_accuracy": "ExactFloat",
}
"""The columns of a kept table, as far as they differ between its rows, with the types of their entries.

Accuracies have all their digits, so that as many right images over as many seeds are the same mean.
"""

_DIGITS = 6


class Kept(NamedTuple):
    """A kept study: its name, the table with a row for each network, and what its JSON says.

    `about` has `trials` and `of`, the numbers of networks that are there and that the study has; `options` and
    `versions` as in config.json; `same`, the columns that have one value; and `made`.
    """

    name: str
    table: pd.DataFrame
    about: dict[str, Any]

    @property
    def finished(self) -> pd.DataFrame:
        """The rows of networks that have a result."""
        return self.table[self.table["reason"] == ""]

    @property
    def failed(self) -> int:
        """How many networks have no result."""
        return int((self.table["reason"] != "").sum())

    @property
    def untrained(self) -> int:
        """How many networks did not train."""
        return int((self.finished["did_not_train"] != "").sum())


def keep(folder: Path, to: Path, *, name: str = "", unfinished: bool = False) -> Kept:
    """Write the table of the study in a folder into another one, under a name that is by default the folder's.

    All numbers except accuracies have six significant digits, and the same study gives the same file. Raises
    InputError where the folder has no study, where it lacks networks (unless `unfinished`), and where the files cannot
    be written.
    """
    name = name or folder.resolve().name
    study = study_table.read(folder)
    trials = [*study.failed, *study.finished()]
    options, wanted = study.config["options"], study_table.wanted(study.config["options"])
    if len(trials) < wanted and not unfinished:
        raise InputError(
            f"{folder} has {len(trials)} of the {wanted} networks of its study. Finish it by `python -m experiments "
            "sweep`, or keep what is there with --unfinished; the page then says how much is missing."
        )
    rows = trial_table.flat(map(vars, trials), options).reindex(columns=[*_COLUMNS])
    entries = {column: [_spelled(value, _COLUMNS[column]) for value in rows[column]] for column in rows}
    # what names a row stays in it, also where a study has one data set or one network
    names = ("data", "model", "method", "density", "seed")
    same = {column: texts[0] for column, texts in entries.items() if column not in names and len({*texts}) == 1}
    varying = {column: texts for column, texts in entries.items() if column not in same}
    about = {
        "trials": len(trials),
        "of": max(wanted, len(trials)),
        "options": options,
        "versions": study.config["versions"],
        "same": same,
        "made": _made([trial.made for trial in trials]),
    }
    to.mkdir(parents=True, exist_ok=True)
    table, description = files_of(to, name)
    write_atomically(table, gzip.compress(_as_csv(varying).encode(), compresslevel=9, mtime=0))
    write_atomically(description, json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return read(to, name)


def files_of(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a kept study: its table, and what it is of."""
    return folder / f"{name}.csv.gz", folder / f"{name}.json"


def read_all(folder: Path) -> dict[str, Kept]:
    """The kept studies of a folder by name; none where there is no folder."""
    names = sorted(file.name.removesuffix(".csv.gz") for file in folder.glob("*.csv.gz"))
    return {name: read(folder, name) for name in names}


def read(folder: Path, name: str) -> Kept:
    """A kept study. Raises InputError where its files are not what `keep` writes."""
    table, description = files_of(folder, name)
    try:
        about = json.loads(description.read_text(encoding="utf-8"))
        rows = pd.read_csv(io.StringIO(gzip.decompress(table.read_bytes()).decode()), dtype=str, keep_default_na=False)
        rows = rows.assign(**about["same"])[[*_COLUMNS]]
        columns = {column: [_value(text, kind) for text in rows[column]] for column, kind in _COLUMNS.items()}
        if len(rows) != about["trials"]:
            raise ValueError(f"{len(rows)} rows for {about['trials']} networks")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(
            f"{table} cannot be read ({error}); `python -m experiments.evidence keep` makes it again."
        ) from error
    return Kept(name, pd.DataFrame(columns), about)


def _made(records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Where, when, by which state of the program and for how many hours the networks were computed."""
    told = [made for made in records if made]
    days = sorted(str(made["finished"])[:10] for made in told if "finished" in made)
    commits = [f"{made.get('commit')}{' with changes' if made.get('changed') else ''}" for made in told]
    return {
        "devices": _counts([str(made.get("device")) for made in told]),
        "commits": _counts(commits),
        "days": days[:1] + days[-1:],
        "hours": float(f"{sum(made.get('seconds', 0.0) for made in told) / 3600:.3g}"),
    }


def _counts(words: list[str]) -> dict[str, int]:
    return {word: words.count(word) for word in dict.fromkeys(words)}


def _as_csv(columns: Mapping[str, list[str]]) -> str:
    with io.StringIO(newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
        return file.getvalue()


def _spelled(value: Any, kind: str) -> str:
    """An entry of the table; NaN is empty, and of words there is the first line."""
    if kind == "str":
        return (str(value).strip().splitlines() or [""])[0]
    if kind == "ExactFloat":
        return "" if math.isnan(value) else all_digits(value)
    if kind == "float":
        number = float(value)
        return "" if math.isnan(number) else f"{number:.{_DIGITS}g}"
    return str(value)


def _value(text: str, kind: str) -> Any:
    if kind in ("float", "ExactFloat"):
        return float(text) if text else math.nan
    if kind == "bool":
        return {"True": True, "False": False}[text]
    return int(text) if kind == "int" else text
