"""The lowest validation loss of every trial so far: when to stop early, and which trial is best."""

import math
from collections.abc import Mapping, Sequence

from keel_jax import errors


class Validations:
    """Each trial's lowest loss, its step, and the validations since; kept in checkpoints.

    Attributes:
      lowest: nats per token of each trial; None before the first validation.
      at_step: the step of that validation.
      num_since: validations after it.
    """

    def __init__(self, num_trials: int, saved: Mapping | None = None):
        """Continues from what `to_json` returned, if that is given.

        Raises:
          UserError: it is damaged.
        """
        self._step = 0
        self.lowest: list[float | None] = [None] * num_trials
        self.at_step = [0] * num_trials
        self.num_since = [0] * num_trials
        if saved is None:
            return
        try:
            self._step = int(saved["step"])
            self.lowest = [None if loss is None else float(loss) for loss in saved["lowest"]]
            self.at_step, self.num_since = ([*map(int, saved[k])] for k in ("at_step", "num_since"))
            lengths = {len(self.lowest), len(self.at_step), len(self.num_since)}
            if lengths != {num_trials}:
                raise ValueError(f"of {lengths} trials, not {num_trials}")
        except (KeyError, TypeError, ValueError) as error:
            raise errors.UserError(
                f"A checkpoint's record of validations is damaged ({error}): move the checkpoint "
                "away, and the run continues from the one before."
            ) from error

    def to_json(self) -> dict[str, object]:
        """What a checkpoint holds."""
        return {
            "step": self._step,
            "lowest": self.lowest,
            "at_step": self.at_step,
            "num_since": self.num_since,
        }

    def add(self, step: int, losses: Sequence[float | None]) -> None:
        """Records the validation of `step`, once; None: the trial was not validated."""
        if step <= self._step:
            return
        self._step = step
        for trial, loss in enumerate(losses):
            if loss is None:
                continue
            lowest = self.lowest[trial]
            if loss < (math.inf if lowest is None else lowest):  # NaN is none
                self.lowest[trial], self.at_step[trial], self.num_since[trial] = loss, step, 0
            else:
                self.num_since[trial] += 1

    def best_trial(self) -> int | None:
        """The trial with the lowest loss, the first of equal ones; None before any validation."""
        losses = [math.inf if loss is None else loss for loss in self.lowest]
        best = min(range(len(losses)), key=losses.__getitem__)
        return None if self.lowest[best] is None else best
