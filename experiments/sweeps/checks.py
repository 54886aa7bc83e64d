"""The predictions of NOTES.md held against the numbers, as the report's table shows them."""

import math


def within(value: float | None, low: float = -math.inf, high: float = math.inf) -> dict:
    """Whether `value` lies in [low, high]; None, a number that is not there, does not."""
    return {
        "value": value,
        "at_least": low if math.isfinite(low) else None,
        "at_most": high if math.isfinite(high) else None,
        "holds": value is not None and low <= value <= high,
    }


def verdict(found: dict | None, wanted: str = "holds") -> dict:
    """Whether an ordering's verdict (`intervals.ordering`) is the one that was predicted."""
    found = found or {}
    told = {key: found[key] for key in ("mean", "low", "high") if key in found}
    return told | {
        "verdict": found.get("verdict"),
        "predicted": wanted,
        "holds": found.get("verdict") == wanted,
    }
