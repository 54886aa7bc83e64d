"""The primary quantity, the edges of usable rates, and two topologies side by side."""

import math

import pytest

from experiments.sweeps import intervals, merit

LINE = 4.0
GRID = (1e-3, 1e-2, 1e-1)


def _row(*losses):
    return dict(zip(GRID, losses, strict=True))


def test_only_what_is_below_the_line_counts():
    assert merit.nats_below(_row(3.4, 3.7, 4.5), LINE) == pytest.approx((0.6 + 0.3) / 3)
    assert merit.nats_below(_row(None, None, None), LINE) == 0.0
    # Divergence and stagnation are one; a larger tolerated range and a lower loss both raise it.
    assert merit.nats_below(_row(3.4, None, 4.0), LINE) == merit.nats_below(_row(3.4, 9.0, 4), LINE)


def test_the_edge_is_between_the_last_usable_rate_and_the_next():
    assert merit.edge(_row(3.5, 3.85, 4.1), LINE, 0.1) == (-2.0, -1.0)
    assert merit.edge(_row(3.5, 3.85, 4.1), LINE, 0.3) == (-3.0, -2.0)
    assert merit.edge(_row(3.5, 3.6, 3.7), LINE, 0.2) == (-1.0, math.inf)
    assert merit.edge(_row(3.95, 4.0, None), LINE, 0.1) == (-math.inf, -3.0)
    # What a run learns beyond a rate that failed is luck: the edge is before that rate.
    assert merit.edge(_row(3.5, 4.0, 3.8), LINE, 0.1) == (-3.0, -2.0)


def test_a_seed_does_not_choose_its_own_best_rate():
    rows = {0: _row(3.0, 3.9, 4.0), 1: _row(3.8, 3.5, 4.0), 2: _row(3.8, 3.5, None)}
    # Without seed 0, 1e-2 is best; with it, 1e-3 would be.
    assert merit.best_rates_of_others(rows) == {0: 1e-2, 1: 1e-3, 2: 1e-3}
    assert merit.best_rates_of_others({0: rows[0]}) == {0: None}
    nothing = {seed: _row(None, None, None) for seed in range(2)}
    assert merit.best_rates_of_others(nothing) == {0: None, 1: None}


def test_the_best_rate_is_bracketed_only_inside_the_grid():
    assert merit.is_bracketed({0: _row(3.8, 3.5, 3.9)})
    assert not merit.is_bracketed({0: _row(3.4, 3.5, 3.9)})
    assert not merit.is_bracketed({0: _row(3.8, 3.5, 3.2)})
    assert not merit.is_bracketed({})


def test_seeds_without_a_run_at_some_rate_are_left_out():
    losses = {1e-3: {0: 3.0, 1: 3.1}, 1e-2: {0: None}, 1e-1: {0: 3.0, 1: 3.0}}
    assert merit.rows_by_seed(losses, GRID) == {0: _row(3.0, None, 3.0)}


def test_growth_is_the_difference_of_advantages_by_seed():
    """From 0.2 nats to 0.5, with a little of each seed's own, without the seed that lacks one."""
    second = {seed: _row(3.8, 3.8, 3.8) for seed in range(4)}
    before = {seed: _row(3.6, 3.6, 3.6) for seed in range(3)}, second
    after = {seed: _row(*[3.3 - 0.01 * seed] * 3) for seed in range(4)}, second
    grown = merit.growth(before, after, LINE)
    assert grown["mean"] == pytest.approx(0.31) and grown["num_seeds"] == 3
    assert grown["verdict"] == "holds"
    shrunk = merit.growth(after, before, LINE)
    assert shrunk["mean"] == pytest.approx(-0.31) and shrunk["verdict"] == "reversed"
    assert merit.growth(before, before, LINE)["verdict"] == "undecided"


def test_the_slope_is_that_of_the_advantage_over_each_doubling():
    """0.1 nats a doubling and a little of each seed's own; the last seed lacks a depth."""
    by_depth = {}
    for doublings, depth in enumerate((64, 128, 512)):
        gain = {64: 0.0, 128: 0.1, 512: 0.3}[depth]
        seeds = range(4 if doublings else 3)
        first = {s: _row(3.8 - gain - 0.002 * s * gain, 3.9, 4.1) for s in seeds}
        by_depth[depth] = first, {s: _row(3.9, 3.85, 4.1) for s in seeds}
    found = merit.slope_over_depth(by_depth, LINE)
    assert found["depths"] == [64, 128, 512] and found["num_seeds"] == 3
    assert found["mean"] == pytest.approx(0.1002) and found["verdict"] == "holds"
    swapped = {depth: (b, a) for depth, (a, b) in by_depth.items()}
    assert merit.slope_over_depth(swapped, LINE)["mean"] == pytest.approx(-0.1002)
    level = {depth: (a, a) for depth, (a, _) in by_depth.items()}
    assert merit.slope_over_depth(level, LINE)["verdict"] == "undecided"


def test_a_comparison_decides_by_corrected_p_values():
    better = {seed: _row(3.0 + 0.01 * seed, 3.2 + 0.02 * seed, 3.5) for seed in range(4)}
    worse = {seed: _row(3.5, 3.9 - 0.01 * seed, 4.0 + 0.01 * seed) for seed in range(4)}
    row = merit.compare(better, worse, LINE)
    assert row["nats_below"]["verdict"] == "holds" and "p_holm" not in row["nats_below"]
    assert row["nats_below"]["mean"] == pytest.approx(
        (0.5 - 0.01 * 1.5 + 0.7 - 0.03 * 1.5 + 0.5) / 3
    )
    names = ("edge_0.1", "edge_0.2", "edge_0.3", "loss_at_best")
    corrected = intervals.holm([row[name]["p"] for name in names])
    assert [row[name]["p_holm"] for name in names] == corrected
    assert row["loss_at_best"]["verdict"] == "holds"
    reversed_row = merit.compare(worse, better, LINE)
    assert reversed_row["nats_below"]["verdict"] == "reversed"
    assert merit.compare(better, better, LINE)["loss_at_best"]["verdict"] == "undecided"


def test_a_divergence_at_the_best_rate_of_others_counts_as_the_line():
    stable = {seed: _row(3.6, 3.6, 3.9) for seed in range(3)}
    dying = {0: _row(3.5, 3.0, 3.9), 1: _row(3.5, 3.1, 3.9), 2: _row(3.5, None, 3.9)}
    row = merit.compare(dying, stable, LINE)["loss_at_best"]
    # Seeds 0 and 1 cannot choose 1e-2, at which seed 2 died; seed 2 does, and ends at the line.
    assert row["num_seeds"] == 3 and row["least"] == pytest.approx(3.6 - LINE)


def test_fewer_steps_are_better():
    rows = {seed: _row(3.0, 3.2, 3.5) for seed in range(6)}
    early = {seed: (1.0 + 0.01 * seed, 1.0 + 0.01 * seed) for seed in range(6)}
    never = {seed: (3.0, math.inf) for seed in range(6)}
    row = merit.compare(rows, rows, LINE, (early, never))["steps"]
    assert row["low"] > 1.0 and row["high"] is None


def test_the_edges_are_given_over_many_thresholds():
    numbers = merit.summary({0: _row(3.0, 3.5, 3.9), 1: _row(3.1, 3.5, 4.0)}, LINE)
    assert {f"{nats:g}" for nats in merit.EDGE_NATS} < set(numbers["log10_edge"])
    middles = [numbers["log10_edge"][name]["mean"] for name in ("0.2", "0.6")]
    assert middles[0] > middles[1]
