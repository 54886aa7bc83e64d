"""The harness and this project agree item by item, on tasks of every kind, from local files.

Slow, as lm-evaluation-harness is of the extra `eval`, which `make test-slow` installs.
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from keel_jax.model import sampling

pytestmark = [
    pytest.mark.slow,
    # Of the harness and what it imports.
    pytest.mark.filterwarnings("default"),
]

DOCUMENTS = [
    {"text": f"def f_{i}(x):\n    return x + {i}\n" * (1 + i % 3), "n": i, "gold": i % 2}
    for i in range(7)
]
TASKS = {
    "keel_choice": """
        output_type: multiple_choice
        doc_to_text: "def f_{{n}}(x):\\n    return"
        doc_to_choice: [" x + 1", " x + 12", " y"]
        target_delimiter: ""
        doc_to_target: gold
        metric_list: [{metric: acc}, {metric: acc_norm}]
        """,
    "keel_shots": """
        output_type: multiple_choice
        num_fewshot: 2
        fewshot_split: test
        doc_to_text: "def f_{{n}}(x): return x"
        doc_to_choice: ["yes", "no"]
        doc_to_target: gold
        metric_list: [{metric: acc}]
        """,
    "keel_last": """
        output_type: loglikelihood
        doc_to_text: "{{text}}    return"
        doc_to_target: " x + {{n}}"
        metric_list: [{metric: perplexity}, {metric: acc}]
        """,
    "keel_rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: bits_per_byte}]
        """,
    "keel_greedy": """
        output_type: generate_until
        doc_to_text: "{{text}}"
        doc_to_target: "1"
        generation_kwargs: {until: ["_", "x +"], max_gen_toks: 10, do_sample: false}
        metric_list: [{metric: exact_match}]
        """,
    "keel_sampled": """
        output_type: generate_until
        doc_to_text: "def f"
        doc_to_target: "1"
        generation_kwargs: {until: ["("], max_new_tokens: 8, temperature: 0.8, top_p: 0.9}
        repeats: 2
        metric_list: [{metric: exact_match}]
        """,
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A directory of the tasks above and their documents."""
    directory = tmp_path_factory.mktemp("tasks")
    lines = [json.dumps(document) + "\n" for document in DOCUMENTS]
    (directory / "documents.jsonl").write_text("".join(lines))
    for name, task in TASKS.items():
        data = f"""
            task: {name}
            dataset_path: json
            dataset_kwargs: {{data_files: {{test: {directory}/documents.jsonl}}}}
            test_split: test
            """
        (directory / f"{name}.yaml").write_text(textwrap.dedent(data) + textwrap.dedent(task))
    return directory


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """The environment of the harness: nothing is downloaded, nothing is kept."""
    values = {"HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_HUB_OFFLINE": "1"}
    values |= {"HF_DATASETS_OFFLINE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield values


@pytest.fixture(scope="module")
def adapter(offline, workdir):
    from keel_jax.inference import harness

    return harness.KeelJax(str(workdir), batch_size=3, seed=5)


def _evaluate(model, tasks, **options):
    import lm_eval
    from lm_eval import tasks as harness_tasks

    manager = harness_tasks.TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, **options
    )


@pytest.fixture(scope="module")
def samples(adapter, tasks):
    return _evaluate(adapter, tasks)["samples"]


def _requests(samples, name):
    """(arguments, responses) of every request of a task."""
    for sample in sorted(samples[name], key=lambda sample: sample["doc_id"]):
        yield from zip(sample["arguments"], sample["resps"], strict=True)


@pytest.mark.parametrize("name", ["keel_choice", "keel_shots", "keel_last"])
def test_likelihoods_are_those_of_score(samples, model, name):
    requests = list(_requests(samples, name))
    assert (
        len(requests) == len(DOCUMENTS) * {"keel_choice": 3, "keel_shots": 2, "keel_last": 1}[name]
    )
    for (context, continuation), [(log_likelihood, is_greedy)] in requests:
        [score] = model.score([(context, continuation)])
        assert log_likelihood == pytest.approx(score.log_likelihood, rel=1e-6)
        assert is_greedy == score.is_greedy


def test_the_choice_is_the_likeliest(samples):
    for sample in samples["keel_choice"]:
        values = [response[0][0] for response in sample["resps"]]
        assert sample["acc"] == (values.index(max(values)) == sample["doc"]["gold"])
        lengths = [len(choice) for _, choice in sample["arguments"]]
        normed = [value / length for value, length in zip(values, lengths, strict=True)]
        assert sample["acc_norm"] == (normed.index(max(normed)) == sample["doc"]["gold"])


def test_rolling_likelihoods_are_those_of_loss(samples, model):
    requests = list(_requests(samples, "keel_rolling"))
    losses = model.loss([document["text"] for document in DOCUMENTS])
    assert len(requests) == len(losses)
    assert max(loss.num_tokens for loss in losses) > model.max_length
    for (_, [value]), loss in zip(requests, losses, strict=True):
        assert value == pytest.approx(-loss.nats, rel=1e-6)


def test_greedy_texts_are_those_of_generate(samples, model):
    requests = list(_requests(samples, "keel_greedy"))
    contexts = [context for (context, _), _ in requests]
    texts = model.generate(contexts, num_tokens=10, stop=["_", "x +"], cut_prompts=True)
    assert [text for _, [text] in requests] == texts
    assert any(len(model.tokenizer.encode(context)) > model.max_length for context in contexts)


def test_sampled_texts_are_those_of_generate_and_repeats_differ(samples, model):
    requests = list(_requests(samples, "keel_sampled"))
    how = sampling.Sampling(temperature=0.8, top_p=0.9)
    prompts = ["def f"] * (2 * len(DOCUMENTS))
    texts = model.generate(prompts, num_tokens=8, how=how, stop=["("], seed=5)
    assert [text for _, responses in requests for text in responses] == texts
    assert any(first != second for _, (first, second) in requests)


def test_sampled_texts_are_not_written_chunk_by_chunk(adapter, model, monkeypatch):
    """Repeats in two chunks would have the same keys."""
    from lm_eval.api import instance

    from keel_jax.inference import harness

    monkeypatch.setattr(harness, "_BATCHES_PER_CHUNK", 1)
    options = {"until": [], "max_gen_toks": 8, "temperature": 0.8, "top_p": 0.9}
    requests = [instance.Instance("generate_until", {}, ("def f", options), i) for i in range(14)]
    how = sampling.Sampling(temperature=0.8, top_p=0.9)
    texts = model.generate(["def f"] * 14, num_tokens=8, how=how, seed=5)
    assert adapter.generate_until(requests) == texts and len(set(texts)) > 7


def test_answers_come_from_the_harness_cache_the_second_time(
    adapter, tasks, samples, tmp_path, monkeypatch
):
    cache = str(tmp_path / "cache")
    first = _evaluate(adapter, tasks, use_cache=cache)
    asked = []
    for name in ("score", "loss"):
        whole = getattr(adapter.model, name)
        monkeypatch.setattr(
            adapter.model, name, lambda x, whole=whole, **o: asked.extend(x) or whole(x, **o)
        )
    second = _evaluate(adapter, tasks, use_cache=cache)
    assert not asked
    for name in TASKS:
        if name != "keel_sampled":
            answers = [
                {sample["doc_id"]: sample["resps"] for sample in result["samples"][name]}
                for result in (first, second)
            ]
            assert answers[0] == answers[1]


def test_what_was_answered_before_an_interruption_is_cached(adapter, monkeypatch):
    from lm_eval.api import instance

    cached = []
    monkeypatch.setattr(
        adapter, "cache_hook", type("Hook", (), {"add_partial": lambda _, *a: cached.append(a)})()
    )
    pairs = [("def f" + "x" * (i % 20), "(x)") for i in range(3 * 16 + 5)]
    requests = [instance.Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    score, calls, longest = adapter.model.score, [], []

    def interrupted(chunk, **options):
        calls.append(len(chunk))
        longest.append(max(len(context) for context, _ in chunk))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(chunk, **options)

    with monkeypatch.context() as patch:
        patch.setattr(adapter.model, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapter.loglikelihood(requests)
    assert calls == [48, 5] and len(cached) == 48
    assert longest == [24, 6]
    # In the order of the requests, whatever the order of the work.
    answers = adapter.loglikelihood(requests)
    for pair, (log_likelihood, _) in zip(pairs, answers, strict=True):
        assert log_likelihood == pytest.approx(score([pair])[0].log_likelihood, rel=1e-6)
    stored = {request: result for name, request, result in cached if name == "loglikelihood"}
    assert [stored[pair] for pair in pairs] == answers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(workdir=None), "--model_args lacks workdir=DIR"),
        (dict(batch_size="auto"), "batch_size='auto' must be a number"),
        (dict(batch_size=0), "batch_size=0 must be at least 1"),
        (dict(device="cuda"), "--model_args has device; this model knows.*JAX_PLATFORMS"),
        (dict(workdir="nowhere"), "nowhere"),
    ],
)
def test_unusable_arguments_are_refused(offline, workdir, options, message):
    from keel_jax.inference import harness

    with pytest.raises(ValueError, match=message):
        harness.KeelJax(**{"workdir": str(workdir), **options})


def test_unknown_generation_options_are_refused(adapter):
    from lm_eval.api import instance

    request = instance.Instance("generate_until", {}, ("def f", {"num_beams": 4}), 0)
    with pytest.raises(ValueError, match=r"does not have the generation options \['num_beams'\]"):
        adapter.generate_until([request])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (256, [], sampling.Sampling(temperature=0.0))),
        ({"until": "\n\n", "max_tokens": 7}, (7, ["\n\n"], sampling.Sampling(temperature=0.0))),
        ({"until": ["a", ""], "temperature": 0.0}, (256, ["a"], sampling.Sampling(temperature=0))),
        ({"do_sample": True}, (256, [], sampling.Sampling(temperature=1.0))),
        ({"do_sample": False, "temperature": 2.0}, (256, [], sampling.Sampling(temperature=0.0))),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "max_gen_toks": 5, "max_tokens": 9},
            (5, [], sampling.Sampling(temperature=0.5, top_p=0.9, top_k=3)),
        ),
    ],
)
def test_generation_options_mean_what_they_mean_to_the_harness(offline, options, expected):
    from keel_jax.inference import harness

    found = harness._Generation(options, 256)
    assert (found.num_tokens, found.stop, found.how) == expected


def test_the_command_hands_over_to_the_harness(offline, workdir, tasks, tmp_path):
    command = [
        *(
            sys.executable,
            "-m",
            "keel_jax.lm_eval",
            "--model",
            "keel_jax",
            "--tasks",
            "keel_choice",
        ),
        *("--model_args", f"workdir={workdir},step=3,batch_size=4", "--include_path", str(tasks)),
        *("--output_path", str(tmp_path / "results")),
    ]
    env = {**os.environ, **offline}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "|keel_choice|" in done.stdout
    assert list((tmp_path / "results").rglob("*.json"))
    command[command.index("--model_args") + 1] = "step=3"
    failed = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert failed.returncode == 1 and "error: --model_args lacks workdir=DIR" in failed.stderr
    assert "Traceback" not in failed.stderr
