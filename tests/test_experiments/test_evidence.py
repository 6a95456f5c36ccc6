"""The page of the evidence: what is kept of studies, verdicts, and the page that follows from the tables alone."""

import gzip
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.base.errors import InputError
from experiments.evidence import accounts, cells, kept, ordering, page, published, widths
from experiments.evidence.__main__ import main
from experiments.evidence.cells import Cells, in_order
from experiments.evidence.claims import HOLDS, NOT, OPEN, Claim, Unit, verdict
from experiments.evidence.kept import Kept
from experiments.evidence.sections import Missing, Section
from experiments.evidence.statistics import Interval
from experiments.measure.pruned_widths import PrunedSweep
from experiments.records import study_table
from experiments.records.jsonl import encode
from experiments.records.trial import Trial
from tests.test_experiments.made_studies import QUALITIES, SEEDS, all_folders, folder_of, trial
from tests.tolerances import EXACT, SINGLE_ROUNDING

ROOT = Path(__file__).parents[2]
MASKS = ROOT / "docs" / "widths" / "masks.csv"


def small(place: Path, **changed: Any) -> Path:
    """The folder of a small study."""
    options: dict[str, Any] = {
        "data": ["digits"],
        "models": ["fc"],
        "methods": ["random", "snip"],
        "densities": [0.1],
        "seeds": 2,
    }
    return folder_of(place, "small", **options | changed)


def test_a_kept_table_has_six_digits_of_every_network_and_accuracies_whole(tmp_path):
    folder = small(tmp_path)
    table = kept.keep(folder, tmp_path / "results").table
    study = study_table.read(folder)
    assert len(table) == 2 * 3
    for trial_there, (_, row) in zip(study.finished(), table.iterrows(), strict=True):
        assert trial_there.name == tuple(row[name] for name in ("data", "model", "method", "density", "seed"))
        assert row["test_accuracy"] == trial_there.test_accuracy
        for name in ("log_trace_path_kernel", "gap_no_data", "log_top_moments", "kept"):
            assert row[name] == pytest.approx(getattr(trial_there, name), rel=5 * SINGLE_ROUNDING, nan_ok=True)
        assert row["real_drop"] == pytest.approx(-math.log10(trial_there.real_loss[-1]), rel=5 * SINGLE_ROUNDING)
        assert row["log_layer_density_min"] == pytest.approx(
            math.log(min(trial_there.layer_density.values())), rel=5 * SINGLE_ROUNDING
        )
        assert row["pruned_stay_zero"] is True or row["pruned_stay_zero"] == np.True_


def test_a_study_is_kept_as_the_same_bytes_whenever_it_is_kept(tmp_path):
    folder = small(tmp_path)
    kept.keep(folder, tmp_path / "first")
    # a folder in which networks were finished in another order
    lines = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    kept.keep(folder, tmp_path / "second")
    for file in ("small.csv.gz", "small.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    header = (tmp_path / "first" / "small.csv.gz").read_bytes()[:10]
    assert header[:4] == b"\x1f\x8b\x08\x00" and header[4:8] == b"\0\0\0\0"  # no name, no time


def test_what_is_the_same_in_all_rows_is_said_once(tmp_path):
    one = kept.keep(small(tmp_path, methods=["snip"]), tmp_path / "results")
    columns = gzip.decompress((tmp_path / "results" / "small.csv.gz").read_bytes()).decode().splitlines()[0].split(",")
    about = json.loads((tmp_path / "results" / "small.json").read_text())
    assert set(columns) | set(about["same"]) == set(one.table.columns) and not set(columns) & set(about["same"])
    assert {"data", "model", "method", "density", "seed"} <= set(columns)
    assert about["same"]["pruned_stay_zero"] == "True" and about["same"]["prunable"] == "1000"
    assert (one.table["prunable"] == 1000).all() and one.table["infinite_distance"].isna().all()
    assert about["options"]["train.epochs"] == 10 and about["versions"]["jax"] == "0.10.2"
    assert about["made"] == {"devices": {"cpu": 4}, "commits": {"0" * 40: 4}, "days": ["2021-01-02"] * 2, "hours": 0.04}
    assert not any("." in name for name in one.table.columns)  # no column of the config


def test_failed_and_untrained_networks_stay_and_are_marked(tmp_path):
    folder = small(tmp_path)
    trials = study_table.read(folder).finished()
    failed = Trial.partial(trials[-1].name, reason="the training loss is not finite\nand more")
    untrained = trial(*trials[-2].name)
    lines = [encode(each) for each in trials[:-2]]
    lines += [encode(failed), encode(untrained).replace('"did_not_train": ""', '"did_not_train": "accuracy of chance"')]
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    study = kept.keep(folder, tmp_path / "results")
    assert (study.failed, study.untrained, len(study.table), len(study.finished)) == (1, 1, 6, 5)
    (row,) = study.table[study.table["reason"] != ""].to_dict("records")
    assert row["reason"] == "the training loss is not finite" and math.isnan(row["test_accuracy"])


def test_infinities_and_every_digit_of_a_density_come_back(tmp_path):
    density = 0.1234567890123
    folder = small(tmp_path, densities=[density])
    text = (folder / "results.jsonl").read_text()
    text = re.sub(r'"log_path_norm_1": [^,]*, (.*"seed": 0)', r'"log_path_norm_1": "-inf", \1', text)
    (folder / "results.jsonl").write_text(re.sub(r'"log_path_norm_1": [-0-9.]*', '"log_path_norm_1": "-inf"', text))
    table = kept.keep(folder, tmp_path / "results").table
    assert set(table["density"]) == {1.0, density} and np.isneginf(table["log_path_norm_1"]).all()


def test_an_unfinished_study_is_kept_only_if_asked_and_says_so(tmp_path, capsys):
    folder = small(tmp_path)
    lines = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    study = tmp_path / "study"
    assert main(["--study", str(study), "keep", str(folder)]) == 2
    assert "has 5 of the 6 networks of its study" in capsys.readouterr().err and not (study / "results").exists()
    assert main(["--study", str(study), "keep", str(folder), "--unfinished", "--name", "digits"]) == 0
    assert "digits.csv.gz, 5 networks (0 without a result, 0 did not train)" in capsys.readouterr().out
    assert main(["--study", str(study), "--widths", str(MASKS)]) == 0
    assert "| 5 of 6 |" in (study / "README.md").read_text()


def test_networks_of_another_study_in_the_folder_are_not_kept(tmp_path):
    folder = small(tmp_path)
    with (folder / "results.jsonl").open("a") as file:
        file.write(encode(trial("digits", "fc", "synflow", 0.1, 0)) + "\n")
    assert set(kept.keep(folder, tmp_path / "results").table["method"]) == {"dense", "random", "snip"}


def without_a_row(table: bytes) -> bytes:
    return gzip.compress(gzip.decompress(table).rpartition(b"\n")[0].rpartition(b"\n")[0] + b"\n")


@pytest.mark.parametrize(
    "damaged", [lambda _: b"", lambda _: b"not gzip", lambda _: gzip.compress(b"data,model\na,b\n"), without_a_row]
)
def test_tables_that_cannot_be_read_are_named(tmp_path, damaged, capsys):
    results = tmp_path / "results"
    kept.keep(small(tmp_path), results)
    file = results / "small.csv.gz"
    file.write_bytes(damaged(file.read_bytes()))
    with pytest.raises(
        InputError, match=r"small.csv.gz cannot be read .*`python -m experiments.evidence keep` makes it"
    ):
        kept.read_all(results)
    assert main(["--study", str(tmp_path)]) == 2 and "cannot be read" in capsys.readouterr().err


def test_folders_and_names_that_do_not_fit_are_refused(tmp_path, capsys):
    folder = small(tmp_path)
    assert main(["--study", str(tmp_path), "keep", str(folder), str(folder), "--name", "digits"]) == 2
    assert "--name is for one folder" in capsys.readouterr().err
    assert main(["--study", str(tmp_path), "keep", str(tmp_path / "nothing")]) == 2
    assert "has no results of a study" in capsys.readouterr().err


def test_tables_that_take_too_much_room_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kept, "MOST_BYTES", 100)
    assert main(["--study", str(tmp_path), "keep", str(small(tmp_path))]) == 2
    assert "take more than 100 bytes" in capsys.readouterr().err


def test_cells_are_where_their_names_say(tmp_path):
    table = kept.keep(
        folder_of(tmp_path, "two", data=["b", "a"], models=["fc"], methods=["snip", "random"], densities=[0.1, 0.5]),
        tmp_path / "results",
    ).table
    table = table[~((table["method"] == "snip") & (table["density"] == 0.5) & (table["seed"] == 1))]
    arrays = Cells(table, ("snip", "random"))
    assert arrays.groups == (("a", "fc", 0.5), ("a", "fc", 0.1), ("b", "fc", 0.5), ("b", "fc", 0.1))
    assert arrays.strata == [0, 0, 1, 1] and arrays.seeds == tuple(range(SEEDS))
    values = arrays.values("test_accuracy")
    assert values.shape == (4, 2, SEEDS) and np.isnan(values[0, 0, 1]) and not np.isnan(values[0, 1, 1])
    row = table[(table["data"] == "b") & (table["method"] == "random") & (table["density"] == 0.1)].iloc[3]
    assert values[3, 1, 3] == row["test_accuracy"] and row["seed"] == 3
    assert np.isnan(arrays.values("test_accuracy", ["none"])).all()
    assert arrays.values("test_accuracy", ["dense"]).shape == (4, 1, SEEDS)  # which has no group of its own
    assert np.isnan(arrays.values("test_accuracy", ["dense"])).all()
    assert arrays.restricted(lambda group: group[2] == 0.1).groups == (("a", "fc", 0.1), ("b", "fc", 0.1))
    assert in_order(["snip+shuffled", "synflow", "random"])[0] == "random"


@pytest.mark.parametrize(
    ("ends", "bounds", "expected"),
    [
        ((0.1, 0.3), (0.0, math.inf), HOLDS),
        ((-0.1, 0.3), (0.0, math.inf), OPEN),
        ((-0.3, -0.1), (0.0, math.inf), NOT),
        ((0.0, 0.3), (0.0, math.inf), OPEN),
        ((-0.1, 0.1), (-0.2, 0.2), HOLDS),
        ((0.1, 0.3), (-0.2, 0.2), OPEN),
        ((0.2, 0.3), (-0.2, 0.2), NOT),
        ((-0.5, -0.2), (-0.2, 0.2), NOT),
        ((-0.5, 0.5), (-0.2, 0.2), OPEN),
        ((math.nan, math.nan), (0.0, math.inf), OPEN),
    ],
)
def test_a_verdict_follows_from_the_whole_interval(ends, bounds, expected):
    interval = Interval(float(np.mean(ends)), *ends)
    assert verdict(interval, *bounds) == expected
    assert Claim.of("", interval, Unit(), low=bounds[0], high=bounds[1]).verdict == expected


@pytest.fixture(scope="module", autouse=True)
def fewer_draws() -> Iterator[None]:
    """The page of the tests draws less often than the published one, which takes a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "DRAWS", 1000)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, Kept]]:
    """The folder of a page of made-up studies, and the studies."""
    place = tmp_path_factory.mktemp("evidence")
    folders = all_folders(place / "runs")
    assert main(["--study", str(place), "keep", *map(str, folders.values())]) == 0
    assert main(["--study", str(place), "--widths", str(MASKS)]) == 0
    return place, kept.read_all(place / "results")


def verdicts_of(text: str) -> dict[str, str]:
    """The verdicts of the table of all claims, by claim."""
    table = text.partition("## All claims")[2].partition("## 8.")[0]
    rows = [re.split(r"(?<!\\)\|", line)[2:5:2] for line in table.strip().splitlines()[2:]]
    return {claim.strip().replace("\\|", "|"): words.strip(" *") for claim, words in rows}


def test_claims_that_are_true_of_made_up_studies_hold_and_others_do_not(made):
    text = (made[0] / "README.md").read_text()
    verdicts = verdicts_of(text)
    expected = {
        "In a setting after that of SNIP’s authors, our 6 errors are theirs": NOT,
        "Training for 20 epochs in place of": HOLDS,
        "Training for 50 epochs in place of 20": NOT,
        "After 50 epochs there": NOT,
        "Study `mnist-methods`: iterative magnitude pruning with rewinding errs less": HOLDS,
        "Study `digits`: every pruning before training errs less than random": HOLDS,
        "Tr Π orders the methods by trained accuracy among": HOLDS,
        "Tr Π orders the methods better than log path count": HOLDS,
        "Tr Π orders the methods better than log Σ|v|": OPEN,
        "Π alone predicts": NOT,
        "Expected gates without data predict": NOT,
        "Θ, with the images, predicts": HOLDS,
        "Without data, expected gates predict": HOLDS,
        "Shuffling the kept weights": NOT,
        "Drawing all weights anew": HOLDS,
        "Keeping the weights that score least": HOLDS,
        "Masks shuffled within layers keep more": HOLDS,
        "Weighting SynFlow-L2": HOLDS,
        "The factor of SynFlow-L2": HOLDS,
        "Masks drawn without looking at the weights, with the moments of the initialization: the distance falls": HOLDS,
        "SNIP’s masks, which look at signs and images too, with the moments θ²: the distance falls": NOT,
    }
    for beginning, word in expected.items():
        (found,) = [verdict for claim, verdict in verdicts.items() if claim.startswith(beginning)]
        assert found == word, beginning
    for claim, word in verdicts.items():  # each stands in its section too
        assert text.count(f"| {claim.replace('|', chr(92) + '|')} |") == 2 and word in (HOLDS, NOT, OPEN)


def spelled(text: str) -> str:
    """Numbers as the page has them: true minus signs, and zeros without a sign."""
    return re.sub(r"[+-](?=0\.0+(?!\d))", "", text).replace("-", "−")


def test_numbers_of_the_page_are_those_of_plain_computations(made):
    place, _ = made
    text = (place / "README.md").read_text()

    def table(name):
        return pd.read_csv(place / "results" / f"{name}.csv.gz")

    # the error of one network with Student's interval
    rows = table("mnist-snip")
    errors = 100 * (1 - rows[(rows["method"] == "snip") & (rows["density"] == 0.05)]["test_accuracy"])
    low, high = stats.t.interval(0.95, len(errors) - 1, errors.mean(), errors.sem())
    assert f"| `lenet_300_100` | 0.05 | {errors.mean():.2f} [{low:.2f}, {high:.2f}] | {SEEDS} | 1.6 |" in text
    # the difference from a published number, wider by its rounding, among six
    off = errors - 1.6
    low, high = stats.t.interval(1 - 0.05 / 6, len(off) - 1, off.mean(), off.sem())
    assert f"| 1.6 | {off.mean():+.2f} [{low - 0.05:+.2f}, {high + 0.05:+.2f}] |" in text
    # longer training: its change of the mean over densities, and the distance of the longest from a published number
    by_seed = [table(name).groupby("seed")["test_accuracy"].mean() for name in ("mnist-settled", "mnist-long")]
    change = 100 * (by_seed[0] - by_seed[1])
    low, high = stats.t.interval(1 - 0.05 / 2, len(change) - 1, change.mean(), change.sem())
    (row,) = [
        line
        for line in text.partition("## 2.")[0].splitlines()
        if line.startswith("| Training for 50 epochs in place of 20")
    ]
    assert spelled(f"| {change.mean():+.2f} [{low:+.2f}, {high:+.2f}] points |") in row
    rows = table("mnist-long")
    off = 100 * (1 - rows[(rows["method"] == "snip") & (rows["density"] == 0.05)]["test_accuracy"]) - 1.6
    low, high = stats.t.interval(1 - 0.05 / 3, len(off) - 1, off.mean(), off.sem())
    assert f"| 1.6 | {off.mean():+.2f} [{low - 0.05:+.2f}, {high + 0.05:+.2f}] |" in text.partition("settled?")[2]
    # how many errors are surely near the published ones, by the same intervals
    near, of = [], accounts.ACCOUNTS[1].errors
    right = table("mnist-sgd").set_index(["model", "density"])["test_accuracy"].sort_index()
    for key, error in of.items():
        off = 100 * (1 - right[key]) - error
        low, high = stats.t.interval(1 - 0.05 / len(of), len(off) - 1, off.mean(), off.sem())
        near.append(low - 0.005 > -0.3 and high + 0.005 < 0.3)
    assert f"{sum(near)} of {len(of)} numbers of the other group" in text.partition("## How to read it")[0]
    # the mean of ours less the published errors, over the densities of each network and then over networks
    means = []
    for name, model in (("mnist-snip", "lenet_300_100"), ("mnist-snip-lenet-5", "lenet_5")):
        rows = table(name).groupby("density")["test_accuracy"].mean()
        theirs = {density: error for (of, density), error in accounts.ACCOUNTS[0].errors.items() if of == model}
        means.append(np.mean([100 * (1 - rows[density]) - error for density, error in theirs.items()]))
    assert f"In the mean our errors differ by {np.mean(means):+.2f} [" in text
    # the difference of two methods on the same seeds, in a table of differences in points
    rows = table("digits-sanity").set_index(["model", "method", "density", "seed"])["test_accuracy"].sort_index()
    apart = 100 * (rows["fc", "snip+shuffled", 0.05] - rows["fc", "snip", 0.05])
    low, high = stats.t.interval(0.95, len(apart) - 1, apart.mean(), apart.sem())
    assert spelled(f"{apart.mean():+.1f} [{low:+.1f}, {high:+.1f}]") in text.partition("## 5.")[2]
    # the share of the lead over random pruning, over all methods and networks
    left_out = ("dense", "random", "lottery_ticket")
    methods = [name for name in rows.index.unique("method") if name not in left_out and "+" not in name]
    leads = [
        (rows[model, f"{method}+shuffled", 0.05] - rows[model, "random", 0.05]).mean()
        / np.mean([(rows[m, n, 0.05] - rows[m, "random", 0.05]).mean() for m in ("fc", "vgg_11") for n in methods])
        for model in ("fc", "vgg_11")
        for method in methods
    ]
    assert f"; {100 * np.mean(leads):.0f} [" in text.partition("## 5.")[2].partition("% in all.")[0]
    pairs = [(model, method) for model in ("fc", "vgg_11") for method in methods]
    changes = [(rows[m, f"{n}+shuffled", 0.05] - rows[m, n, 0.05]).mean() for m, n in pairs]
    assert spelled(f"and by {100 * np.mean(changes):+.1f} [") in text.partition("## 5.")[2]
    # and of one network
    of_fc = 100 * np.mean([change for (model, _), change in zip(pairs, changes, strict=True) if model == "fc"])
    (line,) = [each for each in text.partition("## 5.")[2].splitlines() if each.startswith("| digits, `fc` | 0.05 |")]
    assert line.split(" | ")[3].startswith(spelled(f"{of_fc:+.1f} ["))
    of_network = [name for model, name in pairs if model == "fc"]
    led = [
        [rows["fc", name + tail, 0.05] - rows["fc", "random", 0.05] for name in of_network]
        for tail in ("+shuffled", "")
    ]
    share = np.mean(led[0]) / np.mean(led[1])
    assert line.split(" | ")[6].startswith(f"{100 * share:.0f} [")
    # the error of a method on digits
    errors = 100 * (1 - table("digits").set_index(["model", "method", "density"]).sort_index()["test_accuracy"])
    digits = text.partition("Test error of `vgg_11` on digits")[2].partition("\n\n![")[0]
    (line,) = [each for each in digits.splitlines() if each.startswith("| `synflow` |")]
    assert line.split(" | ")[2].startswith(f"{errors['vgg_11', 'synflow', 0.05].mean():.2f} [")
    # the rank correlation of Tr Π with accuracy, in the mean over groups; of other choices of methods too
    ordered = ("digits", "mnist-methods", "fashion")

    def mean_rho(left_out=(), only=None, quantity="log_trace_path_kernel"):
        rhos = []
        for name in ordered:
            whole = table(name)
            whole = whole[~whole["method"].isin(["dense", "lottery_ticket", *left_out])]
            whole = whole if only is None else whole[whole["method"].isin(only)]
            for _, group in whole.groupby(["data", "model", "density"]):
                means = group.groupby("method")[[quantity, "test_accuracy"]].mean()
                rhos.append(stats.spearmanr(means[quantity], means["test_accuracy"]).statistic)
        return spelled(f"{np.mean(rhos):+.2f} [")

    assert f"| Tr Π orders the methods by trained accuracy | {mean_rho()}" in text
    assert f"Spearman’s ρ = {mean_rho()}" in text.partition("## How to read it")[0]
    (row,) = [line.split(" | ") for line in text.splitlines() if line.startswith("| without `random` |")]
    assert (
        row[2].startswith(mean_rho(["random"])) and f"Without random pruning the mean over groups is {row[2]}." in text
    )
    assert row[3].startswith(mean_rho(["random"], quantity="log_path_count"))
    (row,) = [line.split(" | ") for line in text.splitlines() if line.startswith("| those that score by sums")]
    over_paths = [name for name in QUALITIES if name.startswith("synflow")]
    assert row[1] == str(len(over_paths)) and row[2].startswith(mean_rho(only=over_paths))
    # the same of the runs that trained, and of the condition number, which enters with a minus sign
    trained = pd.concat([table(name).assign(study=name) for name in ordered])
    trained = trained[~trained["method"].isin(["dense", "lottery_ticket"])]
    lost = trained["did_not_train"].notna()
    assert 0 < lost.sum() < len(trained) and f"leaves out {lost.sum()} runs that" in text
    among: dict[str, list[float]] = {"log_trace_path_kernel": [], "log_condition_ntk": []}
    for _, group in trained[~lost].groupby(["data", "model", "density"]):
        means = group.groupby("method")[[*among, "test_accuracy"]].mean()
        for name, found in among.items():
            found.append(stats.spearmanr(means[name], means["test_accuracy"]).statistic)
    of_pi, of_condition = (np.mean(found) for found in among.values())
    assert (
        f"| Tr Π orders the methods by trained accuracy among the runs that trained | {of_pi:+.2f} [" in text
        and of_condition < -0.5
    )
    (row,) = [line for line in text.splitlines() if line.startswith("| − log condition number of Θ | images |")]
    assert row.split(" | ")[3].startswith(f"{-of_condition:+.2f} [")
    # the median gap over cells, the unpruned network among them
    gaps = table("ladder").groupby(["model", "method", "density"])["gap_no_data"].mean()
    assert f"| expected gates | no data | {gaps.median():.2f} [" in text
    short = re.search(r"([\d.]+) \[[\d., ]+\] \(expected gates, no data\)", text)
    assert short is not None and short[1] == f"{10 ** gaps.median():.1f}"
    # and by how much it is smaller than that of Π on one network
    of_cells = table("ladder").groupby(["model", "method", "density"])[["gap_data_free", "gap_no_data"]].mean()
    gain = (of_cells["gap_data_free"] - of_cells["gap_no_data"])["fc"].median()
    (row,) = [
        line
        for line in text.partition("Median gaps")[2].partition("## 5.")[0].splitlines()
        if line.startswith("| digits, `fc` |")
    ]
    assert row.split(" | ")[-1].startswith(f"{gain:+.2f} [")
    # the lead of the yardstick over the best of the others, at the lowest density, of five networks in all
    errors = table("digits").set_index(["model", "density", "method", "seed"]).sort_index()["test_accuracy"].loc["fc"]
    lowest = 100 * (1 - errors.loc[errors.index.unique("density").min()])
    best = lowest.drop(["lottery_ticket"]).groupby("method").mean().idxmin()
    led = lowest[best] - lowest["lottery_ticket"]
    low, high = stats.t.interval(1 - 0.05 / 5, len(led) - 1, led.mean(), led.sem())
    of_leads = text.partition("At the lowest density of each network;")[2].partition("\n\n![")[0]
    (row,) = [line for line in of_leads.splitlines() if line.startswith("| digits, `fc` at")]
    assert row.split(" | ")[1] == f"`{best}`"
    assert row.endswith(spelled(f"| {led.mean():+.2f} [{low:+.2f}, {high:+.2f}] |"))
    assert f"`fc` ({led.mean():+.2f} points at density" in text.partition("## How to read it")[0].replace("−", "-")
    # a difference of two methods on one network, in the mean over its densities: four comparisons on five networks
    accuracy = 100 * table("digits").set_index(["model", "method", "seed"]).sort_index()["test_accuracy"]
    by_seed = [accuracy["vgg_11", name].groupby("seed").mean() for name in ("synflow_data", "synflow")]
    apart = by_seed[0] - by_seed[1]
    low, high = stats.t.interval(1 - 0.05 / 20, len(apart) - 1, apart.mean(), apart.sem())
    of_networks = text.partition("In the mean over densities, network by network:")[2].partition("At one density")[0]
    (row,) = [line for line in of_networks.splitlines() if line.startswith("| digits | `vgg_11` |")]
    assert row.split(" | ")[3] == spelled(f"{apart.mean():+.1f} [{low:+.1f}, {high:+.1f}]")
    # ρ of one group, and that of one network among the sanity checks
    whole = table("digits")
    whole = whole[(whole["model"] == "fc") & (whole["density"] == 0.05)]
    whole = whole[~whole["method"].isin(["dense", "lottery_ticket"])].groupby("method")
    means = whole[["log_trace_path_kernel", "test_accuracy"]].mean()
    rho = stats.spearmanr(means["log_trace_path_kernel"], means["test_accuracy"]).statistic
    (row,) = [
        line
        for line in text.partition("ρ of Tr Π in each group")[2].partition("\n\nThe same")[0].splitlines()
        if line.startswith("| digits, `fc` |")
    ]
    assert row.split(" | ")[2:4] == ["not run", f"{rho:+.2f}"]
    means = table("digits-sanity").set_index(["model", "method"]).sort_index().loc["vgg_11"]
    of_methods = means.groupby("method")[["log_trace_path_kernel", "test_accuracy"]].mean().loc[methods]
    rho = stats.spearmanr(of_methods["log_trace_path_kernel"], of_methods["test_accuracy"]).statistic
    (row,) = [line for line in text.splitlines() if line.startswith("| Tr Π of the method’s mask with its accuracy |")]
    assert row.split(" | ")[3].rstrip(" |") == spelled(f"{rho:+.2f}")


def test_networks_that_learned_too_little_are_left_out_by_name(made):
    text = (made[0] / "README.md").read_text()
    assert "less than 55% of the test images: `resnet_20` on cifar10 (30.0%) is left out." in text
    assert "| cifar10, `resnet_20` |" not in text and "| cifar10 | `resnet_20` |" not in text


def test_the_page_names_methods_and_tables_and_all_its_files_exist(made):
    place, studies = made
    text = (place / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        base = ROOT / "docs" / "study" if link.startswith("..") else place
        assert (base / link).exists(), link
    drawn = {file.stem for file in (place / "figures").iterdir()}
    assert drawn == set(re.findall(r"figures/([\w-]+)\.png", text)) and len(drawn) == 8
    for file in (place / "figures").iterdir():
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and 10_000 < file.stat().st_size < 300_000
    for name in studies:
        assert f"[{name}](results/{name}.csv.gz)" in text


def test_a_density_that_was_not_run_leaves_out_itself_alone(made):
    studies = dict(made[1])
    whole = studies["mnist-snip-lenet-5"]
    studies["mnist-snip-lenet-5"] = whole._replace(table=whole.table[whole.table["density"] != 0.01])
    section = published.section(studies)
    means = []
    for name, model in (("mnist-snip", "lenet_300_100"), ("mnist-snip-lenet-5", "lenet_5")):
        errors = 100 * (1 - studies[name].table.groupby("density")["test_accuracy"].mean())
        theirs = {density: error for (of, density), error in accounts.ACCOUNTS[0].errors.items() if of == model}
        means.append(np.mean([errors[density] - error for density, error in theirs.items() if density in errors]))
    assert isinstance(section, Section)
    assert "0 of 5 numbers of SNIP’s authors" in section.short
    # an interval for each of five, and not of six
    errors = 100 * (1 - studies["mnist-snip"].table.set_index(["method", "density"])["test_accuracy"])
    off = errors["snip", 0.05] - accounts.ACCOUNTS[0].errors["lenet_300_100", 0.05]
    low, high = stats.t.interval(1 - 0.05 / 5, len(off) - 1, off.mean(), off.sem())
    assert f"| 1.6 | {off.mean():+.2f} [{low - 0.05:+.2f}, {high + 0.05:+.2f}] |" in "\n".join(section.body)
    assert f"In the mean our errors differ by {np.mean(means):+.2f} [" in section.answer
    assert "our 5 errors are theirs" in section.claims[0].words


def test_one_network_on_two_data_sets_is_two_settings(tmp_path):
    folder = folder_of(
        *(tmp_path, "two"),
        data=["mnist", "fashion_mnist"],
        models=["net"],
        methods=["snip"],
        densities=[0.1, 0.5],
        seeds=2,
    )
    arrays = Cells(kept.keep(folder, tmp_path / "results").table, ("snip",))
    assert {name: [arrays.groups[at] for at in places] for name, places in arrays.settings.items()} == {
        (data, "net"): [(data, "net", 0.5), (data, "net", 0.1)] for data in ("mnist", "fashion_mnist")
    }


def test_runs_of_methods_that_are_not_compared_are_not_counted(made):
    def left_out(studies):
        section = ordering.section(studies)
        assert isinstance(section, Section)
        return [sentence for sentence in section.sureness if "leaves out" in sentence]

    whole = made[1]["digits"]
    untrained = whole.table["did_not_train"].where(whole.table["method"] != "lottery_ticket", "it learned nothing")
    changed = dict(made[1]) | {"digits": whole._replace(table=whole.table.assign(did_not_train=untrained))}
    assert left_out(changed) == left_out(made[1]) != []


def test_methods_that_are_the_same_on_a_network_are_told(made):
    study = made[1]["digits"]
    rows = study.table[(study.table["method"] == "snip") & (study.table["model"] == "fc")].assign(method="grasp")
    kept = study.table[(study.table["method"] != "grasp") | (study.table["model"] != "fc")]
    cells = Cells(pd.concat([kept, rows], ignore_index=True), ("snip", "grasp"))
    assert cells.twins() == ["On `fc` on digits, `snip` and `grasp` have the same accuracies and count twice."]


def test_sections_without_their_studies_say_which_command_makes_them(tmp_path):
    found = page.sections({}, MASKS)
    assert [isinstance(section, Missing) for section in found] == [True] * 6 + [False]
    text = page.text(found, {})
    for name in ("mnist-snip", "mnist-sgd", "mnist-methods", "digits", "ladder", "digits-sanity"):
        assert f"    python -m experiments sweep {name}\n    python -m experiments.evidence keep runs/{name}" in text
    assert "No study is kept yet." in text


def test_a_section_takes_part_of_its_studies(made, tmp_path):
    studies = made[1]
    some = {name: study for name, study in studies.items() if name in ("mnist-snip", "mnist-sgd", "digits")}
    text = page.text(page.sections(some, MASKS), some)
    assert "Not measured here: `lenet_5` in the setting of SNIP’s authors." in text
    assert "our 3 errors are theirs" in text and "Has the error settled?" not in text
    assert "    python -m experiments sweep digits-sanity\n" in text and "sweep digits\n    python" not in text


WITHOUT = {
    "the lottery ticket": lambda row: row.method.partition("+")[0] != "lottery_ticket",
    "random pruning": lambda row: row.method != "random",
    "both": lambda row: row.method.partition("+")[0] not in ("lottery_ticket", "random"),
    "all others at the lowest density": lambda row: row.density > 0.05 or row.method in ("lottery_ticket", "dense"),
    "unpruned networks": lambda row: row.method != "dense",
    "all but one seed": lambda row: row.seed == 0,
    "all but one network": lambda row: row.model in ("fc", "lenet_300_100", "resnet_20"),
    "all networks": lambda row: False,
}


@pytest.mark.parametrize("lacking", WITHOUT)
def test_the_page_is_written_whatever_its_tables_lack(lacking, made):
    studies = {}
    for name, study in made[1].items():
        rows = [WITHOUT[lacking](row) for row in study.table.itertuples()]
        studies[name] = study._replace(table=study.table[np.array(rows, bool)])
    text = page.text(page.sections(studies, MASKS), studies)
    assert "## 7." in text and "nan" not in re.findall(r"[a-z]+", text) and "inf" not in re.findall(r"[a-z]+", text)


def test_one_seed_settles_nothing(tmp_path):
    folders = all_folders(tmp_path / "runs", seeds=1)
    studies = {name: kept.keep(folder, tmp_path / "results") for name, folder in folders.items()}
    by_seeds = page.sections(studies, MASKS)[0]
    assert isinstance(by_seeds, Section)
    assert {claim.verdict for claim in by_seeds.claims} == {OPEN}
    assert "(no interval)" in page.text(page.sections(studies, MASKS), studies)


def test_a_failed_network_is_left_out_of_means(made, tmp_path):
    study = made[1]["mnist-snip"]
    failing = (study.table["method"] == "snip") & (study.table["seed"] == 2)
    table = study.table.copy()
    table.loc[failing, "reason"] = "the training loss is not finite"
    table.loc[failing, "test_accuracy"] = np.nan
    section = published.section(made[1] | {"mnist-snip": study._replace(table=table)})
    assert isinstance(section, Section)
    assert any("2 of these runs are without a result" in sentence for sentence in section.sureness)
    assert "| 4 | 1.6 |" in "\n".join(section.body)


def test_published_numbers_are_those_of_the_sources():
    ours, theirs = accounts.ACCOUNTS
    assert ours.errors["lenet_300_100", 0.05] == 1.6 and theirs.errors["lenet_300_100", 0.1] == 2.37
    assert (len(ours.errors), len(theirs.errors), len(accounts.SYNFLOW)) == (6, 10, 4)


def test_slopes_are_those_of_the_measurement():
    table = pd.read_csv(MASKS)
    for slope in widths.slopes(table):
        rows = table[
            (table["model"] == slope.model) & (table["mask"] == slope.mask) & (table["moments"] == slope.moments)
        ]
        grid = rows.pivot(index="width", columns="seed", values="distance")
        theirs = PrunedSweep(slope.model, slope.mask, 0.25, slope.moments, tuple(grid.index), grid.to_numpy()).slope
        np.testing.assert_allclose(slope.exponents.mean(), theirs.mean, rtol=EXACT)
        np.testing.assert_allclose(stats.sem(slope.exponents), theirs.error, rtol=EXACT)
    section = widths.section(MASKS)
    assert isinstance(section, Section)
    blind = [slope for slope in widths.slopes(table) if slope.mask in ("random", "random by layer", "blocks", "band")]
    means = [slope.exponents.mean() for slope in blind if slope.moments == "initialization"]
    of_masks = [claim for claim in section.claims if claim.words.startswith("Masks drawn without")]
    assert of_masks[0].number.startswith(f"{max(means):.2f} [".replace("-", "−"))
    assert of_masks[1].number.startswith(f"{np.mean(means):.2f} [".replace("-", "−"))


def test_a_table_of_widths_that_is_not_there_or_no_table_is_said(tmp_path):
    file = tmp_path / "masks.csv"
    found = page.sections({}, file)
    assert all(isinstance(section, Missing) for section in found)
    assert "    python -m experiments.widths --mask --out runs/widths\n" in page.text(found, {})
    file.write_text("model,mask\nfc,random\n")
    with pytest.raises(InputError, match="masks.csv cannot be read .*`python -m experiments.widths --mask` makes it"):
        widths.section(file)
