"""Examples for the tests of this directory, and how far a rate may be from its expectation."""

import functools
import math

from keel_jax.depth_suite import example, generation

SEED = 7


@functools.cache
def examples(
    task: str, difficulty: int, count: int = 200, split: str = "train"
) -> tuple[example.Example, ...]:
    """The first examples of a task, or all that a small space has."""
    found = generation.examples(task, difficulty, split, SEED, count, fewer_if_used_up=True)
    return tuple(found)


def tolerance(rate: float, count: int) -> float:
    """Four standard deviations of the mean of `count` events of probability `rate`."""
    return 4 * math.sqrt(rate * (1 - rate) / count)
