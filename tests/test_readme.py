"""The README and the pages of documentation: examples run, figures are those measured, links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from .tolerances import SINGLE

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
GUIDE = DOCS / "guide.md"
PRUNABLE = 3 * 3 * 16 + 16 * 10  # weights of the kernels of both networks of the guide


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page, each with the number of lines before it, so that errors name the right line."""
    text = page.read_text()
    found = re.finditer(r"```python\n(.*?)```", text, re.DOTALL)
    return ["\n" * text.count("\n", 0, block.start(1)) + block[1] for block in found]


def kept(params: Any) -> int:
    """The number of nonzero weights of the kernels."""
    return sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)


def test_readme_prunes_as_it_says() -> None:
    names: dict[str, Any] = {}
    (block,) = blocks(README)
    with jax.enable_x64(False):
        exec(compile(block, str(README), "exec"), names)
    assert kept(names["params"]) == round(0.1 * (784 * 300 + 300 * 100 + 100 * 10))


def test_readme_has_the_figures_of_the_benchmarks() -> None:
    """Each time and size of its table stands in the table of measurements."""
    table = README.read_text().partition("## How fast it is")[2].partition("## ")[0]
    measured = re.findall(r"\d[\d,.]* (?:ms|s|MB|GB)\b", (DOCS / "benchmarks" / "README.md").read_text())
    figures = re.findall(r"\d[\d,.]* (?:ms|s|MB|GB)\b", table)
    assert len(figures) >= 10 and set(figures) <= set(measured)


def test_readme_is_read_in_a_minute() -> None:
    assert len(README.read_text().splitlines()) <= 100


@pytest.mark.parametrize("page", [README, *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_to_other_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_guide_runs_and_gives_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)  # where it writes its file

    def run(block: str) -> None:
        with jax.enable_x64(False):  # as a user's JAX is
            exec(compile(block, str(GUIDE), "exec"), names)

    linen, in_nnx, path_kernel, expected, predicted, others = blocks(GUIDE)
    run(linen)
    assert kept(names["params"]) == round(0.1 * PRUNABLE)  # after training
    assert jnp.any(names["state"]["batch_stats"]["BatchNorm_0"]["mean"] != 0)

    run(in_nnx)
    assert kept(nnx.state(names["model"], nnx.Param)) == round(0.1 * PRUNABLE)
    assert jnp.any(names["model"].norm.mean[...] != 0)

    run(path_kernel)
    pairs, curve, kernel = names["pairs"], names["curve"], names["kernel"]
    assert not jnp.any(jnp.isclose(pairs.eigenvalues, 1.0, rtol=SINGLE))  # those of output biases are left out
    assert 0 < pairs.eigenvalues.sum() <= kernel.trace()
    assert curve.log_eigenvalues.shape == curve.density.shape
    assert kernel.trace() < names["whole"].trace()
    trace, log_trace = map(float, capsys.readouterr().out.splitlines()[0].split())
    np.testing.assert_allclose([trace, np.exp(log_trace)], kernel.trace(), rtol=SINGLE)

    run(expected)
    assert names["pruned"].ntk.shape == (4, 4, 10)
    assert jnp.all(jnp.isfinite(names["dense"].ntk))

    run(predicted)
    curve = names["curve"]
    assert curve.outputs.shape == (3, 4, 10) and jnp.all(jnp.diff(curve.losses) < 0)
    assert jnp.all(curve.errors < SINGLE * jnp.linalg.norm(names["f0"] - names["targets"]))

    run(others)
    assert names["masks"].count(names["snip_mask"]) == round(0.1 * PRUNABLE)
    assert kept(names["params"]) == round(0.02 * PRUNABLE)
    assert names["masks"].count(names["mask"]) == kept(names["params"])  # as it was loaded
    names["optimizer"].init(names["params"])  # takes them: pruned weights are 0


@pytest.mark.parametrize(
    ("page", "examples"),
    [("path-forms.md", 20), ("expected-gates.md", 40), ("sharp-bits.md", 17), ("own-studies.md", 5)],
)
def test_pages_run(page: str, examples: int) -> None:
    failed, tried = doctest.testfile(str(DOCS / page), module_relative=False)
    assert failed == 0 and tried >= examples
