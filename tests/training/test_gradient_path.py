"""A run whose gradient no longer reaches the bottom says so, once, and before its loss does."""

import math
import re

import numpy as np
import pytest
from etils import epath

from keel_jax import train
from keel_jax.runtime import clock, exit_codes
from keel_jax.training import gradient_path, logs, telemetry_records
from tests import conftest


def _record(bottom: float, top: float) -> dict[str, np.ndarray]:
    return {"cotangent_rms": np.asarray([[bottom, 5.0], [7.0, top]], np.float32)}


@pytest.mark.parametrize(
    ("bottom", "top", "ratio"), [(3.0, 2.0, 1.5), (0.0, 2.0, 0.0), (math.inf, 1.0, math.inf)]
)
def test_the_ratio_is_that_of_the_first_and_the_last_sublayer(bottom, top, ratio):
    assert gradient_path.cotangent_ratio(_record(bottom, top)) == ratio


@pytest.mark.parametrize("top", [0.0, math.nan])
def test_without_a_gradient_at_the_top_there_is_none(top):
    assert math.isnan(gradient_path.cotangent_ratio(_record(1.0, top)))


def test_the_first_loss_is_told_with_what_it_was_and_no_other():
    watch = gradient_path.Watch()
    assert watch.check(1, 0.75) is None
    assert watch.check(50, math.nan) is None
    warning = watch.check(100, 2e-9)
    assert warning and "step 100: the gradient does not reach" in warning
    assert "is 2e-09 of that at the top (0.75 in step 1)" in warning
    assert watch.check(150, 1e-12) is None


def test_a_record_logs_the_ratio_and_says_when_it_is_lost(tmp_path, capsys):
    cfg = conftest.tiny_config(trials=dict(seed=(0, 1)))
    directories = [epath.Path(tmp_path) / name for name in "ab"]
    with logs.Logs(directories, ["a", "b"], 0, cfg.train) as written:
        recorder = telemetry_records.Recorder(
            cfg, lambda *_: None, directories, 0, written, clock.Clock()
        )
        for step, bottom in ((1, 0.5), (4, 1e-6), (8, 1e-7)):
            both = np.asarray(
                [_record(bottom, 2.0)["cotangent_rms"], _record(3.0, 2.0)["cotangent_rms"]]
            )
            recorder.record(step, {"cotangent_rms": both}, (0, 1))
    assert capsys.readouterr().out.count("does not reach the first sub-layers") == 1
    ratios = [
        [row["telemetry/cotangent_ratio"] for row in logs.read(directory)]
        for directory in directories
    ]
    np.testing.assert_allclose(ratios, [[0.25, 5e-7, 5e-8], [1.5] * 3], rtol=1e-6)


@pytest.mark.slow
def test_a_trial_that_dies_says_so_and_a_healthy_one_does_not(
    token_dir, cache_dir, tmp_path, capsys
):
    """At a rate of 1 the branches of 64 sub-layers outgrow the stream within a few steps."""
    cfg = conftest.tiny_config(
        model=dict(num_blocks=32, vocab_size=0),
        data=dict(path=str(token_dir)),
        train=dict(num_steps=8),
        optim=dict(warmup_steps=0, schedule="constant"),
        trials=dict(peak_lr=(1.0, 1e-3)),
        telemetry=dict(every_steps=4),
        runtime=dict(compilation_cache_dir=cache_dir),
    )
    assert train.train(cfg, tmp_path) == exit_codes.DONE
    said = capsys.readouterr().out
    assert said.count("does not reach the first sub-layers") == 1
    assert re.search(r"^trial 0: step [48]: the gradient does not reach", said, re.MULTILINE)
    name = "telemetry/cotangent_ratio"
    for trial, is_dead in enumerate((True, False)):
        workdir = tmp_path / f"trials/{trial:03}"
        ratios = {row["step"]: row[name] for row in logs.read(workdir) if name in row}
        records = telemetry_records.load(workdir)
        assert list(ratios) == list(records["step"]) == [1, 4, 8]
        assert (ratios[8] < gradient_path.LOST) is is_dead
        cotangents = records["cotangent_rms"].astype(float)
        expected = cotangents[:, 0, 0] / cotangents[:, -1, -1]
        np.testing.assert_allclose(list(ratios.values()), expected, rtol=1e-9)
