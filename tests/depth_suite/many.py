"""Examples for the tests of this directory, and how far a rate may be from its expectation."""

import functools
import math

from keel_jax.depth_suite import example, generation, splits

SEED = 7


@functools.cache
def examples(
    task: str, difficulty: int, count: int = 200, split: str = "train"
) -> tuple[example.Example, ...]:
    """The first examples of a task, or all that a small space has."""
    found = generation.examples(task, difficulty, split, SEED, count, fewer_if_used_up=True)
    return tuple(found)


def small_space(task: str, difficulty: int) -> dict[str, list[example.Example]]:
    """The examples of both splits, many of which state the same problem where names are few."""
    return {
        split: list(generation.examples(task, difficulty, split, SEED, 300, fewer_if_used_up=True))
        for split in splits.SPLITS
    }


def tolerance(rate: float, count: int) -> float:
    """Four standard deviations of the mean of `count` events of probability `rate`."""
    return 4 * math.sqrt(rate * (1 - rate) / count)
