"""The time left of a run, on a clock of the test's own."""

import math
import random

import pytest

from experiments.records.time_left import TimeLeft

SLACK = 1e-9


def seconds(left):
    return math.inf if left.seconds() is None else left.seconds()


@pytest.mark.parametrize("seed", range(30))
def test_it_falls_during_a_step_and_rises_at_its_end_by_no_more_than_the_step_took(seed):
    rng, now = random.Random(seed), [0.0]
    steps = rng.randint(1, 30)
    left = TimeLeft(steps, clock=lambda: now[0])
    shown = math.inf  # unknown
    for _ in range(steps):
        taken = rng.choice([0, 1, 3, 50]) * rng.random()
        for _ in range(4):
            now[0] += taken / 4
            assert seconds(left) <= shown + SLACK
            shown = seconds(left)
        left.finished()
        assert seconds(left) <= shown + taken + SLACK
        shown = seconds(left)
    assert shown == 0


def test_it_is_unknown_before_the_first_end_and_then_leaves_out_the_step_that_compiled():
    now = [0.0]
    left = TimeLeft(10, clock=lambda: now[0])
    now[0] = 47.0
    assert left.seconds() is None
    left.finished()
    for _ in range(3):
        now[0] += 6
        left.finished()
    assert left.seconds() == pytest.approx(6 * 6)
    now[0] += 4
    assert left.seconds() == pytest.approx(32)
    now[0] += 40  # this step is late; the others take what they take
    assert left.seconds() == pytest.approx(5 * 6)


def test_steps_that_end_together_share_their_time():
    now = [0.0]
    left = TimeLeft(12, clock=lambda: now[0])
    for _ in range(2):
        now[0] += 40
        for _ in range(4):
            left.finished()
            now[0] += 0.001
    assert left.seconds() == pytest.approx(40, rel=1e-3)
