"""The three criteria of divergence on curves whose onset is known."""

import dataclasses

import numpy as np
import pytest

from experiments.lr_robustness import divergence, fixed, ramps

HOW = divergence.Thresholds(window_steps=1, patience_steps=20)
UNIGRAM = np.full(200, 4.0)


def _learns(num_steps=200, end=3.0):
    """From 6 nats down to `end` within 100 steps, then flat."""
    return 6.0 + (end - 6.0) * np.minimum(1.0, np.arange(num_steps) / 100)


def _onset(loss, healthy=None, first_step=0, how=HOW):
    smooth = divergence.excess(loss, UNIGRAM, how.window_steps)
    return divergence.onset(smooth, healthy, first_step, how)


def test_a_run_that_learns_does_not_diverge():
    assert _onset(_learns(), healthy=_learns() - 4.0) == {
        "stagnation": None,
        "spike": None,
        "degradation": None,
        "first": None,
    }


def test_stagnation_begins_where_the_unigram_line_is_reached():
    loss = np.maximum(4.0, _learns())
    found = _onset(loss)
    arrival = int(np.argmax(loss < 4.3))
    assert found["stagnation"] == found["first"] == arrival
    # Not where it is only passed, nor where the run has not come down to it yet.
    assert _onset(_learns(end=3.8))["stagnation"] is None
    assert _onset(_learns(end=4.5))["stagnation"] is None
    # Nor for less than the patience.
    assert _onset(loss[: arrival + HOW.patience_steps - 1])["stagnation"] is None


def test_a_run_that_falls_back_to_the_line_stagnates_there_if_it_stays():
    loss = _learns()
    loss[150:] = 4.1
    found = _onset(loss)
    assert found["stagnation"] == found["spike"] == 150
    loss[190:] = 3.0
    assert _onset(loss)["first"] is None


def test_a_spike_counts_only_if_it_lasts():
    loss = _learns()
    loss[120:125] += 3.0
    assert _onset(loss)["spike"] is None
    loss[160:] += 0.31
    assert _onset(loss)["spike"] == 160
    loss[160:] -= 0.02
    assert _onset(loss)["spike"] is None


def test_a_loss_that_is_not_finite_is_a_spike_however_late():
    loss = _learns()
    loss[-1] = np.nan
    assert _onset(loss)["first"] == 199


def test_a_run_that_was_stopped_as_diverged_spikes_at_its_end():
    """A gradient overflows behind a loss that is finite."""
    smooth = divergence.excess(_learns(), UNIGRAM, 1)
    assert divergence.onset(smooth, None, 0, HOW, is_diverged=True)["first"] == 199
    without = ramps.without("spike", HOW)
    assert divergence.onset(smooth, None, 0, without, is_diverged=True)["first"] is None
    assert divergence.onset(np.append(smooth, np.inf), None, 0, without)["first"] is None


def test_an_ordering_without_a_rate_has_no_size():
    """None tolerated is below every rate: a verdict of three seeds, and no ratio."""
    some, none = {0: 1e-2, 1: 2e-2, 2: 1e-2}, {0: None, 1: None, 2: 0.0}
    found = ramps.orderings({"a": some, "b": none})["a > b"]
    assert found["verdict"] == "holds" and found["num_only_first"] == 3
    assert found["ratio"] is None and found["mean"] is None
    assert ramps.orderings({"a": none, "b": some})["verdict"] == "reversed"
    assert ramps.orderings({"a": {0: 1e-2}, "b": {0: None}})["verdict"] == "undecided"
    mixed = ramps.orderings({"a": some, "b": {0: 1e-3, 1: 1e-3, 2: None}})["a > b"]
    assert mixed["num_seeds"] == 2 and mixed["ratio"] == pytest.approx(200**0.5)
    other = ramps.orderings({"a": {0: None, 1: 1e-2, 2: 1.1e-2}, "b": {0: 1e-3, 1: 1e-3, 2: 1e-3}})
    assert other["verdict"] == "undecided"


def test_degradation_is_judged_beside_the_healthy_run_and_after_its_rate():
    healthy = _learns()[:120] - 4.0
    slow = 6.0 - 2.5 * np.minimum(1.0, np.arange(200) / 150)
    found = _onset(slow, healthy, first_step=30)
    assert found["degradation"] == 30  # slow from before on
    assert _onset(_learns() + 0.29, healthy, first_step=30)["degradation"] is None
    unsteady = healthy.copy()
    unsteady[100:] += 1.0  # its lowest stands
    assert _onset(_learns() + 0.35, unsteady, first_step=30)["degradation"] == 30
    late = _learns()
    late[140:] += 0.29 + 0.02  # the healthy run has ended
    assert _onset(late, healthy)["degradation"] == 140


def test_the_batchs_own_difficulty_cancels():
    hard = 0.5 * np.sin(np.arange(200))
    found = divergence.excess(_learns() + hard, UNIGRAM + hard, 1)
    assert np.allclose(found, _learns() - 4.0)
    smooth = divergence.excess(np.arange(200.0), np.zeros(200), 4)
    assert smooth[:4].tolist() == [0.0, 0.5, 1.0, 1.5] and smooth[10] == 8.5


def test_a_tolerated_rate_is_that_of_the_step_before():
    rate = np.arange(200) / 1000
    loss = _learns()
    loss[150:] += 0.5
    curves = ramps.Ramps(
        (ramps.Curve(loss, UNIGRAM, rate, 0), ramps.Curve(_learns(), UNIGRAM, rate, 1))
    )
    spiked, healthy = curves.tolerated(HOW)
    assert spiked == {"seed": 0, "rate": rate[149], "criterion": "spike", "step": 150}
    assert healthy["criterion"] is None and healthy["rate"] == rate[-1]


def test_variants_change_one_threshold_each_and_can_leave_one_out():
    loss = np.maximum(4.0, _learns())
    loss[150:] += 1.0
    curve = ramps.Ramps((ramps.Curve(loss, UNIGRAM, np.arange(200.0), 0),))
    found = {name: curve.tolerated(how)[0] for name, how in ramps.variants(HOW).items()}
    assert len(found) == 1 + 2 * len(dataclasses.fields(HOW)) + len(ramps.CRITERIA)
    assert found["as chosen"]["criterion"] == "stagnation"
    assert found["without stagnation"]["criterion"] == "spike"
    assert found["without spike"]["criterion"] == "stagnation"


@pytest.mark.parametrize(
    ("losses", "largest", "range_"),
    [
        ({1e-3: 3.5, 3e-3: 3.0, 1e-2: 3.1, 3e-2: 3.9, 1e-1: 4.0}, 3e-2, (3e-3, 1e-2)),
        # A gap ends it, and so does a run that did not end.
        ({1e-3: 3.0, 3e-3: 4.0, 1e-2: 3.1, 3e-2: None, 1e-1: 4.0}, 1e-3, (1e-3, 1e-3)),
        ({1e-3: None, 3e-3: None}, None, (None, None)),
        ({1e-3: 4.0, 3e-3: 4.1}, None, (1e-3, 3e-3)),
    ],
)
def test_the_largest_stable_rate_and_the_range(losses, largest, range_):
    assert fixed.largest_stable(losses, unigram_nats=4.0) == largest
    assert fixed.as_good_range(losses) == range_


def test_sensitivity_counts_a_divergence_as_a_uniform_guess():
    assert fixed.sensitivity({1e-3: 3.0, 1e-2: 4.0, 1e-1: None}, 5.0) == pytest.approx(1.0)
    assert fixed.sensitivity({1e-3: 3.0, 1e-2: 9.0}, 5.0) == pytest.approx(1.0)
