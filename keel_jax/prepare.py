"""Text to a tokenizer and token shards: `python -m keel_jax.prepare --input=GLOB --output=DIR`."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import rich.console
import rich.progress
from absl import flags
from etils import epath

from keel_jax.data.preparing import documents, preparation, summary, workers
from keel_jax.data.preparing import options as preparation_options
from keel_jax.runtime import cli, exit_codes, result_file

_PLAIN_LINE_SECONDS = 10.0  # between progress lines where there is no terminal


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines this entry point's flags in `values`: one for each option, input and output."""
    flags.DEFINE_multi_string(
        "input",
        None,
        "File or glob, or 'embedded' (the source of one version of SymPy); may be repeated. JSON "
        "lines (.jsonl, .ndjson, .json), .parquet, .array_record and text (.txt, .md, .py and many "
        "more; one document per file) are recognized by name, JSON lines and text also compressed "
        "(.gz, .bz2, .xz, .zst); other names need --input_format.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, "Directory for the tokenizer and the shards.", flag_values=values
    )
    for field in dataclasses.fields(preparation_options.PreparationOptions):
        _define_option(field, values)
    flags.DEFINE_string("json", None, "Also write the summary to this file.", flag_values=values)
    flags.mark_flags_as_required(["input", "output"], flag_values=values)


def _define_option(field: dataclasses.Field, values: flags.FlagValues) -> None:
    """Defines the flag of one option, with the option's default and help."""
    name, text = preparation_options.flag_name(field), field.metadata["help"]
    default: Any = field.default  # of the field's type, which the branches below tell apart
    if choices := field.metadata["choices"]:
        flags.DEFINE_enum(name, default, choices, text, flag_values=values)
    elif field.type is bool:
        flags.DEFINE_bool(name, default, text, flag_values=values)
    elif field.type in (int, int | None):
        flags.DEFINE_integer(name, default, text, flag_values=values)
    elif field.type is float:
        flags.DEFINE_float(name, default, text, flag_values=values)
    else:
        assert field.type in (str, epath.PathLike), field
        flags.DEFINE_string(name, default, text, flag_values=values)


def options_from_flags(values: flags.FlagValues) -> preparation_options.PreparationOptions:
    """The options that the flags set.

    Raises:
        UserError: a value outside its limits, or two options that exclude each other.
    """
    given: dict[str, Any] = {
        field.name: values[preparation_options.flag_name(field)].value
        for field in dataclasses.fields(preparation_options.PreparationOptions)
    }
    return preparation_options.PreparationOptions(**given)


def main(argv: Sequence[str]) -> int:
    """Prepares the token set; returns the exit code: 0 done, 1 error, 130 interrupted."""
    del argv
    values = flags.FLAGS
    result_file.check("--json", values.json)
    try:
        with progress() as on_progress:
            outcome = preparation.prepare_token_set(
                values.input, values.output, options_from_flags(values), on_progress=on_progress
            )
    except workers.WorkerDied as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.ERROR
    except KeyboardInterrupt:
        print(
            "Interrupted. Finished shards are kept: run the same command again to continue.",
            file=sys.stderr,
        )
        return exit_codes.INTERRUPTED
    print(describe(outcome))
    result_file.write_json(values.json, dataclasses.asdict(outcome))
    return 0


def describe(outcome: summary.Summary) -> str:
    """The summary as text."""
    if outcome.state == "share done":
        return (
            f"{outcome.output}: this host's {outcome.num_units} shards are done; the set is "
            "complete once the other hosts have finished theirs."
        )
    lines = [
        f"{outcome.output}: {outcome.state}"
        + (
            f", {outcome.num_units_reused} of {outcome.num_units} shards from an earlier run"
            if outcome.num_units_reused and outcome.state == "done"
            else ""
        ),
        f"  {outcome.num_documents} documents, {outcome.num_bytes} bytes, {outcome.num_tokens} "
        f"tokens of {outcome.vocab_size}: {outcome.bytes_per_token:.2f} bytes/token",
    ]
    for name, split in outcome.splits.items():
        lines.append(
            f"  {name}: {split['num_documents']} documents, {split['num_tokens']} tokens, unigram "
            f"entropy {split['unigram_entropy_bits_per_byte']:.3f} bits/byte"
        )
    if outcome.pack_tokens:
        num_padding = sum(split["num_padding_tokens"] for split in outcome.splits.values())
        lines.append(
            f"  packed into windows of {outcome.pack_tokens} tokens: "
            f"{num_padding / outcome.num_tokens:.1%} padding, {outcome.num_long_documents} longer "
            f"documents {'cut' if outcome.are_long_cut else 'left out'}"
        )
    if outcome.tokens_per_second:
        lines.append(f"  {outcome.tokens_per_second:.0f} tokens/s, {outcome.seconds:.1f} s in all")
    lines.append(
        f"  {outcome.num_bad_documents} bad documents left out, {outcome.num_empty_documents} empty"
    )
    examples = documents.describe_kinds(outcome.bad_kinds) or outcome.bad_examples[:5]
    lines += [f"    {line}" for line in examples]
    return "\n".join(lines)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[summary.Progress], None]]:
    """Shows progress on stderr: a bar on a terminal, else a line every few seconds."""
    console = rich.console.Console(stderr=True)
    with _progress_bar(console) if console.is_terminal else _progress_lines() as on_progress:
        yield on_progress


@contextlib.contextmanager
def _progress_lines() -> Iterator[Callable[[summary.Progress], None]]:
    last_line = time.monotonic()

    def show(latest: summary.Progress) -> None:
        nonlocal last_line
        if time.monotonic() - last_line >= _PLAIN_LINE_SECONDS:
            last_line = time.monotonic()
            print(
                f"{latest.num_units_done} of {latest.num_units} shards, "
                f"{latest.num_tokens_done} tokens, {latest.tokens_per_second:.0f} tokens/s",
                file=sys.stderr,
            )

    yield show


@contextlib.contextmanager
def _progress_bar(
    console: rich.console.Console,
) -> Iterator[Callable[[summary.Progress], None]]:
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("tokenizer", total=None, rate="")

        def show(latest: summary.Progress) -> None:
            bar.update(
                task,
                description="tokenizing",
                total=latest.num_bytes,
                completed=latest.num_bytes_done,
                rate=f"{latest.tokens_per_second:,.0f} tokens/s",
            )

        yield show


if __name__ == "__main__":
    define_flags()
    cli.run(main)
