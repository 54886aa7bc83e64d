"""Tolerated rates of ramps, and the orderings that follow from them."""

import dataclasses

import numpy as np
import pytest

from experiments.lr_robustness import ramps
from tests.experiments.lr_robustness import curves


def test_an_ordering_without_a_rate_has_no_size():
    """None tolerated is below every rate: a verdict of three seeds, and no ratio."""
    some, none = {0: 1e-2, 1: 2e-2, 2: 1e-2}, {0: None, 1: None, 2: 0.0}
    result = ramps.orderings({"a": some, "b": none})["a > b"]
    assert result["verdict"] == "holds" and result["num_only_first"] == 3
    assert result["ratio"] is None and result["mean"] is None
    assert ramps.orderings({"a": none, "b": some})["verdict"] == "reversed"
    assert ramps.orderings({"a": {0: 1e-2}, "b": {0: None}})["verdict"] == "undecided"
    mixed = ramps.orderings({"a": some, "b": {0: 1e-3, 1: 1e-3, 2: None}})["a > b"]
    assert mixed["num_seeds"] == 2 and mixed["ratio"] == pytest.approx(200**0.5)
    other = ramps.orderings({"a": {0: None, 1: 1e-2, 2: 1.1e-2}, "b": {0: 1e-3, 1: 1e-3, 2: 1e-3}})
    assert other["verdict"] == "undecided"


def test_a_tolerated_rate_is_that_of_the_step_before():
    rate = np.arange(200) / 1000
    loss = curves.learning()
    loss[150:] += 0.5
    both = ramps.Ramps(
        (
            ramps.Curve(loss, curves.UNIGRAM, rate, 0),
            ramps.Curve(curves.learning(), curves.UNIGRAM, rate, 1),
        )
    )
    spiked, healthy = both.tolerated(curves.THRESHOLDS)
    assert spiked == {"seed": 0, "rate": rate[149], "criterion": "spike", "step": 150}
    assert healthy["criterion"] is None and healthy["rate"] == rate[-1]


def test_variants_change_one_threshold_each_and_can_leave_one_out():
    loss = np.maximum(4.0, curves.learning())
    loss[150:] += 1.0
    curve = ramps.Ramps((ramps.Curve(loss, curves.UNIGRAM, np.arange(200.0), 0),))
    result = {
        name: curve.tolerated(thresholds)[0]
        for name, thresholds in ramps.variants(curves.THRESHOLDS).items()
    }
    assert len(result) == 1 + 2 * len(dataclasses.fields(curves.THRESHOLDS)) + len(ramps.CRITERIA)
    assert result["as chosen"]["criterion"] == "stagnation"
    assert result["without stagnation"]["criterion"] == "spike"
    assert result["without spike"]["criterion"] == "stagnation"
