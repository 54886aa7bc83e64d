"""Copying with edits: answers by string operations, and that no edit can be left out."""

import re

import pytest

from tests.depth_suite import many


def _parts(prompt: str) -> tuple[str, list[str]]:
    text, edits = re.fullmatch(r"([a-z ]{11}): (.*)\. Result:", prompt).groups()
    return text.replace(" ", ""), edits.split(", ")


def _edited(text: str, edits: list[str]) -> str:
    for edit in edits:
        if edit == "reverse":
            text = text[::-1]
        elif edit == "first to end":
            text = text[1:] + text[:1]
        elif match := re.fullmatch(r"swap (\d) and (\d)", edit):
            i, j = int(match[1]) - 1, int(match[2]) - 1
            text = text[:i] + text[j] + text[i + 1 : j] + text[i] + text[j + 1 :]
        else:
            old, new = re.fullmatch(r"(\w) becomes (\w)", edit).groups()
            text = text.replace(old, new)
    return text


@pytest.mark.parametrize("difficulty", [1, 2, 8, 100])
def test_answers_are_by_string_operations(difficulty):
    for each in many.examples("copy_edits", difficulty, 100):
        text, edits = _parts(each.prompt)
        assert len(edits) == difficulty
        assert each.answer == " " + " ".join(_edited(text, edits))
        assert len(set(each.answer)) == 7  # six letters and the space


@pytest.mark.parametrize("difficulty", [1, 4, 32])
def test_leaving_out_any_edit_changes_the_result(difficulty):
    for each in many.examples("copy_edits", difficulty, 100)[:50]:
        text, edits = _parts(each.prompt)
        whole = _edited(text, edits)
        for place in range(difficulty):
            assert _edited(text, edits[:place] + edits[place + 1 :]) != whole


def test_edits_are_of_all_four_kinds_equally():
    edits = [
        edit for each in many.examples("copy_edits", 4, 300) for edit in _parts(each.prompt)[1]
    ]
    for word in ("swap", "reverse", "first", "becomes"):
        rate = sum(word in edit for edit in edits) / len(edits)
        assert abs(rate - 1 / 4) < many.tolerance(1 / 4, len(edits))


def test_problems_are_in_one_split():
    prompts = {
        split: {each.prompt for each in many.examples("copy_edits", 1, 500, split)}
        for split in ("train", "test")
    }
    assert not prompts["train"] & prompts["test"]
