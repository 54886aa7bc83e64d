"""How runs at fixed rates learn: when they leave the unigram line, and how gradients spike."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.lr_robustness import divergence, ramps
from experiments.sweeps import censored, intervals, merit
from experiments.sweeps import outcome as outcome_lib

# Nats below the unigram line, on the same batches, at which a run has begun to learn more.
LEARNING_NATS = 0.1
# A gradient norm this many times the median of the steps before it is a spike. Guess, chosen before
# the runs; the largest ratio does not depend on it.
SPIKE_RATIO = 5.0
# Steps of that median, which are also left out at the beginning. Guess: longer than a spike lasts.
SPIKE_WINDOW_STEPS = 50


def steps_until_below(
    outcomes: Sequence[outcome_lib.Outcome], rows: Mapping[int, merit.Row], data: str
) -> dict[int, censored.Interval]:
    """log10 of the steps until LEARNING_NATS below the line, by seed, at the others' best rate.

    The loss is averaged over `divergence.Thresholds.window_steps`. Of a run that does not get there
    the number is only known to exceed its length.
    """
    by_seed = {}
    for seed, rate in merit.best_rates_of_others(rows).items():
        chosen = [o for o in outcomes if (o.point.seed, o.point.peak_lr) == (seed, rate)]
        for curve in ramps.load_curves(chosen, data):
            window = divergence.Thresholds.of_run(len(curve.loss)).window_steps
            smooth = divergence.excess(curve.loss, curve.unigram, window)
            below = np.flatnonzero(smooth <= -LEARNING_NATS)
            step = math.log10(below[0] + 1) if len(below) else math.log10(len(smooth))
            by_seed[seed] = (step, step if len(below) else math.inf)
    return by_seed


def spikes(outcomes: Sequence[outcome_lib.Outcome]) -> dict:
    """How many steps of a run are spikes of the gradient norm before clipping, and the largest.

    Returns:
      "count", the mean over seeds; "log10_largest", that of the largest ratio of a gradient norm to
      the median of the SPIKE_WINDOW_STEPS before it; "num_broken_off", the runs that diverged,
      which are in both means up to their last finite norm, if there is any after the window.
    """
    ended = [outcome for outcome in outcomes if outcome.has_result]
    ratios = [_ratios(outcome.curve("train/grad_norm")[1]) for outcome in ended]
    ratios = [row for row in ratios if len(row)]
    return {
        "num_broken_off": sum(outcome.state == outcome_lib.DIVERGED for outcome in ended),
        "count": intervals.mean([float((row > SPIKE_RATIO).sum()) for row in ratios]),
        "log10_largest": intervals.mean([math.log10(row.max()) for row in ratios]),
    }


def _ratios(norms_S: np.ndarray) -> np.ndarray:
    """Each norm over the median of the window before it; where a number is not finite, none."""
    norms_S = norms_S[: _num_finite(norms_S)]
    if len(norms_S) <= SPIKE_WINDOW_STEPS:
        return np.zeros(0)
    windows = np.lib.stride_tricks.sliding_window_view(norms_S[:-1], SPIKE_WINDOW_STEPS)
    return norms_S[SPIKE_WINDOW_STEPS:] / np.median(windows, axis=1)


def _num_finite(values_S: np.ndarray) -> int:
    """The number of values before the first that is not finite."""
    finite = np.isfinite(values_S)
    return len(values_S) if finite.all() else int(np.argmin(finite))
