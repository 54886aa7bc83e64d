"""What the figures over depths hold back, and what they must not."""

import json

import pytest

from experiments.lr_robustness import depth_figures
from experiments.sweeps import merit

LINE = 4.0
GRID = (1e-3, 1e-2, 1e-1)


def _losses():
    return {
        64: {
            "keel": {1e-3: {0: 3.5, 1: 3.6}, 1e-2: {0: 3.0, 1: 3.2}, 1e-1: {0: 9.0, 1: None}},
            "pre_ln": {1e-3: {0: 3.9, 1: 3.8}, 1e-2: {0: 3.7, 1: 3.7}, 1e-1: {0: 3.8, 1: 3.9}},
        },
        256: {"keel": {1e-3: {0: 3.5, 1: 3.6}, 1e-2: {0: 4.0, 1: 4.0}, 1e-1: {0: 4.0, 1: 4.0}}},
    }


def _drawn(directory, stem):
    return json.loads((directory / "figures" / f"{stem}.json").read_text())


def test_a_diverged_run_does_not_flatten_the_others(tmp_path):
    depth_figures.losses_against_rate(_losses(), LINE, tmp_path, "losses")
    lines = _drawn(tmp_path, "losses")["lines"]
    assert [line["label"] for line in lines["L64"]] == ["Keel", "Pre-LN"] and len(lines) == 2
    keel = lines["L64"][0]
    assert keel["median"][:2] == pytest.approx([3.55, 3.1])
    # At the edge: 15 % of what is below the line above it; the run without a loss is counted.
    assert keel["high"][2] == pytest.approx(LINE + 0.15)
    assert keel["num_not_finished"] == [0, 0, 1]


def test_usable_rates_are_drawn_within_the_grid(tmp_path):
    edges = {
        depth: {
            topology: merit.summary(merit.rows_by_seed(losses, GRID), LINE)["log10_edge"]
            for topology, losses in by_topology.items()
        }
        for depth, by_topology in _losses().items()
    }
    depth_figures.usable_rates(edges, {64: GRID, 256: GRID}, tmp_path, "usable")
    drawn = _drawn(tmp_path, "usable")["edges"]
    for by_topology in drawn.values():
        for line in by_topology.values():
            for name in ("rate", "low", "high"):
                assert all(GRID[0] <= rate <= GRID[-1] for rate in line[name])
            assert line["rate"] == sorted(line["rate"], reverse=True)
    # Both seeds of Pre-LN bear 0.1 with 0.1 nats, the largest that was tried: there is no number.
    assert 0.1 not in drawn["L64"]["pre_ln"]["nats"] and 0.25 in drawn["L64"]["pre_ln"]["nats"]
