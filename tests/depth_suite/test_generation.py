"""Examples: the same for the same arguments, different from each other, in one split each."""

import hashlib
import itertools
import json
import pathlib
import subprocess
import sys

import pytest

from keel_jax import errors
from keel_jax.depth_suite import example, generation, names, registry, splits
from tests.depth_suite import many

TASKS = list(registry.TASKS)
# Of VERSION 1. Whoever changes what is generated gives it another version, and pins that.
DIGEST = "314ab9375be21c720d9de6284f37ff95ef2e8aa3d08f2bdf1007ddb4a33b8e49"


def _digest() -> str:
    content = hashlib.sha256()
    for name in TASKS:
        for difficulty, split in itertools.product((1, 3, 8), splits.SPLITS):
            for each in generation.examples(name, difficulty, split, 3, 10):
                row = [each.task, each.difficulty, each.prompt, each.answer, *each.choices]
                content.update(json.dumps(row).encode() + b"\n")
    return content.hexdigest()


def test_a_small_suite_has_the_bytes_that_it_always_had():
    assert generation.VERSION == 1
    assert _digest() == DIGEST


def test_another_process_gives_the_same_whatever_its_hash_seed(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "123")
    root = pathlib.Path(__file__).parents[2]
    code = "from tests.depth_suite import test_generation as t; print(t._digest())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == DIGEST


def test_it_needs_neither_jax_nor_numpy():
    """Whose versions may draw other numbers."""
    code = "import sys; from keel_jax.depth_suite import generation, records;"
    code += "print({'jax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", TASKS)
def test_the_first_of_more_are_the_first(name):
    few = list(generation.examples(name, 2, "train", 5, 7))
    assert few == list(generation.examples(name, 2, "train", 5, 20))[:7]
    assert few != list(generation.examples(name, 2, "train", 6, 7))
    assert list(generation.examples(name, 2, "train", 5, 0)) == []


@pytest.mark.parametrize("split", splits.SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_examples_of_a_split_are_different(name, split):
    for difficulty in (1, 2):
        found = many.examples(name, difficulty, 300, split)
        assert len({each.prompt for each in found}) == len(found) > 15


@pytest.mark.parametrize("name", TASKS)
def test_no_problem_is_in_both_splits_whatever_the_seeds(name):
    """By their texts, of several seeds; each task's own test goes by the meaning."""
    prompts = {split: set() for split in splits.SPLITS}
    for seed, split in itertools.product((0, 1), splits.SPLITS):
        for difficulty in (1, 2):
            for each in generation.examples(
                name, difficulty, split, seed, 60, fewer_if_used_up=True
            ):
                prompts[split].add(each.prompt)
    assert not prompts["train"] & prompts["test"]


def test_both_splits_are_what_there_is_of_a_small_space():
    """Nothing is lost between the two: the 77 chains of one operation, whatever the seed."""
    for seed in (0, 1):
        arguments = ("modular_chain", 1), (seed, 1000)
        both = [
            list(generation.examples(*arguments[0], split, *arguments[1], fewer_if_used_up=True))
            for split in splits.SPLITS
        ]
        assert sum(map(len, both)) == 77


def test_a_small_space_is_told_when_more_is_asked_for():
    with pytest.raises(
        errors.UserError,
        match="modular_chain at difficulty 1 has only 20 different examples for split 'test' "
        r"\(5000 draws .* and 21 are asked for: ask for fewer, or for a larger difficulty",
    ):
        list(generation.examples("modular_chain", 1, "test", 0, 21))
    assert len(list(generation.examples("modular_chain", 1, "test", 0, 20))) == 20


def test_only_draws_in_a_row_use_a_space_up(monkeypatch):
    """Three of four draws are not the test's."""
    monkeypatch.setattr(generation, "_MAX_MISSES", 40)
    assert len(list(generation.examples("recall", 1, "test", 0, 60))) == 60


def test_a_split_without_any_problem_is_an_error_even_if_fewer_will_do(monkeypatch):
    monkeypatch.setattr(splits, "split_of", lambda content: "train")
    with pytest.raises(errors.UserError, match="has only 0 different examples for split 'test'"):
        list(generation.examples("recall", 1, "test", 0, 5, fewer_if_used_up=True))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("pointer_chas", 1, "train", 0, 1), "task='pointer_chas' .* mean 'pointer_chase'"),
        (("recall", 1, "validation", 0, 1), "split='validation' is not known"),
        (("recall", 0, "train", 0, 1), "The difficulty of recall=0 must be at least 1"),
        (("recall", 66, "train", 0, 1), "must be at most 65"),
        (("recall", 1, "train", -1, 1), r"seed=-1 must lie in \[0, 2\^32\)"),
        (("recall", 1, "train", 0, -1), "count=-1 must be at least 0"),
    ],
)
def test_wrong_arguments_are_errors_at_once(arguments, message):
    with pytest.raises(errors.UserError, match=message):
        generation.examples(*arguments)


def test_names_are_many_different_and_no_prefix_of_another():
    for pool, number in ((names.SHORT, 260), (names.PEOPLE, 64)):
        assert len(set(pool)) == number and len({len(name) for name in pool}) == 1


def test_an_example_is_its_text():
    each = example.Example("t", 1, "prompt", " answer", ())
    assert each.text == "prompt answer"
