"""The tokenizer that all hosts of a preparation share: host 0 makes it, the others wait for it."""

import itertools
import time
from collections.abc import Iterator

from absl import logging
from etils import epath

from keel_jax import errors
from keel_jax.data import integrity, shards, tokenizer
from keel_jax.data.preparing import (
    atomic_files,
    corpus,
    documents,
    output_directory,
    tokenizer_training,
)
from keel_jax.data.preparing import options as preparation_options
from keel_jax.runtime import files

_POLL_SECONDS = 0.5
_WAIT_MESSAGE_SECONDS = 60


def obtain(
    output: epath.Path,
    plan: output_directory.Plan,
    source: corpus.Corpus,
    options: preparation_options.PreparationOptions,
    temporary_suffix: str,
) -> tokenizer.Tokenizer:
    """The tokenizer of the directory: kept from an earlier run, made (host 0) or waited for.

    Raises:
        UserError: there is no text to train on, or SentencePiece cannot train such a tokenizer.
        OSError: no space left, or the directory cannot be written.
        TimeoutError: host 0 made no tokenizer within `options.host_wait_seconds`.
    """
    if options.host_index != 0:
        return _wait_for_host_0(output, plan, options.host_wait_seconds)
    model = _load_if_ready(output, plan)
    if model is None:
        model = _make(output, plan, source, options, temporary_suffix)
    return model


def _make(
    output: epath.Path,
    plan: output_directory.Plan,
    source: corpus.Corpus,
    options: preparation_options.PreparationOptions,
    temporary_suffix: str,
) -> tokenizer.Tokenizer:
    path = output / shards.TOKENIZER_FILE
    temporary = output / (shards.TOKENIZER_FILE + temporary_suffix)
    with files.explained(path):
        if options.tokenizer_model:
            temporary.write_bytes(epath.Path(options.tokenizer_model).read_bytes())
        else:
            texts = _training_texts(source, options)
            tokenizer_training.train_tokenizer(
                texts, temporary, options.trained_vocab_size, options.tokenizer_type
            )
        temporary.replace(path)
    model = tokenizer.Tokenizer.load(path)
    # Written after the model: a host that sees this record can use the model.
    record = {
        "plan": output_directory.plan_digest(plan),
        "fingerprint": model.fingerprint,
    }
    record_path = output / output_directory.TOKENIZER_RECORD_FILE
    files.write_json(record_path, record, temporary_suffix=temporary_suffix)
    return model


def _training_texts(
    source: corpus.Corpus, options: preparation_options.PreparationOptions
) -> Iterator[str]:
    """The texts to train on. Raises UserError if there is none, saying what became of them."""
    tally = documents.Tally()
    texts = corpus.sample_training_texts(
        source,
        num_bytes=options.tokenizer_sample_bytes,
        validation_fraction=options.validation_fraction,
        layout=options.shard_settings.layout,
        tally=tally,
    )
    first = next(texts, None)
    if first is None:
        left_out = documents.describe_kinds(tally.kinds)
        if tally.num_empty:
            left_out.append(f"{tally.num_empty} empty")
        if tally.num_held_out:
            left_out.append(
                f"{tally.num_held_out} held out for validation "
                f"(--validation_fraction={options.validation_fraction})"
            )
        raise errors.UserError(
            "There is no text to train a tokenizer on. Of the documents, "
            f"{'; '.join(left_out) or 'there is none'}. Correct the input, name the field of the "
            "text with --text_field, or give more documents."
        )
    return itertools.chain([first], texts)


def _load_if_ready(output: epath.Path, plan: output_directory.Plan) -> tokenizer.Tokenizer | None:
    """The directory's tokenizer if it is intact and was made for this plan."""
    record = atomic_files.read_record(output / output_directory.TOKENIZER_RECORD_FILE)
    path = output / shards.TOKENIZER_FILE
    if not record or record.get("plan") != output_directory.plan_digest(plan) or not path.exists():
        return None
    if integrity.file_sha256(path) != record.get("fingerprint"):
        return None
    return tokenizer.Tokenizer.load(path)


def _wait_for_host_0(
    output: epath.Path, plan: output_directory.Plan, wait_seconds: float
) -> tokenizer.Tokenizer:
    begin = last_message = time.monotonic()
    while (model := _load_if_ready(output, plan)) is None:
        now = time.monotonic()
        if now - begin > wait_seconds:
            raise TimeoutError(
                f"Host 0 made no tokenizer for this input and these settings in {output} within "
                f"{wait_seconds:.0f} s: is it running, with the same flags and the same input "
                f"files? (The directory's plan: {output_directory.recorded_plan(output)}; this "
                f"host's: {plan})"
            )
        if now - last_message > _WAIT_MESSAGE_SECONDS:
            logging.info("Waiting for host 0's tokenizer in %s: %.0f s.", output, now - begin)
            last_message = now
        time.sleep(_POLL_SECONDS)
    return model
