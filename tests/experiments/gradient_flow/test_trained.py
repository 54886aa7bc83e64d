"""A trained model is measured before and after its training."""

import numpy as np
import pytest

from experiments.gradient_flow import trained
from keel_jax import train
from tests import conftest


@pytest.mark.slow
def test_initial_and_final_weights_of_a_trial(token_dir, cache_dir, tmp_path):
    for topology in ("pre_ln", "keel"):  # with a final norm, and without
        cfg = conftest.tiny_config(
            model=dict(vocab_size=0, topology=topology),
            data=dict(path=str(token_dir)),
            runtime=dict(compilation_cache_dir=cache_dir),
            trials=dict(seed=(3, 4)),
        )
        assert train.train(cfg, tmp_path / topology) == 0
    measured = [
        point
        for topology in ("pre_ln", "keel")
        for point in trained.trained_points(tmp_path / topology / "trials/001")
    ]
    assert [(p["name"], p["step"], p["seed"]) for p in measured] == [
        ("pre_ln", 0, 4),
        ("pre_ln", 6, 4),
        ("keel", 0, 4),
        ("keel", 6, 4),
    ]
    for before, after in (measured[:2], measured[2:]):
        assert np.any(before["gain"] != after["gain"])
    assert measured[1]["path_gain"][0] == pytest.approx(1, abs=1e-5)
