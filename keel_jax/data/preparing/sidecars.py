"""Sidecars: one JSON file for each work unit, which describes its shards; and which units have one.

A sidecar is written after its shards, so a unit that has one is done.
"""

import base64
import dataclasses
import hashlib
import json
import typing
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath

from keel_jax.data import index as index_lib
from keel_jax.data import integrity, shards, tokenizer
from keel_jax.data.preparing import atomic_files, corpus, documents
from keel_jax.data.preparing import options as preparation_options


class SplitEntry(typing.TypedDict):
    """What a sidecar says of one split of its unit."""

    file: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    num_loss_bytes: float
    num_targets: int
    total_target_weight: float
    num_bytes_on_disk: int
    sha256: str
    weights_sha256: str
    num_padding_tokens: typing.NotRequired[int]  # of packed ones alone
    counts: str  # how often each id occurs: int64 [vocab_size], zlib, base64


class Sidecar(typing.TypedDict):
    """The content of unit-*.json."""

    digest: str
    splits: dict[str, SplitEntry]
    num_bad_documents: int
    bad_examples: list[str]
    bad_kinds: typing.NotRequired[dict[str, documents.KindCount]]  # absent in old ones
    num_empty_documents: int
    # Longer than a window, cut or left out; of packed units alone.
    num_long_documents: typing.NotRequired[int]


def sidecar_file(number: int) -> str:
    """The file name of a unit's sidecar."""
    return f"unit-{number:05d}.json"


def unit_digest(
    unit: corpus.WorkUnit, tokenizer_fingerprint: str, settings: preparation_options.ShardSettings
) -> str:
    """Identifies what a unit's shards are made from."""
    made_from = [shards.VERSION, unit.digest, tokenizer_fingerprint, settings.to_json()]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def shard_of(entry: SplitEntry) -> shards.Shard:
    """The part of a split's entry that the index keeps."""
    return shards.Shard(
        file=entry["file"],
        num_tokens=entry["num_tokens"],
        sha256=entry["sha256"],
        weights_sha256=entry["weights_sha256"],
    )


def num_tokens(sidecar: Sidecar) -> int:
    """Tokens of a unit, all splits together."""
    return sum(entry["num_tokens"] for entry in sidecar["splits"].values())


def num_long_documents(sidecar: Sidecar) -> int:
    """Documents of a packed unit that are longer than a window."""
    return sidecar.get("num_long_documents", 0)


def check_num_bad(sidecars: Sequence[Sidecar], max_bad_documents: int) -> None:
    """Raises UserError if these units together have more bad documents than allowed."""
    num_bad = sum(sidecar["num_bad_documents"] for sidecar in sidecars)
    if num_bad > max_bad_documents:
        kinds = bad_kinds(sidecars)
        raise documents.too_many_bad(num_bad, max_bad_documents, kinds)


def bad_kinds(sidecars: Sequence[Sidecar]) -> dict[str, documents.KindCount]:
    """The bad documents of all units, by kind."""
    return documents.merge_kinds(
        sidecar.get("bad_kinds", _kinds_of_old(sidecar)) for sidecar in sidecars
    )


def _kinds_of_old(sidecar: Sidecar) -> dict[str, documents.KindCount]:
    """Of a sidecar from before bad documents were counted by kind."""
    if not sidecar["bad_examples"]:
        return {}
    entry: documents.KindCount = {
        "count": sidecar["num_bad_documents"],
        "example": sidecar["bad_examples"][0],
    }
    return {"left out": entry}


class UnitStatus:
    """Which units of a corpus are done: this host's own, and those of the other hosts.

    Attributes:
        own_numbers: the units that are this host's to make.
    """

    def __init__(
        self,
        output: epath.Path,
        source: corpus.Corpus,
        model: tokenizer.Tokenizer,
        options: preparation_options.PreparationOptions,
    ):
        """Reads the sidecars of this host's units and verifies the checksums of their shards."""
        self._output = output
        settings = options.shard_settings
        self._shape = _Shape(settings.splits, model.vocab_size, settings.pack_tokens)
        self._digests = [unit_digest(unit, model.fingerprint, settings) for unit in source.units]
        self.own_numbers = range(options.host_index, len(source.units), options.host_count)
        self._own: dict[int, Sidecar] = {}
        for number in self.own_numbers:
            sidecar = _read_own(output, number, self._digests[number], self._shape)
            if sidecar is not None:
                self._own[number] = sidecar

    @property
    def done(self) -> Mapping[int, Sidecar]:
        """The sidecars of this host's finished units, in the order of the units."""
        return dict(sorted(self._own.items()))

    @property
    def missing(self) -> list[int]:
        """This host's units that are still to be made."""
        return [number for number in self.own_numbers if number not in self._own]

    def add(self, number: int, sidecar: Sidecar) -> None:
        """Takes note of a unit that this host has just made."""
        self._own[number] = sidecar

    def all_sidecars(self) -> list[Sidecar] | None:
        """The sidecars of all units in order, other hosts' as of now; None if one is missing."""
        sidecars = []
        for number, digest in enumerate(self._digests):
            if number in self.own_numbers:
                sidecar = self._own.get(number)
            else:
                sidecar = _read_others(self._output, number, digest, self._shape)
            if sidecar is None:
                return None
            sidecars.append(sidecar)
        return sidecars


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What the sidecars of a set have in common."""

    splits: tuple[str, ...]
    vocab_size: int
    pack_tokens: int


def _read_own(output: epath.Path, number: int, digest: str, shape: _Shape) -> Sidecar | None:
    """The sidecar of a unit whose shards are intact and made from the same; else None.

    Every file is read and its checksum compared. A damaged one is logged and the sidecar removed,
    so that no other host counts the unit as done.
    """
    sidecar = _read(output, number, digest, shape)
    damage = sidecar and _damage(output, sidecar, verify_checksums=True)
    if damage:
        logging.warning("%s It will be rebuilt.", damage)
        (output / sidecar_file(number)).unlink(missing_ok=True)
        return None
    return sidecar


def _read_others(output: epath.Path, number: int, digest: str, shape: _Shape) -> Sidecar | None:
    """The sidecar of another host's unit, whose files are compared by size only; else None."""
    sidecar = _read(output, number, digest, shape)
    if sidecar and _damage(output, sidecar, verify_checksums=False):
        return None
    return sidecar


def _read(output: epath.Path, number: int, digest: str, shape: _Shape) -> Sidecar | None:
    """The sidecar of a unit; None if it is missing, made from something else, or damaged."""
    path = output / sidecar_file(number)
    record = atomic_files.read_record(path)
    if record is None or record.get("digest") != digest:
        return None
    try:
        _check(record, number, shape)
    except index_lib.Damaged as error:
        logging.warning("%s is damaged: %s. Its unit will be rebuilt.", path, error)
        return None
    return typing.cast(Sidecar, record)


def _check(record: dict[str, typing.Any], number: int, shape: _Shape) -> None:
    """Raises `index.Damaged` unless the record is a sidecar whose values can be believed."""
    index_lib.check_seal(record)
    index_lib.check_left_out(record)
    if shape.pack_tokens:
        index_lib.whole_number(record, "num_long_documents")
    splits = record.get("splits")
    if not isinstance(splits, dict) or tuple(splits) != shape.splits:
        raise index_lib.Damaged(f"it does not have the splits {', '.join(shape.splits)}")
    itemsize = shards.token_dtype(shape.vocab_size).itemsize
    for name, entry in splits.items():
        if not isinstance(entry, dict) or entry.get("file") != shards.shard_file(name, number):
            raise index_lib.Damaged(
                f"its split {name!r} is not of {shards.shard_file(name, number)}"
            )
        num_tokens = index_lib.whole_number(entry, "num_tokens", name)
        for key in ("sha256", "weights_sha256"):
            if entry.get(key) != "" or (key == "sha256" and num_tokens):
                index_lib.sha256(entry, key, name)
        index_lib.check_padding(entry, name, num_tokens, shape.pack_tokens)
        has_weights = bool(entry["weights_sha256"])
        index_lib.check_counts(entry, name, num_targets=num_tokens, has_weights=has_weights)
        if entry.get("num_bytes_on_disk") != num_tokens * itemsize:
            raise index_lib.Damaged(f"{name}.num_bytes_on_disk is not that of {num_tokens} tokens")
        counts = _counts(entry)
        if len(counts) != shape.vocab_size or counts.min() < 0 or counts.sum() != num_tokens:
            raise index_lib.Damaged(f"{name}.counts are not those of {num_tokens} tokens")


def _counts(entry: typing.Mapping[str, typing.Any]) -> np.ndarray:
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(entry["counts"])), "<i8")
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise index_lib.Damaged("the counts of its tokens cannot be read") from error


def _damage(output: epath.Path, sidecar: Sidecar, *, verify_checksums: bool) -> str:
    """Says which of the unit's files is damaged and how; empty if none is."""
    for entry in sidecar["splits"].values():
        if not entry["num_tokens"]:
            continue
        itemsize = entry["num_bytes_on_disk"] // entry["num_tokens"]
        for name, num_bytes, sha256 in shard_of(entry).files(itemsize):
            path = output / name
            damage = integrity.describe_damage(path, num_bytes, sha256 if verify_checksums else "")
            if damage:
                return f"{path} {damage}."
    return ""
