"""Figures: reproducible files, and what is drawn of runs that did not finish."""

import json

import numpy as np
import pytest

from experiments.sweeps import figures


def test_a_figure_is_the_same_bytes_from_the_same_data(tmp_path):
    for name in ("a", "b"):
        figure, axes = figures.new()
        drawn = figures.draw_over_seeds(
            axes, [1, 2, 3], [[1.0, 2.0, 4.0], [2.0, None, np.nan], [None]], "Keel"
        )
        figures.save(figure, tmp_path / name, "loss", {"lines": [drawn]})
    for suffix in ("png", "svg", "pdf", "json"):
        first, second = (tmp_path / f"{name}/figures/loss.{suffix}" for name in "ab")
        assert first.read_bytes() == second.read_bytes()
    line = json.loads((tmp_path / "a/figures/loss.json").read_text())["lines"][0]
    assert (line["low"], line["median"], line["high"]) == ([1, 2, None], [2, 2, None], [4, 2, None])
    assert line["num_not_finished"] == [0, 2, 1]


def test_a_run_that_spiked_does_not_flatten_the_others():
    top = figures.ceiling([2.0, None, 90.0, 3.0], 4.0)
    assert top == pytest.approx(4.3)
    assert figures.cut([2.0, None, 90.0], top) == [2.0, None, top]
    assert figures.ceiling([None], 4.0) == 4.05


def test_a_line_without_points_is_drawn_as_none():
    figure, axes = figures.new()
    assert figures.draw_over_seeds(axes, [], [], "Keel")["x"] == []
