"""Which trials of a run still train: those that neither diverged nor ended."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from keel_jax import config
from keel_jax.training import state as state_lib
from keel_jax.training import transfer, validations


class LivingTrials:
    """The trials of a run, as its state has them.

    Attributes:
      is_alive: whether each has not diverged.
      ends: the last step of each: of its own length, or at which it was stopped early.
    """

    def __init__(self, cfg: config.Config, state: state_lib.TrainState):
        self._cfg = cfg
        steps, rates, diverged = (
            values.reshape(-1)
            for values in transfer.fetch((state.step, state.peak_lr, state.diverged))
        )
        self.is_alive = [not trial for trial in diverged]
        self.ends = [
            end if rate else int(at)
            for end, rate, at in zip(cfg.trial_steps, rates, steps, strict=True)
        ]

    def train_at(self, step: int) -> list[bool]:
        """Whether each trial takes the step, or ends with it."""
        return [alive and step <= end for alive, end in zip(self.is_alive, self.ends, strict=True)]

    def go_on(self, step: int) -> bool:
        """Whether one is still to be trained after `step`."""
        return any(self.train_at(step + 1))

    def stop_early(
        self, step: int, state: state_lib.TrainState, found: validations.Validations
    ) -> tuple[state_lib.TrainState, list[str]]:
        """The state in which trials that no longer improve are over, and what to say of each."""
        patience = self._cfg.train.early_stopping_validations
        goes_on = self.train_at(step + 1)
        stopped = [
            trial
            for trial, since in enumerate(found.num_since)
            if patience and since >= patience and goes_on[trial]
        ]
        if not stopped:
            return state, []
        messages = []
        for trial in stopped:
            self.ends[trial] = step
            messages.append(
                f"{self.name(trial)} stops early: {found.num_since[trial]} validations since "
                f"{found.lowest[trial]:.4f} nats/token at step {found.at_step[trial]}"
            )
        rates = np.array(transfer.fetch(state.peak_lr))
        rates.reshape(-1)[stopped] = 0  # a view: `rates` is contiguous
        with jax.transfer_guard("allow"):
            peak_lr = transfer.put_everywhere(rates, state.peak_lr.sharding)
        return dataclasses.replace(state, peak_lr=peak_lr), messages

    def name(self, trial: int) -> str:
        """For messages."""
        if self._cfg.num_trials == 1:
            return "the run"
        peak_lr, seed = self._cfg.trial_settings[trial]
        num_steps = self._cfg.trial_steps[trial]
        return f"trial {trial:03} (peak_lr {peak_lr:g}, seed {seed}, {num_steps} steps)"

    def as_text(self, step: int, rows: Sequence[Mapping[str, float]], name: str) -> str:
        """One number per trial."""
        return " ".join(
            ("ended" if step > end else f"{row[name]:.4f}") if alive else "diverged"
            for row, alive, end in zip(rows, self.is_alive, self.ends, strict=True)
        )
