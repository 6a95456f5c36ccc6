"""How the tests are run, held to what `conftest.py` and `tolerances.py` say of it."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path
from typing import Any

import pytest

import pathjax

from . import mutants

TESTS = Path(__file__).parent


def plugin_with(config: pytest.Config, name: str) -> Any:
    """The `conftest.py` that defines a name."""
    return next(plugin for plugin in config.pluginmanager.get_plugins() if hasattr(plugin, name))


def test_files_that_go_first_exist(pytestconfig: pytest.Config) -> None:
    first = plugin_with(pytestconfig, "LONGEST_FIRST").LONGEST_FIRST
    assert [name for name in first if not (TESTS.parent / name).exists()] == []


def test_every_public_module_and_no_private_one_has_its_calls_checked(pytestconfig: pytest.Config) -> None:
    checked = plugin_with(pytestconfig, "PUBLIC_MODULES").PUBLIC_MODULES
    assert "pathjax.paths" in checked and "pathjax.ntk" in checked
    assert not any(part.startswith("_") for name in checked for part in name.split("."))


def test_every_mutant_finds_its_line() -> None:
    """A mutant whose line has changed mutates nothing, which `make mutants` would be the first to see."""
    assert mutants.misplaced(TESTS.parent, mutants.MUTANTS) == []


# Tolerances

KEYWORDS = {"rtol", "atol", "rel", "abs"}


def literal_tolerances(source: str) -> list[str]:
    """The tolerances of a test file that are numbers in place of names from `tolerances.py`.

    A tolerance is an argument `rtol`, `atol`, `rel` or `abs`, the argument `tolerance` or the third argument of a
    function `assert_…`, and what follows < or <= in an assertion. Of the arguments, these are reported: a number other
    than 0, a number below 1/100 inside an expression (unless it is below 1e-100, which only keeps a scale from being
    zero), a name that the file itself sets to a number, and a relative tolerance that `assert_allclose` or `approx` is
    left to choose. Of comparisons, numbers below 1/100 are reported: others are bounds of what is tested.
    """
    tree = ast.parse(source)
    arguments = [argument for node in ast.walk(tree) for argument in _tolerances(node)]
    used = {node.id for argument in arguments for node in ast.walk(argument) if isinstance(node, ast.Name)}
    own = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(isinstance(name, ast.Name) and name.id in used for name in node.targets)
    ]
    bare = [each for each in [*arguments, *own] if _number(each)]
    bounds = [bound for node in ast.walk(tree) if isinstance(node, ast.Assert) for bound in _upper_bounds(node.test)]
    inside = [node for each in [*arguments, *bounds] for node in ast.walk(each) if 1e-100 < _number(node) < 1e-2]
    defaults = [node for node in ast.walk(tree) if _leaves_to_default(node)]
    numbers = [node for node in [*bare, *inside, *defaults] if isinstance(node, ast.expr)]
    return sorted({f"line {node.lineno}: {ast.unparse(node)}" for node in numbers})


def _tolerances(node: ast.AST) -> list[ast.expr]:
    """The arguments of a call that are tolerances."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1].startswith("assert_"):
        named = [keyword.value for keyword in node.keywords if keyword.arg in KEYWORDS | {"tolerance"}]
        return [*node.args[2:3], *named]
    return [node.value] if isinstance(node, ast.keyword) and node.arg in KEYWORDS else []


def _leaves_to_default(node: ast.AST) -> bool:
    """Whether a call takes a relative tolerance and is given none."""
    if not isinstance(node, ast.Call):
        return False
    keyword = {"assert_allclose": "rtol", "approx": "rel"}.get(ast.unparse(node.func).split(".")[-1])
    return keyword is not None and keyword not in {given.arg for given in node.keywords}


def _upper_bounds(test: ast.expr) -> list[ast.expr]:
    """What the comparisons of an assertion bound a number by from above."""
    return [
        bound
        for node in ast.walk(test)
        if isinstance(node, ast.Compare)
        for operator, bound in zip(node.ops, node.comparators, strict=True)
        if isinstance(operator, ast.Lt | ast.LtE)
    ]


def _number(node: ast.AST) -> float:
    """The number that a node of a program is, 0 where it is none."""
    value = node.value if isinstance(node, ast.Constant) else None
    return float(value) if isinstance(value, int | float) and value is not True else 0.0


# Their tests follow the same rule once they import their tolerances too.
EXEMPT = "test_experiments"


@pytest.mark.parametrize("file", sorted(TESTS.glob("**/*.py")), ids=lambda file: str(file.relative_to(TESTS)))
def test_tolerances_have_names(file: Path) -> None:
    if EXEMPT in file.parts:
        pytest.skip("the tests of the experiments name their tolerances themselves for now")
    assert literal_tolerances(file.read_text()) == []


def test_a_literal_tolerance_is_seen() -> None:
    assert literal_tolerances("assert_allclose(a, b, rtol=1e-9)") == ["line 1: 1e-09"]
    assert literal_tolerances("assert_allclose(a, b, rtol=0, atol=1e-9 * size)") == ["line 1: 1e-09"]
    assert literal_tolerances("CLOSE = 1e-9\nassert_allclose(a, b, rtol=CLOSE)") == ["line 1: 1e-09"]
    assert literal_tolerances("def test():\n    c = 1e-9\n    assert_close(a, b, c)") == ["line 2: 1e-09"]
    assert literal_tolerances("assert_close(a, b, 1e-9)") == ["line 1: 1e-09"]
    assert literal_tolerances("assert_close(a, b, tolerance=1e-9)") == ["line 1: 1e-09"]
    assert literal_tolerances("assert abs(a - b) < 1e-9 * size") == ["line 1: 1e-09"]
    assert literal_tolerances("assert_allclose(a, b)") == ["line 1: assert_allclose(a, b)"]
    assert literal_tolerances("assert a == approx(b)") == ["line 1: approx(b)"]
    assert literal_tolerances("assert a < b < 0.5 and top_eigenpairs(kernel, tolerance=1e-9)") == []
    assert literal_tolerances("assert_allclose(a, b, rtol=0, atol=4 * EXACT * max(1e-300, size))") == []


def test_the_version_and_its_date_stand_in_one_form_everywhere() -> None:
    setup = configparser.ConfigParser()
    setup.read(TESTS.parent / "setup.cfg")
    citation = dict(
        re.findall(r"^(version|date-released): (.+)$", (TESTS.parent / "CITATION.cff").read_text(), re.MULTILINE)
    )
    newest = re.search(r"^## (\S+) \((.+)\)$", (TESTS.parent / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest.groups() == (citation["version"], citation["date-released"])
    assert setup["metadata"]["version"] == citation["version"] == pathjax.__version__
