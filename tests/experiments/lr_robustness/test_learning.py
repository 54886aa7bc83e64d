"""When a run leaves the unigram line, and what counts as a spike."""

import json
import math

import numpy as np
import pytest

from experiments.lr_robustness import learning
from experiments.sweeps import outcome, point, unigram

RATE = 1e-3


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a run's losses above the unigram model's and gradient norms, one a step."""
    monkeypatch.setattr(unigram, "training_losses", lambda cfg: np.full(1000, 4.0))

    def write(seed, excess, norms) -> outcome.Outcome:
        directory = tmp_path / str(seed)
        directory.mkdir()
        rows = [
            {
                "step": step + 1,
                "train/loss_nats_per_token": 4.0 + excess[step],
                "train/grad_norm": norms[step],
                "train/learning_rate": RATE,
            }
            for step in range(len(excess))
        ]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        where = point.Point("a", "experiments/configs/tiny.py", {}, RATE, seed)
        return outcome.Outcome(where, outcome.DONE, directory, len(excess))

    return write


def test_the_step_at_which_a_run_has_left_the_line(written):
    early = np.where(np.arange(200) < 60, 0.0, -1.0)
    never = np.zeros(200)
    runs = [written(seed, curve, np.ones(200)) for seed, curve in enumerate((early, never))]
    rows = {0: {RATE: 3.0}, 1: {RATE: 4.0}}
    steps = learning.steps_until_below(runs, rows, "data")
    # Averaged over ten steps, one step at -1 makes -0.1.
    assert steps[0] == pytest.approx((math.log10(61),) * 2)
    assert steps[1] == (math.log10(200), math.inf)


def test_spikes_are_counted_against_the_median_before_them(written):
    norms = np.full(200, 2.0)
    norms[[100, 150]] = 20.0, 60.0
    norms[20] = 1e3  # at the beginning norms are of another size
    quiet = np.full(200, 2.0)
    runs = [written(seed, np.zeros(200), row) for seed, row in enumerate((norms, quiet))]
    found = learning.spikes(runs)
    assert (found["count"]["mean"], found["count"]["greatest"]) == (1.0, 2.0)
    assert found["log10_largest"]["greatest"] == pytest.approx(math.log10(30))
    assert found["log10_largest"]["least"] == pytest.approx(0.0)


def test_a_run_that_broke_off_has_the_spikes_until_then(written):
    norms = [1.0] * 60 + [10.0] + [None] * 5
    found = learning.spikes([written(0, np.zeros(66), norms)])
    assert found["count"]["mean"] == 1.0
    assert learning.spikes([written(1, np.zeros(20), np.ones(20))])["count"]["num_seeds"] == 0
