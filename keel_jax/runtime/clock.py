"""Where the wall-clock time of a run goes, and what it is doing right now."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds spent in each named activity; what is in none of them is the steps' own."""

    def __init__(self):
        self._begin = time.monotonic()
        self.seconds: dict[str, float] = {}
        # What is going on ("": a step), and how many signs of life there have been: for a watchdog.
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
