"""docs/study is what its command makes of the tables that are kept in it."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.evidence import kept, page
from experiments.evidence.__main__ import main

STUDY = Path(__file__).parents[2] / "docs" / "study"
FAINT = 16
"""Levels of 256 by which the edge of a line may differ where a number differs in its last digit."""

TOLD = "`python -m experiments.evidence` makes it again"


def test_the_page_is_that_of_the_tables_beside_it(tmp_path):
    if (STUDY / "results").exists():
        shutil.copytree(STUDY / "results", tmp_path / "results")
    assert main(["--study", str(tmp_path)]) == 0
    ours, theirs = ((folder / "README.md").read_text().splitlines() for folder in (tmp_path, STUDY))
    differing = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
    assert not differing and len(ours) == len(theirs), f"docs/study/README.md is not of its tables: {TOLD}"
    drawn, there = ({file.name for file in (folder / "figures").glob("*")} for folder in (tmp_path, STUDY))
    assert drawn == there, f"docs/study/figures has other figures: {TOLD}"
    for name in sorted(drawn):
        first, second = (pixels(folder / "figures" / name) for folder in (tmp_path, STUDY))
        assert first.shape == second.shape and np.abs(first - second).max() <= FAINT, (
            f"{name} is of other tables: {TOLD}"
        )


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), int)


def test_kept_tables_are_few_and_small():
    tables = list((STUDY / "results").glob("*.csv.gz"))
    assert sum(file.stat().st_size for file in tables) <= kept.MOST_BYTES
    assert all(file.read_bytes()[4:8] == b"\0\0\0\0" for file in tables)  # no time, so that a table is the same bytes
    assert page.FOLDER == STUDY
