"""The proof that fine-tuning works: its data, its verdict, and, slowly, all of it in small."""

import pytest

from experiments.benchmarks import sft_check

VALUES = sft_check.conversations(seed=1, count=300)


def _pairs(values):
    return [[message["content"] for message in value["messages"]] for value in values]


def test_prompts_that_are_held_out_are_not_learned():
    training, held_out = sft_check.split(VALUES)
    assert len(training) + len(held_out) == 300 and 15 < len(held_out) < 50
    learned = {prompt for prompt, _ in _pairs(training)}
    assert len(learned) == len(training)
    assert not learned & {prompt for prompt, _ in _pairs(held_out)}


def test_answers_are_right_and_the_control_has_the_same_ones_in_other_places():
    for prompt, answer in _pairs(VALUES):
        listed, question = prompt.removeprefix("Words: ").removesuffix(".").split(". Say the ")
        words = listed.split()
        expected = {"first": words[0], "last": words[2], "backwards": " ".join(words[::-1])}
        assert answer == expected[question]
    control = _pairs(sft_check.shuffled(VALUES, seed=2))
    prompts, answers = zip(*_pairs(VALUES), strict=True)
    its_prompts, its_answers = zip(*control, strict=True)
    assert its_prompts == prompts and sorted(its_answers) == sorted(answers)
    unchanged = sum(a == b for a, b in zip(answers, its_answers, strict=True))
    assert unchanged < 0.15 * len(answers)


@pytest.mark.parametrize(
    ("loss", "exact", "expected"), [(0.1, 0.9, True), (0.6, 0.9, False), (0.1, 0.2, False)]
)
def test_the_verdict_asks_for_both(loss, exact, expected):
    def result(loss, exact):
        return {"loss_nats_per_response_token": loss, "exact_match": exact}

    others = {"pretrained": result(2.0, 0.0), "control": result(0.5, 0.3)}
    assert sft_check.is_best({**others, "fine-tuned": result(loss, exact)}) == expected


@pytest.mark.slow
def test_the_fine_tuned_model_is_better_than_both_others(tmp_path):
    """As by default; docs/fine_tuning.md has the numbers."""
    results = sft_check.check(tmp_path, num_pretraining_steps=300, num_conversations=2000)
    assert sft_check.is_best(results), results
