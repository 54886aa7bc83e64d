"""The whole analysis, on runs of a stand-in and on a real one with telemetry."""

import pytest

from experiments.branch_weight import analysis, inside, points
from experiments.sweeps import experiment, outcome, registration, results, sweep
from experiments.sweeps import point as point_lib
from keel_jax.runtime import exit_codes


def _fake(preset, token_dir, tmp_path):
    return sweep.Sweep(
        runs=tmp_path / "runs",
        data=str(token_dir),
        launcher="tests.experiments.fake_train",
        max_trials=preset.max_trials,
    )


@pytest.mark.slow
def test_every_prediction_is_of_a_number_that_there_is(token_dir, tmp_path, monkeypatch):
    preset = points.PRESETS["deep"]()
    faked = _fake(preset, token_dir, tmp_path)
    assert faked.run(preset.points) == exit_codes.DONE
    request = experiment.Request(name="branch_weight", preset="deep", out=tmp_path / "out")
    monkeypatch.setattr(registration, "verify", lambda registered, commits: {})
    assert experiment.analyse_sweep(request, faked, preset, analysis.analyse) == exit_codes.DONE
    numbers = results.load(tmp_path / "out")["numbers"]
    assert len(numbers["checks"]) == len(registration.load("branch_weight", "deep").predictions)
    for claim, check in numbers["checks"].items():
        assert check["mean"] is not None, f"{claim}: there is no {check['number']}"
    assert len(numbers["L64"]["cells"]) == 32 and len(numbers["L256"]["cells"]) == 16
    assert len(numbers["L64"]["named"]) == 8
    figures = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert {"loss_against_rate_L64.png", "loss_against_rate_L256.svg"} <= figures


def test_a_cell_without_results_takes_no_part(token_dir, tmp_path):
    """Of two cells, one with runs that are there, and one that has none."""
    members = [
        each
        for each in points.micro().points
        if points.parse_series(each.series)[0].name
        in ("plain-1-unit-carried", "normed-over_L-unit-carried")
    ]
    preset = experiment.Preset(points=members, max_trials=6)
    faked = _fake(preset, token_dir, tmp_path)
    assert faked.run(members[:6]) == exit_codes.DONE
    numbers = analysis.analyse(faked.outcomes(members), tmp_path / "out", str(token_dir))
    [name] = numbers["L64"]["cells"]
    assert name == members[0].series.removesuffix("-L64")
    assert numbers["L64"]["cells"][name]["telemetry"] == [
        {"rate": rate} for rate in (3.2e-3, 1e-2, 3.2e-2)
    ]
    assert numbers["L64"]["effects"] == {} == numbers["L64"]["named"]


@pytest.mark.slow
def test_what_a_real_run_says_of_its_inside(token_dir, tmp_path):
    """Of a run of a few steps: Keel's branches are small beside its stream, so its path is open."""
    cell = points.Cell(points.NORMED, points.OVER_L, points.UNIT, points.CARRIED)
    point = point_lib.Point(
        cell.series(16),
        "experiments/configs/deep.py",
        {
            **cell.options(16, 32),
            "train.num_steps": 4,
            "optim.warmup_steps": 1,
            "telemetry.every_steps": 2,
        },
        1e-3,
        30,
    )
    real = sweep.Sweep(runs=tmp_path / "runs", data=str(token_dir))
    assert real.run([point]) == exit_codes.DONE
    [run] = real.outcomes([point])
    told = inside.describe(run)
    assert 0 < told["branch_ratio"] < 0.2 and 0.9 < told["path"] <= 1
    assert told["rotation_radians"] > 0 and told["cotangent_ratio"] > 0
    assert -1 <= told["position_cosine"] <= 1
    [row] = inside.medians([run])
    assert row == {"rate": 1e-3} | told
    assert inside.describe(outcome.Outcome(point, outcome.PENDING)) is None
