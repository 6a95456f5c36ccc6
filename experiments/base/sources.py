"""A hash of the source files of a module: of one's own network or data, which no version tells apart."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

__all__ = ["source_hash"]

_OURS = ("experiments", "pathjax")
"""Packages that the version and the commit of the source tree stand for."""

_INSTALLED = {"site-packages", "dist-packages"}
"""Folders in which other packages lie beside a module."""

_DIGITS = 16
"""Hexadecimal digits of a hash."""


@functools.cache
def source_hash(module: str) -> str:
    """A hash of the module's source file and of those that it imports from beside it, directly or not.

    Beside it is what lies under the folder from which it is imported; of an installed package, the package alone. A
    change of a comment changes the hash. Packages that are installed elsewhere are told by their versions. The hash is
    taken once, since a process keeps the modules that it has loaded. "" for a module without a file.

    >>> source_hash("sys"), len(source_hash("experiments.base.errors"))
    ('', 16)
    """
    file = _file(module)
    if file is None:
        return ""
    is_package = file.name == "__init__.py"
    root = file.parents[module.count(".") + is_package]
    top = module.partition(".")[0]
    only = top if _INSTALLED & set(root.parts) else None
    sources: dict[Path, bytes] = {}
    waiting = [(module, file)]
    while waiting:
        name, file = waiting.pop()
        if file not in sources:
            sources[file] = file.read_bytes()
            waiting += [found for imported in _imported(name, file, sources[file]) for found in _beside(root, imported)]
            waiting = [(name, file) for name, file in waiting if only in (None, name.partition(".")[0])]
    digest = hashlib.sha256()
    for file in sorted(sources):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + hashlib.sha256(sources[file]).digest())
    return digest.hexdigest()[:_DIGITS]


def _file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None


def _imported(name: str, file: Path, source: bytes) -> Iterator[str]:
    """The dotted names that a module imports, anywhere in it; what a `from` names may be modules too."""
    if file.suffix != ".py":
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield start
            yield from (f"{start}.{alias.name}" if start else alias.name for alias in node.names)


def _beside(root: Path, module: str) -> Iterator[tuple[str, Path]]:
    """The modules that importing this one runs, as far as they lie under the root and are not pathjax' own."""
    parts = module.split(".")
    if not parts[0] or parts[0] in _OURS:
        return
    for count in range(1, len(parts) + 1):
        path = root.joinpath(*parts[:count])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                yield ".".join(parts[:count]), file
