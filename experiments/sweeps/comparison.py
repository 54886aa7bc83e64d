"""Final losses of a sweep side by side: by rate, at the best rate, and as differences by seed."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweeps import intervals
from experiments.sweeps import outcome as outcome_lib

_EVAL_LOSS = "eval/loss_nats_per_token"

# By peak rate, then by seed; None where the run did not complete.
Losses = Mapping[float, Mapping[int, float | None]]


def losses_by_rate(
    outcomes: Sequence[outcome_lib.Outcome], metric: str = _EVAL_LOSS
) -> dict[float, dict[int, float | None]]:
    """The final value of a metric of those points of one series that have a result."""
    losses: dict[float, dict[int, float | None]] = {}
    for outcome in outcomes:
        if outcome.has_result:
            row = losses.setdefault(outcome.point.peak_lr, {})
            row[outcome.point.seed] = outcome.final(metric)
    return dict(sorted(losses.items()))


def losses_by_series(
    outcomes: Sequence[outcome_lib.Outcome], metric: str = _EVAL_LOSS
) -> dict[str, Losses]:
    """`losses_by_rate` of every series that has a result, in order."""
    members: dict[str, list[outcome_lib.Outcome]] = {}
    for outcome in outcomes:
        members.setdefault(outcome.point.series, []).append(outcome)
    losses = {series: losses_by_rate(group, metric) for series, group in members.items()}
    return {series: rows for series, rows in losses.items() if rows}


def best_rate(losses: Losses) -> float | None:
    """The rate of the lowest median loss, among those at which the runs of all seeds completed."""
    medians = {
        rate: float(np.median(_finished(row)))
        for rate, row in losses.items()
        if None not in row.values()
    }
    return min(medians, key=medians.__getitem__, default=None)


def best_row(losses: Losses) -> list[float]:
    """The losses of all seeds at the best rate; [] where there is no such rate."""
    best = best_rate(losses)
    return [] if best is None else _finished(losses[best])


def mean(row: Mapping[int, float | None]) -> dict:
    """The mean over the seeds whose runs completed, with its interval."""
    finished = _finished(row)
    return intervals.mean(finished) | {"num_not_finished": len(row) - len(finished)}


def table(losses: Losses) -> dict:
    """One series for results.json: every rate, and the best one."""
    best = best_rate(losses)
    return {
        "by_rate": [{"rate": rate} | mean(row) for rate, row in losses.items()],
        "best_rate": best,
        "at_best": mean(losses[best]) if best else None,
    }


def advantage(losses: Losses, reference: Losses, rate: float | None = None) -> dict | None:
    """How much lower the loss is than the reference's, nats a token, paired by seed.

    Args:
      rate: of both; None: each at its own best.

    Returns:
      `intervals.ordering` of reference - loss, which "holds" where the loss is lower, and
      "num_not_finished", the runs of either that did not complete. With any such run the verdict is
      "undecided": the remaining pairs are not a fair choice. None where either has no run at the
      rate.
    """
    own_rate = best_rate(losses) if rate is None else rate
    other_rate = best_rate(reference) if rate is None else rate
    if own_rate is None or other_rate is None:
        return None
    if own_rate not in losses or other_rate not in reference:
        return None
    own, other = losses[own_rate], reference[other_rate]
    pairs = [(other[seed], own[seed]) for seed in other if seed in own]
    finished = [(a, b) for a, b in pairs if a is not None and b is not None]
    ordering = intervals.ordering([a for a, _ in finished], [b for _, b in finished])
    num_unfinished = sum(pair.count(None) for pair in pairs)
    return ordering | {
        "num_not_finished": num_unfinished,
        "verdict": "undecided" if num_unfinished else ordering["verdict"],
    }


def _finished(row: Mapping[int, float | None]) -> list[float]:
    return [loss for loss in row.values() if loss is not None]
