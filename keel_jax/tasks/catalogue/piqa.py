"""PIQA: which of two solutions reaches a goal."""

import pathlib

from keel_jax import errors
from keel_jax.tasks import items, locating, records, task


def _item(record: records.Record) -> items.Choices:
    label = record.integer("label")
    if label not in (0, 1):
        raise record.error(f"'label' is {label}, which is neither 0 nor 1.")
    return items.Choices(
        where=record.where,
        contexts=(f"Question: {record.text('goal')}\nAnswer:",),
        choices=(record.text("sol1"), record.text("sol2")),
        right=frozenset([label]),
    )


def _with_labels(source: locating.Source, files: locating.Files) -> list[records.Record]:
    """The records of a file, with the labels of the file beside it where they are apart.

    Distributed: valid.jsonl and valid-labels.lst; the name may have more words.
    """
    found = list(locating.read(source, files))
    if not found or "label" in found[0]:
        return found
    path = _labels_of(source.path)
    labels = records.read_text(path).split()
    if len(labels) != len(found):
        raise errors.UserError(
            f"{path} has {len(labels)} labels, but {source.path} has {len(found)} records."
        )
    return [
        records.Record({**record.values, "label": label}, f"{record.where} (label: {path})")
        for record, label in zip(found, labels, strict=True)
    ]


def _labels_of(path: pathlib.Path) -> pathlib.Path:
    words = set(path.name.split(".")[0].replace("-", "_").split("_"))
    for other in sorted(path.parent.glob("*.lst")):
        if set(other.stem.replace("-", "_").split("_")) - {"labels"} == words:
            return other
    raise errors.UserError(
        f"{path} has no field 'label', and there is no file of labels beside it, as "
        f"{path.name.split('.')[0]}-labels.lst."
    )


TASKS = (
    task.MultipleChoice(
        name="piqa",
        source="Bisk et al. 2019 (1911.11641); piqa/piqa.yaml",
        domain=task.KNOWLEDGE,
        files=locating.Files(scored=locating.VALIDATION, shots=("train",)),
        item=_item,
        reader=_with_labels,
        metrics=("acc_norm", "acc"),
    ),
)
