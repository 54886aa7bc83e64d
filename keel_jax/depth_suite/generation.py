"""Examples of a task: a pure function of task, difficulty, split and seed."""

from collections.abc import Iterator

from keel_jax import errors
from keel_jax.config import limits
from keel_jax.depth_suite import draws, example, registry, splits, task

# Changes whenever the same arguments give other examples.
VERSION = 1
# Draws in a row without a new problem of the split, after which a space counts as used up.
_MAX_MISSES = 5000


def examples(
    task_name: str,
    difficulty: int,
    split: str,
    seed: int,
    count: int,
    *,
    fewer_if_used_up: bool = False,
) -> Iterator[example.Example]:
    """`count` different examples, always the same for the same arguments.

    The first n of more are the first n. Both splits go through the same sequence of problems, and
    each takes those that are its own (`splits.split_of`).

    Args:
      fewer_if_used_up: whether a small space that has fewer gives all that it has; none at all is
        an error nevertheless.

    Raises:
      UserError: at once, for an argument that is unknown or outside its limits; after the last
        example, if the split has fewer than `count` at this difficulty.
    """
    chosen = registry.get(task_name)
    chosen.check_difficulty(difficulty)
    limits.one_of("split", split, splits.SPLITS)
    limits.seed("seed", seed)
    limits.at_least("count", count, 0)
    return _generate(chosen, difficulty, split, seed, count, fewer_if_used_up)


def _generate(
    chosen: task.Task, difficulty: int, split: str, seed: int, count: int, fewer_if_used_up: bool
) -> Iterator[example.Example]:
    seen: set[tuple[str, str]] = set()
    draw = num_misses = 0
    while len(seen) < count:
        problem = chosen.make(draws.Draws(VERSION, chosen.name, difficulty, seed, draw), difficulty)
        draw += 1
        identity = (problem.content, problem.question)
        if identity in seen or splits.split_of(problem.content) != split:
            num_misses += 1
            if num_misses < _MAX_MISSES:
                continue
            if seen and fewer_if_used_up:
                return
            raise errors.UserError(
                f"{chosen.name} at difficulty {difficulty} has only {len(seen)} different examples "
                f"for split {split!r} ({_MAX_MISSES} draws in a row gave no other), and {count} "
                "are asked for: ask for fewer, or for a larger difficulty."
            )
        seen.add(identity)
        num_misses = 0
        yield example.Example(
            chosen.name, difficulty, problem.prompt, problem.answer, problem.choices
        )
