"""What a linear model can guess from the surface of prompts, trained on the one split: nothing.

It sees which characters, words and pairs of neighbours there are, and what stands at which place
from either end and from the name that is asked about; it cannot combine them.
"""

import collections
import re
from collections.abc import Sequence

import numpy as np
import pytest

from keel_jax.depth_suite import example, registry
from tests.depth_suite import many

_NUM_TRAIN, _NUM_TEST = 3000, 1000
_MIN_COUNT = 20
_NUM_STEPS = 200
# Where the choices are names of the prompt: the name that is asked about.
_ASKED = {
    "pointer_chase": r"From (\w\d),",
    "multi_hop": r"\. (\w+)'s [^.]*$",
    "variables": r"print\((\w)\)",
}
WITH_CHOICES = [name for name in registry.TASKS if many.examples(name, 1)[0].choices]

Features = dict[tuple, float]


def _of_prompt(prompt: str) -> Features:
    """Of a prompt whose choices are always the same."""
    features = collections.Counter(prompt)
    features.update(zip(prompt, prompt[1:], strict=False))
    ends = [("begin", i, c) for i, c in enumerate(prompt[20:44])]
    ends += [("end", i, c) for i, c in enumerate(prompt[:-25:-1])]
    return {**features, **dict.fromkeys(ends, 1.0)}


def _of_choice(prompt: str, asked: str, choice: str) -> Features:
    """Of a name of the prompt: its places, its neighbours, its distance from the name asked for."""
    words = re.findall(r"\w+|[^\w\s]|\n", prompt)
    features = collections.Counter()
    for number, place in enumerate(i for i, word in enumerate(words) if word == choice.strip()):
        features["begin", number, place // 4] += 1
        features["end", number, (len(words) - place) // 4] += 1
        features["before", words[place - 1] if len(words[place - 1]) > 3 else "name"] += 1
        for other in (i for i, word in enumerate(words) if word == asked):
            if abs(other - place) < 15:
                features["apart", other - place] += 1
    return features


def _features(each: example.Example) -> list[Features]:
    """Of each choice, or of the prompt alone where all prompts have the same choices."""
    if each.task not in _ASKED:
        return [_of_prompt(each.prompt)]
    match = re.search(_ASKED[each.task], each.prompt)
    assert match
    return [_of_choice(each.prompt, match[1], choice) for choice in each.choices]


def _array(found: Sequence[example.Example], columns: dict[tuple, int]) -> np.ndarray:
    """[B, C, F], or [B, 1, F] where all prompts have the same choices."""
    num_rows = len(_features(found[0]))
    array = np.zeros((len(found), num_rows, len(columns)), np.float32)
    for rows, each in zip(array, found, strict=True):
        for row, features in zip(rows, _features(each), strict=True):
            for key, value in features.items():
                if key in columns:
                    row[columns[key]] = value
    return array


def _logits(x_BCF: np.ndarray, w_FC: np.ndarray) -> np.ndarray:
    """[B, C]: choices have features of their own and share weights, or the other way round."""
    return (x_BCF @ w_FC)[:, :, 0] if x_BCF.shape[1] > 1 else x_BCF[:, 0] @ w_FC


def accuracy(task: str, difficulty: int) -> float:
    """On the test split, of a model fitted to the training split."""
    train = many.examples(task, difficulty, _NUM_TRAIN)
    test = many.examples(task, difficulty, _NUM_TEST, "test")
    counts = collections.Counter(key for each in train for row in _features(each) for key in row)
    common = [key for key, count in counts.items() if count >= _MIN_COUNT]
    x_BCF = _array(train, columns := {key: number for number, key in enumerate(common)})
    answers_B, num_choices = (
        np.array([e.choices.index(e.answer) for e in train]),
        len(train[0].choices),
    )
    one_hot_BC = np.eye(num_choices, dtype=np.float32)[answers_B]
    own = x_BCF.shape[1] > 1
    w_FC = momentum_FC = np.zeros((len(columns), 1 if own else num_choices), np.float32)
    for _ in range(_NUM_STEPS):
        logits_BC = _logits(x_BCF, w_FC)
        p_BC = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
        error_BC = p_BC / p_BC.sum(axis=1, keepdims=True) - one_hot_BC
        if own:
            gradient_FC = np.tensordot(x_BCF, error_BC, ((0, 1), (0, 1)))[:, None]
        else:
            gradient_FC = x_BCF[:, 0].T @ error_BC
        momentum_FC = 0.9 * momentum_FC + gradient_FC / len(train) + 1e-3 * w_FC
        w_FC = w_FC - 0.02 * momentum_FC
    guesses = np.argmax(_logits(_array(test, columns), w_FC), axis=1)
    return float(np.mean([e.choices[g] == e.answer for g, e in zip(guesses, test, strict=True)]))


def test_what_the_surface_tells_would_be_found():
    """Of one arrow, the answer stands beside the name that is asked about."""
    assert accuracy("pointer_chase", 1) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_CHOICES)
def test_the_surface_tells_nothing(name):
    chance = registry.TASKS[name].chance(8)
    assert accuracy(name, 8) < chance + many.tolerance(chance, _NUM_TEST)
