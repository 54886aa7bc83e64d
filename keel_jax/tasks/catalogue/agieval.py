"""AGIEval: admission and qualification examinations, English and Chinese."""

import re
import string

from keel_jax.tasks import items, locating, records, task

# Answered by text: scored by the authors' equivalence of formulas, which is not implemented.
_CLOZE = ("math", "gaokao-mathcloze")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def _item(record: records.Record) -> items.Choices:
    """The authors' zero-shot prompt (src/dataset_loader.py)."""
    options = record.texts("options")
    passage = record.text("passage") if "passage" in record else ""
    question = record.text("question")
    last = string.ascii_uppercase[len(options) - 1]
    if _is_chinese(record.subject, question):
        asked = f"问题：{question} 选项：{' '.join(options)}\n答案：从A到{last}, 我们应选择"
    else:
        asked = (
            f"Q: {question} Answer Choices: {' '.join(options)}\n"
            f"A: Among A through {last}, the answer is"
        )
    return items.Choices(
        where=record.where,
        subject=record.subject,
        contexts=(passage + asked,),
        choices=options,
        right=_right(record, len(options)),
    )


def _right(record: records.Record, num_options: int) -> frozenset[int]:
    """A letter, several ("AB"), or a list of letters (JEC-QA, physics)."""
    label = record.values.get("label")
    letters = "".join(record.texts("label")) if isinstance(label, list) else record.text("label")
    places = [string.ascii_uppercase.find(letter) for letter in letters.strip()]
    if not places or not all(0 <= place < num_options for place in places):
        raise record.error(f"'label' is {label!r}, but there are {num_options} options.")
    return frozenset(places)


def _is_chinese(subject: str, question: str) -> bool:
    if subject in ("gaokao-english", "logiqa-en"):
        return False
    return bool(_CHINESE.search(question))


TASKS = (
    task.MultipleChoice(
        name="agieval",
        source="Zhong et al. 2023 (2304.06364); agieval, its tasks of choices",
        domain=task.KNOWLEDGE,
        files=locating.Files(never=("prompts",), never_subjects=_CLOZE, has_subjects=True),
        item=_item,
        metrics=("acc",),
    ),
)
