"""Brackets: answers by deleting matched pairs round by round, and how many rounds it takes."""

import re

import pytest
import scipy.stats

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


def _unmatched(text: str) -> list[int]:
    """The places of the brackets that no deletion reaches."""
    pairs = r"\((\.*)\)|\[(\.*)\]|\{(\.*)\}|<(\.*)>"
    while re.search(pairs, text):
        text = re.sub(pairs, lambda match: "." * len(match[0]), text)
    return [place for place, bracket in enumerate(text) if bracket != "."]


@pytest.mark.parametrize("difficulty", [2, 5])
def test_a_fault_lies_across_all_that_is_nested_in_it(difficulty):
    num_faults = 0
    for each in many.examples("bracket_balance", difficulty):
        text = _brackets(each.prompt)
        unmatched = _unmatched(text)
        assert len(unmatched) == (4 if each.answer == " no" else 0)
        if unmatched:
            first, first_end, second, second_end = unmatched
            assert text[first_end] == _CLOSING[text[second]] != _CLOSING[text[first]]
            assert text[second_end] == _CLOSING[text[first]]
            assert _reduce(text[first + 1 : first_end]) == ("", difficulty - 1)
            assert _reduce(text[second + 1 : second_end]) == ("", difficulty - 1)
            # What stands before, between and behind them is balanced, too, and never nothing.
            for part in (text[:first], text[first_end + 1 : second], text[second_end + 1 :]):
                assert part and _reduce(part) == ("", difficulty)
            num_faults += 1
        # Neighbours that do not fit would be seen at a glance.
        assert not re.search(r"\([\]}>]|\[[)}>]|\{[)\]>]|<[)\]}]", text)
    assert 60 < num_faults < 140


def test_neighbours_do_not_tell_a_fault():
    """A closing bracket before an opening one of its kind is as frequent in both."""
    rates = {" yes": [], " no": []}
    for each in many.examples("bracket_balance", 3, 1000):
        text = _brackets(each.prompt)
        followed = re.findall(r"[\])}>](?=[(\[{<])", text)
        alike = re.findall(r"\)\(|\]\[|\}\{|><", text)
        rates[each.answer].append(len(alike) / len(followed))
    assert scipy.stats.mannwhitneyu(*rates.values()).pvalue > 1e-3


def test_strings_with_an_open_end_are_in_one_split():
    strings = {
        split: {_brackets(each.prompt) for each in many.examples("bracket_close", 1, 500, split)}
        for split in ("train", "test")
    }
    assert not strings["train"] & strings["test"] and len(strings["test"]) == 500


def test_a_string_and_its_fault_are_in_one_split():
    """By what both have in common: the opening brackets, and the depth at each place."""
    strings = {split: set() for split in ("train", "test")}
    for split, found in strings.items():
        for each in many.examples("bracket_balance", 1, 1000, split):
            text = _brackets(each.prompt)
            found.add(re.sub(r"[\])}>]", ".", text))
    assert not strings["train"] & strings["test"] and len(strings["test"]) > 300


def test_answers_are_as_often_yes_as_no():
    found = many.examples("bracket_balance", 1, 1000)
    rate = sum(each.answer == " yes" for each in found) / len(found)
    assert abs(rate - 1 / 2) < many.tolerance(1 / 2, len(found))
