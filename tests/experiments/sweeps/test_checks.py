"""Predictions held against numbers."""

from experiments.sweeps import checks, intervals


def test_a_prediction_needs_its_number():
    assert checks.within(0.2, 0.2)["holds"] and checks.within(-1.0, high=0.1)["holds"]
    assert not checks.within(0.19, 0.2)["holds"] and not checks.within(None)["holds"]
    assert checks.has_verdict(intervals.ordering([3.0, 3.1], [1.0, 1.1]))["holds"]
    assert not checks.has_verdict(intervals.ordering([3.0], [1.0]))["holds"]
    assert not checks.has_verdict(None)["holds"]
