"""Scores of whole benchmarks by a model whose probabilities are known, to the last digit."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from keel_jax.tasks import catalogue, confinement, loading, running
from tests.tasks import hand_made, layouts

_ANSWERS = {
    "What is 4 + 1?\nOptions:\nA. 4\nB. 5\nC. 6\nD. 7\nE. 8\nF. 9\nG. 10\nH. 11\nI. 12\nJ. 13\n"
    "Answer: Let's think step by step.": " The answer is (B).",
    "Answer: Let's think step by step.": " The answer is (C).",
    "step by step.": "So the answer is False.\n\nQ: more",
    "Question: 0 and 1?\nAnswer:": " Add.\n#### 1,000\nQuestion: more",
    "Question: 1 and 1?\nAnswer:": " Seven, so 2000",
}


def _run(name, folder, directory, model=None, **options):
    model = model or hand_made.HandMade(_ANSWERS)
    loaded = loading.load(
        catalogue.all_tasks()[name], folder, num_shots=options.pop("num_shots", None)
    )
    runner = running.Runner(model, epath.Path(directory), running.Options(**options))
    runner.check(loaded)
    return runner.run(loaded), model


@pytest.mark.parametrize(
    "name", ["hellaswag", "arc_easy", "piqa", "winogrande", "sciq", "mmlu", "cmmlu", "agieval"]
)
def test_choices_are_scored_as_their_probabilities_say(name, tmp_path):
    """Computed again here from the pairs of texts, without the runner and the tokenizer's rows."""
    layouts.write(name, tmp_path)
    result, model = _run(name, tmp_path, tmp_path / "out")
    declared = catalogue.all_tasks()[name]
    expected = []
    for entry in loading.load(declared, tmp_path).items:
        totals = []
        for context, continuation in declared.pairs(entry.item, entry.prompt):
            ids = model.tokenizer.encode(context.rstrip() + continuation)
            totals.append(
                sum(
                    hand_made.after_log_p(int(a), int(b))
                    for a, b in list(zip(ids[:-1], ids[1:], strict=True))[-len(continuation) :]
                )
            )
        lengths = [len(choice) for choice in entry.item.choices]
        by_metric = {"acc": totals, "acc_norm": np.array(totals) / lengths}
        expected.append(
            [int(np.argmax(by_metric[metric])) in entry.item.right for metric in declared.metrics]
        )
    assert [mean.value for mean in result.metrics.values()] == np.mean(expected, axis=0).tolist()
    assert result.num_items == len(expected) and result.num_cut == 0


def test_last_words_and_their_nats(tmp_path):
    layouts.write("lambada", tmp_path)
    result, model = _run("lambada", tmp_path, tmp_path / "out")
    nats = []
    for words in ("opened the door", "sang a song"):
        ids = model.tokenizer.encode(words)
        length = len(words.split()[-1]) + 1
        steps = [
            hand_made.after_log_p(int(a), int(b)) for a, b in zip(ids[:-1], ids[1:], strict=True)
        ]
        nats.append(-sum(steps[-length:]))
    assert result.metrics["nats"].value == np.mean(nats)
    assert result.metrics["nats"].stderr == pytest.approx(abs(nats[0] - nats[1]) / 2)


def test_generated_answers(tmp_path):
    for name, expected in [
        ("mmlu_pro", {"exact_match": 0.5}),
        ("bbh", {"exact_match": 1.0}),
        ("gsm8k", {"exact_match": 0.5, "flexible_match": 1.0}),
    ]:
        layouts.write(name, tmp_path)
        result, _ = _run(name, tmp_path, tmp_path / "out")
        assert {metric: mean.value for metric, mean in result.metrics.items()} == expected
        # Of `bbh`, those that the authors' text shows.
        assert result.num_shots == {"mmlu_pro": 5, "bbh": 3, "gsm8k": 5}[name]


def test_a_second_run_scores_nothing_again(tmp_path):
    layouts.write("mmlu", tmp_path)
    first, model = _run("mmlu", tmp_path, tmp_path / "out")
    assert model.num_scored == 16
    again, other = _run("mmlu", tmp_path, tmp_path / "out")
    assert other.num_scored == 0 and again == first


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    layouts.write("mmlu", tmp_path)
    first, _ = _run("mmlu", tmp_path, tmp_path / "out")
    path = tmp_path / "out/mmlu.5-shot.jsonl"
    lines = path.read_text().split("\n")
    # Two lines are whole, and one was cut off by a kill.
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:50])
    again, model = _run("mmlu", tmp_path, tmp_path / "out")
    assert model.num_scored == 8 and again == first
    keys = [json.loads(line)["key"] for line in path.read_text().split("\n") if line.endswith("}")]
    assert len(set(keys)) == len(keys) == 4


def test_items_that_differ_in_their_answer_alone_are_graded_by_it(tmp_path):
    """What is kept of one is what the model would say to the other."""
    rows = [{"sentence": "The _ is big.", "option1": "cup", "option2": "box", "answer": "1"}]
    layouts.jsonl(tmp_path / "winogrande/dev.jsonl", [*rows, {**rows[0], "answer": "2"}])
    for _ in range(2):
        result, _ = _run("winogrande", tmp_path, tmp_path / "out")
        assert result.headline.value == 0.5


@pytest.mark.parametrize("change", ["model", "file", "shots"])
def test_what_was_scored_otherwise_does_not_count(change, tmp_path):
    layouts.write("piqa", tmp_path)
    _run("piqa", tmp_path, tmp_path / "out")
    model, num_shots = hand_made.HandMade(), 0
    if change == "model":
        model = hand_made.HandMade(identity="b")
    elif change == "shots":
        num_shots = 1
    else:
        path = tmp_path / "piqa/valid.jsonl"
        path.write_text(path.read_text().replace("add ice", "add snow"))
    _run("piqa", tmp_path, tmp_path / "out", model, num_shots=num_shots)
    assert model.num_scored == 4


def test_samples_of_an_item_are_drawn_alike_in_any_order(tmp_path):
    """Its numbers are its own, so that a run that was interrupted draws the same."""
    layouts.write("gsm8k", tmp_path)
    _, whole = _run("gsm8k", tmp_path, tmp_path / "a", num_samples=3)
    assert len(set(whole.numbers)) == 6
    path = tmp_path / "a/gsm8k.5-shot.jsonl"
    for kept in path.read_text().split("\n")[1:]:
        path.write_text(kept)
        _, rest = _run("gsm8k", tmp_path, tmp_path / "a", num_samples=3)
        assert rest.numbers in (whole.numbers[:3], whole.numbers[3:])
        assert rest.numbers[0] == int(_other_key(path, kept)[:8], 16) % 2**31


def _other_key(path, kept):
    [key] = [
        json.loads(line)["key"] for line in path.read_text().split("\n") if line and line != kept
    ]
    return key


def test_the_longest_are_scored_first(tmp_path):
    rows = [{"text": "a " * length + "b"} for length in (3, 900, 40)]
    layouts.jsonl(tmp_path / "lambada/lambada_test.jsonl", rows)
    model = hand_made.HandMade()
    _run("lambada", tmp_path, tmp_path / "out", model, batch_size=1)
    lines = (tmp_path / "out/lambada.0-shot.jsonl").read_text().split("\n")
    places = [json.loads(line)["where"][-6:] for line in lines if line]
    assert places == ["line 2", "line 3", "line 1"]


def test_an_answer_that_does_not_fit_is_named_before_anything_is_scored(tmp_path):
    layouts.write("piqa", tmp_path)
    model = hand_made.HandMade(max_length=6)
    with pytest.raises(ValueError, match=r"valid\.jsonl, line 1 .*has 8 tokens, and the model was"):
        _run("piqa", tmp_path, tmp_path / "out", model)
    assert model.num_scored == 0


def test_answers_that_leave_no_room_for_a_prompt_are_refused(tmp_path):
    layouts.write("gsm8k", tmp_path)
    model = hand_made.HandMade(_ANSWERS, max_length=256)
    with pytest.raises(ValueError, match=r"gsm8k: answers of up to 256 tokens leave no room"):
        _run("gsm8k", tmp_path, tmp_path / "out", model)
    _run("gsm8k", tmp_path, tmp_path / "out", model, num_tokens=255)
    assert model.num_written == 2


def test_of_a_prompt_that_does_not_fit_the_end_is_read(tmp_path):
    layouts.write("piqa", tmp_path)
    result, _ = _run("piqa", tmp_path, tmp_path / "out", hand_made.HandMade(max_length=20))
    assert result.num_cut == 2


def test_code_is_run_only_when_that_is_asked_for(tmp_path, monkeypatch):
    layouts.write("humaneval", tmp_path)
    model = hand_made.HandMade({'Returns one."""': "    return 1\n\ndef more"})
    with pytest.raises(ValueError, match=r"humaneval runs programs .*: add --run_code"):
        _run("humaneval", tmp_path, tmp_path / "out", model)
    assert model.num_written == 0
    ran = []

    def run(program, **options):
        ran.append((program, options))
        return confinement.Verdict("check(one)" in program, "")

    monkeypatch.setattr(confinement, "run", run)
    monkeypatch.setattr(confinement, "check", lambda **options: ran.append(options))
    result, _ = _run(
        "humaneval", tmp_path, tmp_path / "out", model, may_run_code=True, num_samples=2
    )
    assert {name: mean.value for name, mean in result.metrics.items()} == {"pass@1": 0.5}
    assert len(ran) == 1 + 4 and "def more" not in ran[1][0]


def test_progress_is_told(tmp_path):
    layouts.write("mmlu", tmp_path)
    loaded = loading.load(catalogue.all_tasks()["mmlu"], tmp_path)
    runner = running.Runner(
        hand_made.HandMade(), epath.Path(tmp_path / "out"), running.Options(batch_size=1)
    )
    told = []
    runner.check(loaded)
    result = runner.run(loaded, lambda done, total: told.append((done, total)))
    assert told[0] == (0, 4) and told[-1] == (4, 4)
    assert dataclasses.asdict(result)["num_shots"] == 5
