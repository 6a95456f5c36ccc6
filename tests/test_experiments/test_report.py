import dataclasses
import math
import re

from experiments import figures, findings, report, summary
from experiments.options import Compare
from tests.test_experiments.examples import example

METHODS = ["random", "magnitude", "synflow"]
OPTIONS = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(Compare()).items()}
CONFIG = {"options": OPTIONS | {"method": METHODS, "seeds": 2}, "versions": {"pathjax": "1", "jax": "2"}}


def tables(**changed):
    """Tables of results in which everything falls with density, and `changed` holds for random at 0.02."""
    cells = [("dense", 1.0), *((method, density) for method in METHODS for density in (0.5, 0.02))]
    runs = []
    for method, density in cells:
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
    shown = report.illustrations(by_run, table, ranks, CONFIG)
    page = report.page(table, ranks, shown, CONFIG, 1e-16)
    assert "random at density 0.02: the training loss is not finite from epoch 1 on" in page
    assert "1.0e-16" in page and "jax 2" in report.footer(CONFIG)
    assert not re.search(r"\bnan\b", page)
    assert report.console_table(table).row_count == len(table)


def test_the_same_results_give_the_same_pictures():
    first, second = (figures.accuracy_over_density(tables()[1], "footer") for _ in range(2))
    assert figures.svg(first) == figures.svg(second)
    assert figures.png(first) == figures.png(second)


def test_findings_follow_the_results():
    by_run, table, ranks = tables()
    found = findings.summary(table, ranks, 1e-16)
    assert "The dense network reaches 90.0 ± 0.0% test accuracy." in found
    assert "At density 0.02, random keeps" in found
    assert "log λmax(Θ) goes most with test accuracy" in found
    assert "best: random" in findings.of_accuracy(table)
    assert "No layer is emptied" in findings.of_layers(by_run)
    assert "A layer is emptied by random at 0.02." in findings.of_layers(tables(layer_density={"Dense_0": 0.0})[0])


def test_drawings_do_not_share_names():
    drawing = (
        '<?xml?><svg width="10pt" height="20pt"><metadata>x</metadata><g id="a"/><use href="#a" clip="url(#a)"/></svg>'
    )
    inlined = report._inline(drawing, prefix="f1-", label="A & B")
    assert 'id="f1-a"' in inlined and 'href="#f1-a"' in inlined and "url(#f1-a)" in inlined
    assert "metadata" not in inlined and "pt" not in inlined and "A &amp; B" in inlined
