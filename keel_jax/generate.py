"""Samples from a trained model: `python -m keel_jax.generate --workdir=DIR --prompt="def main"`."""

import sys

import jax
import numpy as np
from absl import flags
from etils import epath

from keel_jax import errors
from keel_jax.model import lm, sampling
from keel_jax.runtime import cli, result_file
from keel_jax.training import checkpoint, trained


def generate(
    workdir: epath.PathLike,
    prompts: list[str],
    *,
    num_tokens: int,
    how: sampling.Sampling,
    seed: int = 0,
    step: checkpoint.Step = None,
) -> list[str]:
    """What the model of `workdir` writes after each prompt, at most `num_tokens` tokens.

    Raises:
      UserError: no run or no checkpoint there, the tokenizer is not the checkpoint's, or a prompt
        is longer than the windows of the training, beyond which the model knows no positions.
    """
    model = trained.load(workdir, trained.one_device(), step)
    tokenizer = model.tokenizer()

    # Every document begins with EOS, as in training.
    rows = [np.concatenate([[tokenizer.eos_id], tokenizer.encode(prompt)]) for prompt in prompts]
    _check_length(max(map(len, rows)), model.cfg.train.seq_len)
    prompt_BP = np.zeros((len(rows), max(len(row) for row in rows)), np.int32)
    for row, ids in zip(prompt_BP, rows, strict=True):
        row[: len(ids)] = ids

    @jax.jit
    def draw(params, prompt_BP, length_B, key):
        return sampling.generate(
            lm.LanguageModel(model.cfg.model),
            params,
            prompt_BP,
            length_B,
            key,
            num_tokens=num_tokens,
            sampling=how,
            end_id=tokenizer.eos_id,
            num_ids=tokenizer.vocab_size,
        )

    lengths = np.array([len(row) for row in rows], np.int32)
    tokens_BT = np.asarray(draw(model.params, prompt_BP, lengths, jax.random.key(seed)))
    return [tokenizer.decode(_until(row, tokenizer.eos_id)) for row in tokens_BT]


def _check_length(num_prompt_tokens: int, seq_len: int) -> None:
    """Refuses a prompt that is longer than a window of the training."""
    if num_prompt_tokens > seq_len:
        raise errors.UserError(
            f"The prompt has {num_prompt_tokens} tokens (the EOS before it included), but the "
            f"model was trained on windows of {seq_len}: it knows no later positions. Give its "
            "last part alone, or train with a longer train.seq_len."
        )


def _until(ids: np.ndarray, end_id: int) -> np.ndarray:
    ends = np.flatnonzero(ids == end_id)
    return ids[: ends[0]] if ends.size else ids


def main(_: list[str]) -> None:
    result_file.check("--json", _JSON.value)
    prompts = _PROMPT.value * _NUM_SAMPLES.value
    texts = generate(
        _WORKDIR.value,
        prompts,
        num_tokens=_NUM_TOKENS.value,
        how=sampling.Sampling(
            temperature=_TEMPERATURE.value, top_k=_TOP_K.value, top_p=_TOP_P.value
        ),
        seed=_SEED.value,
        step=_STEP.value,
    )
    samples = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
    for number, sample in enumerate(samples):
        if len(samples) > 1:
            print(f"--- sample {number + 1} of {len(samples)}", file=sys.stderr)
        print(sample["prompt"] + sample["text"])
    result_file.write_json(_JSON.value, samples)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _PROMPT = flags.DEFINE_multi_string("prompt", [""], "What to continue; may be repeated.")
    _NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Samples per prompt.", lower_bound=1)
    _NUM_TOKENS = flags.DEFINE_integer("num_tokens", 128, "Tokens drawn, at most.", lower_bound=1)
    _TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0: the most likely token.")
    _TOP_K = flags.DEFINE_integer("top_k", 0, "Only the k most likely tokens; 0: all.")
    _TOP_P = flags.DEFINE_float("top_p", 0.95, "Nucleus: total probability that is kept.")
    _SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")
    _STEP = cli.define_step()
    _JSON = flags.DEFINE_string("json", None, "Also write the samples to this file.")
    cli.run(main)
