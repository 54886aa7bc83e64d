"""The records of a suite's files: what a test asks, and the documents of the training text."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from keel_jax.depth_suite import example, generation, options, splits


@dataclasses.dataclass(frozen=True)
class Record:
    """A line of a file: `value`, of `num_examples` examples of one difficulty."""

    difficulty: int
    num_examples: int
    value: dict[str, Any]


def of_split(chosen: options.SuiteOptions, task_name: str, split: str) -> Iterator[Record]:
    """The records of a task's file.

    Of the test: objects with `task`, `difficulty`, `prompt`, `answer` and `choices`, by difficulty.
    Of the training text: objects with `text`, or with `prompt` and `response`; the difficulties
    take turns, so that neighbours in a window are of different ones.
    """
    if split == splits.TEST:
        for difficulty in chosen.difficulties:
            yield from _questions(_examples(chosen, task_name, difficulty, split, chosen.num_test))
        return
    by_difficulty = [
        _documents(_examples(chosen, task_name, difficulty, split, chosen.num_train), chosen)
        for difficulty in chosen.difficulties
    ]
    for turn in itertools.zip_longest(*by_difficulty):
        yield from (record for record in turn if record is not None)


def _examples(
    chosen: options.SuiteOptions, task_name: str, difficulty: int, split: str, count: int
) -> Iterator[example.Example]:
    return generation.examples(
        task_name, difficulty, split, chosen.seed, count, fewer_if_used_up=True
    )


def _questions(examples: Iterator[example.Example]) -> Iterator[Record]:
    for each in examples:
        yield Record(each.difficulty, 1, dataclasses.asdict(each))


def _documents(
    examples: Iterator[example.Example], chosen: options.SuiteOptions
) -> Iterator[Record]:
    while batch := list(itertools.islice(examples, chosen.examples_per_document)):
        if chosen.answers_only:
            value = {"prompt": batch[0].prompt, "response": batch[0].answer}
        else:
            value = {"text": "\n".join(each.text for each in batch)}
        yield Record(batch[0].difficulty, len(batch), value)
