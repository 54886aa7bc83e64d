"""Winogrande: which of two names a sentence's gap stands for."""

from keel_jax.tasks import items, locating, records, task


def _item(record: records.Record) -> items.Choices:
    """The rest of the sentence is scored after each of the two beginnings (partial evaluation)."""
    sentence = record.text("sentence")
    begins, gap, rest = sentence.partition("_")
    if not gap or not rest.strip():
        raise record.error(f"the sentence has no gap '_' with words after it: {sentence[:60]!r}.")
    return items.Choices(
        where=record.where,
        contexts=tuple(begins + record.text(name) for name in ("option1", "option2")),
        choices=(rest.strip(),) * 2,
        right=frozenset([record.one_of("answer", ("1", "2"))]),
    )


TASKS = (
    task.MultipleChoice(
        name="winogrande",
        source="Sakaguchi et al. 2019 (1907.10641); winogrande/default.yaml",
        domain=task.KNOWLEDGE,
        files=locating.Files(scored=locating.VALIDATION, shots=("train",), never=("debiased",)),
        item=_item,
        metrics=("acc",),
    ),
)
