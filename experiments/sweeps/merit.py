"""How well a topology bears learning rates, of one seed and then of two topologies side by side.

The primary quantity of a pair is the mean over a registered grid of log rates of the nats by which
the final validation loss is below the unigram line. A run on the line or above it, and one that
diverged, counts 0: it has learned no more than token frequencies. The mean needs no threshold, and
falls both when fewer rates are tolerated and when less is learned at them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweeps import censored, comparison, intervals

# Nats below the unigram line at which a rate counts as usable: the registered ones, and those of
# the curve over thresholds.
EDGE_NATS = (0.1, 0.2, 0.3)
CURVE_NATS = tuple(round(0.05 * step, 2) for step in range(1, 21))

# One seed's final losses by rate; None where the run diverged.
Row = Mapping[float, float | None]


def rows_by_seed(losses: comparison.Losses, grid: Sequence[float]) -> dict[int, Row]:
    """The losses of each seed that has a result at every rate of `grid`, which is not empty."""
    seeds = sorted({seed for row in losses.values() for seed in row})
    return {
        seed: {rate: losses[rate][seed] for rate in grid}
        for seed in seeds
        if all(seed in losses.get(rate, {}) for rate in grid)
    }


def nats_below(row: Row, unigram_nats: float) -> float:
    """The primary quantity of one seed, nats a token."""
    return float(np.mean([_below(loss, unigram_nats) for loss in row.values()]))


def edge(row: Row, unigram_nats: float, nats: float) -> censored.Interval:
    """Between which log10 rates the largest usable one lies: a rate of the grid, and the next.

    Usable are the best rate and those above it up to the first whose loss is not `nats` below the
    unigram line. With no usable rate the edge is below the grid, and where the largest is usable,
    above it: (-inf, log10 least) and (log10 largest, inf).
    """
    rates = sorted(row)
    below = [_below(row[rate], unigram_nats) for rate in rates]
    best = int(np.argmax(below))
    if below[best] < nats:
        return -math.inf, math.log10(rates[0])
    last = best
    while last + 1 < len(rates) and below[last + 1] >= nats:
        last += 1
    above = math.log10(rates[last + 1]) if last + 1 < len(rates) else math.inf
    return math.log10(rates[last]), above


def best_rates_of_others(rows: Mapping[int, Row]) -> dict[int, float | None]:
    """For each seed the rate that is the best of the other seeds: it did not choose for itself.

    The best has the least mean; a rate at which one of them diverged is not chosen. None where no
    rate can be chosen.
    """
    chosen: dict[int, float | None] = {}
    for seed in rows:
        others = [row for other, row in rows.items() if other != seed]
        means = {
            rate: float(np.mean([row[rate] for row in others]))
            for rate in rows[seed]
            if others and all(row[rate] is not None for row in others)
        }
        chosen[seed] = min(means, key=means.__getitem__, default=None)
    return chosen


def is_bracketed(rows: Mapping[int, Row]) -> bool:
    """Whether the rate with the least mean loss has rates of the grid on both sides."""
    grid = sorted(next(iter(rows.values()), {}))
    means = [np.mean([_or_infinite(row[rate]) for row in rows.values()]) for rate in grid]
    return bool(means) and 0 < int(np.argmin(means)) < len(grid) - 1


def summary(rows: Mapping[int, Row], unigram_nats: float) -> dict:
    """One topology for results.json: the primary quantity, and the edge at each threshold."""
    return {
        "nats_below": intervals.mean([nats_below(row, unigram_nats) for row in rows.values()]),
        "log10_edge": {
            f"{nats:g}": censored.mean([edge(row, unigram_nats, nats) for row in rows.values()])
            for nats in CURVE_NATS
        },
        "is_bracketed": is_bracketed(rows),
    }


def compare(
    first: Mapping[int, Row],
    second: Mapping[int, Row],
    unigram_nats: float,
    steps: tuple[Mapping[int, censored.Interval], Mapping[int, censored.Interval]] | None = None,
) -> dict:
    """The first beside the second, paired by seed, as a number that is better if it is larger.

    Args:
      first, second: losses on one grid, by seed.
      steps: log10 of the steps until a run begins to learn more than frequencies, of each, by seed.

    Returns:
      "nats_below": the primary one, a difference in nats. The secondary ones: "edge_0.1" and so on,
      log10 ratios of the largest usable rates; "loss_at_best", by how many nats the loss is lower,
      each at the best rate of the other seeds; "steps", by what log10 factor they are fewer.
      Each an interval with "p" and "verdict"; of the secondary ones "p_holm", corrected for the
      number of them in this pair, decides. Pairs are not corrected for one another.
    """
    seeds = [seed for seed in first if seed in second]
    primary = _exact(
        [
            nats_below(first[seed], unigram_nats) - nats_below(second[seed], unigram_nats)
            for seed in seeds
        ]
    )
    secondary = {
        f"edge_{nats:g}": censored.mean(
            [
                censored.difference(
                    edge(first[seed], unigram_nats, nats), edge(second[seed], unigram_nats, nats)
                )
                for seed in seeds
            ]
        )
        for nats in EDGE_NATS
    }
    own, other = (_at_best_of_others(rows, unigram_nats) for rows in (first, second))
    secondary["loss_at_best"] = _exact(
        [other[seed] - own[seed] for seed in seeds if seed in own and seed in other]
    )
    if steps is not None:
        secondary["steps"] = censored.mean(
            [
                censored.difference(steps[1][seed], steps[0][seed])
                for seed in seeds
                if seed in steps[0] and seed in steps[1]
            ]
        )
    corrected = intervals.holm([row["p"] for row in secondary.values()])
    return {"nats_below": primary | {"verdict": _verdict(primary, primary["p"])}} | {
        name: row | {"p_holm": p, "verdict": _verdict(row, p)}
        for (name, row), p in zip(secondary.items(), corrected, strict=True)
    }


def growth(
    before: tuple[Mapping[int, Row], Mapping[int, Row]],
    after: tuple[Mapping[int, Row], Mapping[int, Row]],
    unigram_nats: float,
) -> dict:
    """How much the first's advantage over the second in `nats_below` grows, paired by seed; nats.

    Args:
      before, after: losses of (first, second) on one grid, by seed.
    """
    seeds = sorted(set.intersection(*(set(rows) for rows in (*before, *after))))

    def advantage(pair, seed):
        first, second = (nats_below(rows[seed], unigram_nats) for rows in pair)
        return first - second

    gains = _exact([advantage(after, seed) - advantage(before, seed) for seed in seeds])
    return gains | {"verdict": _verdict(gains, gains["p"])}


def slope_over_depth(
    by_depth: Mapping[int, tuple[Mapping[int, Row], Mapping[int, Row]]], unigram_nats: float
) -> dict:
    """How the first's advantage over the second grows with depth, nats for each doubling of L.

    The advantage of a seed at a depth is by how much its loss is lower, each at the best rate of
    the other seeds, the unigram line's at most; the slope is that of the line through the seed's
    advantages over log2 L, by least squares.

    Args:
      by_depth: by sub-layers, losses of (first, second), by seed; the grids of depths may differ.

    Returns:
      The mean slope with its interval, "p" and "verdict"; and "depths". Seeds that lack a depth
      take no part.
    """
    depths = sorted(by_depth)
    at_best = {
        depth: [_at_best_of_others(rows, unigram_nats) for rows in by_depth[depth]]
        for depth in depths
    }
    seeds = set.intersection(*(set(rows) for pair in at_best.values() for rows in pair))
    slopes = [
        float(
            np.polyfit(
                np.log2(depths),
                [at_best[depth][1][seed] - at_best[depth][0][seed] for depth in depths],
                deg=1,
            )[0]
        )
        for seed in sorted(seeds)
    ]
    found = _exact(slopes)
    return found | {"verdict": _verdict(found, found["p"]), "depths": depths}


def _at_best_of_others(rows: Mapping[int, Row], unigram_nats: float) -> dict[int, float]:
    """Each seed's loss there, the unigram line's at most; without seeds that have no such rate."""
    return {
        seed: unigram_nats - _below(rows[seed][rate], unigram_nats)
        for seed, rate in best_rates_of_others(rows).items()
        if rate is not None
    }


def _exact(values: Sequence[float]) -> dict:
    return intervals.mean(values) | {"p": intervals.p_value(values)}


def _verdict(row: Mapping, p: float) -> str:
    """ "holds" where the number is above 0, "reversed" below, "undecided" where p does not tell."""
    if p >= 1 - intervals.CONFIDENCE or (row["low"] is None and row["high"] is None):
        return "undecided"
    return "holds" if row["low"] is not None and row["low"] > 0 else "reversed"


def _below(loss: float | None, unigram_nats: float) -> float:
    return 0.0 if loss is None else max(0.0, unigram_nats - loss)


def _or_infinite(loss: float | None) -> float:
    return math.inf if loss is None else loss
