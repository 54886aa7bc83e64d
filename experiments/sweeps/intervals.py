"""Confidence intervals over seeds, and what they decide about an ordering."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.optimize
import scipy.stats

CONFIDENCE = 0.95


def mean(values: Sequence[float]) -> dict:
    """The mean with Student's interval over independent seeds.

    m +- t_(n-1) s / sqrt(n), at CONFIDENCE; None for the interval of fewer than two values.

    Returns:
      "mean", "low", "high", "least", "greatest" and "num_seeds".
    """
    if not len(values):
        return {
            "mean": None,
            "low": None,
            "high": None,
            "least": None,
            "greatest": None,
            "num_seeds": 0,
        }
    array = np.array(values, float)
    centre, half = float(array.mean()), None
    if len(array) > 1:
        quantile = scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, len(array) - 1)
        half = float(quantile * array.std(ddof=1) / math.sqrt(len(array)))
    return {
        "mean": centre,
        "low": None if half is None else centre - half,
        "high": None if half is None else centre + half,
        "least": float(array.min()),
        "greatest": float(array.max()),
        "num_seeds": len(array),
    }


def p_value(values: Sequence[float]) -> float:
    """Student's two-sided p-value of a mean of 0; 1 of fewer than two values."""
    if len(values) < 2:
        return 1.0
    array = np.array(values, float)
    error = array.std(ddof=1) / math.sqrt(len(array))
    if error == 0.0:
        return 1.0 if array[0] == 0.0 else 0.0
    return float(2 * scipy.stats.t.sf(abs(array.mean()) / error, len(array) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, Scand. J. Stat. 6, 1979), in the given order."""
    order = np.argsort(p_values)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def detectable(deviation: float, num_seeds: int, power: float = 0.8) -> float:
    """The mean that a paired t-test at CONFIDENCE finds with this power.

    Args:
      deviation: standard deviation of the paired differences, in the result's unit.
    """
    freedom = num_seeds - 1
    critical = scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)

    # What a test finds with the wrong sign is too rare to count.
    shift = scipy.optimize.brentq(
        lambda shift: scipy.stats.nct.sf(critical, freedom, shift) - power, 0.01, 20.0
    )
    return float(shift * deviation / math.sqrt(num_seeds))


def ordering(first: Sequence[float], second: Sequence[float]) -> dict:
    """Whether `first` is above `second`, which are paired by seed.

    Returns:
      `mean` of the differences, and "verdict": "holds" (the interval lies above 0), "reversed"
      (below) or "undecided" (it contains 0, or there are fewer than two pairs).
    """
    difference = mean([a - b for a, b in zip(first, second, strict=True)])
    return difference | {"verdict": sign(difference)}


def sign(interval: Mapping) -> str:
    """Whether a `mean`'s interval lies above 0 ("holds"), below ("reversed"), or "undecided"."""
    if interval["low"] is None:
        return "undecided"
    return "holds" if interval["low"] > 0 else "reversed" if interval["high"] < 0 else "undecided"


def chain(verdicts: Sequence[str]) -> str:
    """The verdict on a > b > c from those on its neighbours; without any, undecided."""
    if "reversed" in verdicts:
        return "reversed"
    return "holds" if verdicts and set(verdicts) == {"holds"} else "undecided"
