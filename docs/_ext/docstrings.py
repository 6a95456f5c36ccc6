"""Makes reStructuredText of pathjax's docstrings, which are written to be read as they stand.

In them code has single backticks, |θ| is an absolute value, and indented lines are a formula or code. Signatures show
the annotations of the source, in which shapes can be read.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["as_restructured_text", "setup", "signature_of", "with_last_title"]

_CODE = re.compile(r"\s*(def |for |from |import |pip |@|[\w.]+\(|[\w.]+ = )", re.ASCII)
_SENTENCE = re.compile(r"[a-z]{3,},? [a-z]{2,},? [a-z]{2,}")
_LEAD = re.compile(r"\*\*[^*`]+\.\*\*")
_MATHEMATICAL = re.compile(r"[Α-Ωα-ω∂Σ²ᵀ⊙‖−·√]")


def as_restructured_text(docstring: str) -> str:
    """The docstring with its code, bars and formulas marked up."""
    return "\n\n".join(_marked_up(block) for block in re.split(r"\n[ \t]*\n", docstring.rstrip()))


def _marked_up(block: str) -> str:
    """A paragraph, list, formula, piece of code or doctest, marked up."""
    lines = block.splitlines()
    if not lines or lines[0].lstrip().startswith(">>>"):
        return block
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    if indent >= 4 and _CODE.match(lines[0]):
        return " " * (indent - 4) + ".. code-block:: python\n\n" + block
    if indent >= 4 and _MATHEMATICAL.search(block) and not _SENTENCE.search(block):
        return ".. container:: formula\n\n" + "\n".join("   " + _escaped(line.strip()) for line in lines)
    marked = "".join(_inline(part) for part in re.split(r"(`[^`]+`|^\*\*[^*`]+\.\*\*)", block))
    # a title has grown by its backticks
    return re.sub(r"^(.+)\n-+$", lambda title: f"{title[1]}\n{'-' * len(title[1])}", marked, flags=re.MULTILINE)


def _inline(part: str) -> str:
    """Code, the bold first words of a paragraph, or text, marked up."""
    if part.startswith("`"):
        return f"`{part}`"
    return part if _LEAD.fullmatch(part) else _escaped(part)


def _escaped(text: str) -> str:
    """The text without what reStructuredText would take for markup."""
    text = re.sub(r"([|*\\])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?=[^\w{(]|$)", r"\\_", text)


def signature_of(function: Any) -> tuple[str, str | None]:
    """The arguments and the result of a function, with annotations and defaults as its source has them."""
    signature = inspect.signature(function)
    shown, keyword_only = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            shown.append("*")
            keyword_only = True
        shown.append(_parameter(parameter))
    result = signature.return_annotation
    # jaxtyping takes shapes of one axis with a space before it
    arguments, returned = (text.replace("[Array, ' ", "[Array, '") for text in (", ".join(shown), str(result)))
    return f"({arguments})", None if result is signature.empty else returned


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
    if parameter.default is parameter.empty:
        return f"{stars}{parameter.name}{annotation}"
    default = getattr(parameter.default, "__name__", repr(parameter.default))
    return f"{parameter.name}{annotation} = {default}" if annotation else f"{parameter.name}={default}"


def _on_docstring(app: Any, kind: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    if name.startswith("pathjax"):
        text = as_restructured_text("\n".join(lines))
        lines[:] = [*(with_last_title(text, name.rpartition(".")[2]) if kind == "module" else text).splitlines(), ""]


def with_last_title(text: str, module: str) -> str:
    """A module's text with a title at its end, if it has any: what follows does not belong under the last of them."""
    title = f"Contents of {module}"
    return f"{text}\n\n{title}\n{'-' * len(title)}" if re.search(r"^-{4,}$", text, re.MULTILINE) else text


def _after_napoleon(app: Any, kind: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """The types of attributes, which napoleon adds, as code."""
    for place, line in enumerate(lines):
        if match := re.match(r"( *:vartype [^:]+:) (.+)", line):
            shown = re.sub(
                r"\b(?:jaxtyping\.|jaxlib\._jax\.|jax\.|typing\.|pathjax\.(?:\w+\.)*)(?=[A-Z])", "", match[2]
            )
            lines[place] = f"{match[1]} ``{shown}``"


_lines_set_aside: dict[str, list[str]] = {}


def _set_aside(app: Any, kind: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Keep the docstrings of properties and of types from napoleon, which takes words before a colon for a type."""
    if kind in ("property", "attribute", "data"):
        _lines_set_aside[name], lines[:] = list(lines), []


def _put_back(app: Any, kind: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    lines[:0] = _lines_set_aside.pop(name, [])


def _on_signature(app: Any, kind: str, name: str, member: Any, options: Any, *shown: Any) -> Any:
    if not name.startswith("pathjax"):
        return None
    if kind in ("function", "method"):
        return signature_of(inspect.unwrap(member))
    return ("", None) if kind == "class" else None  # results are not made by users


def _on_member(app: Any, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of results, which their docstrings list."""
    return True if type(member).__name__ in ("_tuplegetter", "member_descriptor") else None


def setup(app: Any) -> dict[str, bool]:
    """Register what is done to docstrings and signatures, before napoleon reads them."""
    app.connect("autodoc-process-docstring", _on_docstring, priority=100)
    app.connect("autodoc-process-docstring", _set_aside, priority=499)
    app.connect("autodoc-process-docstring", _put_back, priority=501)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=900)
    app.connect("autodoc-process-signature", _on_signature)
    app.connect("autodoc-skip-member", _on_member)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
