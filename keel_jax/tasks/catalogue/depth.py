"""The tasks of the depth suite, whose files `keel_jax.make_depth_suite` writes."""

from keel_jax.depth_suite import registry
from keel_jax.tasks import items, locating, records, task


def _item(record: records.Record) -> items.Choices:
    answer = record.text("answer")
    choices = record.texts("choices") if record.values.get("choices") else (answer,)
    if answer not in choices:
        raise record.error(f"the answer {answer!r} is not one of the choices {choices}.")
    return items.Choices(
        where=record.where,
        subject=f"difficulty {record.integer('difficulty'):2}",
        contexts=(record.text("prompt"),),
        choices=choices,
        right=frozenset([choices.index(answer)]),
    )


def _task(name: str) -> task.Task:
    return task.ShortAnswer(
        name=f"depth_{name}",
        source="docs/depth_suite.md",
        domain=task.DEPTH,
        files=locating.Files(scored=("test",), only=tuple(name.split("_")), folder="depth_suite"),
        item=_item,
    )


TASKS = tuple(_task(name) for name in registry.TASKS)
