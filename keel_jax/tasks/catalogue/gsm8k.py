"""GSM8K: grade-school word problems, solved step by step."""

from keel_jax.tasks import items, locating, records, task

_strict = task.first_group(r"#### (\-?[0-9\.\,]+)")
_last_number = task.last_group(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def _number(text: str | None) -> str | None:
    """A number without what is written around its digits."""
    return text if text is None else text.replace(",", "").replace("$", "").removesuffix(".")


def _item(record: records.Record) -> items.Question:
    solution = record.text("answer")
    answer = _number(_strict(solution))
    if not answer:
        raise record.error(f"the answer ends in no '#### NUMBER': {solution[-40:]!r}.")
    return items.Question(
        where=record.where,
        prompt=f"Question: {record.text('question')}\nAnswer:",
        solution=solution,
        answer=answer,
    )


TASKS = (
    task.ExactMatch(
        name="gsm8k",
        source="Cobbe et al. 2021 (2110.14168); gsm8k/gsm8k.yaml",
        domain=task.MATHEMATICS,
        files=locating.Files(scored=("test",), shots=("train",), never=("socratic",)),
        item=_item,
        num_shots=5,
        stop=("Question:", "</s>", "<|im_end|>"),
        metrics=("exact_match", "flexible_match"),
        extract={
            "exact_match": lambda text: _number(_strict(text)),
            "flexible_match": lambda text: _number(_last_number(text)),
        },
    ),
)
