"""Every benchmark is read from every layout in which it is distributed, as the harness asks it."""

import json

import pytest

from keel_jax.tasks import catalogue, items, loading, task
from tests.tasks import layouts

TASKS = catalogue.all_tasks()


def _load(name, tmp_path, **options):
    return loading.load(TASKS[name], tmp_path, **options)


def test_every_benchmark_has_a_layout():
    assert {name for name, *_ in layouts.LAYOUTS} == {*TASKS} - _GENERATED_HERE
    assert {declared.domain for declared in TASKS.values()} <= {*task.DOMAINS}


# Their files are not anyone's distribution: `keel_jax.make_depth_suite` writes them.
_GENERATED_HERE = {name for name, declared in TASKS.items() if declared.domain == task.DEPTH}


@pytest.mark.parametrize(
    ("name", "write", "num_items"),
    [
        pytest.param(name, write, num, id=f"{name}-{kind}")
        for name, kind, write, num in layouts.LAYOUTS
    ],
)
def test_every_layout_is_read(name, write, num_items, tmp_path):
    write(tmp_path)
    loaded = _load(name, tmp_path, num_shots=0)
    assert len(loaded.items) == num_items
    first = next(layout for layout in layouts.LAYOUTS if layout[0] == name)[2]
    (tmp_path / "first").mkdir()
    first(tmp_path / "first")
    same = _load(name, tmp_path / "first", num_shots=0)
    assert _without_places(loaded) == _without_places(same)
    if TASKS[name].num_shots:
        assert len(_load(name, tmp_path).items) == num_items


def _without_places(loaded):
    """The items, but for where they are."""
    return [
        (repr(entry.item).replace(entry.item.where, ""), entry.prompt) for entry in loaded.items
    ]


def _pairs(name, tmp_path, place=0, **options):
    layouts.write(name, tmp_path)
    loaded = _load(name, tmp_path, **options)
    entry = loaded.items[place]
    return TASKS[name].pairs(entry.item, entry.prompt), entry.item


@pytest.mark.parametrize(
    ("name", "context", "continuations", "right"),
    [
        (
            "hellaswag",
            "Baking: A woman opens an oven. She",
            [" takes out bread. Eating", " swims away.", " is red.", " sings."],
            {0},
        ),
        (
            "arc_easy",
            "Question: What is a metal?\nAnswer:",
            [" iron", " wood", " air", " ice"],
            {0},
        ),
        ("piqa", "Question: Cool a drink\nAnswer:", [" add ice", " add fire"], {0}),
        (
            "sciq",
            "Plants live on light.\nQuestion: What do plants take in?\nAnswer:",
            [" gold", " sand", " iron", " light"],
            {3},
        ),
        (
            "agieval",
            "问题：甲是什么？ 选项：(A)B (B)C (C)D\n答案：从A到C, 我们应选择",
            [" (A)B", " (B)C", " (C)D"],
            {0},
        ),
    ],
)
def test_the_prompt_is_the_harnesss(name, context, continuations, right, tmp_path):
    """Written from the harness's YAML files and preprocessing, not from our declarations."""
    pairs, item = _pairs(name, tmp_path, num_shots=0)
    assert pairs == [(context, continuation) for continuation in continuations]
    assert item.right == right


def test_agieval_asks_in_english_and_takes_any_of_several_answers(tmp_path):
    pairs, item = _pairs("agieval", tmp_path, place=2)
    assert pairs[0] == (
        "A is B. Q: What is A? Answer Choices: (A)B (B)C (C)D\nA: Among A through C, the answer is",
        " (A)B",
    )
    assert item.right == {0, 2} and item.subject == "lsat-ar"


def test_winogrande_scores_the_same_words_after_two_beginnings(tmp_path):
    pairs, item = _pairs("winogrande", tmp_path)
    assert pairs == [
        ("The cup fits the box because the cup", " is small."),
        ("The cup fits the box because the box", " is small."),
    ]
    assert item.right == {0}


def test_lambada_scores_the_last_word(tmp_path):
    pairs, _ = _pairs("lambada", tmp_path)
    assert pairs == [("He took the key and opened the", " door")]


def test_exams_show_five_examples_of_the_subject(tmp_path):
    pairs, item = _pairs("mmlu", tmp_path)
    examples = "".join(
        f"What is {n} + 1?\nA. {n}\nB. {n + 1}\nC. {n + 2}\nD. {n + 3}\nAnswer: B\n\n"
        for n in range(5)
    )
    begin = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    asked = "What is 4 + 1?\nA. 4\nB. 5\nC. 6\nD. 7\nAnswer:"
    assert pairs == [(begin + examples + asked, f" {letter}") for letter in "ABCD"]
    assert item.right == {1} and item.subject == "abstract_algebra"


def test_chinese_exams_ask_in_chinese(tmp_path):
    for name in ("cmmlu", "ceval"):
        pairs, item = _pairs(name, tmp_path, num_shots=0)
        assert pairs[2][0].endswith("4加一等于\nA. 4\nB. 5\nC. 6\nD. 7\n答案：")
        assert pairs[2][1] == " C" and item.right == {1}


def test_mmlu_pro_reasons_first(tmp_path):
    layouts.write("mmlu_pro", tmp_path)
    entry = _load("mmlu_pro", tmp_path).items[0]
    assert entry.prompt.startswith(
        "The following are multiple choice questions (with answers) about math. Think step by step "
        'and then finish your answer with "the answer is (X)" where X is the correct letter '
        "choice.\nQuestion:\nWhat is 0 + 1?\nOptions:\nA. 0\nB. 1\n"
    )
    assert entry.prompt.endswith(
        "J. 13\nAnswer: Let's think step by step. It is 5. The answer is (B).\n\n"
    )
    assert isinstance(entry.item, items.Question) and entry.item.answer == "B"
    assert TASKS["mmlu_pro"].chance(entry.item) == 0.1
    grade = TASKS["mmlu_pro"].grade
    assert grade(entry.item, ["so the answer is (B)."]) == {"exact_match": 1}
    assert grade(entry.item, ["the answer is C", "answer is B"]) == {"exact_match": 0.5}
    assert grade(entry.item, ["I do not know"]) == {"exact_match": 0}


def test_bbh_shows_the_authors_worked_examples(tmp_path):
    layouts.write("bbh", tmp_path)
    entry = _load("bbh", tmp_path).items[0]
    assert entry.prompt == (
        "Evaluate.\n\nQ: not False is\nA: Let's think step by step.\n"
        "It is True. So the answer is True.\n\n"
    )
    assert entry.item.prompt == "Q: not True is\nA: Let's think step by step.\n"
    grade = TASKS["bbh"].grade
    assert grade(entry.item, ["not True = False. So the answer is False."]) == {"exact_match": 1}
    assert grade(entry.item, ["So the answer is True."]) == {"exact_match": 0}
    (tmp_path / "bbh/cot-prompts/boolean_expressions.txt").unlink()
    with pytest.raises(ValueError, match=r"worked examples of boolean_expressions are missing"):
        _load("bbh", tmp_path)


@pytest.mark.parametrize(
    ("text", "exact", "flexible"),
    [
        (" Add.\n#### 1,000", 1, 1),
        (" Add.\n#### 1000", 1, 1),
        (" It is 7, so $1,000.", 0, 1),
        (" Add.\n#### 2", 0, 0),
        (" none", 0, 0),
        ("", 0, 0),
    ],
)
def test_gsm8k_compares_numbers(text, exact, flexible, tmp_path):
    layouts.write("gsm8k", tmp_path)
    item = _load("gsm8k", tmp_path, num_shots=0).items[0].item
    grades = TASKS["gsm8k"].grade(item, [text])
    assert grades == {"exact_match": exact, "flexible_match": flexible}


def test_mbpp_shows_problems_2_3_4_and_scores_11_to_510(tmp_path):
    layouts.write("mbpp", tmp_path)
    loaded = _load("mbpp", tmp_path)
    assert [entry.item.tests.split()[-1] for entry in loaded.items] == ["f", "f"]
    prompt = loaded.items[0].prompt
    begin = "You are an expert Python programmer, and here is your task: Write a function that"
    assert prompt.startswith(
        f"{begin} returns 2. Your code should pass these tests:\n\n"
        "assert f() == 2\nassert f() > 0\nassert f\n[BEGIN]\ndef f():\n  return 2\n[DONE]\n\n"
    )
    assert prompt.count("[DONE]") == 3
    program = TASKS["mbpp"].program(loaded.items[0].item, "def f():\n  return 11\n")
    exec(program, {})  # noqa: S102  our own
    with pytest.raises(AssertionError):
        exec(TASKS["mbpp"].program(loaded.items[0].item, "def f(): return 12"), {})  # noqa: S102


def test_humaneval_continues_the_function(tmp_path):
    layouts.write("humaneval", tmp_path)
    declared = TASKS["humaneval"]
    item = _load("humaneval", tmp_path).items[0].item
    exec(declared.program(item, "    return 1\n"), {})  # noqa: S102
    with pytest.raises(AssertionError):
        exec(declared.program(item, "    return 2\n"), {})  # noqa: S102


def test_a_group_is_its_tasks_and_an_unknown_name_gets_the_nearest():
    names = [declared.name for declared in catalogue.named(["table4"])]
    assert sorted(names) == sorted(catalogue.GROUPS["table4"])
    assert catalogue.named(["all"]) == list(TASKS.values())
    assert catalogue.named(["piqa", "table4"]) == catalogue.named(["table4"])
    with pytest.raises(ValueError, match="Did you mean 'hellaswag'"):
        catalogue.named(["helaswag"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("hellaswag", {"label": 7}, r"line 1: 'label' is 7, but there are 4 endings"),
        ("hellaswag", {"endings": "x"}, r"line 1: 'endings' is 'x', which is not a list of texts"),
        ("hellaswag", {"label": "x"}, r"line 1: 'label' is 'x', which is not an integer"),
        ("hellaswag", {"ctx_a": None}, r"line 1: there is no field 'ctx_a'; the record has ind, "),
        ("winogrande", {"sentence": "No gap."}, r"line 1: the sentence has no gap"),
        ("winogrande", {"answer": ""}, r"line 1: 'answer' is '', which is not one of 1, 2"),
        ("lambada", {"text": "word"}, r"line 1: the text has no last word"),
        ("gsm8k", {"answer": "seven"}, r"line 1: the answer ends in no '#### NUMBER'"),
        ("agieval", {"label": "E"}, r"line 1: 'label' is 'E', but there are 3 options"),
    ],
)
def test_a_record_that_is_none_is_named_with_its_line(name, change, message, tmp_path):
    layouts.write(name, tmp_path)
    for path in tmp_path.rglob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        layouts.jsonl(path, [{**rows[0], **change}, *rows[1:]])
    with pytest.raises(ValueError, match=message):
        _load(name, tmp_path, num_shots=0)
