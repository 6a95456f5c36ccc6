"""Links the name of each public function, wherever it is set as code, to its place in the reference."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

import pathjax

__all__ = ["LinkedNames", "public_names", "setup", "target_of"]

MODULES = tuple(sorted(info.name for info in pkgutil.iter_modules(pathjax.__path__) if not info.name.startswith("_")))

DOCUMENTING = ("path_kernel", "types")
"""Modules that document what others list too: `path_kernel.Eigenpairs` and `types.Estimate`."""


def public_names() -> dict[str, str]:
    """`module.name` and `module.Class.method` of all that is public, each with its full name."""
    names: dict[str, str] = {}
    first: dict[int, str] = {}  # of what several modules list, the one that documents it
    for module in sorted(MODULES, key=lambda module: module not in DOCUMENTING):
        source = importlib.import_module(f"pathjax.{module}")
        for name in getattr(source, "__all__", _types(source)):
            member = getattr(source, name, None)
            names[f"{module}.{name}"] = first.setdefault(id(member or name), f"pathjax.{module}.{name}")
            if inspect.isclass(member):
                for part, value in vars(member).items():
                    if not part.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                        names[f"{module}.{name}.{part}"] = f"{names[f'{module}.{name}']}.{part}"
    return names


def _types(source: Any) -> list[str]:
    """The names that a module without a list of its names assigns, with their annotation, or defines as classes."""
    own = [
        name for name, value in vars(source).items() if inspect.isclass(value) and value.__module__ == source.__name__
    ]
    return [*source.__annotations__, *own]


NAMES = public_names()
_OF_ANNOTATIONS = {name.rpartition(".")[2]: full for name, full in NAMES.items() if name.count(".") == 1}
_OF_ANNOTATIONS |= {name.partition(".")[2]: full for name, full in NAMES.items() if name.startswith("types.")}


def target_of(code: str, page: str) -> str | None:
    """The full name that a piece of code on a page stands for, such as `ntk.empirical(apply, params, x)`; or None."""
    name = code.split("(")[0].removeprefix("pathjax.")
    if name in NAMES:
        return NAMES[name]
    if page.startswith("reference/"):
        return NAMES.get(f"{page.removeprefix('reference/')}.{name}")
    return None


class LinkedNames(SphinxPostTransform):
    """Turns code that names something public into a link, except in titles and links."""

    default_priority = 5  # before references are resolved

    def run(self, **options: Any) -> None:
        """Go through all inline code."""
        page = self.env.docname
        for code in list(self.document.findall(nodes.literal)):
            target = target_of(code.astext(), page)
            within = code.parent
            while within is not None and not isinstance(
                within, nodes.reference | nodes.title | addnodes.pending_xref | addnodes.desc_signature
            ):
                within = within.parent
            if target is None or within is not None:
                continue
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=target, refexplicit=False, refwarn=False, refdoc=page
            )
            code.replace_self(link)
            link += code


def _of_annotation(app: Any, env: Any, node: Any, content: Any) -> Any:
    """The link of a type in a signature, such as `Mask` or `Operator`, whose source names it without its module."""
    target = _OF_ANNOTATIONS.get(node.get("reftarget", "").rpartition(".")[2])
    if node.get("refdomain") != "py" or node.get("reftype") != "class" or target is None:
        return None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def setup(app: Any) -> dict[str, bool]:
    """Register the transform."""
    app.add_post_transform(LinkedNames)
    app.connect("missing-reference", _of_annotation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
