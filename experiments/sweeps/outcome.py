"""What became of a point: its record, and the numbers that its run wrote down."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.sweeps import point as point_lib
from keel_jax import errors
from keel_jax.runtime import best_effort, files
from keel_jax.training import logs, telemetry_records

# The states of a point. A missing one has failed twice; a pending one has not been run.
DONE, DIVERGED, MISSING, PENDING = "done", "diverged", "missing", "pending"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One point of a sweep, and how it ended."""

    point: point_lib.Point
    # One of the states above.
    state: str
    # The trial's directory; None without a result.
    workdir: pathlib.Path | None = None
    # Optimizer steps that it took; of a diverged run, up to its last good state.
    step: int = 0
    # The record as it was written: commit, device, compilations.
    record: dict = dataclasses.field(default_factory=dict)

    @property
    def has_result(self) -> bool:
        """Whether the run ended, by completing or by diverging."""
        return self.state in (DONE, DIVERGED)

    def curve(self, name: str = "train/loss_nats_per_token") -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, as logged; NaN where it was not finite."""
        rows = [row for row in self._rows() if name in row]
        values = [np.nan if row[name] is None else row[name] for row in rows]
        return np.array([row["step"] for row in rows], int), np.array(values, float)

    def final(self, name: str) -> float | None:
        """A validation metric at the end; None unless the run completed."""
        if self.state != DONE:
            return None
        values = [row[name] for row in self._rows() if name in row and row["step"] == self.step]
        return values[-1] if values else None

    @property
    def eval_loss(self) -> float | None:
        """The validation loss at the end, nats a token."""
        return self.final("eval/loss_nats_per_token")

    def telemetry(self) -> dict[str, np.ndarray] | None:
        """The records after step 1, [R, …] float64 by statistic; None if there are none."""
        records = telemetry_records.load(self.workdir) if self.workdir else {}
        is_later = records["step"] > 1 if records else np.zeros(0, bool)
        if not is_later.any():
            return None
        return {name: values[is_later].astype(float) for name, values in records.items()}

    def summary(self) -> dict:
        """The point's entry in results.json."""
        return {
            "series": self.point.series,
            "peak_lr": self.point.peak_lr,
            "seed": self.point.seed,
            "state": self.state,
            "step": self.step,
            "eval_loss_nats_per_token": self.eval_loss,
            "commit": self.record.get("commit"),
            "devices": _describe_devices(self.record.get("devices")),
        }

    def _rows(self) -> list[dict]:
        # Results are computed from all rows or from none: a damaged log is an error.
        return logs.read_whole(self.workdir) if self.workdir else []


def all_done(outcomes: Sequence[Outcome]) -> bool:
    """Whether every run completed; only then are predictions held against the numbers."""
    return all(outcome.state == DONE for outcome in outcomes)


def _describe_devices(devices: Mapping | None) -> str | None:
    """A run's devices in a word: "4 x TPU v5e"."""
    return f"{devices['count']} x {devices['kind']}" if devices else None


def record_file(runs: pathlib.Path, point: point_lib.Point) -> pathlib.Path:
    """Where the sweep under `runs` records what became of `point`."""
    return runs / "points" / f"{point.name}.json"


def load_outcome(runs: pathlib.Path, point: point_lib.Point, digest: str) -> Outcome:
    """What became of `point`; pending if its record is of other options or other data.

    A damaged record is named once, and its point is pending: the sweep's next start finds the run
    finished, and records it again.
    """
    path = record_file(runs, point)
    try:
        record = files.read_json(path)
        if record is not None:
            _check_record(path, record)
    except errors.UserError as error:
        best_effort.warn(f"{error} The point counts as not run: start the sweep again.")
        return Outcome(point, PENDING)
    if record is None or record["digest"] != digest:
        return Outcome(point, PENDING)
    workdir = runs / record["workdir"] if record["workdir"] else None
    return Outcome(point, record["state"], workdir, record["step"], record)


def _check_record(path: pathlib.Path, record: Any) -> None:
    match record:
        case {
            "digest": str(),
            "state": "done" | "diverged" | "missing",
            "step": int(),
            "workdir": str() | None,
        } if record["workdir"] or record["state"] == MISSING:
            return
    raise errors.UserError(f"{path} is not the record of a point.")
