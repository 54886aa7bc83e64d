"""The options of a suite that is written to files."""

import dataclasses
from collections.abc import Sequence

from keel_jax import errors
from keel_jax.config import limits
from keel_jax.depth_suite import registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """Which examples a suite has, and how its training documents are written.

    Raises:
      UserError: a value that is unknown or outside its limits, or two that exclude each other.
    """

    tasks: tuple[str, ...] = tuple(registry.TASKS)
    difficulties: tuple[int, ...] = (1, 2, 4, 8)
    # Of each task and difficulty; a small space gives all that it has.
    num_train: int = 2000
    num_test: int = 200
    seed: int = 0
    # Examples of one task and difficulty in a training document, one a line.
    examples_per_document: int = 1
    # Training documents are prompt and response, with the loss on the response alone.
    answers_only: bool = False

    def __post_init__(self):
        _check_list("tasks", self.tasks)
        _check_list("difficulties", self.difficulties)
        for name in self.tasks:
            for difficulty in self.difficulties:
                registry.get(name).check_difficulty(difficulty)
        limits.at_least("num_train", self.num_train, 0)
        limits.at_least("num_test", self.num_test, 0)
        limits.seed("seed", self.seed)
        limits.at_least("examples_per_document", self.examples_per_document, 1)
        if self.num_train + self.num_test == 0:
            raise errors.UserError("num_train and num_test are both 0: there is nothing to write.")
        if self.answers_only and self.examples_per_document > 1:
            raise errors.UserError(
                f"examples_per_document={self.examples_per_document} has several answers in a "
                "document, and answers_only puts the loss on one: leave out one of the two."
            )


def _check_list(name: str, values: Sequence[str] | Sequence[int]) -> None:
    if not values:
        raise errors.UserError(f"{name} is empty: name at least one, or leave the option out.")
    if len(set(values)) < len(values):
        raise errors.UserError(f"{name}={','.join(map(str, values))} names one of them twice.")
