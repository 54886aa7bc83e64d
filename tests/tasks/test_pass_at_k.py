"""pass@k against all subsets, and against its mean over draws."""

import itertools
import math

import pytest

from keel_jax.tasks import pass_at_k


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_the_estimate_is_the_fraction_of_subsets_with_a_correct_sample(num_samples):
    for num_correct in range(num_samples + 1):
        for k in range(1, num_samples + 1):
            subsets = list(itertools.combinations(range(num_samples), k))
            with_one = sum(any(sample < num_correct for sample in subset) for subset in subsets)
            estimate = pass_at_k.pass_at_k(num_samples, num_correct, k)
            assert estimate == with_one / len(subsets)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_estimate_has_no_bias(k):
    """Its mean over the binomial counts is the chance of k independent samples."""
    chance, num_samples = 0.3, 10
    mean = sum(
        math.comb(num_samples, c)
        * chance**c
        * (1 - chance) ** (num_samples - c)
        * pass_at_k.pass_at_k(num_samples, c, k)
        for c in range(num_samples + 1)
    )
    assert mean == pytest.approx(1 - (1 - chance) ** k, rel=1e-12)


def test_many_samples_do_not_overflow():
    assert pass_at_k.pass_at_k(2000, 1, 1) == 1 / 2000
    assert pass_at_k.pass_at_k(2000, 2000, 100) == 1
    assert pass_at_k.pass_at_k(2000, 0, 100) == 0


@pytest.mark.parametrize("k", [0, 4])
def test_too_few_samples_are_refused(k):
    with pytest.raises(ValueError, match=f"pass@{k} cannot be estimated from 3 samples"):
        pass_at_k.pass_at_k(3, 1, k)
