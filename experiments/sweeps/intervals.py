"""Intervals over seeds, and what they allow to be said of an ordering."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

CONFIDENCE = 0.95


def mean(values: Sequence[float]) -> dict:
    """The mean with Student's interval over independent seeds.

    m +- t_(n-1) s / sqrt(n), at CONFIDENCE; None for the interval of fewer than two values.

    Returns:
      "mean", "low", "high", "least", "greatest" and "num_seeds".
    """
    values = np.array(values, float)
    if not len(values):
        return {
            "mean": None,
            "low": None,
            "high": None,
            "least": None,
            "greatest": None,
            "num_seeds": 0,
        }
    centre, half = float(values.mean()), None
    if len(values) > 1:
        quantile = scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
        half = float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
    return {
        "mean": centre,
        "low": None if half is None else centre - half,
        "high": None if half is None else centre + half,
        "least": float(values.min()),
        "greatest": float(values.max()),
        "num_seeds": len(values),
    }


def ordering(first: Sequence[float], second: Sequence[float]) -> dict:
    """Whether `first` is above `second`, pairs of the same seed.

    Returns:
      `mean` of the differences, and "verdict": "holds" (the interval lies above 0), "reversed"
      (below) or "undecided" (it holds 0, or there are fewer than two pairs).
    """
    found = mean([a - b for a, b in zip(first, second, strict=True)])
    return found | {"verdict": sign(found)}


def sign(found: dict) -> str:
    """Whether a `mean`'s interval lies above 0 ("holds"), below ("reversed"), or "undecided"."""
    if found["low"] is None:
        return "undecided"
    return "holds" if found["low"] > 0 else "reversed" if found["high"] < 0 else "undecided"


def chain(verdicts: Sequence[str]) -> str:
    """The verdict on a > b > c from those on its neighbours; without any, undecided."""
    if "reversed" in verdicts:
        return "reversed"
    return "holds" if verdicts and set(verdicts) == {"holds"} else "undecided"
