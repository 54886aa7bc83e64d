"""The loop: dispatch step t, then read step t - 1; so the device never waits for the host.

It is independent of the model and of file formats: it calls compiled functions, and passes on what
they return.
"""

import collections.abc
import dataclasses

import jax

from keel_jax import config
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import distributed, exit_codes
from keel_jax.training import (
    checkpoint_meta,
    living_trials,
    logs,
    metrics,
    profiling,
    repeatability,
    telemetry_records,
    transfer,
    validations,
)
from keel_jax.training import programs as programs_lib
from keel_jax.training import progress as progress_lib
from keel_jax.training import state as state_lib


@dataclasses.dataclass
class _Unread:
    """A step that has been dispatched but whose results have not been read yet."""

    step: int
    # What the step returned besides the state; device arrays.
    sums: dict
    batch: dict
    # The results of the telemetry program for it; None if that was not run.
    statistics: dict | None


@dataclasses.dataclass(kw_only=True)
class Loop:
    """One run of the loop over all trials: its functions and its state."""

    cfg: config.Config
    programs: programs_lib.Programs
    # Global batches from the first step on.
    batches: collections.abc.Iterator[dict]
    # What of the first step is in the logs already.
    logged: logs.Logged
    # (params, stop asked?) -> the scores of benchmarks of each trial, or None after a stop request.
    examination: collections.abc.Callable | None
    # Metadata of the run as it began, or as the checkpoint from which it continues has them.
    meta: checkpoint_meta.Meta
    # Writes a checkpoint in the background.
    save: collections.abc.Callable[[state_lib.TrainState, checkpoint_meta.Meta], None]
    # Called before every step: raises the error of a save that failed.
    check_saved: collections.abc.Callable[[], None]
    # Writes one row of metrics for a trial.
    write: collections.abc.Callable[[int, dict], None]
    # Called with each step whose metrics were logged.
    on_logged: collections.abc.Callable[[int], None]
    # Records statistics of the steps that are due, and of those that diverge.
    telemetry: telemetry_records.Recorder
    progress: progress_lib.Progress
    # Whether the run was asked to stop.
    stop_asked: collections.abc.Callable[[], bool]
    # Bytes of text per token, of the training and of the validation split.
    bytes_per_token: tuple[float, float]
    # bf16 FLOP/s of all devices together; None if the chip is not known.
    peak_flops: float | None
    trace: profiling.StepTrace
    clock: clock_lib.Clock

    def run(self, state: state_lib.TrainState, step: int) -> tuple[int, int, state_lib.TrainState]:
        """Trains from `step` until every trial has ended or diverged, or to a stop request.

        Returns:
          The exit code, the steps taken by the longest-lived trial, and the last state, saved.
        """
        self.clock.begin_steps()
        self._check = repeatability.Check(self.cfg.train.check_every_steps, self.clock)
        self._interval = _Interval(self.clock, step)
        self._trials = living_trials.LivingTrials(self.cfg, state)
        self._validations = validations.Validations(self.cfg.num_trials, self.meta.validations)
        self._validated_at = self._examined_at = 0
        self._unread: _Unread | None = None
        # The state after the last dispatched step.
        self._state = state
        self._first_step = step
        self._saved_at = self.clock.total
        if self._is_validated(step):
            # The previous run was stopped during this validation.
            self._evaluate(step, state)
            state = self._stop_early(step, state)
        if self._is_examined(step):
            self._examine(step, state)
        with self.trace:
            while self._trials.go_on(step) and not self.stops(step):
                self.check_saved()
                if self.trace.begins_before(step + 1):
                    self._read_last()
                    self.trace.start()
                with self.clock.measure("data_wait"):
                    batch = next(self.batches)
                # Before the step, which donates the state.
                is_due = self.telemetry.is_due(step + 1)
                statistics = self.telemetry.compute(state, batch) if is_due else None
                state, sums = self._step(step + 1, state, batch)
                step, self._state = step + 1, state
                self._read_last()
                self._unread = _Unread(step, sums, batch, statistics)
                if self.trace.ends_after(step):
                    self._read_last()
                    self.trace.stop()
                state = self._state = self._pause(step, state)
            self._read_last()
        return self._finish(step, state)

    def _step(self, step: int, state, batch: dict):
        """The state after `step` and its sums; checked if that is due."""
        if not self._check.is_due(step):
            return self.programs.train_step(state, batch)
        self._read_last()  # whose time is not the check's
        return self._check.run(self.programs.train_step, step, state, batch)

    def stops(self, step: int) -> bool:
        """Whether to stop at `step`; called before every batch, also during validation."""
        self.clock.beat()
        return self.stop_asked()

    def _finish(self, step: int, state):
        """Saves before anything else, so that nothing is lost if the run is killed from here on."""
        diverged, goes_on = not any(self._trials.is_alive), self._trials.go_on(step)
        step = step if goes_on else int(transfer.fetch(state.step).max())
        self._save(step, state, diverged=diverged)
        if diverged:
            return exit_codes.DIVERGED, step, state
        if goes_on or self._evaluate(step, state) is None or not self._examine(step, state):
            return exit_codes.PREEMPTED, step, state
        self._name_best(step)
        return exit_codes.DONE, step, state

    def _pause(self, step: int, state):
        """Validates and copies the state for a checkpoint, if these are due; returns the state."""
        train = self.cfg.train
        evaluates = self._is_validated(step)
        saves = self._is_due(step, train.checkpoint_every_steps) or self._is_time_to_save(step)
        if not (evaluates or saves or self._is_examined(step)):
            return state
        self._read_last()
        losses = self._evaluate(step, state) if evaluates else None
        state = self._stop_early(step, state)
        if self._is_examined(step):
            self._examine(step, state)
        if (saves or (losses and train.keep_best)) and any(self._trials.is_alive):
            found = [loss for loss in losses or [] if loss is not None]
            self._save(step, state, eval_loss=min(found, default=None))
        self._interval = _Interval(self.clock, step)
        return state

    def _save(self, step: int, state, **more):
        now = {
            "validations": self._validations.to_json(),
            "trial_steps": [min(step, end) for end in self._trials.ends],
        }
        with self.clock.measure("checkpoint_wait"):
            self.save(state, dataclasses.replace(self.meta, step=step, **now, **more))
        self._saved_at = self.clock.total

    def _is_validated(self, step: int) -> bool:
        """Whether `step` is followed by a validation: by the option, or as a trial ends there."""
        is_an_end = step in self.cfg.trial_steps and self._is_due(step, step)
        return is_an_end or self._is_due(step, self.cfg.train.eval_every_steps)

    def _is_examined(self, step: int) -> bool:
        """Whether `step` is followed by benchmarks: by the option, or as a trial ends there."""
        is_an_end = step in self._trials.ends and self._is_due(step, step)
        return is_an_end or self._is_due(step, self.cfg.tasks.every_steps)

    def _stop_early(self, step: int, state):
        """The state after the validation of `step`; trials that do not improve are over in it."""
        state, messages = self._trials.stop_early(step, state, self._validations)
        for message in messages:
            self.progress.step(step, message)
        return state

    def _name_best(self, step: int):
        """Says which of several trials had the lowest validation loss, and where."""
        best = self._validations.best_trial()
        if self.cfg.num_trials > 1 and best is not None:
            self.progress.step(
                step,
                f"lowest validation loss: {self._validations.lowest[best]:.4f} nats/token of "
                f"{self._trials.name(best)} at step {self._validations.at_step[best]}",
            )

    def _is_time_to_save(self, step: int) -> bool:
        """Whether `checkpoint_every_minutes` have passed; all processes ask at the same steps."""
        seconds = 60 * self.cfg.train.checkpoint_every_minutes
        if not (seconds and self._is_due(step, self.cfg.train.log_every_steps)):
            return False
        # Clocks differ. The answer is read implicitly, which the transfer guard would refuse.
        with jax.transfer_guard("allow"):
            [is_time] = distributed.from_lead(self.clock.total - self._saved_at >= seconds)
        return bool(is_time)

    def _is_due(self, step: int, every: int) -> bool:
        return bool(every) and 0 < step < self.cfg.train.num_steps and step % every == 0

    def _read_last(self):
        """Waits for the unread step's sums, and logs them if that is due."""
        if self._unread is None:
            return
        last, self._unread = self._unread, None
        step, trials = last.step, transfer.per_trial(last.sums, self.cfg.num_trials)
        self.clock.finish_step(step)
        newly_dead = [
            i for i, trial in enumerate(trials) if trial["diverged"] and self._trials.is_alive[i]
        ]
        self._record_telemetry(last, newly_dead, trials)
        logged = step % self.cfg.train.log_every_steps == 0 or step in (1, *self.cfg.trial_steps)
        if not (logged or newly_dead):
            self.progress.step(step, None)
            return
        speed = self._interval.close(step, self.cfg, self.peak_flops)
        rows = [self._row(step, trial, speed) for trial in trials]
        for trial, trains in enumerate(self._trials.train_at(step)):
            if trains:
                self.write(trial, rows[trial])
        for trial in newly_dead:
            self._trials.is_alive[trial] = False
        self.progress.step(
            step,
            f"loss {self._trials.as_text(step, rows, 'train/loss_nats_per_token')} nats/token  "
            f"grad norm {self._trials.as_text(step, rows, 'train/grad_norm')}  "
            f"lr {trials[0]['learning_rate']:.3g}  {speed['time/tokens_per_second']:,.0f} tokens/s",
        )
        self.on_logged(step)
        self._interval = _Interval(self.clock, step)

    def _record_telemetry(self, last: _Unread, newly_dead: list[int], trials: list[dict]):
        """Keeps the statistics of a step that was due or that diverged.

        A diverged trial still has the state before the diverging step.
        """
        statistics = last.statistics
        recorded = [
            trial for trial, trains in enumerate(self._trials.train_at(last.step)) if trains
        ]
        if statistics is None and newly_dead:
            statistics, recorded = self.telemetry.compute(self._state, last.batch), newly_dead
        if statistics is not None:
            # The train step's own block statistics: the telemetry program is differentiated
            # without the plan `reversible`.
            own = metrics.block_statistics(trials[0])
            statistics = statistics | {name: last.sums[name] for name in own}
        self.telemetry.record(last.step, statistics, recorded)
        for trial in newly_dead:
            self.telemetry.explain(trial, last.step, trials[trial])

    def _row(self, step: int, trial: dict, speed: dict) -> dict:
        return {
            "step": step,
            "tokens": step * self.cfg.train.tokens_per_step,
            **metrics.loss_metrics("train", trial, self.bytes_per_token[0]),
            "train/grad_norm": trial["grad_norm"],
            "train/param_norm": trial["param_norm"],
            "train/learning_rate": trial["learning_rate"],
            **metrics.step_statistics(trial),
            **speed,
        }

    def _evaluate(self, step: int, state) -> list[float | None] | None:
        """Validates, unless that is logged.

        Returns:
          The loss of every trial, None of those that have ended before; [] if they were logged.
          None if a stop request came first.
        """
        due = self._unlogged(step, self.logged.is_evaluated, step == self._validated_at)
        if not any(due):
            return []  # the previous run was stopped after this validation
        # The same batches each time, so that the points of the curve are comparable.
        with self.clock.measure("evaluation"):
            trials = self.programs.evaluator.run(
                state.params,
                self.cfg.train.eval_num_batches,
                stop_asked=lambda: self.stops(step),
            )
        if trials is None:
            return None
        rows = [metrics.loss_metrics("eval", sums, self.bytes_per_token[1]) for sums in trials]
        for trial, row in enumerate(rows):
            if due[trial]:
                self.write(trial, {"step": step, **row})
        losses = self._trials.as_text(step, rows, "eval/loss_nats_per_token")
        per_byte = self._trials.as_text(step, rows, "eval/bits_per_byte")
        self.progress.step(step, f"validation {losses} nats/token, {per_byte} bits/byte")
        found = [
            row["eval/loss_nats_per_token"] if is_due else None
            for row, is_due in zip(rows, due, strict=True)
        ]
        self._validations.add(step, found)
        self._validated_at = step
        return found

    def _examine(self, step: int, state) -> bool:
        """Scores the benchmarks, unless that is logged; False if a stop request came first."""
        due = self._unlogged(step, self.logged.is_examined, step == self._examined_at)
        if self.examination is None or not any(due):
            return True
        with self.clock.measure("evaluation"):
            rows = self.examination(state.params, lambda: self.stops(step))
        if rows is None:
            return False
        for trial, row in enumerate(rows):
            if due[trial]:
                self.write(trial, {"step": step, **row})
        average = self._trials.as_text(step, rows, "tasks/average")
        self.progress.step(step, f"benchmarks {average} on average")
        self._examined_at = step
        return True

    def _unlogged(
        self, step: int, is_logged: collections.abc.Sequence[bool], is_done: bool
    ) -> list[bool]:
        """Of each trial, whether it still trains at `step` and its log lacks what `is_logged` says.

        Args:
          is_logged: of the first step, by the run before.
          is_done: whether this run has done it.
        """
        logged = is_logged if step == self._first_step else [False] * self.cfg.num_trials
        return [
            trains and not (before or is_done)
            for trains, before in zip(self._trials.train_at(step), logged, strict=True)
        ]


class _Interval:
    """The steps since the last logged one, and their wall-clock time without that of checks."""

    def __init__(self, clock: clock_lib.Clock, step: int):
        self._clock, self._step = clock, step
        self._total, self._data_wait = clock.total - clock["check"], clock["data_wait"]

    def close(self, step: int, cfg: config.Config, peak_flops: float | None) -> dict[str, float]:
        """Speed from the last logged step to `step`."""
        seconds = self._clock.total - self._clock["check"] - self._total
        wait_fraction = (self._clock["data_wait"] - self._data_wait) / seconds
        steps = max(1, step - self._step)
        return metrics.speed_metrics(cfg, seconds / steps, wait_fraction, peak_flops)
