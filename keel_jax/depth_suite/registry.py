"""All tasks by name."""

from keel_jax.config import limits
from keel_jax.depth_suite import (
    arithmetic,
    brackets,
    copying,
    facts,
    permutations,
    pointers,
    recall,
    task,
    variables,
)

TASKS: dict[str, task.Task] = {
    each.name: each
    for each in (
        arithmetic.CHAIN,
        arithmetic.EXPRESSION,
        permutations.POINT,
        permutations.PRODUCT,
        pointers.POINTER_CHASE,
        facts.MULTI_HOP,
        variables.VARIABLES,
        brackets.CLOSE,
        brackets.BALANCE,
        copying.COPY_EDITS,
        recall.RECALL,
    )
}


def get(name: str) -> task.Task:
    """The task of this name; a UserError names the nearest if there is none."""
    limits.one_of("task", name, tuple(TASKS))
    return TASKS[name]
