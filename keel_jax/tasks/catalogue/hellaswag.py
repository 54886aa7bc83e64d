"""HellaSwag: which ending follows."""

import re

from keel_jax.tasks import items, locating, records, task


def _item(record: records.Record) -> items.Choices:
    # "ctx" of the files is the two joined; the harness joins them itself, with a capital letter.
    begins, ends = record.text("ctx_a"), record.text("ctx_b")
    endings = record.texts("endings")
    label = record.integer("label")
    if not 0 <= label < len(endings):
        raise record.error(f"'label' is {label}, but there are {len(endings)} endings.")
    context = f"{record.text('activity_label')}: {begins} {ends.capitalize()}"
    return items.Choices(
        where=record.where,
        contexts=(_cleaned(context),),
        choices=tuple(_cleaned(ending) for ending in endings),
        right=frozenset([label]),
    )


def _cleaned(text: str) -> str:
    """Without the marks that WikiHow's pages left in the files."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


TASKS = (
    task.MultipleChoice(
        name="hellaswag",
        source="Zellers et al. 2019 (1905.07830); hellaswag/hellaswag.yaml",
        domain=task.KNOWLEDGE,
        files=locating.Files(scored=locating.VALIDATION, shots=("train",)),
        item=_item,
        metrics=("acc_norm", "acc"),
    ),
)
