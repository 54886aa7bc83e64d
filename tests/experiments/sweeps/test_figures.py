"""Figures: reproducible files, and what is drawn of runs that did not finish."""

import json

import numpy as np

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


def test_a_line_without_points_is_drawn_as_none():
    figure, axes = figures.new()
    assert figures.draw_over_seeds(axes, [], [], "Keel")["x"] == []
