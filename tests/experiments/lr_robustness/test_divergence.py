"""The three criteria of divergence on curves whose onset is known."""

import numpy as np

from experiments.lr_robustness import divergence, ramps
from tests.experiments.lr_robustness import curves


def _onset(loss, healthy=None, first_step=0, thresholds=curves.THRESHOLDS):
    smooth = divergence.excess(loss, curves.UNIGRAM, thresholds.window_steps)
    return divergence.onset(smooth, healthy, first_step, thresholds)


def test_a_run_that_learns_does_not_diverge():
    assert _onset(curves.learning(), healthy=curves.learning() - 4.0) == {
        "stagnation": None,
        "spike": None,
        "degradation": None,
        "first": None,
    }


def test_stagnation_begins_where_the_unigram_line_is_reached():
    loss = np.maximum(4.0, curves.learning())
    onsets = _onset(loss)
    arrival = int(np.argmax(loss < 4.3))
    assert onsets["stagnation"] == onsets["first"] == arrival
    # Not where it is only passed, nor where the run has not come down to it yet.
    assert _onset(curves.learning(end=3.8))["stagnation"] is None
    assert _onset(curves.learning(end=4.5))["stagnation"] is None
    # Nor for less than the patience.
    assert _onset(loss[: arrival + curves.THRESHOLDS.patience_steps - 1])["stagnation"] is None


def test_a_run_that_falls_back_to_the_line_stagnates_there_if_it_stays():
    loss = curves.learning()
    loss[150:] = 4.1
    onsets = _onset(loss)
    assert onsets["stagnation"] == onsets["spike"] == 150
    loss[190:] = 3.0
    assert _onset(loss)["first"] is None


def test_a_spike_counts_only_if_it_lasts():
    loss = curves.learning()
    loss[120:125] += 3.0
    assert _onset(loss)["spike"] is None
    loss[160:] += 0.31
    assert _onset(loss)["spike"] == 160
    loss[160:] -= 0.02
    assert _onset(loss)["spike"] is None


def test_a_loss_that_is_not_finite_is_a_spike_however_late():
    loss = curves.learning()
    loss[-1] = np.nan
    assert _onset(loss)["first"] == 199


def test_a_run_that_was_stopped_as_diverged_spikes_at_its_end():
    """A gradient overflows behind a loss that is finite."""
    smooth = divergence.excess(curves.learning(), curves.UNIGRAM, 1)
    assert divergence.onset(smooth, None, 0, curves.THRESHOLDS, is_diverged=True)["first"] == 199
    without = ramps.without("spike", curves.THRESHOLDS)
    assert divergence.onset(smooth, None, 0, without, is_diverged=True)["first"] is None
    assert divergence.onset(np.append(smooth, np.inf), None, 0, without)["first"] is None


def test_degradation_is_judged_beside_the_healthy_run_and_after_its_rate():
    healthy = curves.learning()[:120] - 4.0
    slow = 6.0 - 2.5 * np.minimum(1.0, np.arange(200) / 150)
    onsets = _onset(slow, healthy, first_step=30)
    assert onsets["degradation"] == 30  # slow from before on
    assert _onset(curves.learning() + 0.29, healthy, first_step=30)["degradation"] is None
    unsteady = healthy.copy()
    unsteady[100:] += 1.0  # its lowest stands
    assert _onset(curves.learning() + 0.35, unsteady, first_step=30)["degradation"] == 30
    late = curves.learning()
    late[140:] += 0.29 + 0.02  # the healthy run has ended
    assert _onset(late, healthy)["degradation"] == 140


def test_the_batchs_own_difficulty_cancels():
    hard = 0.5 * np.sin(np.arange(200))
    excess = divergence.excess(curves.learning() + hard, curves.UNIGRAM + hard, 1)
    assert np.allclose(excess, curves.learning() - 4.0)
    smooth = divergence.excess(np.arange(200.0), np.zeros(200), 4)
    assert smooth[:4].tolist() == [0.0, 0.5, 1.0, 1.5] and smooth[10] == 8.5
