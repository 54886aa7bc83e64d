"""Points of the smallest config, for the tests of sweeps."""

from experiments.sweeps import point

TINY = "experiments/configs/tiny.py"


def grid(
    series: str = "a",
    rates: tuple[float, ...] = (1e-3, 1e-2),
    seeds: tuple[int, ...] = (0, 1),
    overrides: dict | None = None,
) -> list[point.Point]:
    """Two learning rates and two seeds, unless others are given."""
    return point.grid(series, TINY, overrides or {}, rates, seeds)
