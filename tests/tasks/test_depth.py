"""The depth suite, as it is written, is what its tasks read."""

import pytest
from etils import epath

from keel_jax import make_depth_suite
from keel_jax.depth_suite import generation, options, registry
from keel_jax.inference import scoring
from keel_jax.tasks import catalogue, items, loading, running
from tests.tasks import hand_made

_DIFFICULTIES = (1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    chosen = options.SuiteOptions(difficulties=_DIFFICULTIES, num_train=0, num_test=4)
    make_depth_suite.write(chosen, folder / "depth_suite")
    return folder


@pytest.mark.parametrize("name", registry.TASKS)
def test_the_examples_are_those_of_the_suite(name, folder):
    loaded = loading.load(catalogue.all_tasks()[f"depth_{name}"], folder)
    expected = [
        (each.prompt, each.answer, each.choices or (each.answer,))
        for difficulty in _DIFFICULTIES
        for each in generation.examples(name, difficulty, "test", 0, 4, fewer_if_used_up=True)
    ]
    found = [entry.item for entry in loaded.items]
    assert [
        (item.contexts[0], item.choices[min(item.right)], item.choices) for item in found
    ] == expected
    assert {item.subject for item in found} == {"difficulty  1", "difficulty  2"}
    chance = loaded.task.chance(found[0])
    if len(found[0].choices) > 1:
        assert chance == pytest.approx(registry.TASKS[name].chance(1))
    else:
        assert chance == 0  # below 1/100


def test_the_suite_is_scored_with_its_difficulties_apart(folder, tmp_path):
    loaded = loading.load(catalogue.all_tasks()["depth_recall"], folder)
    runner = running.Runner(hand_made.HandMade(), epath.Path(tmp_path), running.Options())
    runner.check(loaded)
    result = runner.run(loaded)
    assert {*result.subjects} == {"difficulty  1", "difficulty  2"}
    assert [*result.metrics] == ["acc", "exact_match"]


def test_a_short_answer_is_right_if_it_is_written_and_the_best_of_its_choices():
    declared = catalogue.all_tasks()["depth_recall"]

    def graded(choices, *scores):
        item = items.Choices(where="", contexts=("q",), choices=choices, right=frozenset([0]))
        return declared.grade(item, [scoring.Score(value, greedy, 1) for value, greedy in scores])

    assert graded((" a", " b"), (-1, False), (-2, False)) == {"acc": 1, "exact_match": 0}
    assert graded((" a", " b"), (-2, True), (-1, False)) == {"acc": 0, "exact_match": 1}
    assert graded((" a",), (-1, True)) == {"acc": 1, "exact_match": 1}
    assert graded((" a",), (-1, False)) == {"acc": 0, "exact_match": 0}
