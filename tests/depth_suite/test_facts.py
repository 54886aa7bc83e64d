"""Multi-hop lookup: answers by joining relations, and that every hop matters."""

import collections
import functools
import re

import pytest
import scipy.stats

from keel_jax.depth_suite import facts, names
from tests.depth_suite import many

Relation = frozenset[tuple[str, str]]
DIFFICULTIES = [1, 2, 5, 12]


def _relations(prompt: str) -> dict[str, Relation]:
    found = re.findall(r"(\w+): boss (\w+), friend (\w+)\.", prompt)
    return {
        "boss": frozenset((name, boss) for name, boss, _ in found),
        "friend": frozenset((name, friend) for name, _, friend in found),
    }


def _question(prompt: str) -> tuple[str, list[str]]:
    text = re.search(r"\. ((\w+)'s .*) is$", prompt)
    return text[2], re.findall(r"'s (\w+)", text[1])


def _join(left: Relation, right: Relation) -> Relation:
    return frozenset((a, d) for a, b in left for c, d in right if b == c)


def _answer(prompt: str, path: list[str]) -> str:
    """Joins the relations first, and looks up the person last."""
    relations = _relations(prompt)
    whole = functools.reduce(_join, (relations[name] for name in path))
    [answer] = [to for name, to in whole if name == _question(prompt)[0]]
    return f" {answer}"


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_answers_are_by_joined_relations(difficulty):
    for each in many.examples("multi_hop", difficulty):
        start, path = _question(each.prompt)
        assert len(path) == difficulty and each.answer == _answer(each.prompt, path)
        assert {*each.choices, f" {start}"} == {f" {n}" for n, _ in _relations(each.prompt)["boss"]}


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_other_relation_in_any_hop_always_changes_the_answer(difficulty):
    for each in many.examples("multi_hop", difficulty)[:50]:
        _, path = _question(each.prompt)
        for place in range(difficulty):
            other = {"boss": "friend", "friend": "boss"}[path[place]]
            assert each.answer != _answer(each.prompt, [*path[:place], other, *path[place + 1 :]])


def test_every_name_occurs_as_often():
    for each in many.examples("multi_hop", 3):
        for relation in _relations(each.prompt).values():
            assert sorted(name for name, _ in relation) == sorted(other for _, other in relation)
            assert len(relation) == 8 and all(name != other for name, other in relation)
        relations = _relations(each.prompt)
        assert not relations["boss"] & relations["friend"]


def test_the_answer_may_be_described_anywhere():
    found = many.examples("multi_hop", 2, 1600)
    answers, starts = collections.Counter(), collections.Counter()
    for each in found:
        described = re.findall(r"(\w+):", each.prompt)
        starts[described.index(start := _question(each.prompt)[0])] += 1
        described.remove(start)
        answers[described.index(each.answer.strip())] += 1
    assert scipy.stats.chisquare([answers[i] for i in range(7)]).pvalue > 1e-3
    assert scipy.stats.chisquare([starts[i] for i in range(8)]).pvalue > 1e-3


def test_facts_are_in_one_split_however_they_are_ordered_and_whatever_is_asked(monkeypatch):
    """Of four people, for whom there are few facts, and two difficulties."""
    monkeypatch.setattr(names, "PEOPLE", names.PEOPLE[:4])
    monkeypatch.setattr(facts, "NUM_PEOPLE", 4)
    found = {"train": set(), "test": set()}
    num_prompts = 0
    for difficulty in (1, 3):
        for split, examples in many.small_space("multi_hop", difficulty).items():
            num_prompts += len(examples)
            for each in examples:
                found[split].add(frozenset(_relations(each.prompt).items()))
    assert not found["train"] & found["test"] and min(map(len, found.values())) > 0
    assert len(found["train"]) + len(found["test"]) < num_prompts / 4
