"""Telemetry of a run: when a step is recorded, and how the records are stored and loaded.

`WORKDIR/telemetry/` (of each trial) holds .npz files of up to 64 records each, named by the first
one's step: an array "step" [R] and one per statistic, [R, N] or [R, N, 2], float32. The newest is
rewritten atomically with each record. `load` reads all of them.

`divergence.json` says where a non-finite step went wrong (training/divergence.py).
"""

import collections.abc
import io
import math

import jax
import numpy as np
from etils import epath

from keel_jax import config
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import distributed, files
from keel_jax.training import divergence, plots
from keel_jax.training import logs as logs_lib
from keel_jax.training import state as state_lib

DIRECTORY = "telemetry"
DIVERGENCE = "divergence.json"
# Records per file: 6 MB at 256 blocks. One file per record would be slow to read, a single file
# for all records slow to write.
_CHUNK = 64
# Images are drawn again after this many times the seconds that drawing them took: 1 %.
_DRAW_AFTER = 100
# The time they take before it is known, a high guess; and the longest that the end of a run waits
# for them, as the other processes wait too.
_DRAW_SECONDS, _LAST_DRAW_SECONDS = 5.0, 30.0


def load(workdir: epath.PathLike) -> dict[str, np.ndarray]:
    """All records of the run, or the trial, in `workdir`, in the order of their steps.

    Returns:
      "step", int64 [R], and each statistic, float32 [R, N] or [R, N, 2] (block, sub-layer: 0
      attention, 1 FFN). A record without a statistic, made with other options, holds NaN there.
      Empty if nothing was recorded.
    """
    chunks = [_read(path) for path in _files(workdir)]
    shapes = {name: array.shape[1:] for chunk in chunks for name, array in chunk.items()}

    def part(chunk, name):
        missing = np.full((len(chunk["step"]), *shapes[name]), np.nan, np.float32)
        return chunk.get(name, missing)

    return {name: np.concatenate([part(chunk, name) for chunk in chunks]) for name in shapes}


class Store:
    """The records of one trial; records after `start_step` are cut, as the log's rows are."""

    def __init__(self, workdir: epath.PathLike, start_step: int):
        self._workdir = epath.Path(workdir)
        self._chunk: dict[str, np.ndarray] = {}
        kept = []
        for path in _files(workdir):
            if int(path.stem) > start_step:
                path.unlink()
            else:
                kept.append(path)
        if kept:  # only the last can have later records
            chunk = _read(kept[-1])
            is_kept = chunk["step"] <= start_step
            self._chunk = {name: array[is_kept] for name, array in chunk.items()}
            if not is_kept.all():
                self._write()

    def append(self, step: int, record: dict[str, np.ndarray]) -> None:
        """Adds the record of `step`; it is on disk when this returns."""
        row = {"step": np.asarray([step], np.int64)}
        row |= {name: np.asarray(value, np.float32)[None] for name, value in record.items()}
        shapes = [{name: a.shape[1:] for name, a in c.items()} for c in (self._chunk, row)]
        if shapes[0] != shapes[1] or len(self._chunk["step"]) >= _CHUNK:
            self._chunk = row
        else:
            self._chunk = {n: np.concatenate([a, row[n]]) for n, a in self._chunk.items()}
        self._write()

    def _write(self):
        directory = self._workdir / DIRECTORY
        directory.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **self._chunk)
        path = directory / f"{self._chunk['step'][0]:010}.npz"
        files.write_bytes(path, content.getvalue())


class Recorder:
    """Computes the statistics of the steps that are due, in all trials, and stores them.

    Every process makes one and calls it in the same way, as the telemetry program has collectives.
    Only the lead writes.
    """

    def __init__(
        self,
        cfg: config.Config,
        look: collections.abc.Callable | None,
        directories: collections.abc.Sequence[epath.Path],
        start_step: int,
        logs: logs_lib.Logs,
        clock: clock_lib.Clock,
    ):
        """Removes what was recorded after `start_step`.

        Args:
          look: from `telemetry_step.compile_statistics`; None if telemetry is off.
          directories: one per trial.
          logs: where images go.
        """
        self._cfg, self._look, self._directories = cfg, look, directories
        self._logs, self._clock = logs, clock
        self._drawn, self._draw_seconds = clock.total, _DRAW_SECONDS
        self._stores = []
        if distributed.is_lead():
            self._stores = [Store(directory, start_step) for directory in directories]
            for directory in directories:
                report = files.read_json(directory / DIVERGENCE)
                if report is not None and report["step"] > start_step:
                    (directory / DIVERGENCE).unlink()

    def is_due(self, step: int) -> bool:
        """Whether `step` is to be recorded."""
        every = self._cfg.telemetry.every_steps
        return bool(every) and (step % every == 0 or step in (1, self._cfg.train.num_steps))

    def look(self, state: state_lib.TrainState, batch: dict) -> dict | None:
        """Dispatches the statistics of the step of `state` on `batch`; None if telemetry is off."""
        return self._look and self._look(state, batch)

    def record(
        self, step: int, statistics: dict | None, trials: collections.abc.Iterable[int]
    ) -> None:
        """Waits for the result of `look` for `step`, and stores it for these trials."""
        if statistics is None:
            return
        with self._clock.measure("telemetry"):
            host = jax.device_get(statistics)
            if not self._stores:
                return
            for trial in trials:
                record = state_lib.trial_of(host, trial, self._cfg.num_trials)
                self._stores[trial].append(step, record)
            if self._clock.total - self._drawn > _DRAW_AFTER * self._draw_seconds:
                self.draw()

    def explain(self, trial: int, step: int, sums: dict[str, float]) -> None:
        """Writes and prints where `step`, already recorded, went wrong in a diverged trial.

        Args:
          sums: the results of the train step.
        """
        if self._look is None or not self._stores:
            return
        directory = self._directories[trial]
        loss = sums["nats"] / (sums["weight"] or math.nan)
        report = divergence.make_report(load(directory), loss, sums["grad_norm"])
        assert report["step"] == step, (report["step"], step)
        files.write_json(directory / DIVERGENCE, report)
        name = f"trial {trial}: " if self._cfg.num_trials > 1 else ""
        print(name + report["text"], flush=True)

    def draw(self) -> None:
        """Writes every trial's heat maps and profiles to TensorBoard, as far as time allows."""
        if not self._stores or self._look is None:
            return
        begin = self._clock.total
        with self._clock.measure("telemetry"):
            for trial, directory in enumerate(self._directories):
                records = load(directory)
                if records and self._clock.total - begin < _LAST_DRAW_SECONDS:
                    step = int(records["step"][-1])
                    self._logs.write_images(trial, step, plots.images(records))
        self._drawn, self._draw_seconds = self._clock.total, self._clock.total - begin


def _files(workdir: epath.PathLike) -> list[epath.Path]:
    directory = epath.Path(workdir) / DIRECTORY
    return files.matching(directory, "*.npz") if directory.exists() else []


def _read(path: epath.Path) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(path.read_bytes())) as chunk:
        return dict(chunk)
