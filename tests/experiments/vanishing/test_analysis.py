"""The whole analysis, on runs of a stand-in and on real ones with telemetry."""

import pytest

from experiments.sweeps import point as point_lib
from experiments.sweeps import sweep
from experiments.vanishing import analysis, mechanism, points
from keel_jax.runtime import exit_codes
from tests.experiments import faked_sweep


@pytest.mark.slow
def test_every_prediction_is_of_a_number_that_there_is(token_dir, tmp_path):
    """The stand-in writes no telemetry, so numbers of the gradient are intervals of no seed."""
    numbers = faked_sweep.numbers_of_all_predictions(
        "vanishing", "deep", points.deep(), analysis.analyse, token_dir, tmp_path
    )
    for claim, check in numbers["checks"].items():
        is_of_the_gradient = "/mechanism/" in check["number"] or "lost_rates" in check["number"]
        assert is_of_the_gradient == (check["mean"] is None), claim
    assert len(numbers["L64"]["variants"]) == 18 == len(numbers["L256"]["variants"])
    assert set(numbers["L1024"]["variants"]) == {"keel", "keel_capped", "complete_p"}
    figures = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert {"loss_against_rate_L64.png", "loss_against_rate_L1024.svg"} <= figures


@pytest.mark.slow
def test_what_real_runs_say_of_their_paths(token_dir, tmp_path):
    """Of a few steps at a rate at which Keel's branches outgrow its stream, and a cap's do not."""
    members = [
        point_lib.Point(
            points.series(variant, 16),
            "experiments/configs/deep.py",
            {
                **points.VARIANTS[variant],
                "model.num_blocks": 8,
                "train.num_steps": 12,
                "optim.warmup_steps": 1,
                "telemetry.every_steps": 2,
            },
            0.1,
            40 + seed,
        )
        for variant in ("keel", "cap_half")
        for seed in range(2)
    ]
    real = sweep.Sweep(runs=tmp_path / "runs", data=str(token_dir))
    assert real.run(members) == exit_codes.DONE
    outcomes = real.outcomes(members)
    keel, *_, capped = (mechanism.course(run.telemetry()) for run in outcomes)
    assert list(keel.step) == [2, 4, 6, 8, 10, 12]
    assert capped.branch_rms.max() <= 0.5 * (1 + 1e-6) < keel.branch_rms.max()
    assert capped.path.min() > 5 * keel.path.min()
    assert keel.path.min() < 0.2 and (keel.path <= keel.orthogonal).mean() > 0.5
    numbers = analysis.analyse(outcomes, tmp_path / "out", str(token_dir))["L16"]
    assert numbers["mechanism"]["error_decades"]["path"]["num_seeds"] == 2
    assert numbers["mechanism"]["num_lost"] + numbers["mechanism"]["num_kept"] == 2
    [row] = numbers["variants"]["keel"]["telemetry"]
    assert row["rate"] == 0.1 and 0 < row["least_reach"] < 0.5
    assert numbers["variants"]["keel"]["lost_rates"]["num_seeds"] == 2
    assert set(numbers["pairs"]) == {"cap_half over keel"}
    figures = {path.stem for path in (tmp_path / "out/figures").iterdir()}
    assert figures == {"loss_against_rate_L16", "reach_L16", "courses_L16"}
