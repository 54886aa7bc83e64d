"""The unbiased estimate of pass@k (Chen et al. 2021, 2107.03374, equation 1)."""

import math
from fractions import Fraction

from keel_jax import errors


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The probability that `k` of the samples of a problem have a correct one among them.

    1 - C(n-c, k) / C(n, k), for c correct ones of n. The samples are drawn without replacement, so
    that the mean over what a model draws is that of k independent samples; 1 - (1 - c/n)^k has a
    smaller one.

    Raises:
      UserError: there are fewer than `k` samples, or `k` is below 1.
    """
    assert 0 <= num_correct <= num_samples, (num_correct, num_samples)
    if not 1 <= k <= num_samples:
        raise errors.UserError(
            f"pass@{k} cannot be estimated from {num_samples} samples of a problem: k must be from "
            f"1 to {num_samples}. Draw more samples."
        )
    none = Fraction(math.comb(num_samples - num_correct, k), math.comb(num_samples, k))
    return float(1 - none)
