"""The whole analysis, on runs of a stand-in and on a real one with telemetry."""

import numpy as np
import pytest

from experiments.branch_weight import analysis, inside, points
from experiments.sweeps import experiment, outcome, sweep
from experiments.sweeps import point as point_lib
from keel_jax.runtime import exit_codes
from tests.experiments import faked_sweep


@pytest.mark.slow
def test_every_prediction_is_of_a_number_that_there_is(token_dir, tmp_path):
    numbers = faked_sweep.numbers_of_all_predictions(
        "branch_weight", "deep", points.deep(), analysis.analyse, token_dir, tmp_path
    )
    for claim, check in numbers["checks"].items():
        assert check["mean"] is not None, claim
    assert len(numbers["L64"]["cells"]) == 32 and len(numbers["L256"]["cells"]) == 20
    assert len(numbers["L64"]["named"]) == 12 == len(numbers["L256"]["named"])
    figures = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert {"loss_against_rate_L64.png", "loss_against_rate_L256.svg"} <= figures


def test_a_cell_without_results_takes_no_part(token_dir, tmp_path):
    """Of two cells, one with runs that are there, and one that has none."""
    members = [
        each
        for each in points.micro().points
        if points.parse_series(each.series)[0].name
        in ("plain-1-unit-width_scaled", "normed-inv_L-unit-width_scaled")
    ]
    preset = experiment.Preset(points=members, max_trials=6)
    faked = faked_sweep.of(preset, token_dir, tmp_path)
    assert faked.run(members[:6]) == exit_codes.DONE
    numbers = analysis.analyse(faked.outcomes(members), tmp_path / "out", str(token_dir))
    [name] = numbers["L64"]["cells"]
    assert name == members[0].series.removesuffix("-L64")
    assert numbers["L64"]["cells"][name]["telemetry"] == []
    assert numbers["L64"]["effects"] == {} == numbers["L64"]["named"]


@pytest.mark.slow
def test_what_a_real_run_says_of_its_inside(token_dir, tmp_path):
    """Of a run of a few steps: Keel's branches are small beside its stream, so its path is open."""
    cell = points.Cell(points.NORMED, points.INV_L, points.UNIT, points.WIDTH_SCALED)
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
    records = inside.load(run)
    assert list(records["step"]) == [2, 4]
    told = inside.describe(records)
    assert 0 < told["branch_ratio"] < 0.2 and 0.9 < told["path"] <= 1
    assert told["rotation_radians"] > 0 and told["cotangent_ratio"] > 0
    assert -1 <= told["position_cosine"] <= 1
    assert inside.medians([(1e-3, told)]) == [{"rate": 1e-3} | told]
    sublayers, ratios = inside.cotangents(records)
    assert list(sublayers) == list(range(16)) and ratios[-1] == 1
    assert ratios[0] == pytest.approx(told["cotangent_ratio"])
    numbers = analysis.analyse([run], tmp_path / "out", str(token_dir))
    [cell_numbers] = numbers["L16"]["cells"].values()
    assert cell_numbers["telemetry"] == [{"rate": 1e-3} | told]
    figures = {path.stem for path in (tmp_path / "out/figures").iterdir()}
    assert figures == {"loss_against_rate_L16", "cotangent_L16", "gradient_over_depth_L16"}
    assert inside.load(outcome.Outcome(point, outcome.PENDING)) is None


def test_the_path_is_the_product_over_the_sublayers_above_block_0():
    """Of two records, where the second has the larger branches."""
    ones = np.ones((2, 3, 2))
    records = {
        "branch_ratio": np.array([0.1, 0.5])[:, None, None] * ones,
        "rotation_radians": 0.2 * ones,
        "cotangent_rms": ones * np.array([1.0, 2.0, 4.0])[:, None],
        "position_cosine": 0.3 * ones,
    }
    records["branch_ratio"][:, 0] = 7.0  # block 0 has no part in it
    told = inside.describe(records)
    assert told["branch_ratio"] == 0.5 and told["path"] == pytest.approx(1.25**-2)
    assert told["rotation_radians"] == pytest.approx(1.2) and told["cotangent_ratio"] == 0.25


def test_a_depth_without_any_result_has_no_figures(token_dir, tmp_path):
    members = [each for each in points.micro().points if each.series.startswith("plain-1-unit")]
    faked = faked_sweep.of(experiment.Preset(points=members), token_dir, tmp_path)
    numbers = analysis.analyse(faked.outcomes(members), tmp_path / "out", str(token_dir))
    assert numbers["L64"]["cells"] == {} == numbers["L64"]["effects"]
    assert not (tmp_path / "out/figures").exists()
