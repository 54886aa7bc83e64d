"""Where the wall-clock time of a run goes."""

import contextlib
import time


class Clock:
    """Seconds spent in each named activity; what is in none of them is the steps' own."""

    def __init__(self):
        self._begin = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, activity: str):
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[activity] = self[activity] + time.monotonic() - begin

    def __getitem__(self, activity: str) -> float:
        return self.seconds.get(activity, 0.0)

    @property
    def total(self) -> float:
        """Seconds since this clock was made."""
        return time.monotonic() - self._begin
