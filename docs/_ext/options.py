"""Directives: `options-of` writes the options of a command, or the keys of a config, from a dataclass and its
docstrings; `fields-of` what a record holds; `help-of` and `names-of` what a command and a module say.

```{options-of} experiments.__main__:Sweep
:as: command
```
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .fields import fields_of

__all__ = ["FieldsOf", "HelpOf", "NamesOf", "Option", "OptionsOf", "options_of", "setup"]


class Option(NamedTuple):
    """A field of a dataclass: its name, its type as the source has it, its default, and what its docstring says."""

    name: str
    type: str
    default: Any
    text: str


def options_of(kind: type) -> Iterator[Option]:
    """The fields that a user gives, in the order of the source."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    texts = {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    for field in dataclasses.fields(kind):
        if "no key" not in field.metadata:
            default = field.default if field.default_factory is dataclasses.MISSING else None  # a table
            yield Option(field.name, str(field.type), default, texts[field.name])


def _named(directive: SphinxDirective) -> tuple[ModuleType, str]:
    """The module and the name in a directive's argument, `module:name`; the page is made again where it changes."""
    module, name = directive.arguments[0].split(":")
    source = importlib.import_module(module)
    directive.env.note_dependency(inspect.getsourcefile(source))
    return source, name


class OptionsOf(SphinxDirective):
    """Writes a definition list with an entry for each field."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"as": str, "table": str}

    def run(self) -> list[nodes.Node]:
        """Read the dataclass and write its fields, as a command's options or as a config's keys."""
        source, name = _named(self)
        kind = getattr(source, name)
        as_command = self.options.get("as") == "command"
        about = inspect.cleandoc(kind.__doc__).split("\n\n") if as_command else []
        listed = nodes.definition_list(classes=["options"])
        for option in options_of(kind):
            shown = _in_command(option) if as_command else f"{self.options.get('table', '')}{option.name}"
            term = nodes.term("", "", nodes.literal("", shown))
            if (default := _default(option, as_command)) is not None:
                term += [nodes.Text(" "), nodes.inline("", default, classes=["default"])]
            text = nodes.paragraph("", "", *_inline(option.text))
            listed += nodes.definition_list_item("", term, nodes.definition("", text))
        return [*(nodes.paragraph("", "", *_inline(each)) for each in about), listed]


class FieldsOf(SphinxDirective):
    """Writes a definition list with an entry for each attribute that a class's docstring names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read the docstring."""
        source, name = _named(self)
        listed = nodes.definition_list(classes=["options"])
        for names, text in fields_of(getattr(source, name)):
            term = nodes.term("", "", *_inline(re.sub(r"\w+", r"`\g<0>`", names)))
            listed += nodes.definition_list_item(
                "", term, nodes.definition("", nodes.paragraph("", "", *_inline(text)))
            )
        return [listed]


class HelpOf(SphinxDirective):
    """Writes what `python -m module --help` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Run the module."""
        command = [sys.executable, "-m", self.arguments[0], "--help"]
        environment = os.environ | {"COLUMNS": "88", "NO_COLOR": "1"}
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        self.env.note_dependency(inspect.getsourcefile(importlib.import_module(self.arguments[0])))
        return [nodes.literal_block(text, text, language="text")]


class NamesOf(SphinxDirective):
    """Writes the names in tuples of a module, `module:FIRST,SECOND`, each under the tuple's docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read the module's source."""
        source, names = _named(self)
        body = ast.parse(inspect.getsource(source)).body
        texts = {
            node.targets[0].id: inspect.cleandoc(text.value.value)  # type: ignore[attr-defined]
            for node, text in zip(body, body[1:], strict=False)
            if isinstance(node, ast.Assign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        }
        listed: list[nodes.Node] = []
        for name in names.split(","):
            listed.append(nodes.paragraph("", "", *_inline(texts[name])))
            listed.append(nodes.bullet_list())
            listed[-1] += [
                nodes.list_item("", nodes.paragraph("", "", nodes.literal("", each))) for each in getattr(source, name)
            ]
            listed[-1]["classes"].append("names")
        return listed


def _in_command(option: Option) -> str:
    name = option.name.replace("_", "-")
    if option.type.startswith("Positional"):
        return name.upper()
    return f"--{name}, --no-{name}" if option.type == "bool" else f"--{name}"


def _default(option: Option, as_command: bool) -> str | None:
    if option.default is dataclasses.MISSING:
        return None if as_command else "required"
    if option.default is None or option.default == ():
        return None
    values = option.default if isinstance(option.default, tuple) else (option.default,)
    return "default: " + " ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)


def _inline(text: str) -> list[nodes.Node]:
    """Text in which code has backticks."""
    parts = " ".join(text.split()).split("`")
    return [nodes.literal("", part) if odd % 2 else nodes.Text(part) for odd, part in enumerate(parts) if part]


def setup(app: Any) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("fields-of", FieldsOf)
    app.add_directive("help-of", HelpOf)
    app.add_directive("names-of", NamesOf)
    app.add_directive("options-of", OptionsOf)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
