"""MMLU-Pro: up to ten choices, answered after reasoning."""

import pathlib
import string

from keel_jax.tasks import items, locating, records, task


def _item(record: records.Record) -> items.Question:
    options = record.texts("options")
    letters = string.ascii_uppercase[: len(options)]
    lines = [f"{letter}. {option.strip()}" for letter, option in zip(letters, options, strict=True)]
    reasoning = record.text("cot_content") if "cot_content" in record else ""
    return items.Question(
        where=record.where,
        subject=record.text("category"),
        prompt="\n".join(
            ["Question:", record.text("question"), "Options:", *lines]
            + ["Answer: Let's think step by step."]
        ),
        solution=reasoning.removeprefix("A: Let's think step by step. "),
        answer=letters[record.one_of("answer", letters)],
        chance=1 / len(options),
    )


def _begins(task_data: pathlib.Path, subject: str) -> str:
    del task_data
    return (
        f"The following are multiple choice questions (with answers) about {subject}. Think step "
        'by step and then finish your answer with "the answer is (X)" where X is the correct '
        "letter choice.\n"
    )


TASKS = (
    task.ExactMatch(
        name="mmlu_pro",
        source="Wang et al. 2024 (2406.01574); mmlu_pro",
        domain=task.KNOWLEDGE,
        files=locating.Files(scored=("test",), shots=("validation",)),
        item=_item,
        num_shots=5,
        are_shots_first=True,
        description=_begins,
        stop=("Question:",),
        num_tokens=2048,
        extract={"exact_match": task.first_group(r"answer is \(?([A-J])\)?")},
    ),
)
