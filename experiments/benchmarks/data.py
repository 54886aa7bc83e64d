"""What preparing and loading data cost: `python -m experiments.benchmarks.data`.

Side by side in one run: tokens/s of our preparation with 1 and 2 workers, of SentencePiece alone on
the same text with the same model, of the loader, and of the quickstart's train step, with which
the loader must keep up. On a shared machine only the ratios between the lines of one run mean
something.
"""

import contextlib
import gc
import os
import pathlib
import statistics
import tempfile
import time

import sentencepiece
from absl import flags

from experiments.configs import quickstart
from keel_jax import config
from keel_jax.data import loader, shards
from keel_jax.data.preparing import corpus, documents, preparation
from keel_jax.data.preparing import options as preparation_options
from keel_jax.runtime import cli, result_file

VALIDATION_FRACTION = 0.05


def bench_preparation(
    inputs: list[str], directory: pathlib.Path, vocab_size: int, num_rounds: int
) -> dict:
    """tokens/s of preparation: tokenizing and writing, without the tokenizer's training."""
    rounds = {"sentencepiece": [], "workers_1": [], "workers_2": []}
    total_seconds = {1: [], 2: []}
    for round_number in range(num_rounds):
        for num_workers in (1, 2):
            output = directory / f"round{round_number}-workers{num_workers}"
            options = preparation_options.PreparationOptions(
                vocab_size=vocab_size,
                validation_fraction=VALIDATION_FRACTION,
                num_workers=num_workers,
            )
            summary = preparation.prepare_token_set(inputs, output, options)
            rounds[f"workers_{num_workers}"].append(summary.tokens_per_second)
            total_seconds[num_workers].append(summary.seconds)
        rounds["sentencepiece"].append(_sentencepiece_tokens_per_second(inputs, output))
    rates = {name: statistics.median(values) for name, values in rounds.items()}
    return {
        "vocab_size": vocab_size,
        "num_bytes": summary.num_bytes,
        "num_tokens": summary.num_tokens,
        "bytes_per_token": summary.bytes_per_token,
        "tokens_per_second": rates,
        "ratio_to_sentencepiece": {
            name: rate / rates["sentencepiece"] for name, rate in rates.items()
        },
        "prepare_seconds": {
            f"workers_{count}": statistics.median(seconds)
            for count, seconds in total_seconds.items()
        },
        "directory": str(output),
    }


def _sentencepiece_tokens_per_second(inputs: list[str], directory: pathlib.Path) -> float:
    """Of SentencePiece's own encode in one thread, to Python lists; nothing is read or written."""
    model = shards.open_set(directory).tokenizer()
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=(directory / shards.TOKENIZER_FILE).read_bytes()
    )
    texts = [
        model.escaped(document.text)
        for unit in corpus.discover(inputs).units
        for document in corpus.read_documents(unit, documents.Tally())
    ]
    begin = time.perf_counter()
    num_tokens = sum(len(processor.encode(text)) for text in texts)
    return num_tokens / (time.perf_counter() - begin)


def bench_loader(directory: str, seq_len: int, batch_size: int, num_batches: int) -> dict:
    """Seconds to the first batch, on freshly opened files, and tokens/s after it."""
    gc.collect()
    begin = time.perf_counter()
    batches = loader.train_batches(
        [shards.open_set(directory)], seq_len=seq_len, batch_size=batch_size, seed=0
    )
    next(batches)
    first_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    seconds = time.perf_counter() - begin
    batches.close()
    return {
        "seq_len": seq_len,
        "batch_size": batch_size,
        "first_batch_seconds": first_seconds,
        "tokens_per_second": num_batches * batch_size * seq_len / seconds,
    }


def bench_step(directory: str, num_steps: int) -> dict:
    """tokens/s of the quickstart's compiled train step, on a batch that lies on the device."""
    # Imported here, as the workers of `bench_preparation` import this module, and their start is
    # part of what is measured.
    import jax

    from keel_jax.parallel import mesh as mesh_lib
    from keel_jax.planning import resolve
    from keel_jax.training import state as state_lib
    from keel_jax.training import step as step_lib

    token_set = shards.open_set(directory)
    raw = quickstart.get_config()
    raw.data.path = config.join_paths([directory])
    raw.model.vocab_size = token_set.vocab_size
    cfg = config.from_config_dict(raw)
    mesh = mesh_lib.make(cfg.mesh)
    shardings = {key: array.sharding for key, array in step_lib.abstract_batch(cfg, mesh).items()}
    train_step = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
    with contextlib.closing(
        loader.train_batches(
            [token_set], seq_len=cfg.train.seq_len, batch_size=cfg.train.batch_size, seed=0
        )
    ) as batches:
        batch = jax.device_put(next(batches), shardings)
    state, sums = train_step(state_lib.create(cfg, mesh), batch)
    jax.block_until_ready(sums)
    begin = time.perf_counter()
    for _ in range(num_steps):
        state, sums = train_step(state, batch)
    jax.block_until_ready((state, sums))
    step_seconds = (time.perf_counter() - begin) / num_steps
    return {
        "seq_len": cfg.train.seq_len,
        "batch_size": cfg.train.batch_size,
        "num_sublayers": cfg.model.num_sublayers,
        "backend": jax.default_backend(),
        "step_seconds": step_seconds,
        "tokens_per_second": cfg.train.tokens_per_step / step_seconds,
    }


def bench(directory: pathlib.Path) -> dict:
    """Everything that the flags ask for; token shards are written under `directory`."""
    import grain  # noqa: F401 - its import (with jax) is not to count as the loader's start

    prepared = bench_preparation(_INPUT.value, directory, _VOCAB_SIZE.value, _ROUNDS.value)
    tokens = prepared.pop("directory")
    loaded = bench_loader(tokens, _SEQ_LEN.value, _BATCH_SIZE.value, _NUM_BATCHES.value)
    result = {"num_cpus": os.cpu_count(), "preparation": prepared, "loading": loaded}
    need = _NEED_TOKENS_PER_SECOND.value
    if need is None:
        result["step"] = bench_step(tokens, _NUM_STEPS.value)
        need = result["step"]["tokens_per_second"]
    loaded["need_tokens_per_second"] = need
    loaded["ratio_to_need"] = loaded["tokens_per_second"] / need
    return result


def describe(result: dict) -> str:
    """The result as text."""
    prepared, loaded = result["preparation"], result["loading"]
    lines = [
        f"{prepared['num_bytes']} bytes, {prepared['num_tokens']} tokens of "
        f"{prepared['vocab_size']}, {prepared['bytes_per_token']:.2f} bytes/token"
    ]
    for name, rate in prepared["tokens_per_second"].items():
        ratio = prepared["ratio_to_sentencepiece"][name]
        seconds = prepared["prepare_seconds"].get(name)
        whole = f", {seconds:.1f} s with the tokenizer's training" if seconds else ""
        lines.append(f"  {name:>13}: {rate:>12,.0f} tokens/s, {ratio:.2f} of sentencepiece{whole}")
    lines.append(
        f"loading [{loaded['batch_size']}, {loaded['seq_len']}]: first batch after "
        f"{loaded['first_batch_seconds']:.3f} s, then {loaded['tokens_per_second']:,.0f} tokens/s"
    )
    need = f"{loaded['need_tokens_per_second']:,.0f} tokens/s"
    if step := result.get("step"):
        lines.append(
            f"the quickstart's step [{step['batch_size']}, {step['seq_len']}], "
            f"{step['num_sublayers']} sub-layers on {step['backend']}: {step['step_seconds']:.3f} "
            f"s, {need}"
        )
    lines.append(f"loading is {loaded['ratio_to_need']:,.0f} times the need of {need}")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Measures what the flags say."""
    result_file.check("--json", _JSON.value)
    with tempfile.TemporaryDirectory() as directory:
        result = bench(pathlib.Path(directory))
    print(describe(result))
    result_file.write_json(_JSON.value, result)


if __name__ == "__main__":
    _INPUT = flags.DEFINE_multi_string("input", [corpus.EMBEDDED], "As in keel_jax.prepare.")
    _VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 1024, "Ids of the tokenizer.")
    _ROUNDS = flags.DEFINE_integer("rounds", 3, "Repetitions, interleaved; medians are printed.")
    # The quickstart's shape, so that loading is compared with the step that takes such batches.
    _SEQ_LEN = flags.DEFINE_integer("seq_len", 128, "Tokens a row that is loaded.")
    _BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Rows a batch that is loaded.")
    _NUM_BATCHES = flags.DEFINE_integer("num_batches", 500, "Batches timed.")
    _NUM_STEPS = flags.DEFINE_integer("num_steps", 5, "Train steps timed.", lower_bound=1)
    _NEED_TOKENS_PER_SECOND = flags.DEFINE_float(
        "need_tokens_per_second", None, "Compare with this and measure no train step."
    )
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
