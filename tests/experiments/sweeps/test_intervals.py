"""Intervals over seeds: their coverage, and the verdicts that follow from them."""

import numpy as np
import pytest

from experiments.sweeps import intervals


def test_intervals_cover_the_mean_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 3))
    rows = [intervals.mean(row) for row in draws]
    coverage = np.mean([row["low"] < 3.0 < row["high"] for row in rows])
    assert abs(coverage - intervals.CONFIDENCE) < 0.015  # three standard errors
    # Student's t for 2 degrees of freedom: 4.302653 / sqrt(3).
    assert intervals.mean([1.0, 2.0, 3.0])["high"] == pytest.approx(2.0 + 2.484138)
    assert intervals.mean([1.0])["low"] is None
    assert intervals.mean([])["num_seeds"] == 0


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([3.0, 3.1, 2.9], [1.0, 1.2, 1.1], "holds"),
        ([1.0, 1.2, 1.1], [3.0, 3.1, 2.9], "reversed"),
        ([3.0, 1.5, 2.0], [2.0, 2.0, 2.0], "undecided"),
        ([1.0, 2.5, 2.0], [2.0, 2.0, 2.0], "undecided"),
        ([3.0, 3.0, 3.0], [3.0, 3.0, 3.0], "undecided"),
        ([3.0], [1.0], "undecided"),
    ],
)
def test_an_ordering_needs_its_interval_clear_of_zero(first, second, verdict):
    assert intervals.ordering(first, second)["verdict"] == verdict


def test_a_chain_is_as_strong_as_its_weakest_link():
    assert intervals.chain(["holds", "holds"]) == "holds"
    assert intervals.chain(["holds", "undecided"]) == "undecided"
    assert intervals.chain(["undecided", "reversed"]) == "reversed"
    assert intervals.chain([]) == "undecided"


def test_p_values_agree_with_the_interval():
    values = [0.1, 0.3, 0.25]
    shifted = [value - intervals.mean(values)["low"] for value in values]
    assert intervals.p_value(shifted) == pytest.approx(1 - intervals.CONFIDENCE)
    assert intervals.p_value([0.3]) == 1.0 and intervals.p_value([]) == 1.0


def test_holms_correction():
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert intervals.holm([]) == []


def test_what_a_test_detects_is_found_as_often_as_said():
    generator = np.random.default_rng(0)
    mean = intervals.detectable(0.05, 4)
    draws = generator.normal(mean, 0.05, (2000, 4))
    found = sum(intervals.sign(intervals.mean(row)) == "holds" for row in draws)
    assert found / 2000 == pytest.approx(0.8, abs=0.03)
