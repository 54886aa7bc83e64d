"""ARC: questions of school science, an easy half and a hard one."""

from keel_jax.tasks import items, locating, records, task


def _item(record: records.Record) -> items.Choices:
    """Of AI2's own JSON Lines (ARC-V1-Feb2018), or of the Hub's Parquet."""
    if "choices" in record:
        question, choices = record.text("question"), record.inner("choices")
        texts, labels = choices.texts("text"), choices.texts("label")
    else:
        stem = record.inner("question")
        question = stem.text("stem")
        choices = stem.inner_list("choices")
        texts = tuple(choice.text("text") for choice in choices)
        labels = tuple(choice.text("label") for choice in choices)
    return items.Choices(
        where=record.where,
        contexts=(f"Question: {question}\nAnswer:",),
        choices=texts,
        right=frozenset([record.one_of("answerKey", labels)]),
    )


def _task(half: str) -> task.MultipleChoice:
    return task.MultipleChoice(
        name=f"arc_{half}",
        source=f"Clark et al. 2018 (1803.05457); arc/arc_{half}.yaml",
        domain=task.KNOWLEDGE,
        files=locating.Files(scored=("test",), shots=("train",), only=(half,), folder="arc"),
        item=_item,
        metrics=("acc_norm", "acc"),
    )


TASKS = (_task("easy"), _task("challenge"))
