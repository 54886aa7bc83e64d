"""Which checkpoints of a run stay: the newest, every n-th step, and those of the lowest losses."""

import json
import math
from collections.abc import Sequence

from etils import epath
from orbax.checkpoint import checkpoint_managers

from keel_jax import config


def policy(
    directory: epath.Path, train: config.TrainConfig | None
) -> checkpoint_managers.PreservationPolicy:
    """Orbax's policy for the checkpoints in `directory`; of a reader (no options), all of them."""
    if train is None:
        return checkpoint_managers.LatestN(None)
    kept: list[checkpoint_managers.PreservationPolicy]
    kept = [checkpoint_managers.LatestN(train.keep_checkpoints)]
    if train.keep_every_steps:
        kept.append(checkpoint_managers.EveryNSteps(train.keep_every_steps))
    if train.keep_best:
        kept.append(_Best(directory, train.keep_best))
    return checkpoint_managers.AnyPreservationPolicy(kept)


class _Best:
    """The n checkpoints with the lowest validation losses.

    Orbax's own `BestN` needs another file in each checkpoint; the losses are in `meta` already.
    """

    def __init__(self, directory: epath.Path, num_kept: int):
        self._losses, self._num_kept = _Losses(directory), num_kept

    def should_preserve(
        self, checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo], *, context: object
    ) -> list[bool]:
        del context
        best = self._losses.ascending([checkpoint.step for checkpoint in checkpoints])
        kept = set(best[: self._num_kept])
        return [checkpoint.step in kept for checkpoint in checkpoints]


class _Losses:
    """The validation losses of checkpoints, by their steps; each is read once."""

    def __init__(self, directory: epath.Path):
        self._directory = directory
        self._known: dict[int, float] = {}

    def ascending(self, steps: Sequence[int]) -> list[int]:
        """The steps that were validated, those with the lowest losses first, older before newer."""
        return sorted((s for s in sorted(steps) if self._is_known(s)), key=self._known.__getitem__)

    def _is_known(self, step: int) -> bool:
        if step not in self._known and (loss := self._read(step)) is not None:
            self._known[step] = loss
        return step in self._known

    def _read(self, step: int) -> float | None:
        """Nats per token; None if this state was not validated, or is being written."""
        try:
            text = (self._directory / str(step) / "meta" / "metadata").read_text()
            loss = float(json.loads(text)["eval_loss"])
        except (OSError, ValueError, KeyError, TypeError):  # damage is found when it is restored
            return None
        return loss if math.isfinite(loss) else None
