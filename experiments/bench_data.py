"""What preparing and loading data cost: `python -m experiments.bench_data`.

Side by side in one run, on `stdlib`: tokens/s of our preparation with 1 and 2 workers, of
SentencePiece alone on the same text with the same model, and of the loader against what a training
step needs. Rates of a shared machine are ratios: compare the lines of one run.
"""

import gc
import json
import os
import pathlib
import statistics
import tempfile
import time

import sentencepiece
from absl import app, flags

from keel_jax.data import corpus, documents, loader, preparation, shards

VALIDATION_FRACTION = 0.05


def bench_preparation(directory: pathlib.Path, vocab_size: int, num_rounds: int) -> dict:
    """tokens/s of preparation (tokenising and writing; the tokenizer's training apart)."""
    rounds = {"sentencepiece": [], "workers_1": [], "workers_2": []}
    total_seconds = {1: [], 2: []}
    for round_number in range(num_rounds):
        for num_workers in (1, 2):
            output = directory / f"round{round_number}-workers{num_workers}"
            summary = preparation.prepare(
                [corpus.STDLIB],
                output,
                vocab_size=vocab_size,
                validation_fraction=VALIDATION_FRACTION,
                num_workers=num_workers,
            )
            rounds[f"workers_{num_workers}"].append(summary.tokens_per_second)
            total_seconds[num_workers].append(summary.seconds)
        rounds["sentencepiece"].append(_sentencepiece_tokens_per_second(output))
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


def _sentencepiece_tokens_per_second(directory: pathlib.Path) -> float:
    """SentencePiece's own encode, one thread, ids to Python lists, nothing read or written."""
    model = shards.open_set(directory).tokenizer()
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=(directory / shards.TOKENIZER_FILE).read_bytes()
    )
    texts = [
        model.escaped(document.text)
        for unit in corpus.plan([corpus.STDLIB]).units
        for document in corpus.read(unit, documents.Tally())
    ]
    begin = time.perf_counter()
    num_tokens = sum(len(processor.encode(text)) for text in texts)
    return num_tokens / (time.perf_counter() - begin)


def bench_loader(directory: str, seq_len: int, batch_size: int, num_batches: int) -> dict:
    """Seconds to the first batch and tokens/s after it; the first is on freshly opened files."""
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


def main(argv: list[str]):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}.")
    values = flags.FLAGS
    with tempfile.TemporaryDirectory() as directory:
        import grain  # noqa: F401 - its import (with jax) is not the loader's cold start

        prepared = bench_preparation(pathlib.Path(directory), values.vocab_size, values.rounds)
        loaded = bench_loader(
            prepared.pop("directory"), values.seq_len, values.batch_size, values.num_batches
        )
    loaded["need_tokens_per_second"] = values.need_tokens_per_second
    loaded["ratio_to_need"] = loaded["tokens_per_second"] / values.need_tokens_per_second
    result = {"num_cpus": os.cpu_count(), "preparation": prepared, "loading": loaded}
    print(
        f"stdlib: {prepared['num_bytes']} bytes, {prepared['num_tokens']} tokens of "
        f"{prepared['vocab_size']}, {prepared['bytes_per_token']:.2f} bytes/token"
    )
    for name, rate in prepared["tokens_per_second"].items():
        ratio = prepared["ratio_to_sentencepiece"][name]
        seconds = prepared["prepare_seconds"].get(name)
        whole = f", {seconds:.1f} s with the tokenizer's training" if seconds else ""
        print(f"  {name:>13}: {rate:>12,.0f} tokens/s, {ratio:.2f} of sentencepiece{whole}")
    print(
        f"loading [{loaded['batch_size']}, {loaded['seq_len']}]: first batch after "
        f"{loaded['first_batch_seconds']:.3f} s, then {loaded['tokens_per_second']:,.0f} tokens/s, "
        f"{loaded['ratio_to_need']:.0f} times a step's need of "
        f"{loaded['need_tokens_per_second']:,.0f}"
    )
    if values.json:
        pathlib.Path(values.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_integer("vocab_size", 4096, "Ids of the tokenizer.")
    flags.DEFINE_integer("rounds", 3, "Repetitions, interleaved; medians are printed.")
    flags.DEFINE_integer("seq_len", 1024, "Tokens a row.")
    flags.DEFINE_integer("batch_size", 16, "Rows a batch.")
    flags.DEFINE_integer("num_batches", 500, "Batches timed.")
    flags.DEFINE_float("need_tokens_per_second", 100_000.0, "What training takes, for comparison.")
    flags.DEFINE_string("json", "", "File for the results.")
    app.run(main)
