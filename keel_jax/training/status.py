"""status.json: the current status of a run, for users and other programs."""

import math

from etils import epath

from keel_jax import config
from keel_jax.model import lm, residual
from keel_jax.runtime import best_effort, distributed, exit_codes, files
from keel_jax.runtime import session as session_lib
from keel_jax.training import ancestry, set_aside, transfer, trials
from keel_jax.training import events as events_lib
from keel_jax.training import state as state_lib

FILE = "status.json"
_RUN_ID = "run_id"
# Minimum seconds between two writes during a run.
_STATUS_SECONDS = 5.0


class Status:
    """status.json of the run and of each trial; a context manager, which records failures."""

    def __init__(
        self,
        workdir: epath.Path,
        cfg: config.Config,
        recompute: dict,
        session: session_lib.Session,
        events: events_lib.EventLog,
        run_id: str,
    ):
        """Nothing is written yet.

        Args:
          cfg: resolved (`planning.resolve`).
          recompute: the recomputation plan and its expected memory, for users.
          events: gets the end of the run, and knows its goodput.
          run_id: of the run's log (`training.metric_rows`).
        """
        self._workdir, self._cfg, self._recompute = workdir, cfg, recompute
        self._run_id = run_id
        self._clock, self._compilations = session.clock, session.compilations
        self._watchdog, self._events = session.watchdog, events
        self._step, self._written = 0, -math.inf
        self._stopped_early = [False] * cfg.num_trials
        self._has_hung = False
        self._ancestry = ancestry.read(workdir)
        self._damaged_checkpoints = set_aside.listed(workdir)

    def __enter__(self) -> "Status":
        self._watchdog.on_hang = self.hung
        return self

    def __exit__(self, kind, error, _):
        # After a hang the main thread may still fail, because a peer has left.
        if error is not None and not self._has_hung:
            self._write(distributed.exit_code(error), error=str(error))

    def hung(self, activity: str) -> None:
        """Records that the run ends because it hangs."""
        self._has_hung = True
        self._write(exit_codes.HUNG, error=activity)

    def update(self, step: int) -> None:
        """Records that the run is at `step`; written at most every few seconds."""
        self._step = step
        if self._clock.total - self._written > _STATUS_SECONDS:
            self._write(None)

    def end(self, exit_code: int, step: int, state: state_lib.TrainState) -> int:
        """Records the end of the run with `exit_code`, which it returns, and of each trial."""
        steps, diverged, rates = (
            values.reshape(-1).tolist()
            for values in transfer.fetch((state.step, state.diverged, state.peak_lr))
        )
        codes = [exit_codes.DIVERGED if trial else exit_code for trial in diverged]
        self._step, self._stopped_early = step, [rate == 0 for rate in rates]
        self._write(exit_code, codes, steps)
        return exit_code

    def _write(self, exit_code, trial_codes=None, trial_steps=None, error: str | None = None):
        if not distributed.is_lead():
            return
        self._written = self._clock.total
        if exit_code is not None:
            self._events.stop(exit_code, error)
        stopped = exit_code == exit_codes.DONE and self._step < self._cfg.train.num_steps
        self._write_one(
            self._workdir,
            self._run_id,
            exit_code,
            self._step,
            self._cfg.train.num_steps,
            stopped,
            error,
        )
        if self._cfg.num_trials > 1:
            directories = trials.directories(self._workdir, self._cfg)
            ids = trials.log_ids(self._run_id, self._cfg)
            codes = trial_codes or [exit_code] * len(directories)
            steps = trial_steps or [self._step] * len(directories)
            lengths = self._cfg.trial_steps
            values = (ids, codes, steps, lengths, self._stopped_early)
            for directory, run_id, code, at, length, stopped in zip(
                directories, *values, strict=True
            ):
                self._write_one(directory, run_id, code, at, length, stopped, error)

    def _write_one(self, directory, run_id, exit_code, step, num_steps, stopped_early, error):
        cfg = self._cfg
        status = {
            _RUN_ID: run_id,
            "state": "running" if exit_code is None else exit_codes.STATES[exit_code],
            "exit_code": exit_code,
            "step": step,
            "num_steps": num_steps,
            # As the validation loss rose: of a run, before every trial had taken its steps.
            "stopped_early": stopped_early,
            "tokens": step * cfg.train.tokens_per_step,
            "topology": cfg.model.topology,
            "alpha": float(residual.topology(cfg.model).alpha[-1, residual.FFN]),
            "final_norm": lm.has_final_norm(cfg.model),
            "num_blocks": cfg.model.num_blocks,
            "num_sublayers": cfg.model.num_sublayers,
            "num_params": lm.count_params(cfg.model),
            "attention_kernel": cfg.model.attention,
            "recompute": self._recompute,
            "ancestry": self._ancestry,
            "damaged_checkpoints": self._damaged_checkpoints,
            "compile_seconds": self._clock["compile"],
            "compilations": {"cached": self._compilations.hits, "new": self._compilations.misses},
            "seconds": {**self._clock.seconds, "total": self._clock.total},
            "goodput": self._events.summary(),
        }
        if error is not None:
            status["error"] = error
        with best_effort.writing(directory / FILE):
            files.write_checked_json(directory / FILE, status)


def run_id(directory: epath.PathLike) -> str:
    """Of the run or trial in `directory`, as its log has it; "" if status.json does not tell."""
    value = best_effort.read_object(epath.Path(directory) / FILE).get(_RUN_ID)
    return value if isinstance(value, str) else ""
