"""The items of a benchmark, each with what its prompt begins with."""

import dataclasses
import pathlib
import random
from collections.abc import Iterable, Iterator, Sequence

from keel_jax import errors
from keel_jax.tasks import items, locating, records, task

# The harness's, so that the same examples are drawn (lm_eval/api/samplers.py).
DEFAULT_SEED = 1234
_BETWEEN = "\n\n"


@dataclasses.dataclass(frozen=True)
class Prompted:
    """An item, and the text that its own prompt follows: a description and examples."""

    item: items.Item
    prompt: str


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A benchmark that is ready to be scored."""

    task: task.Task
    num_shots: int
    items: tuple[Prompted, ...]


def load(
    declared: task.Task,
    task_data: pathlib.Path,
    *,
    num_shots: int | None = None,
    seed: int = DEFAULT_SEED,
    limit: int | None = None,
) -> Loaded:
    """Reads a benchmark from its files below `task_data`.

    Args:
      num_shots: examples in each prompt; default: the benchmark's own.
      seed: of the examples that are drawn.
      limit: only so many items of each subject, the first ones.

    Raises:
      UserError: files are missing, damaged or empty, or a record is not what the benchmark's are.
    """
    files = declared.files
    num_shots = declared.num_shots if num_shots is None else num_shots
    scored = _by_subject(_read(declared, task_data, files.scored, declared.reader))
    if not scored:
        raise errors.UserError(f"{declared.name}: its files below {task_data} hold no items.")
    pool: dict[str, list[items.Item]] = {}
    if num_shots:
        reader = declared.shot_reader or declared.reader
        pool = _by_subject(_read(declared, task_data, files.shots or files.scored, reader))
    prompted = []
    for subject, members in scored.items():
        begin = declared.description(task_data, subject)
        shots = _shots(declared, members[:limit], pool.get(subject, []), num_shots, seed)
        for item, examples in zip(members[:limit], shots, strict=True):
            texts = [declared.solved(example) + _BETWEEN for example in examples]
            prompted.append(Prompted(item, begin + "".join(texts)))
    return Loaded(declared, num_shots, tuple(prompted))


def _read(
    declared: task.Task, task_data: pathlib.Path, split: Sequence[str], reader: task.Reader
) -> Iterator[items.Item]:
    for source in locating.find(declared.name, declared.files, task_data, split):
        yield from _items(declared, reader(source, declared.files))


def _items(declared: task.Task, read: Iterable[records.Record]) -> Iterator[items.Item]:
    for record in read:
        yield declared.item(record)


def _by_subject(found: Iterable[items.Item]) -> dict[str, list[items.Item]]:
    subjects: dict[str, list[items.Item]] = {}
    for item in found:
        subjects.setdefault(item.subject, []).append(item)
    return subjects


def _shots(
    declared: task.Task,
    members: Sequence[items.Item],
    pool: Sequence[items.Item],
    num_shots: int,
    seed: int,
) -> Iterator[Sequence[items.Item]]:
    """The examples of each item: never the item itself."""
    if not num_shots:
        yield from ((),) * len(members)
        return
    is_own_split = not declared.files.shots
    needed = num_shots + is_own_split
    if len(pool) < needed:
        subject = f" of {members[0].subject}" if members[0].subject else ""
        raise errors.UserError(
            f"{declared.name}: its files hold {len(pool)} examples{subject}, but {needed} are "
            f"needed for {num_shots} in each prompt: give --num_shots, or all of the files."
        )
    generator = random.Random(seed)
    for item in members:
        drawn = pool if declared.are_shots_first else generator.sample(pool, needed)
        yield [example for example in drawn if example.where != item.where][:num_shots]
