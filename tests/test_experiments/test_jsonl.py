import json
import math

import pytest

from experiments.records.jsonl import decode, encode
from experiments.records.trial import Trial
from tests.test_experiments.examples import example_trial


def test_a_line_gives_back_the_record():
    assert decode(encode(example_trial()), Trial) == example_trial()


def test_infinities_survive_and_nan_is_null():
    trial = example_trial(
        log_path_norm_1=-math.inf, steps_to_level=math.inf, gap_linearized=math.nan, train_loss=[2.0, math.nan]
    )
    record = json.loads(encode(trial))
    assert (record["log_path_norm_1"], record["steps_to_level"]) == ("-inf", "inf")
    assert record["gap_linearized"] is None and record["train_loss"] == [2.0, None]
    again = decode(encode(trial), Trial)
    assert again.log_path_norm_1 == -math.inf and again.steps_to_level == math.inf and math.isnan(again.gap_linearized)


def test_names_and_settings_keep_every_digit_and_measured_numbers_eight():
    odd = 0.8**10
    trial = example_trial(density=odd, test_accuracy=odd, setting={"model.factor": odd, "any": [None, {"a": odd}]})
    again = decode(encode(trial), Trial)
    assert again.name == trial.name and again.setting == trial.setting
    assert again.test_accuracy == 0.10737418 and str(odd) in trial.title


def test_a_line_is_strict_json_on_one_line():
    line = encode(example_trial(reason="first\nsecond", gap_data_free=math.inf))
    assert "\n" not in line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def without(field):
    return json.dumps({key: value for key, value in json.loads(encode(example_trial())).items() if key != field})


def with_value(field, value):
    return json.dumps(json.loads(encode(example_trial())) | {field: value})


@pytest.mark.parametrize(
    "line",
    [
        encode(example_trial())[:-3],
        "[]",
        without("seed"),
        with_value("seed", "2"),
        with_value("seed", True),
        with_value("gap_linearized", "much"),
        with_value("train_loss", 3.0),
        with_value("another", 1),
    ],
)
def test_another_line_is_refused(line):
    with pytest.raises(ValueError):
        decode(line, Trial)


def test_fields_with_a_default_may_be_absent():
    trial = decode(without("why_not_expected"), Trial)
    assert trial == example_trial(why_not_expected="")


def test_a_trial_that_failed_has_its_name_its_reason_and_nothing_else():
    name = ("digits", "fc", "snip", 0.1, 3)
    trial = decode(encode(Trial.partial(name, reason="no path is left", kept=7)), Trial)
    assert (trial.name, trial.reason, trial.kept) == (name, "no path is left", 7)
    assert math.isnan(trial.test_accuracy) and trial.train_loss == [] and trial.layer_density == {}
    assert trial.title == "digits, fc, snip at density 0.1, seed 3"
