import dataclasses
import math
import re

import numpy as np

from experiments.command_line import Compare
from experiments.records import summary
from experiments.report import comparison, comparison_findings, drawing, kernel_figures, kernel_findings, page
from tests.test_experiments.examples import example, example_kernels

METHODS = ["random", "magnitude", "synflow"]
OPTIONS = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(Compare()).items()}
CELLS = [("dense", 1.0), *((method, density) for method in METHODS for density in (0.5, 0.02))]
KERNELS = {cell: example_kernels(number) for number, cell in enumerate(CELLS)}
CONFIG = {"options": OPTIONS | {"method": METHODS, "seeds": 2}, "versions": {"pathjax": "1", "jax": "2"}}


def tables(**changed):
    """Tables of results in which everything falls with density, and `changed` holds for random at 0.02."""
    runs = []
    for method, density in CELLS:
        for seed in (0, 1):
            share = density ** (0.1 + 0.01 * (METHODS.index(method) if density < 1 else 0))
            curve = [1.0, share / 2, share / 4]
            run = example(
                steps_to_level=1 / share,
                method=method,
                density=density,
                seed=seed,
                reason="",
                test_accuracy=0.9 * share,
                log_top_ntk=math.log(share),
                real_loss=curve,
                linearized_loss=curve,
                data_free_loss=curve,
                train_loss=curve,
            )
            runs.append(dataclasses.replace(run, **changed) if (method, density) == ("random", 0.02) else run)
    by_run = summary.by_run(runs, CONFIG)
    table = summary.cells(by_run)
    return by_run, table, summary.rankings(table)


BROKEN = {
    "reason": "the training loss is not finite from epoch 1 on",
    "train_loss": [2.0, math.nan, math.nan],
    "real_loss": [1.0, math.nan, math.nan],
    "gap_linearized": math.nan,
    "gap_data_free": math.nan,
    "log_path_norm_1": -math.inf,
    "steps_to_level": math.inf,
    "test_accuracy": 0.0,
}


def test_a_report_can_be_made_of_broken_results():
    by_run, table, ranks = tables(**BROKEN)
    dead = example_kernels(log_nodes=np.full((3, 2, 4), -np.inf), shares=np.zeros(5), cosines=np.zeros((3, 6, 6)))
    dead = dead._replace(
        log_eigenvalues=np.full(5, -np.inf), log_ntk_eigenvalues=np.full(12, -np.inf), alignments=np.full(3, np.nan)
    )
    broken = KERNELS | {("random", 0.02): dead._replace(bounds=np.full(6, -np.inf))}
    shown = comparison.illustrations(by_run, table, ranks, broken, CONFIG)
    page = comparison.page(table, ranks, shown, CONFIG, 1e-16)
    assert "random at density 0.02: the training loss is not finite from epoch 1 on" in page
    assert "1.0e-16" in page and "jax 2" in comparison.footer(CONFIG)
    assert not re.search(r"\bnan\b", page)
    assert comparison.console_table(table).row_count == len(table)


def test_the_same_results_give_the_same_pictures():
    first, second = (drawing.accuracy_over_density(tables()[1], "footer") for _ in range(2))
    assert drawing.svg(first) == drawing.svg(second)
    assert drawing.png(first) == drawing.png(second)


def test_findings_follow_the_results():
    by_run, table, ranks = tables()
    found = comparison_findings.summary(table, ranks, 1e-16)
    assert "The dense network reaches 90.0 ± 0.0% test accuracy." in found
    assert "At density 0.02, random keeps" in found
    assert "log λmax(Θ) goes most with test accuracy" in found
    assert "best: random" in comparison_findings.of_accuracy(table)
    assert "No layer is emptied" in comparison_findings.of_layers(by_run)
    assert "A layer is emptied by random at 0.02." in comparison_findings.of_layers(
        tables(layer_density={"Dense_0": 0.0})[0]
    )


def test_findings_of_kernels_follow_the_numbers():
    found = kernel_findings.of_shares(KERNELS | {("random", 0.02): example_kernels(shares=np.full(5, 0.15))})
    assert "the 5 modes carry 45.0% of Tr Θ in the dense network" in found
    assert "at density 0.02 from 45.0% (magnitude) to 75.0% (random)" in found
    decades = (3 + 5 - 1) / math.log(10)
    assert f"lies {decades:.1f} to {decades:.1f} decades above λmax(Θ)" in found
    falls = 3 / math.log(10)
    assert f"fall by {falls:.1f} and {falls:.1f} decades in the dense network" in kernel_findings.of_eigenvalues(
        KERNELS
    )
    assert "dense: Θ 0.30, its part 0.20, K_v 0.10" in kernel_findings.of_maps(KERNELS, [("dense", 1.0)])
    nodes = np.log(np.array([1e-3, 1e-2, 1e-1, 1.0]))[None, None]
    few = example_kernels(log_nodes=np.where(nodes < -6, -np.inf, nodes), weights=np.array([[[0.4, 0.1, 0.3, 0.2]]]))
    found = kernel_findings.of_density({("dense", 1.0): few, ("random", 0.5): few})
    assert "lie above 10^−1.0; at density 0.5 10^−1.0 (random)" in found
    assert "Left out are 40.0% of the dense network’s and 40.0% (random)" in found


def test_maps_are_of_the_dense_network_and_the_ends_of_the_lowest_density():
    _, table, _ = tables(test_accuracy=0.0)
    assert kernel_findings.best_and_worst(table) == [("dense", 1.0), ("magnitude", 0.02), ("random", 0.02)]


def test_examples_are_ordered_by_class():
    labels = np.array([1, 0, 1, 0, 1, 0])
    same = (labels[:, None] == labels[None, :]).astype(float)
    figure = kernel_figures.heat_maps({("dense", 1.0): example_kernels(cosines=np.stack([same] * 3))}, CELLS[:1], "")
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, np.kron(np.eye(2), np.ones((3, 3))))


def test_drawings_do_not_share_names():
    drawing = (
        '<?xml?><svg width="10pt" height="20pt"><metadata>x</metadata><g id="a"/><use href="#a" clip="url(#a)"/></svg>'
    )
    inlined = page._inline(drawing, prefix="f1-", label="A & B")
    assert 'id="f1-a"' in inlined and 'href="#f1-a"' in inlined and "url(#f1-a)" in inlined
    assert "metadata" not in inlined and "pt" not in inlined and "A &amp; B" in inlined
