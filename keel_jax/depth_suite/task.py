"""What a task declares."""

import dataclasses
from collections.abc import Callable

from keel_jax import errors
from keel_jax.config import limits
from keel_jax.depth_suite import draws, example

# Where nothing else limits it: the prompt is longer than any window.
MAX_DIFFICULTY = 1000
_TOO_LONG = "beyond which no window holds a prompt"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: what it asks, what its difficulty counts, and how a problem of it is drawn.

    Attributes:
      name: identifier, also of its files.
      asks: what is asked, a phrase.
      dial: what the difficulty counts.
      chance: the accuracy of a guess that knows the form of the answer and computes nothing, given
        the difficulty; where there are choices, one over their number.
      chance_text: the same for a table.
      serial_depth: the number of steps that follow from each other, and how few could do, with the
        source.
      make: draws a problem of a difficulty of at least 1.
      max_difficulty: the largest difficulty.
      limited_by: why there is none beyond.
    """

    name: str
    asks: str
    dial: str
    chance: Callable[[int], float]
    chance_text: str
    serial_depth: str
    make: Callable[[draws.Draws, int], example.Problem]
    max_difficulty: int = MAX_DIFFICULTY
    limited_by: str = _TOO_LONG

    def check_difficulty(self, difficulty: int) -> None:
        """Raises a UserError if the task has no such difficulty."""
        limits.at_least(f"The difficulty of {self.name}", difficulty, 1)
        if difficulty > self.max_difficulty:
            raise errors.UserError(
                f"The difficulty of {self.name}, {difficulty}, must be at most "
                f"{self.max_difficulty}, {self.limited_by}."
            )
