"""Examinations of four choices, subject by subject: MMLU, CMMLU, C-Eval."""

import pathlib

from keel_jax.tasks import items, locating, records, task

_LETTERS = ("A", "B", "C", "D")


def _exam(record: records.Record, question: str, choices, right: int, ask: str) -> items.Choices:
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)]
    return items.Choices(
        where=record.where,
        subject=record.subject,
        contexts=("\n".join([question.strip(), *lines, ask]),),
        choices=_LETTERS,
        right=frozenset([right]),
    )


def _mmlu(record: records.Record) -> items.Choices:
    """Of the authors' CSV, or of the Hub's Parquet, where the answer is a number."""
    if "choices" in record:
        choices, right = record.texts("choices"), record.integer("answer")
        if len(choices) != len(_LETTERS) or not 0 <= right < len(_LETTERS):
            raise record.error(f"there are {len(choices)} choices, and the answer is {right}.")
    else:
        choices = [record.text(letter) for letter in _LETTERS]
        right = record.one_of("answer", _LETTERS)
    if "subject" in record:
        record = records.Record(record.values, record.where, record.text("subject"))
    return _exam(record, record.text("question"), choices, right, "Answer:")


def _cmmlu(record: records.Record) -> items.Choices:
    choices = [record.text(letter) for letter in _LETTERS]
    right = record.one_of("Answer", _LETTERS)
    return _exam(record, record.text("Question"), choices, right, "答案：")


def _ceval(record: records.Record) -> items.Choices:
    choices = [record.text(letter) for letter in _LETTERS]
    right = record.one_of("answer", _LETTERS)
    return _exam(record, record.text("question"), choices, right, "答案：")


def _mmlu_begins(task_data: pathlib.Path, subject: str) -> str:
    del task_data
    about = f" about {subject.replace('_', ' ')}" if subject else ""
    return f"The following are multiple choice questions (with answers){about}.\n\n"


TASKS = (
    task.MultipleChoice(
        name="mmlu",
        source="Hendrycks et al. 2020 (2009.03300); mmlu/default",
        domain=task.MULTILINGUAL,
        files=locating.Files(
            scored=("test",),
            shots=("dev",),
            never=("auxiliary", "pro"),
            columns=("question", *_LETTERS, "answer"),
            has_subjects=True,
        ),
        item=_mmlu,
        metrics=("acc",),
        num_shots=5,
        are_shots_first=True,
        description=_mmlu_begins,
    ),
    task.MultipleChoice(
        name="cmmlu",
        source="Li et al. 2023 (2306.09212); cmmlu, without the Chinese names of the subjects",
        domain=task.MULTILINGUAL,
        files=locating.Files(scored=("test",), shots=("dev",), has_subjects=True),
        item=_cmmlu,
        metrics=("acc",),
        num_shots=5,
        are_shots_first=True,
        description=lambda task_data, subject: "以下是单项选择题，请直接给出正确答案的选项。\n\n",
    ),
    task.MultipleChoice(
        name="ceval",
        source="Huang et al. 2023 (2305.08322); ceval, without the Chinese names of the subjects",
        domain=task.MULTILINGUAL,
        files=locating.Files(scored=("val", "validation"), shots=("dev",), has_subjects=True),
        item=_ceval,
        metrics=("acc",),
        num_shots=5,
        are_shots_first=True,
        description=lambda task_data, subject: (
            "以下是中国考试的单项选择题，请选出其中的正确答案。\n\n"
        ),
    ),
)
