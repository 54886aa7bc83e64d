"""Telemetry of a run: when a step is recorded, and how the records are stored and loaded.

`WORKDIR/telemetry/` (of each trial) holds .npz files of up to 64 records each, named by the first
one's step: an array "step" [R] and one per statistic, [R, N] or [R, N, 2], float32. The newest is
rewritten atomically with each record. `load` reads all of them.

`divergence.json` says where a non-finite step went wrong (training/divergence.py).
"""

import collections.abc
import hashlib
import io
import math
import struct
import zipfile
import zlib

import jax
import numpy as np
from etils import epath

from keel_jax import config, errors
from keel_jax.runtime import best_effort, distributed, files
from keel_jax.runtime import clock as clock_lib
from keel_jax.training import divergence, gradient_path, plots
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


class _Damaged(errors.UserError):
    """A file of records that cannot be read."""


def load(workdir: epath.PathLike) -> dict[str, np.ndarray]:
    """All records of the run, or the trial, in `workdir`, in the order of their steps.

    Returns:
      "step", int64 [R], and each statistic, float32 [R, N] or [R, N, 2] (block, sub-layer: 0
      attention, 1 FFN). A record without a statistic, made with other options, holds NaN there.
      Empty if nothing was recorded. A damaged file, or one of another model, is left out and
      named once.
    """
    return _joined(_intact(_files(workdir)))


_Chunk = tuple[epath.Path, dict[str, np.ndarray]]


def _intact(paths: collections.abc.Iterable[epath.Path]) -> list[_Chunk]:
    """The files that can be read; the others are named once."""
    chunks = []
    for path in paths:
        try:
            chunks.append((path, _read(path)))
        except _Damaged as error:
            best_effort.warn(f"{error}: its records are left out.")
    return chunks


def _joined(files_and_chunks: list[_Chunk]) -> dict[str, np.ndarray]:
    """All records in one; a file whose statistics have other shapes than the last one's is not."""
    shapes, chunks = {}, []
    for path, chunk in reversed(files_and_chunks):
        own = {name: array.shape[1:] for name, array in chunk.items()}
        if any(shapes.get(name, shape) != shape for name, shape in own.items()):
            best_effort.warn(f"{path} holds records of another model: they are left out.")
            continue
        shapes |= own
        chunks.insert(0, chunk)

    def part(chunk, name):
        missing = np.full((len(chunk["step"]), *shapes[name]), np.nan, np.float32)
        return chunk.get(name, missing)

    return {name: np.concatenate([part(chunk, name) for chunk in chunks]) for name in shapes}


class Store:
    """The records of one trial; records after `start_step` are cut, as the log's rows are."""

    def __init__(self, workdir: epath.PathLike, start_step: int):
        self._workdir = epath.Path(workdir)
        self._chunk: dict[str, np.ndarray] = {}
        with best_effort.writing(self._workdir / DIRECTORY):
            self._cut(start_step)

    def _cut(self, start_step: int):
        kept = []
        for path in _files(self._workdir):
            if int(path.stem) > start_step:
                path.unlink()
            else:
                kept.append(path)
        if not kept:
            return
        # Only the last can have later records.
        best_effort.keep_damaged(kept[-1], _read)
        if not kept[-1].exists():
            return
        chunk = _read(kept[-1])
        is_kept = chunk["step"] <= start_step
        self._chunk = {name: array[is_kept] for name, array in chunk.items()}
        if not is_kept.all():
            self._write()

    def records(self) -> dict[str, np.ndarray]:
        """All records, as `load` has them, also the newest ones if they could not be written."""
        if not self._chunk:
            return load(self._workdir)
        newest = self._path()
        others = (path for path in _files(self._workdir) if path.name != newest.name)
        return _joined([*_intact(others), (newest, self._chunk)])

    def append(self, step: int, record: dict[str, np.ndarray]) -> None:
        """Adds the record of `step`; it is on disk when this returns, if that is possible."""
        row = {"step": np.asarray([step], np.int64)}
        row |= {name: np.asarray(value, np.float32)[None] for name, value in record.items()}
        shapes = [{name: a.shape[1:] for name, a in c.items()} for c in (self._chunk, row)]
        if shapes[0] != shapes[1] or len(self._chunk["step"]) >= _CHUNK:
            self._chunk = row
        else:
            self._chunk = {n: np.concatenate([a, row[n]]) for n, a in self._chunk.items()}
        with best_effort.writing(self._workdir / DIRECTORY):
            self._write()

    def _path(self) -> epath.Path:
        return self._workdir / DIRECTORY / f"{self._chunk['step'][0]:010}.npz"

    def _write(self):
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **self._chunk)
        with zipfile.ZipFile(content, "a") as archive:
            archive.comment = _contents(archive)
        files.write_bytes(path, content.getvalue())


class Recorder:
    """Computes the statistics of the steps that are due, in all trials, and stores them.

    Every process makes one and calls it in the same way, as the telemetry program has collectives.
    Only the lead writes.
    """

    def __init__(
        self,
        cfg: config.Config,
        compute: collections.abc.Callable | None,
        directories: collections.abc.Sequence[epath.Path],
        start_step: int,
        logs: logs_lib.Logs,
        clock: clock_lib.Clock,
    ):
        """Removes what was recorded after `start_step`.

        Args:
          compute: from `telemetry_step.compile_statistics`; None if telemetry is off.
          directories: one per trial.
          logs: where images go.
        """
        self._cfg, self._compute, self._directories = cfg, compute, directories
        self._logs, self._clock = logs, clock
        self._drawn, self._draw_seconds = clock.total, _DRAW_SECONDS
        self._stores = []
        self._watches = [gradient_path.Watch() for _ in directories]
        if distributed.is_lead():
            self._stores = [Store(directory, start_step) for directory in directories]
            for directory in directories:
                path = directory / DIVERGENCE
                step = best_effort.read_object(path).get("step")
                if isinstance(step, int) and step > start_step:
                    with best_effort.writing(path):
                        path.unlink()

    def is_due(self, step: int) -> bool:
        """Whether `step` is to be recorded."""
        every = self._cfg.telemetry.every_steps
        return bool(every) and (step % every == 0 or step in (1, self._cfg.train.num_steps))

    def compute(self, state: state_lib.TrainState, batch: dict) -> dict | None:
        """Dispatches the statistics of the step of `state` on `batch`; None if telemetry is off."""
        return self._compute and self._compute(state, batch)

    def record(
        self, step: int, statistics: dict | None, trials: collections.abc.Iterable[int]
    ) -> None:
        """Waits for the result of `compute` for `step`, and stores it for these trials."""
        if statistics is None:
            return
        with self._clock.measure("telemetry"):
            host = jax.device_get(statistics)
            if not self._stores:
                return
            for trial in trials:
                record = state_lib.trial_of(host, trial, self._cfg.num_trials)
                self._stores[trial].append(step, record)
                self._watch(trial, step, record)
            if self._clock.total - self._drawn > _DRAW_AFTER * self._draw_seconds:
                self.draw()

    def _watch(self, trial: int, step: int, record: dict[str, np.ndarray]):
        """Logs how much of the gradient reaches the bottom, and says when that is lost."""
        ratio = gradient_path.cotangent_ratio(record)
        self._logs.write(trial, {"step": step, "telemetry/cotangent_ratio": ratio})
        if warning := self._watches[trial].check(step, ratio):
            print(self._name(trial) + warning, flush=True)

    def _name(self, trial: int) -> str:
        return f"trial {trial}: " if self._cfg.num_trials > 1 else ""

    def explain(self, trial: int, step: int, sums: dict[str, float]) -> None:
        """Writes and prints where `step`, already recorded, went wrong in a diverged trial.

        Args:
          sums: the results of the train step.
        """
        if self._compute is None or not self._stores:
            return
        directory = self._directories[trial]
        loss = sums["nats"] / (sums["weight"] or math.nan)
        report = divergence.make_report(self._stores[trial].records(), loss, sums["grad_norm"])
        assert report["step"] == step, (report["step"], step)
        with best_effort.writing(directory / DIVERGENCE):
            files.write_checked_json(directory / DIVERGENCE, report)
        print(self._name(trial) + report["text"], flush=True)

    def draw(self) -> None:
        """Writes every trial's heat maps and profiles to TensorBoard, as far as time allows."""
        if not self._stores or self._compute is None:
            return
        begin = self._clock.total
        with self._clock.measure("telemetry"):
            for trial, store in enumerate(self._stores):
                records = store.records()
                if records and self._clock.total - begin < _LAST_DRAW_SECONDS:
                    step = int(records["step"][-1])
                    self._logs.write_images(trial, step, plots.images(records))
        self._drawn, self._draw_seconds = self._clock.total, self._clock.total - begin


def _files(workdir: epath.PathLike) -> list[epath.Path]:
    directory = epath.Path(workdir) / DIRECTORY
    paths = files.matching(directory, "*.npz") if directory.is_dir() else []
    return [path for path in paths if path.stem.isdecimal()]


def _read(path: epath.Path) -> dict[str, np.ndarray]:
    """The records of one file.

    Raises:
      _Damaged: what is wrong with it.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:
            if member := archive.testzip():  # the checksums, before anything is parsed
                raise ValueError(f"the checksum of {member} is not that of its content")
            if archive.comment and archive.comment != _contents(archive):
                raise ValueError("its list of arrays is not that of its content")
        content.seek(0)
        with np.load(content) as chunk:
            records = dict(chunk)
        steps = records.get("step")
        if steps is None or steps.ndim != 1 or steps.dtype != np.int64 or not len(steps):
            raise ValueError("it has no steps")
        if steps[0] != int(path.stem) or (np.diff(steps) <= 0).any():
            raise ValueError(f"its steps are {steps[0]} to {steps[-1]}, not from its name on")
        if not all(_is_statistic(name, array, steps) for name, array in records.items()):
            raise ValueError("its arrays are not those of telemetry")
    except (
        *(ValueError, OSError, EOFError, KeyError, RuntimeError, NotImplementedError),
        *(zipfile.BadZipFile, zlib.error, struct.error),
    ) as error:
        raise _Damaged(f"{path} is damaged ({error})") from error
    return records


def _contents(archive: zipfile.ZipFile) -> bytes:
    """A digest of the list of arrays, which an archive's own checksums leave out."""
    lines = [f"{member.filename} {member.CRC}\n" for member in archive.infolist()]
    return hashlib.sha256("".join(lines).encode()).hexdigest().encode()


def _is_statistic(name: str, array: np.ndarray, steps: np.ndarray) -> bool:
    return name == "step" or (
        array.dtype == np.float32 and array.ndim > 0 and len(array) == len(steps)
    )
