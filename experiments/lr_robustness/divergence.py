"""The paper's three kinds of divergence, as functions of a loss curve (arXiv:2601.19895, §5).

The paper names them without thresholds. Those used here are `Thresholds`; NOTES.md shows what
others would give. All work on the excess e_t = loss_t - u_t, where u_t is the loss of the unigram
model on the same batch of step t. A run that has learned token frequencies alone has an excess of
0, whatever the batch. The excess is smoothed by the trailing mean over `window_steps`.

An onset is the first step of a fault that lasts to the end of the curve, and for at least
`patience_steps`; a fault from which the run recovers has none. The tolerated learning rate is that
of the step before the onset.

Dimension letter: S steps.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What counts as a fault; the defaults are micro's, chosen before its runs."""

    # Steps of the trailing mean.
    window_steps: int = 10
    # Steps for which a fault must last.
    patience_steps: int = 40
    # A run this far below the unigram line has learned more than frequencies.
    stagnation_nats: float = 0.05
    # A run this far above its own lowest excess has a spike.
    spike_nats: float = 0.3
    # A run this far above the healthy run is degraded.
    degradation_nats: float = 0.3

    @classmethod
    def of_run(cls, num_steps: int) -> "Thresholds":
        """Those of a run of this length: in longer runs, windows and patience are longer, too."""
        return cls(
            window_steps=max(cls.window_steps, num_steps // 100),
            patience_steps=max(cls.patience_steps, num_steps // 20),
        )


# A run arrives at the unigram line where its excess falls below this; before, it is still on its
# way down from the loss of a uniform guess. Guess: under a large rate a plateau lies a little above
# the line.
_ARRIVAL_NATS = 0.3


def excess(loss: np.ndarray, unigram: np.ndarray, window_steps: int) -> np.ndarray:
    """e_t, averaged over the last `window_steps` [S]; infinite from the first loss not finite on.

    The first steps are averaged over as many as there are.
    """
    difference = np.asarray(loss, float) - unigram[: len(loss)]
    finite = np.isfinite(difference)
    end = len(difference) if finite.all() else int(np.argmin(finite))
    total = np.concatenate([[0.0], np.cumsum(difference[:end])])
    steps = np.arange(1, end + 1)
    start = np.maximum(0, steps - window_steps)
    smooth = (total[steps] - total[start]) / (steps - start)
    return np.concatenate([smooth, np.full(len(difference) - end, np.inf)])


def stagnation(excess_S: np.ndarray, thresholds: Thresholds) -> int | None:
    """The step at which a run arrives at the unigram line that it never leaves again, or None."""
    tail = _last_fault(excess_S >= -thresholds.stagnation_nats)
    arrived = np.flatnonzero(excess_S[tail:] < _ARRIVAL_NATS)
    if not len(arrived):
        return None  # no fault lasts to the end, or the run has not come down to the line yet
    return _if_lasting(tail + int(arrived[0]), excess_S, thresholds)


def spike(excess_S: np.ndarray, thresholds: Thresholds) -> int | None:
    """The step from which a run stays `spike_nats` above its lowest excess so far, or None."""
    lowest = np.minimum.accumulate(excess_S)
    fault = excess_S > lowest + thresholds.spike_nats
    return _if_lasting(_last_fault(fault), excess_S, thresholds)


def degradation(
    excess_S: np.ndarray, healthy: np.ndarray, first_step: int, thresholds: Thresholds
) -> int | None:
    """The step from which a run stays `degradation_nats` above the healthy one, or None.

    Args:
      excess_S: of the run.
      healthy: of the healthy run, of any length. A step is compared with the healthy run's lowest
        excess up to it, and after the healthy run's end with its lowest of all.
      first_step: index of the first step that is judged, at which a ramp passes the healthy run's
        rate. Before it the ramp lags, as its rate is smaller.
    """
    lowest = np.minimum.accumulate(healthy)
    beside = lowest[np.minimum(np.arange(len(excess_S)), len(lowest) - 1)]
    fault = excess_S > beside + thresholds.degradation_nats
    return _if_lasting(max(first_step, _last_fault(fault)), excess_S, thresholds)


def onset(
    excess_S: np.ndarray,
    healthy: np.ndarray | None,
    first_step: int,
    thresholds: Thresholds,
    is_diverged: bool = False,
) -> dict[str, int | None]:
    """The onset by each criterion, and "first", the earliest of them: indices into the curve.

    A curve that ends in a number that is not finite, or whose run was stopped as diverged, has a
    spike at that step, however short the curve, unless the thresholds leave spikes out. Without a
    healthy run there is no degradation.
    """
    onsets = {
        "stagnation": stagnation(excess_S, thresholds),
        "spike": spike(excess_S, thresholds),
        "degradation": None,
    }
    if healthy is not None:
        onsets["degradation"] = degradation(excess_S, healthy, first_step, thresholds)
    is_finite_S = np.isfinite(excess_S)
    if (is_diverged or not is_finite_S[-1]) and np.isfinite(thresholds.spike_nats):
        end = len(excess_S) - 1 if is_finite_S.all() else int(np.argmin(is_finite_S))
        onsets["spike"] = end if onsets["spike"] is None else min(onsets["spike"], end)
    steps = [step for step in onsets.values() if step is not None]
    return onsets | {"first": min(steps, default=None)}


def _last_fault(is_fault_S: np.ndarray) -> int:
    """Index at which the unbroken stretch of faults up to the end begins; S if there is none."""
    good = np.flatnonzero(~is_fault_S)
    return int(good[-1]) + 1 if len(good) else 0


def _if_lasting(begin: int, excess_S: np.ndarray, thresholds: Thresholds) -> int | None:
    """`begin`, or None if fewer than `patience_steps` follow."""
    return begin if len(excess_S) - begin >= thresholds.patience_steps else None
