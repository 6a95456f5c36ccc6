"""Methods with a variant, and lottery tickets, through a whole study: names in files and tables, parts, workers."""

import csv
import dataclasses
import itertools

import jax
import numpy as np
import pytest

from experiments import __main__ as command
from experiments import checks, setting, study, sweep, workbench
from experiments.base.errors import InputError
from experiments.base.variants import check_method
from experiments.data.loading import DATASETS, load
from experiments.measure.kernel_pictures import file_of
from experiments.measure.pruning import check_methods
from experiments.models import has_state
from experiments.networks.by_name import NETWORKS
from experiments.records.jsonl import encode
from experiments.records.progress import SILENT
from pathjax import paths
from tests.test_experiments.examples import compiled_once, plain, started, sweeping, trials_of
from tests.tolerances import SINGLE, SINGLE_ROUNDING

CONFIG = """
data = ["digits"]
method = ["random"]
density = [0.5]
seeds = 1
train_images = 200
test_images = 100
[[model]]
name = "small"
network = "lenet_300_100"
factor = 0.04
batch_norm = true
[train]
epochs = 2
batch_size = 50
[measure]
rounds = 2
rewind_epochs = 1
score_per_class = 1
changes = true
kernel_pictures = true
"""
METHODS = ["magnitude+2of4", "snip", "snip+shuffled", "snip+reinitialized", "lottery_ticket"]
CHANGES = ("--set", f"method={METHODS[::-1]!r}".replace("'", '"'))
"""The methods in another order than that of tables, as a user writes them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with digits in `data`, a config, and what one process finds in `out`, not to be changed."""
    root = tmp_path_factory.mktemp("study")
    load("digits", data_dir=root / "data")
    (root / "small.toml").write_text(CONFIG)
    with compiled_once(root / "compiled"):
        assert run(root, root / "out") == 0
        yield root


def run(place, out, *more):
    return command.main(sweeping(place, out, *CHANGES, *more))


def small_study(place):
    return study.read(str(place / "small.toml"), datasets=tuple(DATASETS), changes=CHANGES[1:])[1]


def test_names_with_a_variant_are_in_results_files_and_tables_in_their_order(place):
    out = place / "out"
    trials = trials_of(out)
    assert [trial.method for trial in trials] == ["dense", *METHODS]
    assert all(trial.reason == "" and trial.pruned_stay_zero and len(trial.train_loss) == 3 for trial in trials)
    for method in METHODS:
        assert file_of(out, "digits", "small", method, 0.5).name == f"digits-small-{method}-0.5.npz"
        assert file_of(out, "digits", "small", method, 0.5).exists()
    with (out / "trials.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["dense", *METHODS]


def test_variants_share_what_they_do_not_vary(place):
    by_method = {trial.method: trial for trial in trials_of(place / "out")}
    snip, shuffled, other = (by_method[name] for name in METHODS[1:4])
    assert snip.layer_density == shuffled.layer_density == other.layer_density
    assert snip.log_path_count != shuffled.log_path_count and snip.log_path_count == other.log_path_count
    assert snip.log_path_norm_2 != other.log_path_norm_2  # of the weights that are trained
    assert len({trial.train_loss[0] for trial in (snip, shuffled, other)}) == 3


def test_a_ticket_is_measured_and_trained_at_the_weights_and_the_state_that_it_is_rewound_to(place):
    small = small_study(place)
    bench = sweep.workbench_of(small, "digits", small.model[0], {"digits": load("digits", data_dir=place / "data")})
    cell = ("lottery_ticket", 0.5)
    (trial,) = sweep.compute_cell(bench, cell, (0,)).trials
    start = bench._starts.of(cell, (0,))
    params, state, mask = jax.tree.map(lambda leaf: leaf[0], start.network)
    assert start.epoch == 1 and np.any(np.asarray(state["batch_stats"]["hidden_0_norm"]["mean"]))
    network = bench._network.apply
    direct = paths.log_path_norm(network, params, bench._batch[:1], q=2, state=state, mask=mask)
    np.testing.assert_allclose(trial.log_path_norm_2, direct, rtol=SINGLE_ROUNDING)
    dense, *_, kept = trials_of(place / "out")
    np.testing.assert_allclose(trial.train_loss[0], dense.train_loss[0], rtol=SINGLE_ROUNDING)  # the epoch before
    assert 0 < trial.path_kernel_change < 10
    assert encode(dataclasses.replace(trial, made={})) == encode(dataclasses.replace(kept, made={}))


def test_cells_that_begin_at_different_epochs_are_measured_side_by_side_as_one_by_one(place, monkeypatch):
    small = small_study(place)
    brief = dataclasses.replace(small, measure=dataclasses.replace(small.measure, changes=False, kernel_pictures=False))
    dataset = load("digits", data_dir=place / "data").first(small.train_images, small.test_images)
    monkeypatch.setattr(workbench, "_networks_at_a_time", lambda *_: 4)
    cells = [("dense", 1.0), ("snip+reinitialized", 0.5), ("lottery_ticket", 0.5), ("snip", 0.5)]
    found = workbench.Workbench(brief, small.model[0], dataset).measured(cells, (0,), SILENT).trials
    alone = {trial.method: trial for trial in trials_of(place / "out")}
    for trial in found:
        kept = alone[trial.method]
        assert trial.kept == kept.kept and trial.pruned_stay_zero
        for name in ("train_loss", "log_path_norm_2", "log_trace_ntk", "test_loss"):
            np.testing.assert_allclose(getattr(trial, name), getattr(kept, name), rtol=SINGLE, err_msg=trial.method)


def test_a_study_with_variants_goes_on_where_it_was_stopped_with_workers_to_the_same_bytes(place, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "results.jsonl"):
        lines = (place / "out" / name).read_text().splitlines(keepends=True)
        (out / name).write_text("".join(lines[:-2] if name == "results.jsonl" else lines))
    job = started(place, out, *CHANGES, "--workers", "2", log=tmp_path / "log")
    assert job.wait(300) == 0, (tmp_path / "log").read_text()
    assert plain(out) == plain(place / "out")


def test_parts_with_variants_are_joined_to_the_bytes_of_one_process(place, tmp_path):
    parts = [str(tmp_path / f"part-{number}") for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        assert run(place, part, "--shard", f"{number}/2") == 0
    assert command.main(["merge", str(tmp_path / "joined"), *parts]) == 0
    assert plain(tmp_path / "joined") == plain(place / "out")


def test_a_page_is_drawn_of_variants(place, tmp_path):
    assert command.main(["figures", str(place / "out"), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "snip+shuffled" in page and "lottery_ticket" in page


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("snip+shufled", "There is no variant 'shufled' of snip; the nearest to it is shuffled: there are shuffled,"),
        ("snip+", "There is no variant '' of snip: there are shuffled, reinitialized, inverted, 2of4."),
        ("synflo+shuffled", "There is no method 'synflo'; the nearest to it is synflow: there are random,"),
        ("snip+shuffled+inverted", "There is no variant 'shuffled+inverted' of snip; the nearest"),
        ("dense+shuffled", "There is no method 'dense': there are random,"),
        ("lottery_ticket+inverted", "before training to invert; take magnitude+inverted, or lottery_ticket+shuffled."),
        ("lottery_ticket+2of4", "take magnitude+2of4."),
        ("snip_iterative+2of4", "two of four weights are chosen in one round; take snip+2of4."),
        ("snip+2of4", "snip+2of4 keeps 0.5 of the weights, but density has 0.1 too: run it in a study of its own"),
    ],
)
def test_variants_that_do_not_exist_are_refused_with_the_remedy(method, words):
    with pytest.raises(InputError) as caught:
        check_method(method, (0.5, 0.1))
    message = str(caught.value)
    assert words in message and message.endswith(".") and "\n" not in message


def test_two_of_four_weights_need_inputs_in_fours():
    params = {"conv": {"kernel": jax.ShapeDtypeStruct((5, 5, 3, 8), "float32")}}
    with pytest.raises(InputError, match="snip.2of4 cannot be had of lenet, as some layer has inputs that are no mult"):
        check_methods(["random", "snip+2of4"], "lenet", params)
    check_methods(["random", "snip+shuffled"], "lenet", params)


def test_images_for_all_batches_of_a_method_are_asked_for_beforehand(place):
    digits = load("digits", data_dir=place / "data")
    small = dataclasses.replace(small_study(place), train_images=60)
    checks.check_batches(small, digits)
    with pytest.raises(
        InputError, match="measure.score_per_class is too large for digits and a method that reads 4 such"
    ):
        checks.check_batches(dataclasses.replace(small, method=("snip", "prospr+shuffled")), digits)


def test_a_rewinding_past_the_end_is_refused(place):
    words = "measure.rewind_epochs is 2, but there are 2 epochs in all"
    with pytest.raises(InputError, match=words):
        study.read(str(place / "small.toml"), datasets=tuple(DATASETS), changes=("measure.rewind_epochs=2",))


NORMED = study.Model("small", "lenet_300_100", batch_norm=True)
ADDED = {"rounds", "training_mode_scores", "score_per_class", "score_inputs", "rewind_epochs"}


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ("dense", set()),
        ("random+shuffled", set()),
        ("snip", {"training_mode_scores", "score_per_class"}),
        ("grasp+reinitialized", {"training_mode_scores", "score_per_class"}),
        ("snip_iterative+inverted", {"rounds", "training_mode_scores", "score_per_class"}),
        ("ntk_sap", {"rounds", "training_mode_scores", "score_per_class"}),
        ("prospr", {"training_mode_scores", "score_per_class"}),
        ("px", {"rounds", "score_per_class"}),
        ("synflow_data+shuffled", {"rounds", "score_inputs"}),
        ("synflow_l2_absolute", {"rounds"}),
        ("synflow+2of4", set()),
        ("lottery_ticket", {"rewind_epochs"}),
        ("lottery_ticket+reinitialized", {"rewind_epochs"}),
    ],
)
def test_the_mode_of_scores_decides_their_methods_alone_and_only_where_there_is_batch_norm(method, read):
    of_study = study.Study(("digits",), (NORMED,), (method,), (0.5,))
    for model, expected in (
        (NORMED, read),
        (dataclasses.replace(NORMED, batch_norm=None), read - {"training_mode_scores"}),
    ):
        decides = setting.setting_of(of_study, "digits", model, (method, 0.5))
        assert {key.removeprefix("measure.") for key in decides} & ADDED == expected


def test_networks_have_a_state_where_they_have_batch_norm(monkeypatch, tmp_path):
    for name, batch_norm in itertools.product(NETWORKS, (None, False, True)):
        options = {} if batch_norm is None else {"batch_norm": batch_norm}
        network = NETWORKS[name]((32, 32, 3), 10, **options)
        _, state = jax.eval_shape(network.init, jax.random.key(0))
        assert has_state(study.Model("any", name, batch_norm=batch_norm)) == bool(jax.tree.leaves(state))
    (tmp_path / "of_variants.py").write_text(
        "import flax.linen as nn\n"
        "class Plain(nn.Module):\n"
        "    outputs: int\n"
        "    normed: bool\n"
        "    @nn.compact\n"
        "    def __call__(self, x, train):\n"
        "        x = nn.Dense(4)(x.reshape((len(x), -1)))\n"
        "        x = nn.BatchNorm(use_running_average=not train)(x) if self.normed else x\n"
        "        return nn.Dense(self.outputs)(nn.relu(x))\n"
        "def plain(shape, outputs): return Plain(outputs, False)\n"
        "def normed(shape, outputs): return Plain(outputs, True)\n"
        "def grey(shape, outputs): raise ValueError('grey images alone')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    kinds = {name: has_state(study.Model("own", f"of_variants:{name}")) for name in ("plain", "normed", "grey")}
    assert kinds == {"plain": False, "normed": True, "grey": True}
