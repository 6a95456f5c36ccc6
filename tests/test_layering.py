"""Who may import whom, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "pathjax").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))

# From the ground up. A file may import from the floors below its own, and within its own room.
FLOORS = (
    ("types", "_base"),
    ("_interpreter", "_linalg"),
    ("_path_kernel", "_ntk", "_pruning"),
    ("paths", "enumeration", "path_kernel", "ntk", "masks"),
    ("connectivity", "isometry", "transfer", "pruning", "scores", "factorization", "dynamics"),
)

# outside package: the files that may use it. neural-tangents asks for names that JAX has moved, so its door has to.
DOORS = {
    "jax.extend": {"_interpreter/jaxpr", "_ntk/door"},
    "jax.interpreters": {"_ntk/door"},
    "jax._src": {"_ntk/door"},
    "neural_tangents": {"_ntk/door"},
    "flax": set(),
    "tensorflow_datasets": set(),
    "experiments": set(),
    "tests": set(),
}


def place(file):
    """A file's name inside pathjax/, without its ending: `masks`, `_ntk/door`."""
    return file.relative_to(ROOT / "pathjax").with_suffix("").as_posix()


def floor(room):
    """The number of the floor that a room of pathjax/ stands on, 0 for the ground."""
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(file):
    """(name in the file, full dotted name) of every module or member that `file` imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
            origin = ".".join((*package, *filter(None, [node.module])))
            for alias in node.names:
                yield alias.asname or alias.name, f"{origin}.{alias.name}"


def used_names(file):
    """The full dotted names that `file` imports, and those that it reaches from them, as `jax.lax.add`."""
    imported = dict(imports(file))
    roots = {name.split(".")[0]: name.split(".")[0] for name in imported} | imported
    yield from (name for _, name in imports(file))
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in roots:
                yield f"{roots[root]}.{rest}"


def within(name, package):
    return name == package or name.startswith(package + ".")


def rooms_imported(file):
    """The rooms of pathjax/ that `file` uses; "" stands for the package itself."""
    names = [name for name in used_names(file) if within(name, "pathjax")]
    return {(name.split(".") + [""])[1] for name in names}


@pytest.mark.parametrize("file", LIBRARY, ids=place)
def test_every_file_imports_downward_or_within_its_own_room(file):
    room = place(file).split("/")[0]
    if room == "__init__":
        return
    assert any(room in rooms for rooms in FLOORS), f"{room} has no floor in DESIGN.md: give it one here and there"
    allowed = {room}.union(*FLOORS[: floor(room)])
    assert not rooms_imported(file) - allowed, f"{place(file)} may not import {sorted(rooms_imported(file) - allowed)}"


@pytest.mark.parametrize("room", [room for rooms in FLOORS for room in rooms])
def test_every_room_is_there(room):
    assert (ROOT / "pathjax" / f"{room}.py").exists() or (ROOT / "pathjax" / room / "__init__.py").exists()


@pytest.mark.parametrize("file", [file for file in LIBRARY if file.stem == "__init__"], ids=place)
def test_package_says_what_its_files_are_and_defines_nothing(file):
    tree = ast.parse(file.read_text())
    described = ast.get_docstring(tree) or ""
    files = {other.stem for other in file.parent.glob("*.py")} - {"__init__"}
    assert len(file.read_text().splitlines()) < 40
    assert file.parent.name == "pathjax" or not {name for name in files if f"`{name}`" not in described}
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize("file", LIBRARY, ids=place)
def test_what_comes_from_outside_comes_through_its_door(file):
    for name in sorted(set(used_names(file))):
        for package, doors in DOORS.items():
            assert not within(name, package) or place(file) in doors, f"{place(file)} may not use {name}"


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_experiments_use_public_names_only(file):
    private = {name for name in used_names(file) if within(name, "pathjax") and "._" in name}
    assert not private, f"{file.name} may not use {sorted(private)}"


def test_names_are_found_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "pathjax" / "scores.py"
    file.parent.mkdir()
    file.write_text(
        "import pathjax.masks\n"
        "from pathjax._base import trees as t\n"
        "from pathjax.pruning import prune\n"
        "from . import paths\n"
        "from .ntk import empirical\n"
        "def late():\n    import jax.numpy as jnp\n    from jax import extend\n    return t._leaf, jnp.sum\n"
        "import jax\n"
        "core = jax._src.core\n"
    )
    assert rooms_imported(file) == {"masks", "_base", "pruning", "paths", "ntk"}
    assert {"jax.extend", "jax._src.core", "jax.numpy.sum", "pathjax._base.trees._leaf"} <= set(used_names(file))
