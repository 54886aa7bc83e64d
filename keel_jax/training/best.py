"""Which of a run's trials and checkpoints has the lowest validation loss: `--step=best`."""

import json
import math
from collections.abc import Mapping, Sequence

from etils import epath

from keel_jax import config, errors
from keel_jax.training import logs, trials

_LOSS = "eval/loss_nats_per_token"


def choose(
    holder: epath.Path, cfg: config.Config, steps: Sequence[int], trial: int | None
) -> tuple[int, int]:
    """(trial, step of the checkpoint) with the lowest validation loss.

    The losses are those of the logs, or, of a run of one trial, those that its checkpoints hold. A
    trial that has ended before the run is in later checkpoints as it was at its end.

    Args:
      holder: the directory that holds the checkpoints.
      cfg: of the run in it.
      steps: of its checkpoints.
      trial: if not None, only this one.

    Raises:
      UserError: no state in a checkpoint was validated.
    """
    logged = [_losses(directory) for directory in trials.directories(holder, cfg)]
    candidates = []
    for step in steps:
        meta = _meta(holder, step)
        states = meta.get("trial_steps")
        if not isinstance(states, list) or not all(isinstance(at, int) for at in states):
            states = [step] * cfg.num_trials
        for number, (losses, at) in enumerate(zip(logged, states, strict=False)):
            loss = losses.get(at, meta.get("eval_loss") if cfg.num_trials == 1 else None)
            if trial in (None, number) and isinstance(loss, float) and math.isfinite(loss):
                candidates.append((loss, step, number))
    if not candidates:
        raise errors.UserError(
            f"{holder}/checkpoints holds no state with a validation loss: a run with "
            "train.eval_every_steps writes and keeps them with train.keep_best."
        )
    _, step, number = min(candidates)
    return number, step


def _losses(directory: epath.Path) -> Mapping[int, float]:
    """The validation losses in a trial's log, by step."""
    return {row["step"]: row[_LOSS] for row in logs.read(directory) if row.get(_LOSS) is not None}


def _meta(holder: epath.Path, step: int) -> dict:
    """A checkpoint's metadata; {} if they cannot be read, which is told when it is restored."""
    try:
        text = (holder / "checkpoints" / str(step) / "meta" / "metadata").read_text()
        values = json.loads(text)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
