"""Pointer chasing: answers by a search of the graph, and that no name stands out."""

import collections
import re

import pytest
import scipy.stats

from keel_jax import errors
from keel_jax.depth_suite import names, registry
from tests.depth_suite import many

DIFFICULTIES = [1, 2, 5, 12]


def _arrows(prompt: str) -> list[tuple[str, str]]:
    return re.findall(r"(\w\d)>(\w\d)", prompt)


def _asked(prompt: str) -> tuple[str, int]:
    start, hops = re.search(r"From (\w\d), (\d+) steps?:$", prompt).groups()
    return start, int(hops)


def _distances(arrows: list[tuple[str, str]], start: str) -> dict[str, int]:
    """Of every name that can be reached, by breadth-first search."""
    found, queue = {start: 0}, collections.deque([start])
    while queue:
        name = queue.popleft()
        for tail, head in arrows:
            if tail == name and head not in found:
                found[head] = found[name] + 1
                queue.append(head)
    return found


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_answers_are_at_their_distance_and_no_nearer_backwards(difficulty):
    for each in many.examples("pointer_chase", difficulty):
        arrows = _arrows(each.prompt)
        start, hops = _asked(each.prompt)
        distances = _distances(arrows, start)
        assert hops == difficulty == distances[each.answer.strip()]
        backwards = _distances([(head, tail) for tail, head in arrows], start)
        assert backwards[each.answer.strip()] == difficulty + 2


@pytest.mark.parametrize("difficulty", [2, 5])
def test_the_choices_are_two_pairs_of_neighbours_and_the_answer_any_of_the_four(difficulty):
    """Which choice is led to by another, and in which ring it is, says nothing."""
    num_first = 0
    for each in many.examples("pointer_chase", difficulty, 400):
        arrows = _arrows(each.prompt)
        own = _distances(arrows, _asked(each.prompt)[0])
        inside = [(a, b) for a, b in arrows if {f" {a}", f" {b}"} <= set(each.choices)]
        assert len({name for pair in inside for name in pair}) == 4 and len(inside) == 2
        assert sum(name.strip() in own for name in each.choices) == 2
        num_first += each.answer.strip() in {a for a, _ in inside}
    assert abs(num_first / 400 - 1 / 2) < many.tolerance(1 / 2, 400)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_name_is_the_tail_of_one_arrow_and_the_head_of_one(difficulty):
    for each in many.examples("pointer_chase", difficulty):
        tails, heads = zip(*_arrows(each.prompt), strict=True)
        assert len(set(tails)) == len(tails) == 2 * (2 * difficulty + 2)
        assert sorted(tails) == sorted(heads)
        # Both rings are of the same size.
        assert len(_distances(_arrows(each.prompt), tails[0])) == 2 * difficulty + 2


@pytest.mark.parametrize("difficulty", [1, 4])
def test_another_arrow_on_the_way_always_changes_the_answer(difficulty):
    for each in many.examples("pointer_chase", difficulty)[:20]:
        arrows = dict(_arrows(each.prompt))
        start, _ = _asked(each.prompt)
        way = [start]
        for _ in range(difficulty):
            way.append(arrows[way[-1]])
        for tail in way[:-1]:
            for other in set(arrows) - {arrows[tail]}:
                changed, name = {**arrows, tail: other}, start
                for _ in range(difficulty):
                    name = changed[name]
                assert f" {name}" != each.answer


def test_the_arrow_to_the_answer_may_stand_anywhere():
    """In the prompt, first or last, before or behind the arrow from the name asked about."""
    found = many.examples("pointer_chase", 2, 1200)
    places = collections.Counter()
    for each in found:
        heads = [head for _, head in _arrows(each.prompt)]
        places[heads.index(each.answer.strip())] += 1
    assert scipy.stats.chisquare([places[i] for i in range(12)]).pvalue > 1e-3


def test_a_map_is_in_one_split_however_its_arrows_are_ordered_and_whatever_is_asked(monkeypatch):
    """Of eight names, so that the same maps are drawn again and again."""
    monkeypatch.setattr(names, "SHORT", names.SHORT[:8])
    maps = {
        split: [frozenset(_arrows(each.prompt)) for each in found]
        for split, found in many.small_space("pointer_chase", 1).items()
    }
    assert not set(maps["train"]) & set(maps["test"])
    assert len(set(maps["test"])) < len(maps["test"]) == 300


def test_names_run_out():
    registry.get("pointer_chase").check_difficulty(64)
    assert len(_arrows(many.examples("pointer_chase", 64, 1)[0].prompt)) == 260
    with pytest.raises(errors.UserError, match=r"65, must be at most 64, where its 260 names"):
        registry.get("pointer_chase").check_difficulty(65)
