"""The index of a token set: all sidecars added up; written last, it makes the set whole."""

import base64
import dataclasses
import math
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from keel_jax.data import atomic_files, shard_writing, shards, tokenizer


def write(
    output: epath.Path,
    sidecars: Sequence[dict],
    model: tokenizer.Tokenizer,
    settings: shard_writing.Settings,
    description: dict,
    source_digest: str,
    temporary_suffix: str,
) -> dict:
    """Writes index.json, which makes the set whole; the same content whoever writes it.

    Raises:
        ValueError: a split without documents.
    """
    index = {
        "format": shards.FORMAT,
        "version": shards.VERSION,
        "dtype": shards.token_dtype(model.vocab_size).str,
        "vocab_size": model.vocab_size,
        "eos_id": model.eos_id,
        "tokenizer_fingerprint": model.fingerprint,
        "source": description,
        "source_digest": source_digest,
        "settings": dataclasses.asdict(settings),
        "num_bad_documents": sum(sidecar["num_bad_documents"] for sidecar in sidecars),
        "bad_examples": [text for sidecar in sidecars for text in sidecar["bad_examples"]][:20],
        "num_empty_documents": sum(sidecar["num_empty_documents"] for sidecar in sidecars),
        "splits": {
            split: _split_entry([sidecar["splits"][split] for sidecar in sidecars], model)
            for split in settings.splits
        },
    }
    num_documents = {name: entry["num_documents"] for name, entry in index["splits"].items()}
    if not sum(num_documents.values()):
        raise ValueError(
            f"The corpus is empty: no document in it has text ({index['num_empty_documents']} "
            f"empty ones, {index['num_bad_documents']} bad ones: {index['bad_examples'][:3]})."
        )
    for name, count in num_documents.items():
        if not count:
            raise ValueError(
                f"The split {name!r} is empty: all {sum(num_documents.values())} documents fell "
                f"to the other one at --validation_fraction={settings.validation_fraction}. Choose "
                "another fraction (0: no validation split) and add --overwrite, or give more "
                "documents."
            )
    atomic_files.write_json(output / shards.INDEX_FILE, index, temporary_suffix)
    return index


def _split_entry(entries: Sequence[dict], model: tokenizer.Tokenizer) -> dict:
    counts = np.zeros(model.vocab_size, np.int64)
    for entry in entries:
        counts += np.frombuffer(zlib.decompress(base64.b64decode(entry["counts"])), "<i8")
    counts[model.eos_id] += 1  # the EOS that leads the stream
    num_tokens = int(counts.sum())
    num_bytes = sum(entry["num_bytes"] for entry in entries)
    shares = counts[counts > 0] / num_tokens
    entropy_bits = float(-(shares * np.log2(shares)).sum())
    return {
        "num_tokens": num_tokens,
        "num_documents": sum(entry["num_documents"] for entry in entries),
        "num_bytes": num_bytes,
        "num_loss_bytes": sum(entry["num_loss_bytes"] for entry in entries),
        "unigram_entropy_bits_per_token": entropy_bits,
        "unigram_entropy_bits_per_byte": (
            entropy_bits * num_tokens / num_bytes if num_bytes else math.inf
        ),
        "shards": list(_shard_entries(entries)),
    }


def _shard_entries(entries: Sequence[dict]) -> Iterator[dict]:
    for entry in entries:
        if entry["num_tokens"]:
            yield {field.name: entry[field.name] for field in dataclasses.fields(shards.Shard)}
