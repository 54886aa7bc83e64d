"""How fast texts are written: `python -m experiments.benchmarks.generation`.

Writes the same number of tokens after each of 64 prompts of different lengths, greedily and without
an end, in turns:

    batched    keel_jax's generation, as `keel_jax.load(…).generate` runs it
    one_scan   all prompts padded to the longest, logits of every one of their tokens, and one scan
               over the tokens to draw: what is simplest to write with the cached decoder
    torch      transformers' `generate` of an exported folder, prompts padded on the left

The model is the quickstart's at random weights, or that of --workdir, of which --torch_folder
should be the export. Compilation is not counted. On a shared machine only the ratios of one run
mean something; and on one whose cores are busy, PyTorch's threads wait for each other most of the
time (measured: 51 times as long as `batched` instead of 2.3), so set OMP_NUM_THREADS=1 there.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from experiments.configs import quickstart
from keel_jax import config
from keel_jax.inference import generation, requests
from keel_jax.model import lm, sampling
from keel_jax.runtime import cli, compilation, result_file, versions
from keel_jax.training import checkpoint_meta, trained
from keel_jax.training import state as state_lib

_VOCAB_SIZE = 1024
_GREEDY = sampling.Sampling(temperature=0.0)
_NO_END = -1


def random_model() -> trained.Trained:
    """The quickstart's model at random weights."""
    raw = quickstart.get_config()
    raw.model.vocab_size = _VOCAB_SIZE
    cfg, mesh = config.from_config_dict(raw), trained.one_device()
    meta = checkpoint_meta.Meta(step=0, data_fingerprint="", tokenizer_fingerprint="")
    return trained.Trained(epath.Path(), cfg, state_lib.create(cfg, mesh).params, meta, mesh)


def random_prompts(num: int, longest: int, num_ids: int) -> list[requests.Row]:
    """Prompts of random tokens, of lengths spread evenly up to `longest`."""
    rng = np.random.default_rng(0)
    lengths = rng.permutation(np.linspace(8, longest, num).astype(int))
    return [requests.Row(rng.integers(0, num_ids, size).astype(np.int32), 0) for size in lengths]


def batched(
    model: trained.Trained, rows: list[requests.Row], num_tokens: int, batch_size: int
) -> Callable[[], np.ndarray]:
    """The project's own generation."""
    generator = generation.Generator(
        model, _GREEDY, batch_size=batch_size, end_id=_NO_END, num_ids=model.cfg.model.vocab_size
    )

    def write():
        drawn, _ = generator(rows, num_tokens=num_tokens, seed=0)
        return np.stack([each.ids for each in drawn])

    return write


def one_scan(
    model: trained.Trained, rows: list[requests.Row], num_tokens: int
) -> Callable[[], np.ndarray]:
    """One program for all prompts: logits of all their tokens, then a scan."""
    network = lm.LanguageModel(model.cfg.model)
    length_B = np.array([len(row.ids) for row in rows], np.int32)
    prompt_BP = np.zeros((len(rows), max(length_B)), np.int32)
    for row, out in zip(rows, prompt_BP, strict=True):
        out[: len(row.ids)] = row.ids

    def likeliest(params, tokens_BT, start_B, last_B, cache):
        logits_BTV, cache = network.apply(
            {"params": params}, tokens_BT, start_B, cache, method="decode"
        )
        last_BV = jnp.take_along_axis(logits_BTV, last_B[:, None, None], axis=1)[:, 0]
        return last_BV.argmax(-1).astype(jnp.int32), cache

    @jax.jit
    def write(params, prompt_BP, length_B):
        zeros = jnp.zeros_like(length_B)
        cache = lm.empty_cache(network.model, len(rows), prompt_BP.shape[1] + num_tokens)
        first_B, cache = likeliest(params, prompt_BP, zeros, length_B - 1, cache)

        def one_more(carry, index):
            token_B, cache = carry
            carry = likeliest(params, token_B[:, None], length_B + index, zeros, cache)
            return carry, carry[0]

        _, more_TB = jax.lax.scan(one_more, (first_B, cache), jnp.arange(num_tokens - 1))
        return jnp.concatenate([first_B[None], more_TB]).T

    return lambda: np.asarray(write(model.params, prompt_BP, length_B))


def in_torch(folder: str, rows: list[requests.Row], num_tokens: int) -> Callable[[], np.ndarray]:
    """transformers' `generate`, on a GPU if PyTorch has one."""
    # Of the extra "bench", and needed for this contender alone.
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model = model.to(device).eval()
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, longest - len(row.ids) :] = torch.as_tensor(row.ids, dtype=torch.long)
        mask[place, longest - len(row.ids) :] = 1
    ids, mask = ids.to(device), mask.to(device)

    def write():
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=num_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
        return out[:, longest:].cpu().numpy()

    return write


def measure(contenders: dict[str, Callable[[], np.ndarray]], num_rounds: int) -> dict[str, dict]:
    """Median seconds and tokens a second of each, in turns, and whose tokens are the first's."""
    texts = {name: write() for name, write in contenders.items()}  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(num_rounds):
        for name, write in contenders.items():
            begin = time.perf_counter()
            write()
            seconds[name].append(time.perf_counter() - begin)
    first = next(iter(texts.values()))
    rows = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        same_fraction = float((texts[name] == first).all(axis=1).mean())
        rows[name] = {
            "seconds": median,
            "tokens_per_second": first.size / median,
            "same_texts_fraction": same_fraction,
        }
    return rows


def main(_: list[str]) -> None:
    """Measures what the flags say."""
    result_file.check("--json", _JSON.value)
    if _WORKDIR.value:
        model = trained.load(_WORKDIR.value, trained.one_device())
    else:
        compilation.enable_cache("")
        model = random_model()
    num_ids, num_tokens = model.cfg.model.vocab_size, _NUM_TOKENS.value
    rows = random_prompts(_NUM_PROMPTS.value, model.cfg.train.seq_len, num_ids)
    contenders = {
        "batched": batched(model, rows, num_tokens, _BATCH_SIZE.value),
        "one_scan": one_scan(model, rows, num_tokens),
    }
    if _TORCH_FOLDER.value:
        contenders["torch"] = in_torch(_TORCH_FOLDER.value, rows, num_tokens)
    result = measure(contenders, _ROUNDS.value)
    print(f"{'':>10} {'seconds':>9} {'tokens/s':>9} {'batched is':>11} {'same texts':>11}")
    for name, row in result.items():
        ratio = row["seconds"] / result["batched"]["seconds"]
        print(
            f"{name:>10} {row['seconds']:9.2f} {row['tokens_per_second']:9.0f} {ratio:10.2f}x "
            f"{row['same_texts_fraction']:11.0%}"
        )
    result_file.write_json(_JSON.value, {"rows": result, **versions.describe()})


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Of a run; default: random weights.")
    _TORCH_FOLDER = flags.DEFINE_string("torch_folder", None, "Its export for transformers.")
    _NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 64, "Prompts.", lower_bound=1)
    _NUM_TOKENS = flags.DEFINE_integer("num_tokens", 128, "Drawn after each.", lower_bound=1)
    _BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Of `batched`.", lower_bound=1)
    _ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements, in turns.", lower_bound=1)
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
