"""Recall: answers by a search of the text, values that counting does not tell apart."""

import collections
import re

import pytest
import scipy.stats

from keel_jax import errors
from keel_jax.depth_suite import names, registry
from tests.depth_suite import many


@pytest.mark.parametrize("difficulty", [1, 2, 8])
def test_answers_stand_beside_their_key(difficulty):
    for each in many.examples("recall", difficulty):
        pairs, key = each.prompt.rsplit(". ", 1)
        assert re.findall(rf"\b{key} (\w+)", pairs) == [each.answer.strip()]
        values = re.findall(r"\w\d (\w+)", pairs)
        assert set(collections.Counter(values).values()) == {difficulty} and len(set(values)) == 4


def test_the_key_may_stand_anywhere():
    found = many.examples("recall", 2, 1600)
    places = collections.Counter(
        re.findall(r"\w\d", each.prompt).index(each.prompt[-2:]) for each in found
    )
    assert scipy.stats.chisquare([places[i] for i in range(8)]).pvalue > 1e-3


def test_pairs_are_in_one_split_however_they_are_ordered_and_whatever_is_asked(monkeypatch):
    """Of four keys: 24 ways to give them values, and four questions about each."""
    monkeypatch.setattr(names, "SHORT", names.SHORT[:4])
    pairs = {
        split: [frozenset(re.findall(r"(\w\d) (\w+)", each.prompt)) for each in found]
        for split, found in many.small_space("recall", 1).items()
    }
    assert not set(pairs["train"]) & set(pairs["test"])
    assert len(pairs["train"]) + len(pairs["test"]) == 24 * 4


def test_keys_run_out():
    with pytest.raises(errors.UserError, match="66, must be at most 65, where its 260 keys"):
        registry.get("recall").check_difficulty(66)
