"""Permutations: answers by matrices, and what one of them changes."""

import itertools
import re

import numpy as np
import pytest

from tests.depth_suite import many

_ALL = ["".join(map(str, p)) for p in itertools.permutations(range(1, 6))]


def _word(prompt: str) -> list[str]:
    return re.findall(r"\b[1-5]{5}\b", prompt.split(" in this order")[0])


def _matrix(word: list[str]) -> np.ndarray:
    """The product of permutation matrices: row i has its 1 where point i goes."""
    product = np.eye(5, dtype=int)
    for permutation in word:
        matrix = np.zeros((5, 5), int)
        matrix[range(5), [int(digit) - 1 for digit in permutation]] = 1
        product = product @ matrix
    return product


def _answer(prompt: str, word: list[str]) -> str:
    images = (_matrix(word) @ np.arange(1, 6)).tolist()
    asked = re.search(r" (\d+) goes to$", prompt)[1]
    return " " + "".join(str(images[int(point) - 1]) for point in asked)


@pytest.mark.parametrize("difficulty", [1, 2, 7])
@pytest.mark.parametrize("task", ["permutation_point", "permutation_product"])
def test_answers_are_products_of_matrices(task, difficulty):
    for each in many.examples(task, difficulty):
        word = _word(each.prompt)
        assert len(word) == difficulty and each.answer == _answer(each.prompt, word)


@pytest.mark.parametrize("difficulty", [1, 3])
def test_another_permutation_in_one_place_changes_the_answer(difficulty):
    """Always the product, and the point in 96 of 119 cases, exactly, in every place."""
    for task, num_changed in (("permutation_point", 96), ("permutation_product", 119)):
        for each in many.examples(task, difficulty)[:4]:
            word = _word(each.prompt)
            for place in range(difficulty):
                answers = [
                    _answer(each.prompt, [*word[:place], other, *word[place + 1 :]])
                    for other in _ALL
                ]
                assert sum(answer != each.answer for answer in answers) == num_changed


@pytest.mark.parametrize("kept", [slice(0, 3), slice(1, 4), slice(3, 4)])
def test_without_one_permutation_the_others_say_nothing(kept):
    """Guessing by the first three, the last three, or the last alone."""
    found = many.examples("permutation_point", 4, 1000)
    hits = sum(_answer(each.prompt, _word(each.prompt)[kept]) == each.answer for each in found)
    assert abs(hits / len(found) - 1 / 5) < many.tolerance(1 / 5, len(found))


def test_both_tasks_and_all_five_points_have_a_word_in_the_same_split():
    words = {
        split: {
            tuple(_word(each.prompt))
            for task in ("permutation_point", "permutation_product")
            for each in many.examples(task, 1, 1000, split)
        }
        for split in ("train", "test")
    }
    assert not words["train"] & words["test"]
    assert len(words["train"]) + len(words["test"]) == 120 and len(words["test"]) > 15
