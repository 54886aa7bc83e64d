"""The loop: dispatch step t, then read step t - 1; so the host never waits for the device.

It knows no model and no file format: it drives compiled functions, and tells what they return.
"""

import collections.abc
import contextlib
import dataclasses

import jax

from keel_jax import config
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import exit_codes
from keel_jax.training import evaluation, metrics, transfer
from keel_jax.training import state as state_lib
from keel_jax.training import telemetry as telemetry_lib


@dataclasses.dataclass(kw_only=True)
class Loop:
    """One run of the loop over all lanes: what it drives, and what it has counted."""

    cfg: config.Config
    train_step: collections.abc.Callable
    # Global batches from the first step on.
    batches: collections.abc.Iterator[dict]
    evaluator: evaluation.Evaluator
    # Whether the first step's validation, if one is due there, is in the log already.
    is_evaluated: bool
    # (step, state, diverged): writes a checkpoint in the background.
    save: collections.abc.Callable
    # One row of metrics for a lane.
    write: collections.abc.Callable[[int, dict], None]
    # (step): a step's numbers were logged.
    on_logged: collections.abc.Callable[[int], None]
    # Looks at the steps that are due, and at those that diverge.
    telemetry: telemetry_lib.Recorder
    progress: metrics.Progress
    # Whether the run was asked to stop.
    stop_asked: collections.abc.Callable[[], bool]
    # Bytes of text per token, of the training and of the validation split.
    bytes_per_token: tuple[float, float]
    # bf16 FLOP/s of all devices together; None if the chip is not known.
    peak_flops: float | None
    # Where device traces go.
    trace_directory: str
    clock: clock_lib.Clock

    def run(self, state: state_lib.TrainState, step: int) -> tuple[int, int, state_lib.TrainState]:
        """Trains from `step` to the end, to a stop request, or until every lane has diverged.

        Returns:
          The exit code, the steps taken by the longest-lived lane, and the last state, saved.
        """
        self._interval = _Interval(self.clock, step)
        self._alive = [not lane for lane in transfer.fetch(state.diverged).reshape(-1)]
        # The step that was dispatched and not yet read: its number, its sums, its batch, and what
        # telemetry saw of it; and the state after the last one.
        self._unread, self._state = None, state
        self._is_tracing = False
        if self._is_due(step, self.cfg.train.eval_every_steps) and not self.is_evaluated:
            self._evaluate(step, state)  # a stop had come in the middle of it
        with contextlib.ExitStack() as trace:
            while step < self.cfg.train.num_steps and any(self._alive) and not self.stops(step):
                self._begin_trace(trace, step + 1)
                with self.clock.measure("data_wait"):
                    batch = next(self.batches)
                # Before the step, which consumes the state.
                due = self.telemetry.is_due(step + 1)
                seen = self.telemetry.look(state, batch) if due else None
                state, sums = self.train_step(state, batch)
                step, self._state = step + 1, state
                self._read_last()
                self._unread = (step, sums, batch, seen)
                self._end_trace(trace, step)
                self._pause(step, state)
            self._read_last()
        return self._finish(step, state)

    def stops(self, step: int) -> bool:
        """Whether to stop at `step`; asked before every batch, of a validation too."""
        self.clock.beat()
        return self.stop_asked()

    def _finish(self, step: int, state):
        """Saves before anything else, so that a kill from here on costs nothing."""
        diverged = not any(self._alive)
        step = int(transfer.fetch(state.step).max()) if diverged else step
        with self.clock.measure("checkpoint_wait"):
            self.save(step, state, diverged)
        if diverged:
            return exit_codes.DIVERGED, step, state
        if step < self.cfg.train.num_steps or not self._evaluate(step, state):
            return exit_codes.PREEMPTED, step, state
        return exit_codes.DONE, step, state

    def _pause(self, step: int, state):
        """What a step waits for where it is due: validation, and the copy for a checkpoint."""
        train = self.cfg.train
        evaluates = self._is_due(step, train.eval_every_steps)
        saves = self._is_due(step, train.checkpoint_every_steps)
        if not (evaluates or saves):
            return
        self._read_last()
        if evaluates:
            self._evaluate(step, state)
        if saves and any(self._alive):
            with self.clock.measure("checkpoint_wait"):
                self.save(step, state, False)
        self._interval = _Interval(self.clock, step)

    def _is_due(self, step: int, every: int) -> bool:
        return bool(every) and 0 < step < self.cfg.train.num_steps and step % every == 0

    def _read_last(self):
        """Waits for the unread step's sums; tells them where the log asks for it."""
        if self._unread is None:
            return
        (step, sums, batch, seen), self._unread = self._unread, None
        lanes = transfer.per_lane(sums, self.cfg.num_lanes)
        newly_dead = [i for i, lane in enumerate(lanes) if lane["diverged"] and self._alive[i]]
        self._tell_telemetry(step, batch, seen, newly_dead, sums, lanes)
        logged = step % self.cfg.train.log_every_steps == 0 or step in (1, self.cfg.train.num_steps)
        if not (logged or newly_dead):
            self.progress.step(step, None)
            return
        speed = self._interval.close(step, self.cfg, self.peak_flops)
        rows = [self._row(step, lane, speed) for lane in lanes]
        for lane, row in enumerate(rows):
            if self._alive[lane]:
                self.write(lane, row)
        for lane in newly_dead:
            self._alive[lane] = False
        self.progress.step(
            step,
            f"loss {self._told(rows, 'train/loss_nats_per_token')} nats/token  "
            f"grad norm {self._told(rows, 'train/grad_norm')}  "
            f"lr {lanes[0]['learning_rate']:.3g}  {speed['time/tokens_per_second']:,.0f} tokens/s",
        )
        self.on_logged(step)
        self._interval = _Interval(self.clock, step)

    def _tell_telemetry(
        self, step: int, batch, seen, newly_dead: list[int], sums: dict, lanes: list[dict]
    ):
        """What was seen of a step that was due; a step that diverged is looked at in any case.

        A lane that diverged still has the state that it diverged from.
        """
        alive = [lane for lane, is_alive in enumerate(self._alive) if is_alive]
        if seen is None and newly_dead:
            seen, alive = self.telemetry.look(self._state, batch), newly_dead
        if seen is not None:  # the look differentiates exactly; the errors are the step's own
            seen = seen | {name: sums[name] for name in metrics.REVERSAL if name in sums}
        self.telemetry.record(step, seen, alive)
        for lane in newly_dead:
            self.telemetry.explain(lane, step, lanes[lane])

    def _row(self, step: int, lane: dict, speed: dict) -> dict:
        return {
            "step": step,
            "tokens": step * self.cfg.train.tokens_per_step,
            **metrics.loss_metrics("train", lane, self.bytes_per_token[0]),
            "train/grad_norm": lane["grad_norm"],
            "train/param_norm": lane["param_norm"],
            "train/learning_rate": lane["learning_rate"],
            **metrics.reversal_metrics(lane),
            **speed,
        }

    def _evaluate(self, step: int, state) -> bool:
        """Validates; whether it came to its end before a stop request."""
        # The same batches every time, so that the points of the curve can be compared.
        with self.clock.measure("evaluation"):
            lanes = self.evaluator.run(
                state.params,
                self.cfg.train.eval_num_batches,
                stop_asked=lambda: self.stops(step),
            )
        if lanes is None:
            return False
        rows = [metrics.loss_metrics("eval", sums, self.bytes_per_token[1]) for sums in lanes]
        for lane, row in enumerate(rows):
            if self._alive[lane]:
                self.write(lane, {"step": step, **row})
        losses = self._told(rows, "eval/loss_nats_per_token")
        per_byte = self._told(rows, "eval/bits_per_byte")
        self.progress.step(step, f"validation {losses} nats/token, {per_byte} bits/byte")
        return True

    def _told(self, rows: list[dict], name: str) -> str:
        """One number per lane, for people."""
        return " ".join(
            f"{row[name]:.4f}" if alive else "diverged"
            for row, alive in zip(rows, self._alive, strict=True)
        )

    def _begin_trace(self, trace: contextlib.ExitStack, step: int):
        """Opens the profiler's trace before `step` if it is the first one of the range here."""
        first, last = self.cfg.train.profile_range or (0, 0)
        if first <= step <= last and not self._is_tracing:
            self._read_last()
            self._is_tracing = True
            trace.enter_context(jax.profiler.trace(self.trace_directory))

    def _end_trace(self, trace: contextlib.ExitStack, step: int):
        """Closes it after its last step has left the device."""
        if self.cfg.train.profile_range and step == self.cfg.train.profile_range[1]:
            self._read_last()
            trace.close()


class _Interval:
    """The steps since the last logged one, and their wall-clock time."""

    def __init__(self, clock: clock_lib.Clock, step: int):
        self._clock, self._step = clock, step
        self._total, self._data_wait = clock.total, clock["data_wait"]

    def close(self, step: int, cfg: config.Config, peak_flops: float | None) -> dict[str, float]:
        """Speed from the last logged step to `step`."""
        seconds = self._clock.total - self._total
        wait_fraction = (self._clock["data_wait"] - self._data_wait) / seconds
        steps = max(1, step - self._step)
        return metrics.speed_metrics(cfg, seconds / steps, wait_fraction, peak_flops)
