"""Whether the gradient still reaches the first sub-layers: the early sign of a run that dies.

A deep model whose branches outgrow its stream loses the gradient at its bottom, and need not
diverge (docs/telemetry.md). The sign is the cotangent of the stream at the bottom compared with
that at the top.
"""

import math
from collections.abc import Mapping

import numpy as np

# Below this the gradient counts as lost. A guess: in a pilot with Keel at 256 sub-layers the ratio
# was 0.5 to 1.1 in two runs that learned, and at most 2e-4 in those that stayed at the unigram
# line.
LOST = 1e-3


def cotangent_ratio(record: Mapping[str, np.ndarray]) -> float:
    """RMS of the stream's cotangent where it enters the first sub-layer, over that at the last.

    Args:
      record: the statistics of one step, [N, 2] each; "cotangent_rms" is read.

    Returns:
      NaN if there is none at the top.
    """
    cotangent_N2 = np.asarray(record["cotangent_rms"], np.float64)
    top = cotangent_N2[-1, -1]
    return float(cotangent_N2[0, 0] / top) if top > 0 else math.nan


class Watch:
    """Says once per start of a trial that its gradient no longer reaches the bottom."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._has_warned = False

    def check(self, step: int, ratio: float) -> str | None:
        """The warning of a step whose `cotangent_ratio` is lost for the first time, or None."""
        before, self._first = self._first, self._first or (step, ratio)
        if self._has_warned or not ratio < LOST:
            return None
        self._has_warned = True
        since = f" ({before[1]:.2g} in step {before[0]})" if before else ""
        return (
            f"step {step}: the gradient does not reach the first sub-layers. The RMS of the "
            f"stream's cotangent at the bottom is {ratio:.2g} of that at the top{since}. A lower "
            "rate or a longer warm-up may help (docs/telemetry.md)."
        )
