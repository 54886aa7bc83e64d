"""Losses side by side: what an unfinished run does to a comparison."""

import pytest

from experiments.sweeps import comparison


def test_an_advantage_with_an_unfinished_run_is_undecided():
    """The difference of the others is reported, without a verdict: they are no fair choice."""
    keel = {0.01: {0: 1.0, 1: 1.1, 2: 0.9}}
    advantage = comparison.advantage(keel, {0.01: {0: 2.0, 1: 2.0, 2: 2.1}}, 0.01)
    assert advantage is not None
    assert advantage["verdict"] == "holds" and advantage["num_not_finished"] == 0
    advantage = comparison.advantage(keel, {0.01: {0: 2.0, 1: 2.0, 2: None}}, 0.01)
    assert advantage is not None
    assert advantage["verdict"] == "undecided" and advantage["num_not_finished"] == 1
    assert advantage["mean"] == pytest.approx(0.95)
    assert comparison.best_row({0.01: {0: None}}) == []
