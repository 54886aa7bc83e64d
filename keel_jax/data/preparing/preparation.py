"""Preparing a token set: plan the input, train or copy the tokenizer, tokenize, write the index."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

from absl import logging
from etils import epath

from keel_jax import errors
from keel_jax.data import shards, tokenizer
from keel_jax.data.preparing import (
    corpus,
    documents,
    index_writing,
    output_directory,
    shard_writing,
    workers,
)
from keel_jax.runtime import files

DEFAULT_VOCAB_SIZE = 8192


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far this host is: of its own share, finished shards of an earlier run included."""

    num_units: int
    num_units_done: int
    num_bytes: int
    num_bytes_done: int
    num_tokens_done: int
    num_new_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens made by this run per second of tokenizing."""
        return self.num_new_tokens / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcome; `state` is "done", "already done", or "share done" while other hosts work."""

    output: str
    state: str
    num_documents: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    bytes_per_token: float = 0.0
    vocab_size: int = 0
    num_bad_documents: int = 0
    bad_examples: tuple[str, ...] = ()
    num_empty_documents: int = 0
    num_units: int = 0
    num_units_reused: int = 0
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    splits: dict = dataclasses.field(default_factory=dict)
    fingerprint: str = ""


def prepare(
    inputs: Sequence[str],
    output: epath.PathLike,
    *,
    vocab_size: int | None = None,
    model_type: str = "bpe",
    tokenizer_model: epath.PathLike = "",
    tokenizer_sample_bytes: int = 50_000_000,
    validation_fraction: float = 0.02,
    text_field: str = "text",
    input_format: str = "auto",
    unit_bytes: int = 0,
    max_bad_documents: int = 100,
    num_workers: int = 1,
    overwrite: bool = False,
    host_index: int = 0,
    host_count: int = 1,
    host_wait_seconds: float = 3600.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Makes a token set of a corpus; run again after any interruption, it goes on.

    Run again when done, it reads every shard once, compares checksums and makes anew what is
    damaged.

    The result depends on the input, the tokenizer and the settings only: not on workers, hosts or
    interruptions. With several workers the calling program needs `if __name__ == "__main__"`.

    Args:
        inputs: globs, or "stdlib" alone.
        output: directory; new, or one that the same call began.
        vocab_size: ids of the tokenizer to train; None is 8192.
        model_type: "bpe" or "unigram".
        tokenizer_model: a SentencePiece model to use as it is, instead of training one.
        tokenizer_sample_bytes: text that the tokenizer is trained on, at most about this.
        validation_fraction: share of the documents (by content hash) that is held out; 0 for none.
        text_field: JSON field or column that holds a document's text.
        input_format: "auto" by file name, or one format for all files.
        unit_bytes: input a shard is made from; 0 chooses.
        max_bad_documents: more undecodable or malformed documents than this stop.
        num_workers: processes; 1 works in this one.
        overwrite: redo a directory that was prepared from another input or with other settings.
        host_index, host_count: this host's share of the units, all in one shared directory.
        host_wait_seconds: how long hosts other than 0 wait for host 0's tokenizer.
        on_progress: called after each unit.

    Raises:
        UserError: a bad input or setting; a directory made from other input or settings.
        OSError: no space left, or the directory cannot be written.
        workers.WorkerDied: a worker was killed.
        TimeoutError: host 0 made no tokenizer in time.
    """
    begin = time.monotonic()
    _check_arguments(validation_fraction, num_workers, host_index, host_count, overwrite)
    if tokenizer_model and (vocab_size is not None or model_type != "bpe"):
        raise errors.UserError(
            f"A vocabulary size or tokenizer type has no effect on the given tokenizer "
            f"{tokenizer_model}: leave them out, or leave it out to train one."
        )
    output = epath.Path(output)
    settings = shard_writing.Settings(validation_fraction, text_field)
    source = corpus.plan(inputs, input_format=input_format, unit_bytes=unit_bytes)
    if tokenizer_model:
        tokenizer_settings = {"fingerprint": tokenizer.Tokenizer.load(tokenizer_model).fingerprint}
    else:
        tokenizer_settings = {
            "vocab_size": DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size,
            "model_type": model_type,
            "sample_bytes": tokenizer_sample_bytes,
        }
    plan = {
        "format": shards.FORMAT,
        "version": shards.VERSION,
        "input": source.digest,
        **{f"tokenizer.{key}": value for key, value in tokenizer_settings.items()},
        **dataclasses.asdict(settings),
    }
    suffix = output_directory.temporary_suffix(host_index)
    output_directory.claim(output, plan, overwrite, host_index, suffix)
    finished = output_directory.finished_set(output)
    if host_index == 0:
        model = output_directory.make_tokenizer(
            output, plan, source, settings, tokenizer_model, suffix
        )
    else:
        model = output_directory.await_tokenizer(output, plan, host_wait_seconds)

    digests = [
        shard_writing.unit_digest(unit, model.fingerprint, settings) for unit in source.units
    ]
    own_units = range(host_index, len(source.units), host_count)
    sidecars = {
        number: shard_writing.read_sidecar(output, number, digests[number], is_own=True)
        for number in own_units
    }
    missing = [number for number, sidecar in sidecars.items() if sidecar is None]

    if finished is not None and not missing:
        found = _all_sidecars(output, sidecars, digests)
        if found is not None:
            index = index_writing.index_of(found, model, settings, source)
            if index_writing.is_same(index, finished.index):
                return _summary(output, "already done", len(found), len(found), 0.0, begin)
        logging.warning("%s does not agree with its shards' records.", output / shards.INDEX_FILE)
    # From here on the set is not whole: whatever happens, no index may say so.
    (output / shards.INDEX_FILE).unlink(missing_ok=True)
    tokens_per_second = _tokenize(
        output,
        source,
        missing,
        sidecars,
        model,
        settings,
        max_bad_documents,
        num_workers,
        suffix,
        on_progress,
    )
    found = _all_sidecars(output, sidecars, digests)
    num_reused = len(own_units) - len(missing)
    if found is None:
        return Summary(
            output=str(output),
            state="share done",
            num_units=len(own_units),
            num_units_reused=num_reused,
            tokens_per_second=tokens_per_second,
            seconds=time.monotonic() - begin,
            vocab_size=model.vocab_size,
        )
    _check_bad(found, max_bad_documents)
    index = index_writing.index_of(found, model, settings, source)
    files.write_json(output / shards.INDEX_FILE, index, temporary_suffix=suffix)
    return _summary(output, "done", len(source.units), num_reused, tokens_per_second, begin)


def _check_arguments(
    validation_fraction: float, num_workers: int, host_index: int, host_count: int, overwrite: bool
):
    if not 0 <= validation_fraction < 1:
        raise errors.UserError(
            f"The validation fraction is {validation_fraction}; give 0 to below 1."
        )
    if num_workers < 1:
        raise errors.UserError(f"{num_workers} workers can do nothing; give 1 or more.")
    if not 0 <= host_index < host_count:
        raise errors.UserError(
            f"Host index {host_index} is not within the {host_count} hosts: give 0 to "
            f"{host_count - 1}."
        )
    if overwrite and host_count > 1:
        raise errors.UserError(
            f"--overwrite with {host_count} hosts would let one delete what another has just made: "
            "delete the directory yourself, then start all hosts without it."
        )


def _all_sidecars(
    output: epath.Path, own: dict[int, dict | None], digests: Sequence[str]
) -> list[dict] | None:
    """The sidecars of all units in order, other hosts' too; None if some are not done."""
    sidecars = [
        own[number]
        if number in own
        else shard_writing.read_sidecar(output, number, digest, is_own=False)
        for number, digest in enumerate(digests)
    ]
    return None if None in sidecars else sidecars


def _tokenize(
    output: epath.Path,
    source: corpus.Corpus,
    missing: Sequence[int],
    sidecars: dict[int, dict | None],
    model: tokenizer.Tokenizer,
    settings: shard_writing.Settings,
    max_bad_documents: int,
    num_workers: int,
    suffix: str,
    on_progress: Callable[[Progress], None] | None,
) -> float:
    """Makes the missing units and fills in `sidecars`; returns tokens/s."""
    begin = time.monotonic()
    num_new_tokens = num_bytes_done = num_tokens_done = 0

    def report():
        nonlocal num_bytes_done, num_tokens_done
        done = [number for number, sidecar in sidecars.items() if sidecar is not None]
        progress = Progress(
            num_units=len(sidecars),
            num_units_done=len(done),
            num_bytes=sum(source.units[number].num_bytes for number in sidecars),
            num_bytes_done=sum(source.units[number].num_bytes for number in done),
            num_tokens_done=sum(_num_tokens(sidecars[number]) for number in done),
            num_new_tokens=num_new_tokens,
            seconds=time.monotonic() - begin,
        )
        if on_progress:
            on_progress(progress)
        return progress

    progress = report()
    jobs = [
        workers.Job(
            os.fspath(output), number, source.units[number], settings, max_bad_documents, suffix
        )
        for number in missing
    ]
    with workers.results(jobs, model, min(num_workers, len(jobs))) as results:
        for number, sidecar in results:
            sidecars[number] = sidecar
            num_new_tokens += _num_tokens(sidecar)
            _check_bad([s for s in sidecars.values() if s is not None], max_bad_documents)
            progress = report()
    return progress.tokens_per_second


def _check_bad(sidecars: Sequence[dict], max_bad_documents: int):
    num_bad = sum(sidecar["num_bad_documents"] for sidecar in sidecars)
    if num_bad > max_bad_documents:
        examples = [example for sidecar in sidecars for example in sidecar["bad_examples"]]
        raise documents.too_many_bad(num_bad, max_bad_documents, examples[:5])


def _summary(
    output: epath.Path,
    state: str,
    num_units: int,
    num_reused: int,
    tokens_per_second: float,
    begin: float,
) -> Summary:
    token_set = shards.open_set(output)
    splits = [token_set.split(name) for name in token_set.split_names]
    num_bytes = sum(split.num_bytes for split in splits)
    num_tokens = sum(split.num_tokens for split in splits)
    return Summary(
        output=str(output),
        state=state,
        num_documents=sum(split.num_documents for split in splits),
        num_bytes=num_bytes,
        num_tokens=num_tokens,
        bytes_per_token=num_bytes / num_tokens,
        vocab_size=token_set.vocab_size,
        num_bad_documents=token_set.index["num_bad_documents"],
        bad_examples=tuple(token_set.index["bad_examples"]),
        num_empty_documents=token_set.index["num_empty_documents"],
        num_units=num_units,
        num_units_reused=num_reused,
        tokens_per_second=tokens_per_second,
        seconds=time.monotonic() - begin,
        splits={
            split.name: {
                "num_tokens": split.num_tokens,
                "num_documents": split.num_documents,
                "num_bytes": split.num_bytes,
                "unigram_entropy_bits_per_byte": split.unigram_entropy_bits_per_byte,
            }
            for split in splits
        },
        fingerprint=token_set.fingerprint,
    )


def _num_tokens(sidecar: dict) -> int:
    return sum(entry["num_tokens"] for entry in sidecar["splits"].values())
