"""Largest stable rate, range and sensitivity of runs at fixed rates."""

import pytest

from experiments.lr_robustness import fixed


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
