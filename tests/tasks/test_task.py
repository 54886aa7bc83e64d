"""Metrics of single items, on scores that are given."""

import pytest

from keel_jax.inference import scoring
from keel_jax.tasks import catalogue, items, task


def _scores(*log_likelihoods):
    return [scoring.Score(value, False, 1) for value in log_likelihoods]


@pytest.mark.parametrize(
    ("log_likelihoods", "acc", "acc_norm"),
    [
        # "ab" and "abcdefgh": by likelihood the short one, by letter the long one.
        ((-2.0, -4.0), 1, 0),
        ((-4.0, -2.0), 0, 0),
        ((-1.0, -8.0), 1, 1),
        # Divided by the letters alone, without the space before them.
        ((-2.0, -7.0), 1, 0),
        ((-3.0, -14.0), 1, 1),
        # Of equal ones the first is the answer.
        ((-2.0, -2.0), 1, 0),
        ((-2.0, -8.0), 1, 1),
    ],
)
def test_a_choice_is_made_by_likelihood_and_by_likelihood_per_letter(
    log_likelihoods, acc, acc_norm
):
    item = items.Choices(where="", contexts=("",), choices=("ab", "abcdefgh"), right=frozenset([0]))
    declared = catalogue.all_tasks()["piqa"]
    assert declared.grade(item, _scores(*log_likelihoods)) == {"acc_norm": acc_norm, "acc": acc}
    assert declared.chance(item) == 0.5


def test_any_of_several_right_choices_is_right():
    item = items.Choices(where="", contexts=("",), choices=("a", "b", "c"), right=frozenset([0, 2]))
    declared = catalogue.all_tasks()["agieval"]
    grades = [declared.grade(item, _scores(*s)) for s in [(0, -1, -2), (-1, 0, -2), (-2, -1, 0)]]
    assert grades == [{"acc": 1}, {"acc": 0}, {"acc": 1}]
    assert declared.chance(item) == pytest.approx(2 / 3)


def test_a_last_word_is_right_if_greedy_decoding_writes_it():
    item = items.LastWords(where="", context="a", continuation=" b")
    declared = catalogue.all_tasks()["lambada"]
    assert declared.grade(item, [scoring.Score(-1.5, True, 1)]) == {"acc": 1, "nats": 1.5}
    assert declared.grade(item, [scoring.Score(-2.0, False, 1)]) == {"acc": 0, "nats": 2.0}
    assert declared.solved(item) == "a b"


def test_pass_at_k_counts_samples():
    declared = catalogue.all_tasks()["humaneval"]
    passed = [True, False, False, False]
    assert declared.grade(passed, (1, 2, 10)) == {
        "pass@1": pytest.approx(1 / 4),
        "pass@2": pytest.approx(1 / 2),
    }
    assert declared.grade([False]) == {"pass@1": 0}


def test_extractors():
    first, last = task.first_group("is ([A-D])"), task.last_group(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
    assert (first("is A, is B"), first("none")) == ("A", None)
    assert (last("3 then 12 then 4"), last("none"), last("$1,000.")) == ("4", None, "$1,000.")
