"""Final losses of a sweep side by side: by rate, at the best one, in differences over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweeps import intervals
from experiments.sweeps import outcome as outcome_lib

# By peak rate, then by seed; None where the run did not come to its end.
Losses = Mapping[float, Mapping[int, float | None]]


def losses(
    outcomes: Sequence[outcome_lib.Outcome], metric: str = "eval/loss_nats_per_token"
) -> Losses:
    """The final value of a metric in one series, of the points that have a result."""
    found: dict[float, dict[int, float | None]] = {}
    for outcome in outcomes:
        if outcome.has_result:
            found.setdefault(outcome.point.peak_lr, {})[outcome.point.seed] = outcome.final(metric)
    return dict(sorted(found.items()))


def by_series(
    outcomes: Sequence[outcome_lib.Outcome], metric: str = "eval/loss_nats_per_token"
) -> dict[str, Losses]:
    """`losses` of every series that has a result, in order."""
    members: dict[str, list[outcome_lib.Outcome]] = {}
    for outcome in outcomes:
        members.setdefault(outcome.point.series, []).append(outcome)
    found = {series: losses(rows, metric) for series, rows in members.items()}
    return {series: rows for series, rows in found.items() if rows}


def best_rate(found: Losses) -> float | None:
    """The rate of the lowest median loss, among those where every seed came to its end."""
    medians = {
        rate: float(np.median(list(row.values())))
        for rate, row in found.items()
        if None not in row.values()
    }
    return min(medians, key=medians.get, default=None)


def best_row(found: Losses) -> list[float]:
    """The losses of all seeds at the best rate; [] where there is none."""
    best = best_rate(found)
    return [] if best is None else list(found[best].values())


def mean(row: Mapping[int, float | None]) -> dict:
    """The mean over the seeds that came to their end, with its interval."""
    finished = [value for value in row.values() if value is not None]
    return intervals.mean(finished) | {"num_not_finished": len(row) - len(finished)}


def table(found: Losses) -> dict:
    """One series for results.json: every rate, and the best one."""
    best = best_rate(found)
    return {
        "by_rate": [{"rate": rate} | mean(row) for rate, row in found.items()],
        "best_rate": best,
        "at_best": mean(found[best]) if best else None,
    }


def advantage(found: Losses, reference: Losses, rate: float | None = None) -> dict | None:
    """How much lower the loss is than the reference's, nats a token, paired by seed.

    Args:
      rate: of both; None: each at its own best.

    Returns:
      `intervals.ordering` of reference - loss: it "holds" where the loss is lower; and
      "num_not_finished" runs of either, with any of which it is undecided, as those that came to
      their end are then a choice. None where one of them has no such run.
    """
    rates = (best_rate(found), best_rate(reference)) if rate is None else (rate, rate)
    if rates[0] not in found or rates[1] not in reference:
        return None
    own, other = found[rates[0]], reference[rates[1]]
    seeds = [seed for seed in other if seed in own]
    pairs = [(other[seed], own[seed]) for seed in seeds]
    finished = [pair for pair in pairs if None not in pair]
    found = intervals.ordering(*([pair[i] for pair in finished] for i in (0, 1)))
    unfinished = sum(pair.count(None) for pair in pairs)
    return found | {
        "num_not_finished": unfinished,
        "verdict": "undecided" if unfinished else found["verdict"],
    }
