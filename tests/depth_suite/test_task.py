"""What holds for every task: the form of its texts, its chance, and that guessing gains nothing."""

import collections
import math

import pytest
import scipy.stats

from keel_jax import errors
from keel_jax.depth_suite import registry
from tests.depth_suite import many

TASKS = list(registry.TASKS)
WITH_CHOICES = [name for name in TASKS if many.examples(name, 1)[0].choices]


@pytest.mark.parametrize("difficulty", [1, 2, 4, 8])
@pytest.mark.parametrize("name", TASKS)
def test_texts_are_short_ascii_and_the_answer_begins_with_a_space(name, difficulty):
    for each in many.examples(name, difficulty):
        assert (each.task, each.difficulty) == (name, difficulty)
        assert each.text.isascii() and len(each.text) < 400 and each.text == each.text.strip()
        assert not each.prompt[-1].isspace() and each.answer[0] == " " != each.answer[1]
        if each.choices:
            assert each.answer in each.choices and len(set(each.choices)) == len(each.choices)
            # A prefix of another would always be the likelier of the two.
            assert len({len(choice) for choice in each.choices}) == 1 or not any(
                b.startswith(a) for a in each.choices for b in each.choices if a != b
            )


@pytest.mark.parametrize("name", TASKS)
def test_chance_is_one_over_the_number_of_possible_answers(name):
    task = registry.TASKS[name]
    for difficulty in (1, 8):
        [number] = {len(each.choices) for each in many.examples(name, difficulty)}
        open_ended = {"permutation_product": math.factorial(5), "copy_edits": math.factorial(6)}
        assert task.chance(difficulty) == 1 / (number or open_ended[name])
    assert task.chance_text.startswith(f"1/{round(1 / task.chance(1))}")


@pytest.mark.parametrize("difficulty", [2, 4, 8])
@pytest.mark.parametrize("name", WITH_CHOICES)
def test_answers_are_balanced_and_the_order_of_choices_says_nothing(name, difficulty):
    found = many.examples(name, difficulty, 400)
    places = collections.Counter(each.choices.index(each.answer) for each in found)
    counts = [places[place] for place in range(len(found[0].choices))]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3, counts


def _guesses(prompt: str, choices: tuple[str, ...]) -> dict[str, str]:
    """What can be said without computing: the choice that is most or least, first or last."""
    words = [choice.strip() for choice in choices]
    body = prompt.removeprefix("Modulo 7")
    ranks = {
        "most frequent": lambda word: -body.count(word),
        "least frequent": body.count,
        "first to come": lambda word: body.find(word) % 10**6,
        "last to come": lambda word: -body.find(word),
        "last to end": lambda word: -body.rfind(word),
        "first to end": lambda word: body.rfind(word) % 10**6,
    }
    return {name: f" {min(words, key=rank)}" for name, rank in ranks.items()}


@pytest.mark.parametrize("name", WITH_CHOICES)
def test_no_count_and_no_place_tells_the_answer(name):
    found, hits = many.examples(name, 4, 400), collections.Counter()
    for each in found:
        for guess, answer in _guesses(each.prompt, each.choices).items():
            hits[guess] += answer == each.answer
    chance = registry.TASKS[name].chance(4)
    for guess, count in hits.items():
        assert count / len(found) < chance + many.tolerance(chance, len(found)), guess


@pytest.mark.parametrize("name", WITH_CHOICES)
def test_the_length_of_the_prompt_says_nothing(name):
    found = many.examples(name, 4, 400)
    lengths = collections.defaultdict(list)
    for each in found:
        lengths[each.choices.index(each.answer)].append(len(each.prompt))
    if len({len(each.prompt) for each in found}) > 1:
        assert scipy.stats.kruskal(*lengths.values()).pvalue > 1e-3


@pytest.mark.parametrize("name", TASKS)
def test_a_difficulty_outside_the_limits_is_an_error(name):
    task = registry.TASKS[name]
    with pytest.raises(errors.UserError, match=f"The difficulty of {name}=0 must be at least 1"):
        task.check_difficulty(0)
    task.check_difficulty(task.max_difficulty)
    with pytest.raises(errors.UserError, match=f"must be at most {task.max_difficulty}, "):
        task.check_difficulty(task.max_difficulty + 1)
