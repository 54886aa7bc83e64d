"""SciQ: science questions, each with a text that helps."""

from keel_jax.tasks import items, locating, records, task


def _item(record: records.Record) -> items.Choices:
    support = record.text("support") if "support" in record else ""
    return items.Choices(
        where=record.where,
        contexts=(f"{support.lstrip()}\nQuestion: {record.text('question')}\nAnswer:",),
        choices=tuple(
            record.text(name)
            for name in ("distractor1", "distractor2", "distractor3", "correct_answer")
        ),
        right=frozenset([3]),
    )


TASKS = (
    task.MultipleChoice(
        name="sciq",
        source="Welbl et al. 2017 (1707.06209); sciq/sciq.yaml",
        domain=task.KNOWLEDGE,
        files=locating.Files(scored=("test",), shots=("train",)),
        item=_item,
        metrics=("acc_norm", "acc"),
    ),
)
