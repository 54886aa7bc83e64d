"""LAMBADA: the last word of a passage."""

from keel_jax.tasks import items, locating, records, task


def _item(record: records.Record) -> items.LastWords:
    text = record.text("text")
    context, space, word = text.rpartition(" ")
    if not space or not word.strip() or not context.strip():
        raise record.error(f"the text has no last word after a space: {text[-60:]!r}.")
    return items.LastWords(where=record.where, context=context, continuation=" " + word)


TASKS = (
    task.LastWords(
        name="lambada",
        source="Paperno et al. 2016 (1606.06031); lambada/lambada_openai.yaml",
        domain=task.KNOWLEDGE,
        files=locating.Files(scored=("test",)),
        item=_item,
    ),
)
