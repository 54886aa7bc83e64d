"""BIG-Bench Hard: 27 tasks that are answered after reasoning, with three examples each."""

import pathlib

from keel_jax import errors
from keel_jax.tasks import items, locating, records, task

_RULE = "-----\n"


def _item(record: records.Record) -> items.Question:
    target = record.text("target")
    return items.Question(
        where=record.where,
        subject=record.subject,
        prompt=f"Q: {record.text('input')}\nA: Let's think step by step.\n",
        solution=f"So the answer is {target}.",
        answer=target,
    )


def _examples(task_data: pathlib.Path, subject: str) -> str:
    """The authors' three worked examples: cot-prompts/SUBJECT.txt, below its warning."""
    root, paths = locating.candidates("bbh", task_data)
    for path in paths:
        if path.name == f"{subject}.txt":
            text = records.read_text(path).replace("\r\n", "\n")
            return text.partition(_RULE)[2].strip() + "\n\n" if _RULE in text else text
    raise errors.UserError(
        f"bbh: the worked examples of {subject} are missing: put the repository's folder "
        f"cot-prompts, with {subject}.txt, into {root}."
    )


TASKS = (
    task.ExactMatch(
        name="bbh",
        source="Suzgun et al. 2022 (2210.09261); bbh/cot_fewshot",
        domain=task.KNOWLEDGE,
        files=locating.Files(never=("cot",), has_subjects=True),
        item=_item,
        description=_examples,
        num_described=3,
        delimiter="",
        stop=("</s>", "Q", "\n\n"),
        num_tokens=1024,
        extract={"exact_match": task.first_group(r"the answer is (.*)\.")},
    ),
)
