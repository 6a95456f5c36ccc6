import json
import math

import pytest

from experiments.runs import decode, encode
from tests.test_experiments.examples import example


def test_a_line_gives_back_the_run():
    assert decode(encode(example())) == example()


def test_infinities_survive_and_nan_is_null():
    run = example(
        log_path_norm_1=-math.inf, steps_to_level=math.inf, gap_linearized=math.nan, train_loss=[2.0, math.nan]
    )
    record = json.loads(encode(run))
    assert (record["log_path_norm_1"], record["steps_to_level"]) == ("-inf", "inf")
    assert record["gap_linearized"] is None and record["train_loss"] == [2.0, None]
    again = decode(encode(run))
    assert again.log_path_norm_1 == -math.inf and again.steps_to_level == math.inf and math.isnan(again.gap_linearized)


def test_a_line_is_strict_json_on_one_line():
    line = encode(example(reason="first\nsecond", gap_data_free=math.inf))
    assert "\n" not in line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def without(field):
    return json.dumps({key: value for key, value in json.loads(encode(example())).items() if key != field})


def with_value(field, value):
    return json.dumps(json.loads(encode(example())) | {field: value})


@pytest.mark.parametrize(
    "line",
    [
        encode(example())[:-3],
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
        decode(line)
