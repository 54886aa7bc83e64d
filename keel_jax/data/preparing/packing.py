"""Packing: whole examples side by side in windows of one length, as the loader cuts them.

An example is never split, so a window holds whole ones and padding. Best fit (D. S. Johnson, "Fast
Algorithms for Bin Packing", 1974): an example goes to the open window in which it leaves the least
room, and to a new one if it fits in none. Only a bounded number of windows is open at a time, so
that memory is bounded; of too many the fullest is written. What is written depends on the examples
and their order alone.
"""

import dataclasses
from collections.abc import Iterator
from typing import Generic, TypeVar

# More would lower the padding little. Guess: lengths of examples repeat within so many.
_MAX_OPEN = 64

Example = TypeVar("Example")


@dataclasses.dataclass
class Window(Generic[Example]):
    """Examples in the order in which they came, and the tokens that are left: the padding."""

    examples: list[Example]
    room: int


class Packer(Generic[Example]):
    """Assigns examples to windows of `window_tokens` tokens."""

    def __init__(self, window_tokens: int, max_open: int = _MAX_OPEN):
        self._window_tokens, self._max_open = window_tokens, max_open
        self._open: list[Window[Example]] = []

    def add(self, example: Example, num_tokens: int) -> Iterator[Window[Example]]:
        """Takes an example of at most a window; yields the window that is complete then, if any."""
        assert 0 < num_tokens <= self._window_tokens, (num_tokens, self._window_tokens)
        fitting = [window for window in self._open if window.room >= num_tokens]
        if fitting:
            window = min(fitting, key=lambda window: window.room)
        else:
            window = Window([], self._window_tokens)
            self._open.append(window)
        window.examples.append(example)
        window.room -= num_tokens
        is_too_many = len(self._open) > self._max_open
        fullest = min(self._open, key=lambda window: window.room)
        if fullest.room == 0 or is_too_many:
            # Windows are compared by identity: two may hold equal examples.
            self._open = [window for window in self._open if window is not fullest]
            yield fullest

    def finish(self) -> Iterator[Window[Example]]:
        """The windows that are still open, oldest first."""
        yield from self._open
        self._open = []
