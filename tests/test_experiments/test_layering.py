"""Who may import whom in experiments/, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments").rglob("*.py"))

# packages and modules of experiments/, a floor each, from the ground up
FLOORS = (
    ("base",),
    ("data", "networks"),
    ("measure", "train"),
    ("records", "study"),
    ("report", "models"),
    ("setting",),
    ("starts",),
    ("workbench",),
    ("sweep", "checks"),
    ("cost_estimate", "widths", "benchmarks", "workers", "evidence"),
    ("__main__",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(file):
    """The package or top module of experiments/ that a file belongs to."""
    return file.relative_to(ROOT / "experiments").parts[0].removesuffix(".py")


def imported_rooms(source):
    """The packages and top modules of experiments/ that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("experiments."))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_imports_from_lower_floors_or_its_own_package(file):
    if file == ROOT / "experiments" / "__init__.py":
        return
    room = room_of(file)
    upward = {
        other for other in imported_rooms(file.read_text()) if other != room and FLOOR_OF[other] >= FLOOR_OF[room]
    }
    assert not upward, f"{file.relative_to(ROOT)} may not import {sorted(upward)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_are_absolute_and_no_file_is_long(file):
    source = file.read_text()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in imports)
    assert len(source.splitlines()) <= 400


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.name == "__init__.py"], ids=lambda file: file.parent.name
)
def test_a_package_says_what_its_files_are_and_defines_nothing(file):
    source = file.read_text()
    (words,) = ast.parse(source).body
    assert isinstance(words, ast.Expr) and len(source.splitlines()) < 40
    for other in file.parent.glob("*.py"):
        assert other == file or f"`{other.stem}`" in source, f"{file} does not name `{other.stem}`"


def test_an_import_upward_is_noticed():
    assert [*imported_rooms("def late():\n    from experiments.report import page\n    import experiments.sweep")] == [
        "report",
        "sweep",
    ]
