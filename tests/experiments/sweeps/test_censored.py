"""Means of interval-censored values: Student's where all is exact, and never a width of 0."""

import math

import numpy as np
import pytest

from experiments.sweeps import censored, intervals

INFINITY = math.inf


def test_of_exact_values_it_is_students():
    values = [0.1, 0.3, 0.25]
    exact = censored.mean([(value, value) for value in values])
    wanted = intervals.mean(values)
    assert (exact["mean"], exact["low"], exact["high"]) == (
        wanted["mean"],
        wanted["low"],
        wanted["high"],
    )
    assert exact["p"] == intervals.p_value(values) and exact["num_censored"] == 0
    # Intervals that are narrow beside the values' spread tell as much: the profile likelihood with
    # its bound is Student's interval. The deviation's grid has steps of 17 %: hence 2 %.
    narrow = censored.mean([(value - 1e-4, value + 1e-4) for value in values])
    for name in ("mean", "low", "high", "p"):
        assert narrow[name] == pytest.approx(exact[name], rel=0.02, abs=1e-3), name


@pytest.mark.parametrize("num_seeds", [2, 3, 6])
def test_seeds_in_one_cell_of_the_grid_are_known_no_better_than_the_cell(num_seeds):
    row = censored.mean([(0.5, 1.0)] * num_seeds)
    assert row["low"] <= 0.5 + 1e-3 and row["high"] >= 1.0 - 1e-3
    assert row["mean"] == pytest.approx(0.75)
    # A mean of 0 is the nearer to the cell, the fewer they are.
    assert 0 < row["p"] < (0.5 if num_seeds == 2 else 0.05)


def test_a_value_beyond_the_grid_has_no_end_on_its_side():
    row = censored.mean([(0.5, INFINITY)] * 6)
    assert row["high"] is None and row["mean"] is None
    assert row["low"] == pytest.approx(0.5, abs=0.01) and row["p"] < 0.05
    other = censored.mean([(-INFINITY, -0.5)] * 6)
    assert other["low"] is None and other["high"] == pytest.approx(-row["low"], abs=0.01)
    mixed = censored.mean([(0.5, INFINITY), (0.2, 0.4), (0.3, 0.6), (0.2, 0.5)])
    assert mixed["low"] < 0.3 < mixed["high"] and mixed["mean"] > 0.3


def test_what_says_nothing_takes_no_part():
    pairs = [(0.1, 0.2), (0.2, 0.3), (0.15, 0.3)]
    row = censored.mean([*pairs, (-INFINITY, INFINITY)])
    assert row == censored.mean(pairs) and row["num_seeds"] == 3
    for too_few in ([], [(-INFINITY, INFINITY)], [(0.1, 0.2)]):
        row = censored.mean(too_few)
        assert (row["low"], row["high"], row["p"]) == (None, None, 1.0)


@pytest.mark.parametrize(
    "values",
    [
        [(0.35, 0.35), (0.30, INFINITY), (0.25, INFINITY)],
        [(0.3, 0.3), (0.3, 0.3), (0.25, INFINITY)],
        [(0.35, 0.35), (0.0, 1.0), (0.0, 1.0)],
    ],
)
def test_one_exact_value_that_the_others_allow_decides_nothing(values):
    row = censored.mean(values)
    assert row["mean"] == values[0][0]
    assert (row["low"], row["high"], row["p"]) == (None, None, 1.0)


def test_exact_and_censored_values_together():
    row = censored.mean([(0.3, 0.3), (0.5, 0.5), (0.45, INFINITY), (0.2, 0.6)])
    alone = intervals.mean([0.3, 0.5])
    assert 0.3 < row["low"] + 0.3 and row["high"] - row["low"] < alone["high"] - alone["low"]
    assert row["high"] - row["low"] > 0.1 and row["num_censored"] == 2


def test_a_difference_covers_all_that_its_parts_allow():
    assert censored.difference((2.0, 3.0), (1.0, 1.5)) == (0.5, 2.0)
    assert censored.difference((2.0, INFINITY), (1.0, 1.5)) == (0.5, INFINITY)
    assert censored.difference((-INFINITY, 0.0), (-INFINITY, 0.0)) == (-INFINITY, INFINITY)


def test_its_intervals_cover_as_often_as_they_say():
    """Rates on a grid of half-decades, four seeds: 95 % within the error of 300 draws."""
    generator, covered, draws, widths = np.random.default_rng(0), 0, 300, []
    for _ in range(draws):
        values = generator.normal(0.6, 0.4, 4)
        cells = [(math.floor(2 * value) / 2, math.floor(2 * value) / 2 + 0.5) for value in values]
        row = censored.mean(cells)
        covered += row["low"] <= 0.6 <= row["high"]
        widths.append((row["high"] - row["low"]) / _width(intervals.mean(values)))
    assert 0.92 < covered / draws
    # The grid costs some of what the values would tell, and not most of it.
    assert 1.0 < np.median(widths) < 1.6


def _width(row):
    return row["high"] - row["low"]
