"""Confidence intervals over seeds, and what they decide about an ordering."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
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
