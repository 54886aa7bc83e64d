"""Numbers of the runs at fixed peak rates: largest stable rate, range, sensitivity."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweeps import comparison, intervals

# A run that ends this far below the unigram line has learned more than frequencies.
STABLE_NATS = 0.05
# Rates whose loss is within this of the topology's best are as good as it. Guess.
AS_GOOD_NATS = 0.2


def summary(
    losses: comparison.Losses, rates: Sequence[float], unigram_nats: float, uniform_nats: float
) -> dict:
    """The numbers of one topology and depth.

    A seed with a missing run, which is neither good nor bad, has no stable rate, no range and no
    sensitivity; it is listed under "incomplete_seeds".

    Args:
      rates: all that the preset has.
      unigram_nats: validation loss of the unigram model.
      uniform_nats: log of the vocabulary, the loss of a uniform guess.
    """
    seeds = sorted({seed for row in losses.values() for seed in row})
    whole = [s for s in seeds if all(s in losses.get(rate, {}) for rate in rates)]
    by_seed = {seed: {rate: losses[rate][seed] for rate in rates} for seed in whole}
    stable = {seed: largest_stable(row, unigram_nats) for seed, row in by_seed.items()}
    as_good = [as_good_range(row) for row in by_seed.values()]
    return {
        "incomplete_seeds": [seed for seed in seeds if seed not in whole],
        "largest_stable_rate": stable,
        "as_good_range": [
            {"seed": seed, "least": low, "greatest": high}
            for seed, (low, high) in zip(whole, as_good, strict=True)
        ],
        "as_good_decades": intervals.mean(
            [np.log10(high / low) for low, high in as_good if low and high]
        ),
        "sensitivity_nats": intervals.mean(
            [sensitivity(row, uniform_nats) for row in by_seed.values()]
        ),
    }


def largest_stable(row: Mapping[float, float | None], unigram_nats: float) -> float | None:
    """The largest rate up to which, from the best one on, every run is stable; of one seed."""
    stable = {
        rate: loss
        for rate, loss in row.items()
        if loss is not None and loss < unigram_nats - STABLE_NATS
    }
    if not stable:
        return None
    largest = min(stable, key=stable.__getitem__)
    for rate in sorted(rate for rate in row if rate > largest):
        if rate not in stable:
            break
        largest = rate
    return largest


def as_good_range(row: Mapping[float, float | None]) -> tuple[float | None, float | None]:
    """The widest range of neighbouring rates around the best whose losses are as good as it."""
    finite = {rate: loss for rate, loss in row.items() if loss is not None}
    if not finite:
        return None, None
    rates = sorted(row)
    best = rates.index(min(finite, key=finite.__getitem__))
    limit = finite[rates[best]] + AS_GOOD_NATS
    low = high = best
    while low > 0 and finite.get(rates[low - 1], np.inf) <= limit:
        low -= 1
    while high + 1 < len(rates) and finite.get(rates[high + 1], np.inf) <= limit:
        high += 1
    return rates[low], rates[high]


def sensitivity(row: Mapping[float, float | None], uniform_nats: float) -> float:
    """Mean over the rates of min(loss, uniform guess) - lowest loss (arXiv:2309.14322, §2)."""
    capped = [uniform_nats if loss is None else min(loss, uniform_nats) for loss in row.values()]
    return float(np.mean(capped) - min(capped))
