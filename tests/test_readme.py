"""The README's example runs as it stands."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

README = Path(__file__).parents[1] / "README.md"


def test_library_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    kept = sum(int(jnp.sum(leaf)) for leaf in jax.tree.leaves(names["mask"]) if leaf.ndim == 2)
    assert kept == 35  # a tenth of 4 · 50 + 50 · 3 weights


@pytest.mark.parametrize(("page", "examples"), [("path-forms.md", 20), ("study/README.md", 5)])
def test_tutorial_runs(page: str, examples: int) -> None:
    failed, tried = doctest.testfile(str(README.parent / "docs" / page), module_relative=False)
    assert failed == 0 and tried >= examples
