"""The predictions of NOTES.md held against the numbers, as the report's table shows them."""

import math
from collections.abc import Mapping


def within(value: float | None, low: float = -math.inf, high: float = math.inf) -> dict:
    """Whether `value` lies in [low, high]; None, for a number that could not be had, does not."""
    return {
        "value": value,
        "at_least": low if math.isfinite(low) else None,
        "at_most": high if math.isfinite(high) else None,
        "holds": value is not None and low <= value <= high,
    }


def has_verdict(ordering: Mapping | None, predicted: str = "holds") -> dict:
    """Whether an ordering's verdict (`intervals.ordering`) is the predicted one."""
    ordering = ordering or {}
    interval = {key: ordering[key] for key in ("mean", "low", "high") if key in ordering}
    return interval | {
        "verdict": ordering.get("verdict"),
        "predicted": predicted,
        "holds": ordering.get("verdict") == predicted,
    }
