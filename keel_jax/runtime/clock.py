"""Measures the wall-clock time of a run by activity, and knows its current activity."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds spent in each named activity; the rest of the time belongs to the steps."""

    def __init__(self):
        self._begin = time.monotonic()
        self.seconds: dict[str, float] = {}
        # The current activity ("": a step), and the number of signs of life, for the watchdog.
        self.activity = ""
        self.beats = 0

    @contextlib.contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        outer, begin = self.activity, time.monotonic()
        self._enter(activity)
        try:
            yield
        finally:
            self._enter(outer)
            self.seconds[activity] = self[activity] + time.monotonic() - begin

    def beat(self) -> None:
        """A sign of life within an activity."""
        self.beats += 1

    def _enter(self, activity: str):
        self.activity = activity
        self.beats += 1

    def __getitem__(self, activity: str) -> float:
        return self.seconds.get(activity, 0.0)

    @property
    def total(self) -> float:
        """Seconds since this clock was made."""
        return time.monotonic() - self._begin
