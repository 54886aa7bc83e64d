"""Fine-tuning end to end on two cores: `python -m experiments.benchmarks.sft_check --output=DIR`.

A tiny model is pretrained on made-up text, in which words are listed and then taken up again, and
fine-tuned on conversations that ask for such words. Prompts of the validation split never occur in
training. Three models answer them: the pretrained one, the fine-tuned one, and a control that was
fine-tuned in the same way on the same prompts with the responses of other prompts. Printed are the
loss on responses, and the fraction of prompts that greedy decoding answers to the letter.

Exit code 0: the fine-tuned model is the best by both; 1: it is not. Started again, it goes on.
"""

import json
import pathlib
import random
from collections.abc import Iterator

from absl import flags

import keel_jax
from experiments.configs import sft_micro, tiny
from keel_jax import config, evaluate, train
from keel_jax.data import chat_template
from keel_jax.data.preparing import conversations as conversations_lib
from keel_jax.data.preparing import corpus, documents, preparation
from keel_jax.data.preparing import options as preparation_options
from keel_jax.inference import comparison
from keel_jax.runtime import cli, exit_codes, result_file

_WORDS = "ash bay cap den elm fox gem hut ivy jar key log map net oak pen".split()
_TEMPLATE = "turns"
_PACK_TOKENS = 128
_HELD_OUT = 0.1


def texts(seed: int, count: int) -> Iterator[str]:
    """Documents for pretraining: lists of words, and what comes first, last and backwards."""
    generator = random.Random(seed)
    for _ in range(count):
        lines = []
        for _ in range(8):
            words = generator.sample(_WORDS, 3)
            question, answer = _question(generator, words)
            lines.append(f"{' '.join(words)}. {question}: {answer}.")
        yield "\n".join(lines)


def conversations(seed: int, count: int) -> list[dict]:
    """Different prompts about three words, each with its answer."""
    generator = random.Random(seed)
    answers: dict[str, str] = {}
    while len(answers) < count:
        words = generator.sample(_WORDS, 3)
        question, answer = _question(generator, words)
        answers[f"Words: {' '.join(words)}. Say the {question}."] = answer
    return [
        {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
        }
        for prompt, answer in answers.items()
    ]


def _question(generator: random.Random, words: list[str]) -> tuple[str, str]:
    answers = {"first": words[0], "last": words[-1], "backwards": " ".join(words[::-1])}
    return generator.choice(list(answers.items()))


def split(values: list[dict]) -> tuple[list[dict], list[dict]]:
    """(training, held out) of the conversations, as `keel_jax.prepare` divides them."""
    template = chat_template.TEMPLATES[_TEMPLATE]
    parts: tuple[list[dict], list[dict]] = ([], [])
    for value in values:
        examples = conversations_lib.from_values(value, template)
        assert not isinstance(examples, documents.Rejection), examples
        parts[corpus.is_validation(examples[0], _HELD_OUT)].append(value)
    return parts


def shuffled(values: list[dict], seed: int) -> list[dict]:
    """The same prompts, each with a response that was given to some prompt."""
    responses = [value["messages"][1] for value in values]
    random.Random(seed).shuffle(responses)
    pairs = zip(values, responses, strict=True)
    return [{"messages": [value["messages"][0], response]} for value, response in pairs]


def check(output: pathlib.Path, *, num_pretraining_steps: int, num_conversations: int) -> dict:
    """Runs everything in `output`; the results by model, "pretrained", "control", "fine-tuned"."""
    output.mkdir(parents=True, exist_ok=True)
    values = conversations(seed=1, count=num_conversations)
    training, held_out = split(values)
    pretrained = output / "pretrained"
    data = _prepare(output / "text", [{"text": text} for text in texts(0, 2000)], vocab_size=300)
    _train(tiny.get_config(), pretrained, data, {"train.num_steps": num_pretraining_steps})
    chats: dict = {"tokenizer_model": pretrained / "tokenizer.model", "chat_template": _TEMPLATE}
    chats["pack_tokens"] = _PACK_TOKENS
    data = _prepare(output / "chats", values, validation_fraction=_HELD_OUT, **chats)
    control = _prepare(output / "control_chats", shuffled(training, seed=2), **chats)
    runs = {"control": (output / "control", control), "fine-tuned": (output / "tuned", data)}
    for workdir, its_data in runs.values():
        _train(sft_micro.get_config(), workdir, its_data, {"train.init_from": str(pretrained)})
    models = {"pretrained": pretrained} | {name: workdir for name, (workdir, _) in runs.items()}
    return {
        name: _measure(workdir, data, held_out, "best" if name in runs else None)
        for name, workdir in models.items()
    }


def _prepare(output: pathlib.Path, values: list[dict], **options) -> pathlib.Path:
    """The token set of these records in `output`."""
    source = output.with_suffix(".jsonl")
    lines = "".join(json.dumps(value) + "\n" for value in values)
    if not source.exists() or source.read_text() != lines:
        source.write_text(lines)
    made = preparation_options.PreparationOptions(**options)
    preparation.prepare_token_set([str(source)], output, made)
    return output


def _train(raw, workdir: pathlib.Path, data: pathlib.Path, changes: dict) -> None:
    raw.data.path = str(data)
    raw.update_from_flattened_dict(changes)
    print(f"--- {workdir}", flush=True)
    code = train.train(config.from_config_dict(raw), workdir)
    if code != exit_codes.DONE:
        raise SystemExit(code)


def _measure(workdir: pathlib.Path, data: pathlib.Path, held_out: list[dict], step) -> dict:
    """The loss on the responses of the split that is held out, and exact answers to its prompts."""
    found = evaluate.evaluate(workdir, step=step, data_path=str(data), seq_len=_PACK_TOKENS)
    template = chat_template.TEMPLATES[_TEMPLATE]
    questions = [value["messages"][:1] for value in held_out]
    prompts = [template.prompt(chat_template.parse_messages(messages)) for messages in questions]
    answers = keel_jax.load(workdir, step=step).generate(prompts, num_tokens=16)
    right = [value["messages"][1]["content"] for value in held_out]
    exact = sum(answer == expected for answer, expected in zip(answers, right, strict=True))
    return {
        "loss_nats_per_response_token": found["loss_nats_per_token"],
        "accuracy_of_response_tokens": found["accuracy"],
        "exact_match": exact / len(right),
        "num_held_out": len(right),
        "step": found["step"],
    }


def is_best(results: dict) -> bool:
    """Whether the fine-tuned model is better than the two others by loss and by exact answers."""
    tuned = results["fine-tuned"]
    return all(
        tuned["loss_nats_per_response_token"] < other["loss_nats_per_response_token"]
        and tuned["exact_match"] > other["exact_match"]
        for name, other in results.items()
        if name != "fine-tuned"
    )


def main(_: list[str]) -> int:
    results = check(
        pathlib.Path(_OUTPUT.value),
        num_pretraining_steps=_NUM_STEPS.value,
        num_conversations=_NUM_CONVERSATIONS.value,
    )
    print(comparison.table(results))
    result_file.write_json(_JSON.value, results)
    return 0 if is_best(results) else 1


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", None, "Directory of the runs.", required=True)
    _NUM_STEPS = flags.DEFINE_integer("pretraining_steps", 300, "Steps of 8 x 128 tokens.")
    _NUM_CONVERSATIONS = flags.DEFINE_integer("conversations", 2000, "A tenth is held out.")
    _JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")
    cli.run(main)
