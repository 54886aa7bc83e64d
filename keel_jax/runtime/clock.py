"""Measures the wall-clock time of a run by activity, and knows its current activity and step."""

import collections.abc
import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds spent in each named activity; the rest of the time belongs to the steps.

    Activities may be nested. A second counts once, for the innermost, so the activities and the
    steps add up to the total.

    Attributes:
      seconds: by activity, without one that has not ended.
      activity: the current one; "": a step.
      step: the last finished optimizer step.
      beats: number of signs of life, for the watchdog.
      on_measured: called with an activity and its seconds when it ends.
      on_step: called with each finished step.
    """

    on_measured: collections.abc.Callable[[str, float], None] | None = None
    on_step: collections.abc.Callable[[int], None] | None = None

    def __init__(self, activity: str = ""):
        """Begins with an activity, which lasts until `begin_steps`."""
        self._begin = self._entered = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.activity = activity
        self.step = 0
        self.beats = 0

    @contextlib.contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        outer, before = self.activity, self[activity]
        self._enter(activity)
        try:
            yield
        finally:
            self._enter(outer)
            if self.on_measured is not None and outer != activity:
                self.on_measured(activity, self[activity] - before)

    def begin_steps(self) -> None:
        """Ends the activity that the clock began with."""
        activity = self.activity
        self._enter("")
        if activity and self.on_measured is not None:
            self.on_measured(activity, self[activity])

    def beat(self) -> None:
        """A sign of life within an activity."""
        self.beats += 1

    def finish_step(self, step: int) -> None:
        """Says that the results of `step` are there."""
        self.step = step
        self.beats += 1
        if self.on_step is not None:
            self.on_step(step)

    def _enter(self, activity: str):
        now = time.monotonic()
        if self.activity:
            self.seconds[self.activity] = self[self.activity] + now - self._entered
        self._entered = now
        self.activity = activity
        self.beats += 1

    def __getitem__(self, activity: str) -> float:
        return self.seconds.get(activity, 0.0)

    @property
    def total(self) -> float:
        """Seconds since this clock was made."""
        return time.monotonic() - self._begin

    @property
    def step_seconds(self) -> float:
        """Seconds that belong to no activity; while none is measured."""
        return self.total - sum(self.seconds.values())
