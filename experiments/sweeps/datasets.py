"""The token shards that a sweep reads: the embedded corpus, and the first tokens of any set."""

import hashlib
import os
import pathlib
import shutil

import numpy as np

from keel_jax import errors, prepare
from keel_jax.data import index, shards
from keel_jax.data.preparing import corpus, preparation
from keel_jax.data.preparing import options as preparation_options
from keel_jax.runtime import files

# Held out of the embedded corpus: some 40 of its 812 files.
_VALIDATION_FRACTION = 0.05


def ensure_embedded(path: pathlib.Path, vocab_size: int) -> None:
    """Prepares the embedded corpus in `path`, unless that is done already."""
    options = preparation_options.PreparationOptions(
        vocab_size=vocab_size, validation_fraction=_VALIDATION_FRACTION
    )
    with prepare.progress() as on_progress:
        preparation.prepare_token_set(
            [corpus.EMBEDDED], str(path), options, on_progress=on_progress
        )


def first_tokens(path: str, num_tokens: int | None) -> str:
    """A set whose training split is the first `num_tokens` of another's; the rest is the same.

    It is made once, beside the other set, and its name holds that one's fingerprint. None: the
    other set itself.

    Raises:
      UserError: the set has fewer tokens.
    """
    if num_tokens is None:
        return path
    source, token_set = pathlib.Path(path), shards.open_set(path)
    output = source.with_name(f"{source.name}_{token_set.fingerprint[:8]}_first{num_tokens}")
    if (output / shards.INDEX_FILE).exists():
        return str(output)
    split = token_set.split("train")
    if num_tokens > split.num_tokens:
        raise errors.UserError(
            f"{path} has {split.num_tokens} training tokens, {num_tokens} are wanted."
        )
    # The stream's first EOS is in no file. Loss weights are left out: plain text has none.
    tokens = split.tokens(1, num_tokens).astype(shards.token_dtype(token_set.vocab_size))
    unfinished = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    held_out = [name for name, _, _ in token_set.split("validation").files()]
    for name in (shards.TOKENIZER_FILE, *held_out):
        shutil.copy(source / name, unfinished / name)
    name = shards.shard_file("train", 0)
    (unfinished / name).write_bytes(tokens.tobytes())
    splits = token_set.index["splits"] | {"train": _split_entry(token_set, tokens, name)}
    sealed = index.seal(token_set.index | {"splits": splits})
    files.write_json(unfinished / shards.INDEX_FILE, sealed)
    try:
        unfinished.replace(output)
    except OSError:  # another process of the sweep has made it meanwhile
        shutil.rmtree(unfinished)
    return str(output)


def _split_entry(token_set: shards.TokenSet, tokens: np.ndarray, file: str) -> dict:
    """The index's entry of a training split of `tokens`, which follow the leading EOS."""
    split = token_set.split("train")
    counts = np.bincount(tokens, minlength=token_set.vocab_size)
    counts[token_set.eos_id] += 1
    frequencies = counts[counts > 0] / counts.sum()
    bits = float(-(frequencies * np.log2(frequencies)).sum())
    # In proportion to the whole split's; exact bytes would have to be decoded.
    num_bytes = round(split.bytes_per_token * len(tokens))
    return {
        "num_tokens": len(tokens) + 1,
        "num_documents": int((tokens == token_set.eos_id).sum()) or 1,
        "num_bytes": num_bytes,
        "num_loss_bytes": float(num_bytes),
        "num_targets": len(tokens),
        "total_target_weight": float(len(tokens)),
        "unigram_entropy_bits_per_token": bits,
        "unigram_entropy_bits_per_byte": bits * (len(tokens) + 1) / num_bytes,
        "shards": [
            {
                "file": file,
                "num_tokens": len(tokens),
                "weights_sha256": "",
                "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
            }
        ],
    }
