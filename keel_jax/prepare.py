"""Text to a tokenizer and token shards: `python -m keel_jax.prepare --input=GLOB --output=DIR`."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress
from absl import flags

from keel_jax.data import tokenizer
from keel_jax.data.preparing import corpus, preparation, workers
from keel_jax.runtime import cli, exit_codes, files

_PLAIN_LINE_SECONDS = 10.0  # between progress lines where there is no terminal


def define_flags(values: flags.FlagValues = flags.FLAGS):
    """Defines this entry point's flags in `values`."""
    kinds = {"flag_values": values}
    flags.DEFINE_multi_string(
        "input",
        None,
        "Glob of text files, or 'stdlib' (the running Python's own library); may be repeated. "
        ".jsonl, .jsonl.gz, .jsonl.zst, .parquet and .array_record are known by their names, "
        "anything else is text, one document a file.",
        **kinds,
    )
    flags.DEFINE_string("output", None, "Directory for the tokenizer and the shards.", **kinds)
    flags.DEFINE_string("tokenizer", "", "SentencePiece model to use; empty trains one.", **kinds)
    flags.DEFINE_integer(
        "vocab_size", None, f"Ids of the tokenizer [{preparation.DEFAULT_VOCAB_SIZE}].", **kinds
    )
    flags.DEFINE_enum(
        "tokenizer_type", "bpe", tokenizer.MODEL_TYPES, "Kind of tokenizer to train.", **kinds
    )
    flags.DEFINE_integer(
        "tokenizer_sample_bytes", 50_000_000, "Text the tokenizer is trained on, at most.", **kinds
    )
    flags.DEFINE_float(
        "validation_fraction", 0.02, "Share of documents held out, by content hash.", **kinds
    )
    flags.DEFINE_string("text_field", "text", "JSON field or column with the text.", **kinds)
    flags.DEFINE_enum("input_format", "auto", corpus.INPUT_FORMATS, "Format of all files.", **kinds)
    flags.DEFINE_integer("unit_bytes", 0, "Input bytes a shard; 0 chooses.", lower_bound=0, **kinds)
    flags.DEFINE_integer(
        "max_bad_documents", 100, "More undecodable or malformed documents stop.", **kinds
    )
    flags.DEFINE_integer("workers", 1, "Processes that tokenize.", **kinds)
    flags.DEFINE_bool(
        "overwrite", False, "Redo a directory made from other input or settings.", **kinds
    )
    flags.DEFINE_integer("host_index", 0, "Which of the hosts this is.", **kinds)
    flags.DEFINE_integer("host_count", 1, "Hosts that share one output directory.", **kinds)
    flags.DEFINE_float(
        "host_wait_seconds", 3600.0, "How long to wait for host 0's tokenizer.", **kinds
    )
    flags.DEFINE_string("json", None, "Also write the summary to this file.", **kinds)
    flags.mark_flags_as_required(["input", "output"], flag_values=values)


def main(_) -> int:
    """Prepares what the flags say; returns the exit code: 0 done, 1 error, 130 interrupted."""
    values = flags.FLAGS
    try:
        with progress() as on_progress:
            summary = preparation.prepare(
                values.input,
                values.output,
                vocab_size=values.vocab_size,
                model_type=values.tokenizer_type,
                tokenizer_model=values.tokenizer,
                tokenizer_sample_bytes=values.tokenizer_sample_bytes,
                validation_fraction=values.validation_fraction,
                text_field=values.text_field,
                input_format=values.input_format,
                unit_bytes=values.unit_bytes,
                max_bad_documents=values.max_bad_documents,
                num_workers=values.workers,
                overwrite=values.overwrite,
                host_index=values.host_index,
                host_count=values.host_count,
                host_wait_seconds=values.host_wait_seconds,
                on_progress=on_progress,
            )
    except workers.WorkerDied as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.ERROR
    except KeyboardInterrupt:
        print(
            "Interrupted. Finished shards are kept: the same command goes on from there.",
            file=sys.stderr,
        )
        return 130
    if values.json:
        files.write_json(values.json, dataclasses.asdict(summary))
    print(describe(summary))
    return 0


def describe(summary: preparation.Summary) -> str:
    """The summary for people."""
    if summary.state == "share done":
        return (
            f"{summary.output}: this host's {summary.num_units} shards are done; the set is whole "
            "when the other hosts' are."
        )
    lines = [
        f"{summary.output}: {summary.state}"
        + (
            f", {summary.num_units_reused} of {summary.num_units} shards from before"
            if summary.num_units_reused and summary.state == "done"
            else ""
        ),
        f"  {summary.num_documents} documents, {summary.num_bytes} bytes, {summary.num_tokens} "
        f"tokens of {summary.vocab_size}: {summary.bytes_per_token:.2f} bytes/token",
    ]
    for name, split in summary.splits.items():
        lines.append(
            f"  {name}: {split['num_documents']} documents, {split['num_tokens']} tokens, unigram "
            f"entropy {split['unigram_entropy_bits_per_byte']:.3f} bits/byte"
        )
    if summary.tokens_per_second:
        lines.append(f"  {summary.tokens_per_second:.0f} tokens/s, {summary.seconds:.1f} s in all")
    lines.append(
        f"  {summary.num_bad_documents} bad documents left out, {summary.num_empty_documents} empty"
    )
    lines += [f"    {example}" for example in summary.bad_examples[:5]]
    return "\n".join(lines)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[preparation.Progress], None]]:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        last_line = time.monotonic()

        def show_line(progress: preparation.Progress):
            nonlocal last_line
            if time.monotonic() - last_line >= _PLAIN_LINE_SECONDS:
                last_line = time.monotonic()
                print(
                    f"{progress.num_units_done} of {progress.num_units} shards, "
                    f"{progress.num_tokens_done} tokens, {progress.tokens_per_second:.0f} tokens/s",
                    file=sys.stderr,
                )

        yield show_line
        return
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("tokenizer", total=None, rate="")

        def show(progress: preparation.Progress):
            bar.update(
                task,
                description="tokenizing",
                total=progress.num_bytes,
                completed=progress.num_bytes_done,
                rate=f"{progress.tokens_per_second:,.0f} tokens/s",
            )

        yield show


if __name__ == "__main__":
    define_flags()
    cli.run(main)
