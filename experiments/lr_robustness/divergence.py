"""The paper's three kinds of divergence, as functions of a loss curve (arXiv:2601.19895, §5).

The paper names them and gives no thresholds; those here are `Thresholds`, and NOTES.md shows what
follows from others. All work on the excess e_t = loss_t - u_t, u_t the loss of the unigram model on
the very batch of step t: 0 is the line on which a run stands that has learned token frequencies
alone, whatever the batch. Of the excess the trailing mean over `window_steps` is taken.

An onset is the first step of a fault that lasts to the end of the curve, for `patience_steps` at
least: what a run recovers from is none. The learning rate tolerated is that of the step before.

Dimension letter: S steps.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What counts; the defaults are micro's, chosen before its runs."""

    # Steps of the trailing mean.
    window_steps: int = 10
    # Steps for which a fault must last.
    patience_steps: int = 40
    # Below the unigram line by this much: has learned more than frequencies.
    stagnation_nats: float = 0.05
    # Above its own lowest by this much: a spike.
    spike_nats: float = 0.3
    # Above the healthy run by this much: degraded.
    degradation_nats: float = 0.3

    @classmethod
    def of_run(cls, num_steps: int) -> "Thresholds":
        """The same in longer runs, where a plateau lasts longer and means more."""
        return cls(
            window_steps=max(cls.window_steps, num_steps // 100),
            patience_steps=max(cls.patience_steps, num_steps // 20),
        )


# A run arrives at the unigram line where its excess falls below this; before, it is on its way
# down from the loss of a uniform guess. Guess: a plateau under a large rate stands a little above
# the line.
_ARRIVAL_NATS = 0.3


def excess(loss: np.ndarray, unigram: np.ndarray, window_steps: int) -> np.ndarray:
    """e_t, the mean over the last `window_steps` [S]; infinite from the first that is not finite.

    The first steps average what there is.
    """
    difference = np.asarray(loss, float) - unigram[: len(loss)]
    finite = np.isfinite(difference)
    end = len(difference) if finite.all() else int(np.argmin(finite))
    total = np.concatenate([[0.0], np.cumsum(difference[:end])])
    steps = np.arange(1, end + 1)
    start = np.maximum(0, steps - window_steps)
    smooth = (total[steps] - total[start]) / (steps - start)
    return np.concatenate([smooth, np.full(len(difference) - end, np.inf)])


def stagnation(excess_S: np.ndarray, how: Thresholds) -> int | None:
    """The step at which a run arrives at the unigram line that it never leaves again, or None."""
    tail = _last_fault(excess_S >= -how.stagnation_nats)
    arrived = np.flatnonzero(excess_S[tail:] < _ARRIVAL_NATS)
    if not len(arrived):
        return None  # nothing is lasting, or it has not come down yet
    return _lasting(tail + int(arrived[0]), excess_S, how)


def spike(excess_S: np.ndarray, how: Thresholds) -> int | None:
    """The step from which a run stays above its lowest before by `spike_nats`, or None."""
    lowest = np.minimum.accumulate(excess_S)
    return _lasting(_last_fault(excess_S > lowest + how.spike_nats), excess_S, how)


def degradation(
    excess_S: np.ndarray, healthy: np.ndarray, first_step: int, how: Thresholds
) -> int | None:
    """The step from which a run stays above the healthy one by `degradation_nats`, or None.

    Args:
      excess_S: the run's.
      healthy: the healthy run's, of any length; its lowest so far is what is compared with, the
        last one where it has ended.
      first_step: index of the first step that is judged: where a ramp passes the healthy run's
        rate. Before, it lags as its rate is smaller.
    """
    lowest = np.minimum.accumulate(healthy)
    beside = lowest[np.minimum(np.arange(len(excess_S)), len(lowest) - 1)]
    fault = excess_S > beside + how.degradation_nats
    return _lasting(max(first_step, _last_fault(fault)), excess_S, how)


def onset(
    excess_S: np.ndarray,
    healthy: np.ndarray | None,
    first_step: int,
    how: Thresholds,
    is_diverged: bool = False,
) -> dict[str, int | None]:
    """The onset by each criterion, and "first", the earliest of them: indices into the curve.

    A curve that ends in a number that is not finite, or whose run was stopped as diverged, spikes
    there, however short, unless spikes do not count. Without a healthy run there is no degradation.
    """
    found = {
        "stagnation": stagnation(excess_S, how),
        "spike": spike(excess_S, how),
        "degradation": None if healthy is None else degradation(excess_S, healthy, first_step, how),
    }
    is_finite_S = np.isfinite(excess_S)
    if (is_diverged or not is_finite_S[-1]) and np.isfinite(how.spike_nats):
        end = len(excess_S) - 1 if is_finite_S.all() else int(np.argmin(is_finite_S))
        found["spike"] = end if found["spike"] is None else min(found["spike"], end)
    steps = [step for step in found.values() if step is not None]
    return found | {"first": min(steps, default=None)}


def _last_fault(is_fault_S: np.ndarray) -> int:
    """Index at which the last unbroken stretch of faults begins, up to the end; S if none."""
    good = np.flatnonzero(~is_fault_S)
    return int(good[-1]) + 1 if len(good) else 0


def _lasting(begin: int, excess_S: np.ndarray, how: Thresholds) -> int | None:
    return begin if len(excess_S) - begin >= how.patience_steps else None
