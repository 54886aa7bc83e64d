"""Which examples a prompt shows: fixed by a seed, of the item's subject, and never itself."""

import random

import pytest

from keel_jax.tasks import items, loading, locating, task
from tests.tasks import layouts

_QUIZ = task.MultipleChoice(
    name="quiz",
    source="made up",
    domain=task.KNOWLEDGE,
    files=locating.Files(scored=("test",), shots=("train",)),
    item=lambda record: items.Choices(
        where=record.where,
        contexts=(record.text("q"),),
        choices=("yes", "no"),
        right=frozenset([record.integer("label")]),
    ),
)


def _rows(letter, num):
    return [{"q": f"{letter}{n}", "label": n % 2} for n in range(num)]


@pytest.fixture
def folder(tmp_path):
    layouts.jsonl(tmp_path / "quiz/test.jsonl", _rows("t", 5))
    layouts.jsonl(tmp_path / "quiz/train.jsonl", _rows("s", 9))
    return tmp_path


def test_without_examples_a_prompt_is_the_item_alone(folder):
    loaded = loading.load(_QUIZ, folder)
    assert [entry.prompt for entry in loaded.items] == [""] * 5 and loaded.num_shots == 0


def test_examples_are_drawn_as_the_harness_draws_them(folder):
    """One generator a split, which draws for one item after the other."""
    loaded = loading.load(_QUIZ, folder, num_shots=2, seed=7)
    generator = random.Random(7)
    for entry in loaded.items:
        drawn = generator.sample(range(9), 2)
        assert entry.prompt == "".join(f"s{n} {('yes', 'no')[n % 2]}\n\n" for n in drawn)
    assert loaded == loading.load(_QUIZ, folder, num_shots=2, seed=7)
    assert loaded != loading.load(_QUIZ, folder, num_shots=2, seed=8)


def test_an_item_is_no_example_of_itself(folder):
    files = locating.Files(scored=("test",))
    own = task.MultipleChoice(**{**_fields(_QUIZ), "files": files})
    for entry in loading.load(own, folder, num_shots=4).items:
        assert sorted([*entry.prompt.split()[::2], entry.item.contexts[0]]) == [
            "t0", "t1", "t2", "t3", "t4"
        ]  # fmt: skip


def test_too_few_examples_are_an_error_with_both_numbers(folder):
    with pytest.raises(ValueError, match=r"quiz: its files hold 9 examples, but 10 are needed"):
        loading.load(_QUIZ, folder, num_shots=10)


def test_the_first_items_are_a_part_of_all(folder):
    whole = loading.load(_QUIZ, folder, num_shots=3)
    assert loading.load(_QUIZ, folder, num_shots=3, limit=2).items == whole.items[:2]


def test_an_empty_file_is_an_error(folder):
    (folder / "quiz/test.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="quiz: its files below .* hold no items"):
        loading.load(_QUIZ, folder)


def _fields(declared):
    return {name: getattr(declared, name) for name in declared.__dataclass_fields__}
