"""The numbers of a sweep whose runs are those of a stand-in."""

import pytest

from experiments.depth_scaling import analysis, points
from keel_jax.runtime import exit_codes
from tests.experiments import faked_sweep


def test_the_numbers_of_micro(token_dir, tmp_path):
    """The stand-in learns alike with Keel and Pre-LN at these rates: no difference decides."""
    preset = points.micro()
    faked = faked_sweep.of(preset, token_dir, tmp_path)
    assert faked.run(preset.points) == exit_codes.DONE
    numbers = analysis.analyse(faked.outcomes(preset.points), tmp_path / "out", str(token_dir))
    assert set(numbers["keel_over_pre_ln_nats"]) == {"L16-d32", "L64-d32", "L128-d32", "L16-d64"}
    slope = numbers["advantage_slope"]
    assert slope["depths"] == [16, 64, 128] and slope["num_seeds"] == 3
    assert slope["mean"] == pytest.approx(0.0, abs=1e-6) and slope["verdict"] == "undecided"
    assert len(numbers["checks"]) == 8
    assert (tmp_path / "out/figures/loss_against_depth.pdf").exists()
