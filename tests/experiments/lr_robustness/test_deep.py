"""The preset `deep`: one grid a depth, seeds in common, predictions of numbers that there are."""

import pytest

from experiments.configs import deep as deep_config
from experiments.lr_robustness import analysis, points
from experiments.sweeps import experiment, registration, results, sweep
from keel_jax.runtime import exit_codes


def _series():
    members = {}
    for point in points.deep().points:
        members.setdefault(points.parse_series(point.series), []).append(point)
    return members


def test_all_topologies_of_a_depth_have_its_grid_and_its_first_seeds():
    """So that every comparison is on one grid and paired."""
    for (topology, depth, protocol), members in _series().items():
        rates = {point.peak_lr for point in members}
        seeds = {point.seed for point in members}
        if protocol == points.FIXED:
            assert rates >= set(points.GRID_1024 if depth == 1024 else points.GRID), topology
        assert seeds >= {10, 11, 12} and len(members) == len(rates) * len(seeds)


def test_table_1_and_the_controls_are_run_at_64_and_256():
    for depth in (64, 256):
        run = {key[0] for key in _series() if key[1:] == (depth, points.FIXED)}
        assert run == {*points.TABLE_1, *points.CONTROLS}
    assert {key[0] for key in _series() if key[1] == 1024} == {"keel", "pre_ln", "complete_p"}


def test_its_cost_is_that_of_the_design():
    """50.5 million steps of a sub-layer in a trial, as docs/experiments.md says."""
    num_steps = deep_config.get_config().train.num_steps
    lanes = sum(2 * p.overrides["model.num_blocks"] * num_steps for p in points.deep().points)
    assert lanes == 50_496_000


@pytest.mark.slow
def test_every_prediction_is_of_a_number_that_there_is(token_dir, tmp_path, monkeypatch):
    preset = points.deep()
    faked = sweep.Sweep(
        runs=tmp_path / "runs",
        data=str(token_dir),
        launcher="tests.experiments.fake_train",
        max_trials=preset.max_trials,
    )
    assert faked.run(preset.points) == exit_codes.DONE
    request = experiment.Request(name="lr_robustness", preset="deep", out=tmp_path / "out")
    monkeypatch.setattr(registration, "verify", lambda registered, commits: {})
    assert experiment.analyse_sweep(request, faked, preset, analysis.analyse) == exit_codes.DONE
    checks = results.load(tmp_path / "out")["numbers"]["checks"]
    assert len(checks) == len(registration.load("lr_robustness", "deep").predictions)
    for claim, check in checks.items():
        assert check["mean"] is not None, f"{claim}: there is no {check['number']}"
