"""The study `paper` at the length of a toy, as a user runs it: pruned, trained and drawn."""

import json

from experiments import __main__ as command
from experiments import study
from experiments.data.loading import DATASETS, load
from tests.test_experiments.examples import compiled_once, trials_of

SMALLER = (
    'data=["digits"]',
    'model=[{name="resnet", network="resnet_20", depth=8, factor=0.1}]',
    "density=[0.5]",
    "seeds=1",
    "train_images=100",
    "test_images=50",
    "train.epochs=2",
    "train.batch_size=50",
    "measure.rounds=2",
    "measure.rewind_epochs=1",
    "measure.score_per_class=1",
    "measure.score_inputs=20",
    "measure.ntk_images=5",
    "measure.curve_density=[0.5]",
    "measure.curve_steps=3",
    "measure.rank=3",
)
CHANGES = [word for change in SMALLER for word in ("--set", change)]


def test_the_paper_at_toy_length_is_pruned_trained_and_drawn(tmp_path):
    _, paper = study.read("paper", datasets=tuple(DATASETS))
    load("digits", data_dir=tmp_path / "data")
    out = tmp_path / "out"
    with compiled_once(tmp_path / "compiled"):
        arguments = ["sweep", "paper", "--data-dir", str(tmp_path / "data"), "--out", str(out), *CHANGES]
        assert command.main(arguments) == 0
    trials = trials_of(out)
    assert [trial.method for trial in trials] == ["dense", *paper.method]
    for trial in trials:
        assert trial.reason == "" and trial.pruned_stay_zero and 0 <= trial.test_accuracy <= 1
        assert len(trial.train_loss) == 3 and len(trial.real_loss) == 4 and trial.ntk_change > 0
    options = json.loads((out / "config.json").read_text())["options"]
    assert options["train.precision"] == paper.train.precision == "bfloat16" and options["train.augment"]
    assert command.main(["figures", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert all(method in page for method in paper.method)
