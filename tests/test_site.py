"""What builds the site, where it needs no Sphinx; and the names of functions and tests that its pages name."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.records.trial import Trial
from experiments.records.trial_summaries import SUMMARIES
from pathjax import ntk, scores

from .test_public_api import MODULES, find

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)


def extension(name: str) -> Any:
    """A file of docs/_ext, which is no package of the project."""
    spec = importlib.util.spec_from_file_location(f"docs_ext_{name}", DOCS / "_ext" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "below", "above"),
    [
        ("λ_max(Θ) ≤ λ_max(Π)", ["max", "max"], []),
        ("Σ_{i∈p} v_p² of K_v(x, x')_o", ["i∈p", "p", "v", "o"], []),
        ("Θ_(ij)(ab) = Θ_∞ ⊗ I", ["(ij)(ab)", "∞"], []),
        ("e^(−ηΘt) and |v_p|^q, 2^−126", ["p"], ["−ηΘt", "q", "−126"]),
        ("(I − ηΘ)^(2t)", [], ["2t"]),
        ("as n^0.6, and 2^10.", [], ["0.6", "10"]),
        ("(I − ηΘ_c) ∂f_a(x1_i)/∂θ_k x'_s", ["c", "a", "i", "k", "s"], []),
        ("log_trace, x_like, path_kernel, results_folder and __init__", [], []),
    ],
)
def test_indices_are_found_and_names_are_left_alone(text: str, below: list[str], above: list[str]) -> None:
    cut = extension("indices").pieces(text)
    assert [piece.text for piece in cut if piece.kind == "subscript"] == below
    assert [piece.text for piece in cut if piece.kind == "superscript"] == above


def test_docstrings_become_restructured_text() -> None:
    marked_up = extension("docstrings").as_restructured_text
    assert marked_up("Magnitude: |θ| of `params`, after * are options.") == (
        r"Magnitude: \|θ\| of ``params``, after \* are options."
    )
    assert marked_up("As\n\n    Σ_p |v_p|\n\nis.") == "As\n\n.. container:: formula\n\n   Σ_p \\|v_p\\|\n\nis."
    assert marked_up("So\n\n    prune(score, params)") == "So\n\n.. code-block:: python\n\n    prune(score, params)"
    assert marked_up(">>> a | b\n`c`") == ">>> a | b\n`c`"
    assert marked_up("As\n\n    Θ = Σ_i b_i b_iᵀ") == "As\n\n.. container:: formula\n\n   Θ = Σ_i b_i b_iᵀ"
    assert marked_up("**options are passed on.") == r"\*\*options are passed on."
    assert marked_up("**Several seeds.** Pass **options.") == r"**Several seeds.** Pass \*\*options."


def test_functions_do_not_stand_under_the_last_title_of_their_module() -> None:
    with_last_title = extension("docstrings").with_last_title
    assert with_last_title("Words\n-----\na\n    b", "types") == (
        "Words\n-----\na\n    b\n\nContents of types\n-----------------"
    )
    assert with_last_title("Scores --- of weights.", "scores") == "Scores --- of weights."


def test_signatures_show_shapes_as_the_source_has_them() -> None:
    signature_of = extension("docstrings").signature_of
    arguments, result = signature_of(ntk.relative_distance)
    assert arguments == "(finite: Float[Array, 'n m o o'], infinite: Float[Array, 'n m'])"
    assert result == "Float[Array, '']"
    assert "batches: Batches, *, loss: LossFn = cross_entropy, " in signature_of(scores.snip)[0]


def test_links_to_files_outside_of_the_site_lead_to_pages() -> None:
    rewritten = extension("outside").without_outside_links
    assert rewritten("[R](../README.md#install) [D](../DESIGN.md)", 0) == "[R](/start.md) [D](/design.md)"
    assert rewritten("[R](../README.md#experiments)", 0) == "[R](/studies.md)"
    assert rewritten("[C](../costs.md) [D](../../DESIGN.md)", 1) == "[C](../costs.md) [D](/design.md)"
    assert rewritten("[tests](../tests/oracles.py)", 0) == "tests"
    assert rewritten("[docs/a.md](a.md) [costs.md](../costs.md)", 1) == "[](a.md) [](../costs.md)"


def test_code_without_a_language_gets_that_of_its_first_line() -> None:
    language_of = extension("languages").language_of
    assert [language_of(code) for code in (">>> a = 1\n1", ".venv/bin/python -m experiments", "job=$(sbatch a)")] == [
        "pycon",
        "bash",
        "bash",
    ]
    assert [language_of(code) for code in ("pathjax/\n  uses", "makes", "a = 1")] == [None, None, None]


def test_long_names_in_tables_may_break_between_their_words() -> None:
    with_breaks = extension("tables").with_breaks
    code = '<span class="pre">ntk.top_eigenpairs(apply)</span>'
    short = '<span class="pre">scores.synflow</span>'
    assert with_breaks(f"<p>{code}</p><td>{short} {code}</td>") == (
        f'<p>{code}</p><td>{short} <span class="pre">ntk.<wbr>top_<wbr>eigenpairs(<wbr>apply)</span></td>'
    )


def test_intervals_in_tables_do_not_break() -> None:
    with_breaks = extension("tables").with_breaks
    assert with_breaks("<td>+0.5 [−0.1, +1.2] points</td>") == "<td>+0.5 [−0.1,\u00a0+1.2] points</td>"
    assert with_breaks("<td>[−∞, 3.0]</td>") == "<td>[−∞,\u00a03.0]</td>"
    assert with_breaks("<td>two names [a, b]</td><p>[0.1, 0.2]</p>") == "<td>two names [a, b]</td><p>[0.1, 0.2]</p>"


def test_accuracies_beside_the_scores_are_those_of_the_study() -> None:
    table = pd.read_csv(DOCS / "study" / "results" / "digits.csv.gz")
    page = (DOCS / "which-score.md").read_text()

    def shown(rows: pd.DataFrame) -> list[str]:
        means = 100 * rows.groupby("model")["test_accuracy"].mean().reindex(["fc", "resnet_20", "vgg_11"])
        return ["–" if np.isnan(mean) else f"{mean:.0f}" for mean in means]

    (line,) = re.findall(r"Unpruned they\nhave (\d+), (\d+) and (\d+)\.", page)
    assert list(line) == shown(table[table["method"] == "dense"])
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `scores.")
    ]
    methods = {cells[0].strip("`").removeprefix("scores."): cells[4] for cells in rows}
    assert len(methods) == 13 and [name for name, text in methods.items() if not text] == ["force"]
    for name, text in methods.items():
        of_method = table[(table["method"] == name) & (table["density"] == 0.02)]
        assert not text or text.split(", ") == shown(of_method), name


def test_every_column_of_a_table_of_trials_is_explained() -> None:
    page = (DOCS / "reference" / "columns.md").read_text()
    listed = dict(extension("fields").fields_of(Trial))
    assert listed["test_loss, test_accuracy"] == "on the full test set after training; accuracy is a share in [0, 1]."
    explained = {name for names in listed for name in re.findall(r"\w+", names)} | set(re.findall(r"`(\w+)`", page))
    names = {field.name for field in dataclasses.fields(Trial)} | set(SUMMARIES)
    assert names - explained == set()


def test_links_into_nothing_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="here"></h1><a href="b.html#there"></a><a href="https://c"></a>')
    (tmp_path / "b.html").write_text('<a href="a.html#here"></a><a href="#gone"></a><img src="d.png">')
    assert extension("broken_links").broken_links(tmp_path) == [
        "a.html names b.html#there, a place that is not there.",
        "b.html names #gone, a place that is not there.",
        "b.html names d.png, which is not there.",
    ]


def test_tutorials_are_executed_again_where_a_source_has_changed(tmp_path: Path) -> None:
    for file in ("pathjax/ntk.py", "requirements.txt", "docs/requirements.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("1")
    fingerprint = extension("execution").fingerprint
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    (tmp_path / "pathjax/ntk.py").write_text("2")
    assert fingerprint(tmp_path) != before


def named_functions(text: str) -> list[str]:
    """`module.name` wherever a page sets it as code, in a line or as the beginning of a call."""
    return re.findall(rf"`((?:{'|'.join(MODULES)})\.[A-Za-z_.]+)[`(]", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_functions_that_a_page_names_exist(page: Path) -> None:
    missing = [name for name in named_functions(page.read_text()) if find(name) is None]
    # fields of results are annotated and not all found as attributes; files of the project are no functions
    assert [name for name in missing if not name.endswith(".py")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_tests_that_a_page_names_exist(page: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / file).exists(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(), name
