"""Small benchmarks in the layouts in which the real ones are distributed.

Items are made up; names of files and fields are those of the distributions: the authors' own
archives and repositories, and the Parquet files of the Hugging Face Hub.
"""

import csv
import gzip
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

Layout = Callable[[pathlib.Path], None]


def jsonl(path: pathlib.Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def as_json(path: pathlib.Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def as_csv(path: pathlib.Path, rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def parquet(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


# --- Records -------------------------------------------------------------------------------------

_HELLASWAG = {
    "ind": 4,
    "activity_label": "Baking",
    "ctx_a": "A woman [substeps] opens an oven.",
    "ctx_b": "she",
    "ctx": "A woman [substeps] opens an oven. she",
    "endings": ["takes out bread [title] Eating", "swims  away.", "is red.", "sings."],
    "split_type": "indomain",
    "label": 0,
}
_ARC_TEXTS, _ARC_LABELS = ["iron", "wood", "air", "ice"], ["A", "B", "C", "D"]
_ARC_OWN = {
    "id": "Q1",
    "question": {
        "stem": "What is a metal?",
        "choices": [
            {"text": text, "label": label}
            for text, label in zip(_ARC_TEXTS, _ARC_LABELS, strict=True)
        ],
    },
    "answerKey": "A",
}
_ARC_HUB = {
    "id": "Q1",
    "question": "What is a metal?",
    "choices": {"text": _ARC_TEXTS, "label": _ARC_LABELS},
    "answerKey": "A",
}
_PIQA = {"goal": "Cool a drink", "sol1": "add ice", "sol2": "add fire"}
_WINOGRANDE = {
    "qID": "1",
    "sentence": "The cup fits the box because the _ is small.",
    "option1": "cup",
    "option2": "box",
    "answer": "1",
}
_SCIQ = {
    "question": "What do plants take in?",
    "distractor3": "iron",
    "distractor1": "gold",
    "distractor2": "sand",
    "correct_answer": "light",
    "support": " Plants live on light.",
}
_LAMBADA = {"text": "He took the key and opened the door"}
_MMLU_ROWS = [[f"What is {n} + 1? ", n, n + 1, n + 2, n + 3, "B"] for n in range(6)]
_MMLU_HUB = [
    {"question": row[0], "subject": "", "choices": [str(c) for c in row[1:5]], "answer": 1}
    for row in _MMLU_ROWS
]
_CMMLU_ROWS = [
    ["", "Question", "A", "B", "C", "D", "Answer"],
    *([n, f"{n}加一等于", n, n + 1, n + 2, n + 3, "B"] for n in range(6)),
]
_CEVAL_ROWS = [
    ["id", "question", "A", "B", "C", "D", "answer"],
    *([n, f"{n}加一等于", n, n + 1, n + 2, n + 3, "B"] for n in range(6)),
]
_MMLU_PRO = [
    {
        "question_id": n,
        "question": f"What is {n} + 1?",
        "options": [str(n + k) for k in range(10)],
        "answer": "B",
        "answer_index": 1,
        "cot_content": f"A: Let's think step by step. It is {n + 1}. The answer is (B).",
        "category": "math",
        "src": "made",
    }
    for n in range(6)
]
_BBH = {"canary": "", "examples": [{"input": "not True is", "target": "False"}]}
_BBH_COT = """BIG-bench canary GUID
-----
Evaluate.

Q: not False is
A: Let's think step by step.
It is True. So the answer is True.
"""
_GSM8K = [{"question": f"{n} and 1?", "answer": f"Add.\n#### {n + 1},000"} for n in range(6)]
_MBPP = [
    {
        "task_id": number,
        "text": f"Write a function that returns {number}.",
        "code": f"def f():\r\n  return {number}",
        "test_list": [f"assert f() == {number}", "assert f() > 0", "assert f"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for number in (1, 2, 3, 4, 11, 510, 511)
]
_HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def one() -> int:\n    """Returns one."""\n',
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}
_AGIEVAL = {
    "passage": "A is B. ",
    "question": "What is A?",
    "options": ["(A)B", "(B)C", "(C)D"],
    "label": "A",
    "answer": None,
    "other": None,
}


def _two(row: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """The row, and a second one."""
    return [row, {**row, **changes}]


# --- Layouts, by benchmark -----------------------------------------------------------------------


def _hellaswag_own(folder):
    jsonl(folder / "hellaswag/hellaswag_val.jsonl", _two(_HELLASWAG, label=2))
    jsonl(folder / "hellaswag/hellaswag_train.jsonl", [_HELLASWAG] * 3)


def _hellaswag_hub(folder):
    rows = [{**row, "label": str(row["label"])} for row in _two(_HELLASWAG, label=2)]
    parquet(folder / "hellaswag/data/validation-00000-of-00001.parquet", rows)
    parquet(folder / "hellaswag/data/train-00000-of-00001.parquet", rows)


def _arc_own(folder):
    for half in ("Easy", "Challenge"):
        for split in ("Train", "Dev", "Test"):
            jsonl(
                folder / f"ARC/ARC-{half}/ARC-{half}-{split}.jsonl", _two(_ARC_OWN, answerKey="D")
            )


def _arc_hub(folder):
    for half in ("Easy", "Challenge"):
        for split in ("train", "validation", "test"):
            parquet(
                folder / f"arc/ARC-{half}/{split}-00000-of-00001.parquet",
                _two(_ARC_HUB, answerKey="D"),
            )


def _piqa_own(folder):
    for split in ("train", "valid"):
        jsonl(folder / f"piqa/{split}.jsonl", _two(_PIQA, goal="Warm a drink"))
        (folder / f"piqa/{split}-labels.lst").write_text("0\n1\n")


def _piqa_hub(folder):
    rows = _two({**_PIQA, "label": 0}, label=1, goal="Warm a drink")
    parquet(folder / "piqa/plain_text/validation-00000-of-00001.parquet", rows)
    parquet(folder / "piqa/plain_text/train-00000-of-00001.parquet", rows)


def _winogrande_own(folder):
    jsonl(folder / "winogrande/dev.jsonl", _two(_WINOGRANDE, answer="2"))
    jsonl(folder / "winogrande/train_xl.jsonl", [_WINOGRANDE] * 3)


def _sciq_own(folder):
    as_json(folder / "SciQ/test.json", _two(_SCIQ, support=""))
    as_json(folder / "SciQ/train.json", [_SCIQ] * 3)


def _lambada_own(folder):
    jsonl(folder / "lambada/lambada_test.jsonl", _two(_LAMBADA, text="She sang a song"))


def _lambada_plain(folder):
    (folder / "lambada").mkdir()
    (folder / "lambada/lambada_test_plain_text.txt").write_text(
        f"{_LAMBADA['text']}\nShe sang a song\n"
    )


def _mmlu_own(folder):
    for subject in ("abstract_algebra", "high_school_physics"):
        as_csv(folder / f"mmlu/data/dev/{subject}_dev.csv", _MMLU_ROWS[:5])
        as_csv(folder / f"mmlu/data/test/{subject}_test.csv", _MMLU_ROWS[4:])


def _mmlu_hub(folder):
    for subject in ("abstract_algebra", "high_school_physics"):
        rows = [{**row, "subject": subject} for row in _MMLU_HUB]
        parquet(folder / f"mmlu/{subject}/dev-00000-of-00001.parquet", rows[:5])
        parquet(folder / f"mmlu/{subject}/test-00000-of-00001.parquet", rows[4:])
        parquet(folder / "mmlu/all/test-00000-of-00001.parquet", rows[4:])
        parquet(folder / "mmlu/all/dev-00000-of-00001.parquet", rows[:5])


def _cmmlu_own(folder):
    as_csv(folder / "cmmlu/dev/agronomy.csv", _CMMLU_ROWS[:6])
    as_csv(folder / "cmmlu/test/agronomy.csv", [_CMMLU_ROWS[0], *_CMMLU_ROWS[5:]])


def _ceval_own(folder):
    explained = [[*row, "explanation"] for row in _CEVAL_ROWS[:6]]
    as_csv(folder / "ceval/dev/accountant_dev.csv", explained)
    as_csv(folder / "ceval/val/accountant_val.csv", [_CEVAL_ROWS[0], *_CEVAL_ROWS[5:]])


def _mmlu_pro_hub(folder):
    parquet(folder / "MMLU-Pro/data/validation-00000-of-00001.parquet", _MMLU_PRO[:5])
    parquet(folder / "MMLU-Pro/data/test-00000-of-00001.parquet", _MMLU_PRO[4:])


def _bbh_own(folder):
    as_json(folder / "bbh/bbh/boolean_expressions.json", _BBH)
    (folder / "bbh/cot-prompts").mkdir()
    (folder / "bbh/cot-prompts/boolean_expressions.txt").write_text(_BBH_COT)


def _gsm8k_own(folder):
    jsonl(folder / "gsm8k/train.jsonl", _GSM8K)
    jsonl(folder / "gsm8k/test.jsonl", _GSM8K[:2])
    jsonl(folder / "gsm8k/test_socratic.jsonl", _GSM8K[:2])


def _gsm8k_hub(folder):
    parquet(folder / "gsm8k/main/train-00000-of-00001.parquet", _GSM8K)
    parquet(folder / "gsm8k/main/test-00000-of-00001.parquet", _GSM8K[:2])
    parquet(folder / "gsm8k/socratic/test-00000-of-00001.parquet", _GSM8K[:2])


def _mbpp_own(folder):
    jsonl(folder / "mbpp/mbpp.jsonl", _MBPP)
    as_json(folder / "mbpp/sanitized-mbpp.json", _MBPP)


def _mbpp_hub(folder):
    parquet(folder / "mbpp/full/test-00000-of-00001.parquet", _MBPP[4:6])
    parquet(folder / "mbpp/full/prompt-00000-of-00001.parquet", _MBPP[:4])
    parquet(folder / "mbpp/full/train-00000-of-00001.parquet", _MBPP[6:])


def _humaneval_own(folder):
    jsonl(folder / "HumanEval.jsonl.gz", _two(_HUMANEVAL, entry_point="two"))


def _agieval_own(folder):
    jsonl(folder / "AGIEval/data/v1_1/lsat-ar.jsonl", _two(_AGIEVAL, label=["A", "C"]))
    chinese = {**_AGIEVAL, "question": "甲是什么？", "passage": None}
    jsonl(folder / "AGIEval/data/v1_1/gaokao-history.jsonl", [chinese])
    cloze = {**_AGIEVAL, "options": None, "label": None, "answer": "2"}
    jsonl(folder / "AGIEval/data/v1_1/math.jsonl", [cloze])
    jsonl(folder / "AGIEval/data/v1_1/gaokao-mathcloze.jsonl", [cloze])


# (benchmark, name of the layout, what writes it, number of its items).
LAYOUTS: tuple[tuple[str, str, Layout, int], ...] = (
    ("hellaswag", "own", _hellaswag_own, 2),
    ("hellaswag", "hub", _hellaswag_hub, 2),
    ("arc_easy", "own", _arc_own, 2),
    ("arc_easy", "hub", _arc_hub, 2),
    ("arc_challenge", "own", _arc_own, 2),
    ("arc_challenge", "hub", _arc_hub, 2),
    ("piqa", "own", _piqa_own, 2),
    ("piqa", "hub", _piqa_hub, 2),
    ("winogrande", "own", _winogrande_own, 2),
    ("sciq", "own", _sciq_own, 2),
    ("lambada", "own", _lambada_own, 2),
    ("lambada", "plain", _lambada_plain, 2),
    ("mmlu", "own", _mmlu_own, 4),
    ("mmlu", "hub", _mmlu_hub, 4),
    ("cmmlu", "own", _cmmlu_own, 2),
    ("ceval", "own", _ceval_own, 2),
    ("mmlu_pro", "hub", _mmlu_pro_hub, 2),
    ("bbh", "own", _bbh_own, 1),
    ("gsm8k", "own", _gsm8k_own, 2),
    ("gsm8k", "hub", _gsm8k_hub, 2),
    ("mbpp", "own", _mbpp_own, 2),
    ("mbpp", "hub", _mbpp_hub, 2),
    ("humaneval", "own", _humaneval_own, 2),
    ("agieval", "own", _agieval_own, 3),
)


def write(name: str, folder: pathlib.Path) -> None:
    """The first layout of a benchmark."""
    next(layout for task, _, layout, _ in LAYOUTS if task == name)(folder)
