"""Samples from a trained model: `python -m keel_jax.generate --workdir=DIR --prompt="def main"`."""

import sys

from absl import flags

from keel_jax.inference import model
from keel_jax.model import sampling
from keel_jax.runtime import cli, result_file


def main(_: list[str]) -> None:
    result_file.check("--json", _JSON.value)
    how = sampling.Sampling(temperature=_TEMPERATURE.value, top_k=_TOP_K.value, top_p=_TOP_P.value)
    loaded = model.load(_WORKDIR.value, step=_STEP.value)
    prompts = _PROMPT.value
    if _CHAT.value:
        prompts = [loaded.chat_prompt([{"role": "user", "content": text}]) for text in prompts]
    prompts = prompts * _NUM_SAMPLES.value
    written = loaded.generate_timed(
        prompts,
        num_tokens=_NUM_TOKENS.value,
        how=how,
        seed=_SEED.value,
        stop=_STOP.value,
        batch_size=_BATCH_SIZE.value,
        cut_prompts=_CUT_PROMPTS.value,
    )
    samples = [{"prompt": p, "text": t.text} for p, t in zip(prompts, written.texts, strict=True)]
    for number, sample in enumerate(samples):
        if len(samples) > 1:
            print(f"--- sample {number + 1} of {len(samples)}", file=sys.stderr)
        print(sample["prompt"] + sample["text"])
    if num_cut := sum(text.num_cut for text in written.texts):
        print(f"{num_cut} tokens at the beginning of prompts were not read.", file=sys.stderr)
    print(
        f"{written.num_tokens} tokens in {written.seconds:.2f} s without compilation: "
        f"{written.tokens_per_second:.0f} tokens/s",
        file=sys.stderr,
    )
    result_file.write_json(_JSON.value, samples)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _PROMPT = flags.DEFINE_multi_string("prompt", [""], "What to continue; may be repeated.")
    _CHAT = flags.DEFINE_bool(
        "chat", False, "Each prompt is a user's message, in the checkpoint's chat template."
    )
    _NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Samples per prompt.", lower_bound=1)
    _NUM_TOKENS = flags.DEFINE_integer("num_tokens", 128, "Tokens drawn, at most.", lower_bound=1)
    _STOP = flags.DEFINE_multi_string("stop", [], "Ends a text; may be repeated.")
    _TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0: the most likely token.")
    _TOP_K = flags.DEFINE_integer("top_k", 0, "Only the k most likely tokens; 0: all.")
    _TOP_P = flags.DEFINE_float("top_p", 0.95, "Nucleus: total probability that is kept.")
    _SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")
    _BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Texts written at once.", lower_bound=1)
    _CUT_PROMPTS = flags.DEFINE_bool(
        "cut_prompts", False, "Read the end of a prompt that leaves no room for --num_tokens."
    )
    _STEP = cli.define_step()
    _JSON = flags.DEFINE_string("json", None, "Also write the samples to this file.")
    cli.run(main)
