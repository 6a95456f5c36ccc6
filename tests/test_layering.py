"""Who may import whom, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "pathjax").glob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))

# module: the modules above it on an arrow. What these may import, it may import too.
STANDS_ON = {
    "types": (),
    "_trees": ("types",),
    "_jaxpr": ("_trees",),
    "_algebra": ("types",),
    "_probes": ("_jaxpr",),
    "_context": ("_algebra", "_probes"),
    "_gates": ("_context",),
    "_sums": ("_gates",),
    "_loops": ("_context",),
    "_rules": ("_sums", "_loops"),
    "_examples": ("_jaxpr",),
    "_convolutions": ("_algebra",),
    "_lifting": ("_rules", "_examples", "_convolutions"),
    "paths": ("_lifting",),
    "_estimates": ("types",),
    "_lapack": (),
    "_lanczos": ("types", "_lapack"),
    "_channels": ("_jaxpr",),
    "_twin": ("_lifting", "_channels"),
    "_spectra": ("_twin", "_lanczos", "_estimates"),
    "path_kernel": ("paths", "_spectra"),
    "enumeration": ("paths",),
    "factorization": ("path_kernel", "enumeration"),
    "_neural_tangents": ("_trees",),
    "_uses": ("_channels",),
    "_network": ("_trees",),
    "_blocks": ("types",),
    "_memory": ("types",),
    "_devices": ("_blocks",),
    "_layerwise": ("_uses", "_network", "_devices", "_memory"),
    "_operator": ("_layerwise", "_lanczos", "_estimates"),
    "ntk": ("_neural_tangents", "_operator"),
    "_relaxation": ("_lapack",),
    "dynamics": ("_neural_tangents", "_relaxation"),
    "_apportionment": (),
    "_selection": ("_trees",),
    "_mask_files": ("_trees",),
    "masks": ("_apportionment", "_selection", "_mask_files"),
    "_losses": ("_trees",),
    "_flows": ("_lifting",),
    "_programs": (),
    "scores": ("paths", "path_kernel", "ntk", "_losses", "_flows"),
    "_reach": ("_algebra",),
    "connectivity": ("paths", "masks", "_reach", "_network"),
    "pruning": ("scores", "masks", "_programs"),
    "transfer": ("ntk", "masks", "_programs"),
    "isometry": ("_network", "masks", "_lapack"),
}

# outside package: the modules that may use it. neural-tangents asks for names that JAX has moved, so its door has to.
DOORS = {
    "jax.extend": {"_jaxpr", "_neural_tangents"},
    "jax.interpreters": {"_neural_tangents"},
    "jax._src": {"_neural_tangents"},
    "neural_tangents": {"_neural_tangents"},
    "flax": set(),
    "tensorflow_datasets": set(),
    "experiments": set(),
    "tests": set(),
}


def below(module):
    """All that `module` may import of pathjax."""
    return set(STANDS_ON[module]).union(*(below(lower) for lower in STANDS_ON[module]))


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


def library_imports(file):
    """The modules of pathjax that `file` uses; "" stands for the package itself."""
    names = [name for name in used_names(file) if within(name, "pathjax")]
    return {(name.split(".") + [""])[1] for name in names}


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: file.stem)
def test_every_module_imports_only_what_lies_below_it(file):
    if file.stem == "__init__":
        return
    assert file.stem in STANDS_ON, f"{file.name} has no place in DESIGN.md section 3: give it one here and there"
    forbidden = library_imports(file) - below(file.stem)
    assert not forbidden, f"{file.name} may not import {sorted(forbidden)}"


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: file.stem)
def test_what_comes_from_outside_comes_through_its_door(file):
    for name in sorted(set(used_names(file))):
        for package, doors in DOORS.items():
            assert not within(name, package) or file.stem in doors, f"{file.name} may not use {name}"


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_experiments_use_public_names_only(file):
    private = {name for name in used_names(file) if within(name, "pathjax") and "._" in name}
    assert not private, f"{file.name} may not use {sorted(private)}"


def test_masks_and_scores_never_meet():
    assert "scores" not in below("masks")
    assert "masks" not in below("scores")


def test_names_are_found_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "pathjax" / "scores.py"
    file.parent.mkdir()
    file.write_text(
        "import pathjax.masks\n"
        "from pathjax import _trees as t\n"
        "from pathjax.pruning import prune\n"
        "from . import paths\n"
        "from .ntk import empirical\n"
        "def late():\n    import jax.numpy as jnp\n    from jax import extend\n    return t._leaf, jnp.sum\n"
        "import jax\n"
        "core = jax._src.core\n"
    )
    assert library_imports(file) == {"masks", "_trees", "pruning", "paths", "ntk"}
    assert {"jax.extend", "jax._src.core", "jax.numpy.sum", "pathjax._trees._leaf"} <= set(used_names(file))
