"""Means of values of which some are only known to lie in an interval, as a rate between two tried.

The model is normal with unknown mean and variance, and an interval [low, high] contributes the
probability that it holds. The confidence interval is that of the profile likelihood, with the bound
at which it is Student's interval if every value is exact; so identical values of a coarse grid give
an interval at least as wide as the grid's step, never one of width 0. Where the values agree with a
variance of 0, as one exact value beside intervals that hold it, there is no interval.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

from experiments.sweeps import intervals

# (low, high) with low <= high; equal for an exact value, infinite where only one side is known.
Interval = tuple[float, float]

# The standard deviation is maximized over on a grid of eight decades.
_NUM_DEVIATIONS = 120
_BISECTIONS = 40
# Differences of log likelihoods below this are rounding.
_FLAT = 1e-7


def mean(values: Sequence[Interval]) -> dict:
    """The mean over independent seeds, with its interval and the p-value of a mean of 0.

    Values of which nothing is known, (-inf, inf), take no part.

    Returns:
      "mean", the most likely one, in the middle where several are, and None where it has no bound;
      "low" and "high" at `intervals.CONFIDENCE`, None where there is no bound or are fewer than two
      values; "p", two-sided, 1 if nothing is decided; "num_seeds"; and "num_censored", those among
      them that are not exact.
    """
    known = [pair for pair in values if not (math.isinf(pair[0]) and math.isinf(pair[1]))]
    num_censored = sum(low < high for low, high in known)
    if not num_censored:
        exact = [low for low, _ in known]
        row = intervals.mean(exact)
        return _row(
            row["mean"], row["low"], row["high"], intervals.p_value(exact), len(known), num_censored
        )
    exact_values = {low for low, high in known if low == high}
    if len(exact_values) == 1:
        (value,) = exact_values
        if all(low <= value <= high for low, high in known):
            # The likelihood grows without end as the deviation shrinks: nothing tells of it.
            return _row(value, None, None, 1.0, len(known), num_censored)
    profile = _Profile(np.array(known))
    middle, best = profile.maximum()
    num = len(known)
    if num < 2:
        return _row(middle, None, None, 1.0, num, num_censored)
    quantile = scipy.stats.t.ppf(0.5 + intervals.CONFIDENCE / 2, num - 1)
    drop = num * math.log1p(quantile**2 / (num - 1)) / 2
    low, high = (profile.end(best - drop, sign) for sign in (-1, 1))
    ratio = max(0.0, 2 * (best - profile(0.0)))
    t = math.sqrt((num - 1) * math.expm1(min(ratio / num, 600.0)))  # beyond, p is 0
    p = float(2 * scipy.stats.t.sf(t, num - 1))
    return _row(middle, low, high, p, num, num_censored)


def difference(first: Interval, second: Interval) -> Interval:
    """The interval of first - second."""
    return first[0] - second[1], first[1] - second[0]


def _row(middle, low, high, p: float, num_seeds: int, num_censored: int) -> dict:
    bounded = [None if value is None or math.isinf(value) else value for value in (low, high)]
    return {
        "mean": middle,
        "low": bounded[0],
        "high": bounded[1],
        "p": p,
        "num_seeds": num_seeds,
        "num_censored": num_censored,
    }


class _Profile:
    """The log likelihood of a mean, at the standard deviation that makes it largest."""

    def __init__(self, values_N2: np.ndarray):
        self._low_N, self._high_N = values_N2.T
        ends = values_N2[np.isfinite(values_N2)]
        widths = (self._high_N - self._low_N)[np.isfinite(self._high_N - self._low_N)]
        self._left, self._right = float(ends.min()), float(ends.max())
        # The scale of what can be told apart, and of the distance from 0.
        self._span = max(
            self._right - self._left,
            float(widths.max(initial=0.0)),
            float(np.abs(ends).max()),
            1e-6,
        )
        self._deviations_S1 = self._span * np.geomspace(1e-4, 1e4, _NUM_DEVIATIONS)[:, None]

    def __call__(self, mean: float) -> float:
        low_SN = (self._low_N - mean) / self._deviations_S1
        high_SN = (self._high_N - mean) / self._deviations_S1
        is_exact_N = self._low_N == self._high_N
        density_SN = -(low_SN**2) / 2 - np.log(self._deviations_S1) - math.log(2 * math.pi) / 2
        each_SN = np.where(is_exact_N, density_SN, _log_probability(low_SN, high_SN))
        return float(each_SN.sum(axis=1).max())

    def maximum(self) -> tuple[float | None, float]:
        """The most likely mean, None if there is no end to them, and its log likelihood."""
        far = 5 * self._span
        means = np.linspace(self._left - far, self._right + far, 801)
        values = np.array([self(mean) for mean in means])
        best = float(values.max())
        likely = means[values >= best - _FLAT]
        if likely[0] == means[0] or likely[-1] == means[-1]:
            return None, best
        if len(likely) > 1:
            return float(likely.mean()), best
        step = means[1] - means[0]
        found = scipy.optimize.minimize_scalar(
            lambda mean: -self(mean),
            bounds=(likely[0] - step, likely[0] + step),
            method="bounded",
            options={"xatol": 1e-6 * self._span},
        )
        return float(found.x), max(best, -float(found.fun))

    def end(self, level: float, sign: int) -> float:
        """How far in the direction of `sign` the profile is above `level`; infinite without end."""
        inside = (self._left + self._right) / 2
        if self(inside) < level:
            means = np.linspace(self._left, self._right, 101)
            inside = float(means[np.argmax([self(mean) for mean in means])])
        outside = inside + sign * self._span
        while self(outside) >= level:
            outside = inside + 4 * (outside - inside)
            if abs(outside - inside) > 1e3 * self._span:
                return sign * math.inf
        for _ in range(_BISECTIONS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if self(middle) >= level else (inside, middle)
        return inside


def _log_probability(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """log(Phi(high) - Phi(low)), exact in both tails."""
    is_right = low > 0
    low, high = np.where(is_right, -high, low), np.where(is_right, -low, high)
    upper, lower = scipy.special.log_ndtr(high), scipy.special.log_ndtr(low)
    with np.errstate(divide="ignore", invalid="ignore"):
        return upper + np.log1p(-np.exp(np.minimum(lower - upper, 0.0)))
