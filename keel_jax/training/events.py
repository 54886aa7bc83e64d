"""events.jsonl: what a run spent its time on, over all its restarts; the source of its goodput.

One JSON object per event, with "event", "time" (Unix time), "elapsed_seconds" (monotonic, since the
run began) and "step", the last finished step; docs/goodput.md lists them. Nothing is ever removed:
a resumed run appends to the events of the run before. A log that cannot be written never stops a
run.
"""

import bisect
import contextlib
import errno
import json
import os
import sys
import time
from typing import Any

import jax
from etils import epath

from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import distributed, exit_codes, files
from keel_jax.training import goodput

JSONL = "events.jsonl"
# A new event "steps" begins after this time.
_STEPS_SECONDS = 60.0


class EventLog:
    """Writes the events of one run, of several processes only the lead's; a context manager.

    It follows the clock: each activity becomes an event when it ends, and finished steps are
    counted in events "steps". The newest of these is rewritten in place with every step, so that a
    killed run's last step is known exactly; in a bucket, where that is impossible, it is written
    when it is complete.
    """

    def __init__(self, workdir: epath.PathLike, clock: clock_lib.Clock, start_step: int):
        """Opens the log and writes "start", and what the clock has measured before."""
        self._clock = clock
        self._is_lead = distributed.is_lead()
        self._open_steps: dict[str, Any] | None = None
        # Durations of the steps of `_open_steps`, sorted.
        self._durations: list[float] = []
        # The clock's readings up to which time has been counted; None before the first batch.
        self._counted_step_seconds: float | None = None
        self._counted_data_wait = 0.0
        clock.step = start_step
        self._tally = goodput.Tally()
        self._lines = _Lines(epath.Path(workdir) / JSONL)
        if not self._is_lead:
            return
        with self._lines.tolerated():
            self._tally = goodput.Tally(read(workdir)[0])
        self.add(
            "start",
            lost_steps=max(0, self._tally.last_step - start_step),
            num_processes=jax.process_count(),
            num_devices=jax.device_count(),
        )
        for activity, seconds in clock.seconds.items():
            if activity != clock.activity:
                self.add("activity", activity=activity, seconds=seconds)

    def __enter__(self) -> "EventLog":
        self._clock.on_measured, self._clock.on_step = self._measured, self._finished_step
        return self

    def __exit__(self, *_):
        self._clock.on_measured = self._clock.on_step = None
        self._end_steps()
        self._lines.close()

    def add(self, event: str, **values: Any) -> None:
        """Appends an event with these values, which can be written as JSON."""
        if self._is_lead:
            self._end_steps()
            row = self._row(event, **values)
            self._tally.add(row)
            self._lines.append(json.dumps(row))

    def stop(self, exit_code: int, error: str | None = None) -> None:
        """Appends the end of the run."""
        message = {} if error is None else {"error": error}
        state = exit_codes.STATES[exit_code]
        self.add("stop", exit_code=exit_code, state=state, **message)

    def summary(self) -> dict[str, Any]:
        """The goodput up to now, over all runs of the directory (`goodput.Tally.to_json`)."""
        if self._open_steps is not None:
            self._tally.add(self._open_steps)
        return self._tally.to_json()

    def _measured(self, activity: str, seconds: float):
        if activity != "data_wait":
            self.add("activity", activity=activity, seconds=seconds)
        elif self._counted_step_seconds is None:
            # What came before the first batch is no step.
            self._counted_step_seconds = self._clock.step_seconds

    def _finished_step(self, step: int):
        if not self._is_lead:
            return
        steps, wait = self._clock.step_seconds, self._clock["data_wait"]
        duration = steps - (self._counted_step_seconds or 0.0)
        waited = wait - self._counted_data_wait
        self._counted_step_seconds, self._counted_data_wait = steps, wait
        before = self._open_steps
        if before is None:
            self._durations = []
        bisect.insort(self._durations, duration)
        now = self._row("steps", step=step)
        self._open_steps = {
            **now,
            "first_step": before["first_step"] if before else step,
            "num_steps": len(self._durations),
            "seconds": duration + (before["seconds"] if before else 0.0),
            "median_step_seconds": self._durations[len(self._durations) // 2],
            "data_wait_seconds": waited + (before["data_wait_seconds"] if before else 0.0),
        }
        self._lines.rewrite_last(json.dumps(self._open_steps))
        if self._open_steps["seconds"] > _STEPS_SECONDS:
            self._end_steps()

    def _end_steps(self):
        if self._open_steps is not None:
            self._tally.add(self._open_steps)
            self._open_steps = None
            self._lines.end_last()

    def _row(self, event: str, **values) -> dict[str, Any]:
        elapsed, step = self._clock.total, self._clock.step
        now = {"event": event, "time": time.time(), "elapsed_seconds": elapsed, "step": step}
        # To the microsecond.
        row = now | values
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}


def read(workdir: epath.PathLike) -> tuple[list[dict], int]:
    """The events of a work directory in their order, and the number of lines that are none.

    A run that was killed while it wrote leaves an incomplete line.
    """
    path = epath.Path(workdir) / JSONL
    events, num_bad = [], 0
    content = path.read_bytes().decode(errors="replace") if path.exists() else ""
    for line in filter(None, map(str.strip, content.splitlines())):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
        else:
            num_bad += 1
    return events, num_bad


class _Lines:
    """Appends lines to a file, of which it can rewrite the last; a failure is told once."""

    def __init__(self, path: epath.Path):
        """Creates nothing before the first line."""
        self._path, self._fd = path, -1
        self._is_remote = "://" in str(path)
        # Where the last line begins while it may be rewritten, with its text if the file is remote.
        self._last_at: int | None = None
        self._last_text = ""
        self._is_broken = self._has_failed = False

    def append(self, line: str) -> None:
        with self.tolerated():
            if self._is_remote:
                files.append_text(self._path, line + "\n")
            else:
                self._write(line, self._end())

    def rewrite_last(self, line: str) -> None:
        """Replaces the last line if that was written by this method and not ended; else appends."""
        self._last_text = line
        if self._is_remote:
            return
        with self.tolerated():
            if self._last_at is None:
                self._last_at = self._end()
            self._write(line, self._last_at)

    def end_last(self) -> None:
        self._last_at = None
        if self._is_remote:
            self.append(self._last_text)

    def close(self) -> None:
        if self._fd >= 0:
            with self.tolerated():
                os.close(self._fd)
            self._fd = -1

    @contextlib.contextmanager
    def tolerated(self):
        """Turns an OSError into a message, which is printed once."""
        try:
            yield
        except OSError as error:
            self._is_broken, self._last_at = True, None
            if not self._has_failed:
                self._has_failed = True
                print(
                    f"{self._path} cannot be written ({error.strerror or error}), so the goodput "
                    "of this run will be incomplete; the run goes on.",
                    file=sys.stderr,
                )

    def _end(self) -> int:
        """Where a line may begin; after an incomplete line, which is kept, behind a newline."""
        if self._fd < 0:
            # Without O_APPEND, with which Linux ignores where pwrite should write.
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._is_broken = True
        end = os.fstat(self._fd).st_size
        if self._is_broken:
            if end and os.pread(self._fd, 1, end - 1) != b"\n":
                end += os.pwrite(self._fd, b"\n", end)
            self._is_broken = False
        return end

    def _write(self, line: str, position: int):
        # A rewritten line never becomes shorter, or the rest of the old one would follow it.
        size = os.fstat(self._fd).st_size - position - 1
        content = (line.ljust(size) + "\n").encode()
        if os.pwrite(self._fd, content, position) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
