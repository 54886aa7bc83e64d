"""The index of a token set: the sum of all sidecars, written last; with it the set is complete."""

import base64
import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keel_jax import errors
from keel_jax.data import index as index_lib
from keel_jax.data import shards, tokenizer
from keel_jax.data.preparing import corpus, documents, sidecars
from keel_jax.data.preparing import options as preparation_options

_MAX_EXAMPLES = 20  # bad documents that the index names


def build_index(
    unit_sidecars: Sequence[sidecars.Sidecar],
    model: tokenizer.Tokenizer,
    settings: preparation_options.ShardSettings,
    source: corpus.Corpus,
) -> dict[str, Any]:
    """The content of index.json, the same on every host.

    Raises:
        UserError: a split without documents, or one in which no target has a loss weight.
    """
    bad_examples = [text for sidecar in unit_sidecars for text in sidecar["bad_examples"]]
    index = {
        "format": shards.FORMAT,
        "version": shards.VERSION,
        "dtype": shards.token_dtype(model.vocab_size).str,
        "vocab_size": model.vocab_size,
        "eos_id": model.eos_id,
        "tokenizer_fingerprint": model.fingerprint,
        "source": source.description,
        "source_digest": source.digest,
        "settings": settings.to_json(),
        "num_bad_documents": sum(sidecar["num_bad_documents"] for sidecar in unit_sidecars),
        "bad_examples": bad_examples[:_MAX_EXAMPLES],
        "bad_kinds": sidecars.bad_kinds(unit_sidecars),
        "num_empty_documents": sum(sidecar["num_empty_documents"] for sidecar in unit_sidecars),
        "splits": {
            split: _split_entry([sidecar["splits"][split] for sidecar in unit_sidecars], model)
            for split in settings.splits
        },
    }
    if settings.pack_tokens:
        index["num_long_documents"] = sum(map(sidecars.num_long_documents, unit_sidecars))
    if template := settings.layout.template:
        index["chat_template"] = template.to_json()
    _check_splits(index, settings)
    return index_lib.seal(index)


def _check_splits(index: Mapping[str, Any], settings: preparation_options.ShardSettings) -> None:
    num_documents = {name: entry["num_documents"] for name, entry in index["splits"].items()}
    if not sum(num_documents.values()):
        too_long = ""
        if settings.pack_tokens:
            too_long = (
                f"{index['num_long_documents']} are longer than the {settings.pack_tokens} tokens "
                "of a window (--pack_tokens; --long_documents=cut keeps their beginning), "
            )
        raise errors.UserError(
            f"No document of the corpus can be used: {too_long}"
            f"{index['num_empty_documents']} are empty, "
            f"{index['num_bad_documents']} bad: "
            f"{'; '.join(documents.describe_kinds(index['bad_kinds'])) or 'none'}."
        )
    for name, count in num_documents.items():
        if not count:
            raise errors.UserError(
                f"The split {name!r} is empty: all {sum(num_documents.values())} documents fell "
                f"to the other one at --validation_fraction={settings.validation_fraction}. Choose "
                "another fraction (0: no validation split) and add --overwrite, or give more "
                "documents."
            )
    for name, entry in index["splits"].items():
        if not entry["num_targets"]:
            raise errors.UserError(
                f"No token of the split {name!r} has a loss weight above 0 (its "
                f"{num_documents[name]} documents have weight 0): give some of them a weight, or "
                "choose another --validation_fraction (0: no validation split) and add --overwrite."
            )


def indices_agree(index: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two indices are equal apart from entropies, whose last digit varies by machine.

    Their checksums cover those, and an index from before there were checksums has none, nor does it
    count bad documents by kind.
    """
    return _comparable(index) == _comparable(other)


def _comparable(index: Mapping[str, Any]) -> dict[str, Any]:
    splits = {
        name: {key: value for key, value in entry.items() if "entropy" not in key}
        for name, entry in index["splits"].items()
    }
    comparable = {**index, "splits": splits}
    for key in (index_lib.CHECKSUM, "bad_kinds"):
        comparable.pop(key, None)
    return comparable


def _split_entry(
    entries: Sequence[sidecars.SplitEntry], model: tokenizer.Tokenizer
) -> dict[str, Any]:
    counts = np.zeros(model.vocab_size, np.int64)
    for entry in entries:
        counts += np.frombuffer(zlib.decompress(base64.b64decode(entry["counts"])), "<i8")
    counts[model.eos_id] += 1  # the EOS that leads the stream
    num_tokens = int(counts.sum())
    num_bytes = sum(entry["num_bytes"] for entry in entries)
    frequencies = counts[counts > 0] / num_tokens
    entropy_bits = float(-(frequencies * np.log2(frequencies)).sum())
    padding = {}
    if any("num_padding_tokens" in entry for entry in entries):
        num_padding_tokens = sum(entry.get("num_padding_tokens", 0) for entry in entries)
        padding = {"num_padding_tokens": num_padding_tokens}
    return {
        **padding,
        "num_tokens": num_tokens,
        "num_documents": sum(entry["num_documents"] for entry in entries),
        "num_bytes": num_bytes,
        "num_loss_bytes": math.fsum(entry["num_loss_bytes"] for entry in entries),
        "num_targets": sum(entry["num_targets"] for entry in entries),
        "total_target_weight": math.fsum(entry["total_target_weight"] for entry in entries),
        "unigram_entropy_bits_per_token": entropy_bits,
        "unigram_entropy_bits_per_byte": (
            entropy_bits * num_tokens / num_bytes if num_bytes else math.inf
        ),
        "shards": [
            dataclasses.asdict(sidecars.shard_of(entry)) for entry in entries if entry["num_tokens"]
        ],
    }
