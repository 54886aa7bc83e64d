"""Presets at depth: one grid a depth, seeds in common, predictions of numbers that there are."""

import pytest

from experiments.configs import deep as deep_config
from experiments.lr_robustness import analysis, points
from tests.experiments import faked_sweep

# Millions of steps of a sub-layer in a trial, as docs/experiments.md says.
_COSTS = {"deep": 22.2, "controls": 49.4, "overnight": 26.6, "gpu": 17.2}


def _series(preset):
    members = {}
    for point in points.PRESETS[preset]().points:
        members.setdefault(points.parse_series(point.series), []).append(point)
    return members


@pytest.mark.parametrize("preset", ["deep", "controls"])
def test_all_topologies_of_a_depth_have_its_grid_and_its_first_seeds(preset):
    """So that every comparison is on one grid and paired."""
    for (topology, depth, protocol), members in _series(preset).items():
        rates = {point.peak_lr for point in members}
        seeds = {point.seed for point in members}
        if protocol == points.FIXED:
            assert rates >= set(points.GRID_1024 if depth == 1024 else points.GRID), topology
        assert seeds >= {10, 11, 12} and len(members) == len(rates) * len(seeds)


@pytest.mark.parametrize("preset", ["overnight", "gpu"])
def test_topologies_side_by_side_have_one_grid_and_the_same_seeds(preset):
    """At a depth and length, and over the long runs the rates that the short ones have, too."""
    grids = {}
    for (_, depth, protocol), members in _series(preset).items():
        runs = {(point.peak_lr, point.seed) for point in members}
        assert grids.setdefault((depth, protocol), runs) == runs
    for (depth, protocol), runs in grids.items():
        if protocol == points.LONG:
            assert runs <= grids[depth, points.FIXED]


def test_the_controls_are_all_of_table_1_and_begin_with_the_runs_of_deep():
    for depth in (64, 256):
        run = {key[0] for key in _series("controls") if key[1:] == (depth, points.FIXED)}
        assert run == {*points.TABLE_1, *points.CONTROLS}
        run = {key[0] for key in _series("deep") if key[1:] == (depth, points.FIXED)}
        assert run == {"keel", "pre_ln", "complete_p"}
    at_1024 = {key[0] for key in _series("controls") if key[1] == 1024}
    assert at_1024 == {"keel", "pre_ln", "complete_p"}
    deep, controls = points.deep().points, points.controls().points
    assert list(controls[: len(deep)]) == list(deep)
    assert len({point.name for point in controls}) == len(controls)


@pytest.mark.parametrize(("preset", "millions"), _COSTS.items())
def test_its_cost_is_that_of_the_docs(preset, millions):
    num_steps = deep_config.get_config().train.num_steps
    cost = sum(
        2 * point.overrides["model.num_blocks"] * point.overrides.get("train.num_steps", num_steps)
        for point in points.PRESETS[preset]().points
    )
    assert cost / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", _COSTS)
def test_every_prediction_is_of_a_number_that_there_is(name, token_dir, tmp_path):
    numbers = faked_sweep.numbers_of_all_predictions(
        "lr_robustness", name, points.PRESETS[name](), analysis.analyse, token_dir, tmp_path
    )
    for claim, check in numbers["checks"].items():
        assert check["mean"] is not None, claim
