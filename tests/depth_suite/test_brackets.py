"""Brackets: answers by deleting matched pairs round by round, and how many rounds it takes."""

import re

import pytest

from tests.depth_suite import many

DIFFICULTIES = [1, 2, 5, 16]
_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}


def _reduce(text: str) -> tuple[str, int]:
    """What is left when no pair is left to delete, and the rounds; each deletes innermost pairs."""
    rounds = 0
    while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)) != text:
        text, rounds = shorter, rounds + 1
    return text, rounds


def _brackets(prompt: str) -> str:
    return prompt.split("? ")[1]


def _height(text: str) -> list[int]:
    """The number of open brackets after each, whatever their kind."""
    heights, height = [], 0
    for bracket in text:
        height += 1 if bracket in _CLOSING else -1
        heights.append(height)
    return heights


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_what_closes_next_is_what_is_left(difficulty):
    for each in many.examples("bracket_close", difficulty):
        text = _brackets(each.prompt)
        left, rounds = _reduce(text)
        # One of each kind is open, so counts do not tell them apart.
        assert sorted(left) == sorted(_CLOSING) and rounds == difficulty
        assert each.answer == f" {_CLOSING[left[-1]]}"


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_what_is_to_be_skipped_is_as_deep_as_the_difficulty(difficulty):
    for each in many.examples("bracket_close", difficulty):
        text = _brackets(each.prompt)
        # The last bracket that is never closed: from there on, four are open.
        never_closed = max(i for i, height in enumerate(_height(text)) if height == 3) + 1
        assert text[never_closed] in _CLOSING
        assert _reduce(text[never_closed + 1 :]) == ("", difficulty)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_balanced_brackets_and_no_others_can_be_deleted(difficulty):
    for each in many.examples("bracket_balance", difficulty):
        text = _brackets(each.prompt)
        left, rounds = _reduce(text)
        assert each.answer == (" no" if left else " yes")
        if not left:
            assert rounds == difficulty
        # Neither counts nor heights tell: only the kinds of brackets that belong together.
        assert all(text.count(opening) == text.count(end) for opening, end in _CLOSING.items())
        assert max(_height(text)) == difficulty and min(_height(text)) == _height(text)[-1] == 0


@pytest.mark.parametrize("difficulty", [2, 5])
def test_a_fault_lies_at_the_outermost_brackets_alone(difficulty):
    num_faults = 0
    for each in many.examples("bracket_balance", difficulty):
        text = _brackets(each.prompt)
        ends = [i for i, height in enumerate(_height(text)) if height == 0]
        starts = [0, *(end + 1 for end in ends[:-1])]
        assert len(ends) == 3
        for start, end in zip(starts, ends, strict=True):
            assert _reduce(text[start + 1 : end]) == ("", difficulty - 1)
            num_faults += _CLOSING[text[start]] != text[end]
        # Neighbours that do not fit would be seen at a glance.
        assert not re.search(r"\([\]}>]|\[[)}>]|\{[)\]>]|<[)\]}]", text)
    assert num_faults > 100


def test_strings_with_an_open_end_are_in_one_split():
    strings = {
        split: {_brackets(each.prompt) for each in many.examples("bracket_close", 1, 500, split)}
        for split in ("train", "test")
    }
    assert not strings["train"] & strings["test"] and len(strings["test"]) == 500


def test_a_string_and_its_fault_are_in_one_split():
    """Of the smallest, all: by the set of their outer brackets, which a fault leaves as it is."""
    found = {split: many.examples("bracket_balance", 1, 1000, split) for split in ("train", "test")}
    outer = {
        split: {_brackets(each.prompt)[::2] for each in examples}
        for split, examples in found.items()
    }
    assert not outer["train"] & outer["test"]
    assert len(outer["train"] | outer["test"]) == 4**3 - 4
    for examples in found.values():
        assert sum(each.answer == " yes" for each in examples) * 2 == len(examples)
