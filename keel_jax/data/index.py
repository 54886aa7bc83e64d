"""What an index of token shards says, checked value by value, and its own checksum.

Numbers are computed from an index (bits per byte, perplexities, the share of each set in a
mixture), so a damaged one must not be read. `seal` adds a checksum over all of it. An index from
before there was one is accepted if every value is of its kind and range and they agree.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from keel_jax.data import chat_template

CHECKSUM = "sha256"  # the key of an index's, or a sidecar's, own checksum

_MOST = 2**63 - 1
_MOST_WEIGHT = 65504.0  # float16's largest number: weights are stored as float16
_SHA256 = re.compile("[0-9a-f]{64}")


class Damaged(ValueError):
    """A value that is missing, of the wrong kind or range, or contradicts another one."""


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its checksum."""
    return {**content, CHECKSUM: _checksum(content)}


def check_seal(content: Mapping[str, Any]) -> None:
    """Raises Damaged if `content` has a checksum, and it is that of another content."""
    if CHECKSUM in content and content[CHECKSUM] != (now := _checksum(content)):
        raise Damaged(
            f"its content has sha256 {now[:12]}, but {str(content[CHECKSUM])[:12]} was written"
        )


def check(index: Mapping[str, Any]) -> None:
    """Checks the whole of an index of the current format and version.

    Raises:
        Damaged: the message names the value and says what it is and what it should be.
    """
    check_seal(index)
    vocab_size = whole_number(index, "vocab_size", least=2, most=2**31)
    whole_number(index, "eos_id", most=vocab_size - 1)
    sha256(index, "tokenizer_fingerprint")
    for name in ("dtype", "source_digest"):
        _of_kind(index, name, str)
    for name in ("source", "settings"):
        _of_kind(index, name, dict)
    check_left_out(index)
    splits = _of_kind(index, "splits", dict)
    held_out = number(index["settings"], "validation_fraction", "settings", most=1)
    pack_tokens = 0
    if "pack_tokens" in index["settings"]:
        pack_tokens = whole_number(index["settings"], "pack_tokens", "settings", least=2)
        whole_number(index, "num_long_documents")
    if "chat_template" in index or "chat_template_digest" in index["settings"]:
        _check_template(index)
    expected = {"train", "validation"} if held_out else {"train"}
    if set(splits) != expected:
        raise Damaged(f"'splits' has {sorted(splits)}, not {sorted(expected)}")
    names = set()
    for name, entry in splits.items():
        where = f"splits.{name}"
        if not isinstance(entry, dict):
            raise Damaged(f"{where!r} is {_shortened(entry)}, not an object")
        _check_split(name, entry, where, vocab_size)
        check_padding(entry, where, entry["num_tokens"] - 1, pack_tokens)
        for shard in entry["shards"]:
            if shard["file"] in names:
                raise Damaged(f"{where!r} names {shard['file']} twice")
            names.add(shard["file"])


def _check_split(name: str, entry: Mapping[str, Any], where: str, vocab_size: int) -> None:
    shards = _of_kind(entry, "shards", list, where)
    num_tokens = 1  # the EOS that leads the stream
    for position, shard in enumerate(shards):
        place = f"{where}.shards[{position}]"
        if not isinstance(shard, dict):
            raise Damaged(f"{place!r} is {_shortened(shard)}, not an object")
        if set(shard) != {"file", "num_tokens", "sha256", "weights_sha256"}:
            raise Damaged(f"{place!r} has the keys {sorted(map(str, shard))}")
        file = _of_kind(shard, "file", str, place)
        if not re.fullmatch(rf"{name}-\d{{5,}}\.bin", file):
            raise Damaged(f"{place!r} has the file name {_shortened(file)}")
        num_tokens += whole_number(shard, "num_tokens", place, least=1)
        sha256(shard, "sha256", place)
        if shard["weights_sha256"] != "":
            sha256(shard, "weights_sha256", place)
    if whole_number(entry, "num_tokens", where, least=2) != num_tokens:
        raise Damaged(
            f"split {name!r} has {entry['num_tokens']} tokens, its shards {num_tokens} with the "
            "leading EOS"
        )
    has_weights = any(shard["weights_sha256"] for shard in shards)
    check_counts(entry, where, num_targets=num_tokens - 1, has_weights=has_weights)
    for key in ("num_documents", "num_targets"):
        whole_number(entry, key, where, least=1)
    number(entry, "num_loss_bytes", where, above=0)
    bits = number(entry, "unigram_entropy_bits_per_token", where, most=math.log2(vocab_size) + 1e-6)
    per_byte = number(entry, "unigram_entropy_bits_per_byte", where)
    expected = bits * num_tokens / entry["num_bytes"]
    if not math.isclose(per_byte, expected, rel_tol=1e-9):
        raise Damaged(
            f"'{where}.unigram_entropy_bits_per_byte' is {per_byte}, but {expected} follows from "
            "the bits per token"
        )


def _check_template(index: Mapping[str, Any]) -> None:
    """Checks that the template is one, and the one of the settings."""
    try:
        template = chat_template.ChatTemplate.from_json(index.get("chat_template"))
    except ValueError as error:
        raise Damaged(f"'chat_template': {error}") from error
    settings = index["settings"]
    if settings.get("chat_template_digest") != template.digest:
        raise Damaged("'chat_template' is not the one of 'settings.chat_template_digest'")


def check_padding(entry: Mapping[str, Any], where: str, num_tokens: int, pack_tokens: int) -> None:
    """Checks that the tokens of a packed entry fill whole windows, and how many are padding."""
    if not pack_tokens:
        return
    whole_number(entry, "num_padding_tokens", where, most=num_tokens)
    if num_tokens % pack_tokens:
        raise Damaged(
            f"{where!r} has {num_tokens} tokens, not a multiple of the window's {pack_tokens}"
        )


def check_left_out(values: Mapping[str, Any]) -> None:
    """Checks what an index, or a sidecar, says of the documents that were left out."""
    num_bad = whole_number(values, "num_bad_documents")
    whole_number(values, "num_empty_documents")
    examples = _of_kind(values, "bad_examples", list)
    if len(examples) > num_bad or not all(isinstance(example, str) for example in examples):
        raise Damaged(f"'bad_examples' is {_shortened(examples)} for {num_bad} bad documents")
    if "bad_kinds" not in values:  # as they were written before
        return
    kinds = _of_kind(values, "bad_kinds", dict)
    for kind, entry in kinds.items():
        if not isinstance(entry, dict):
            raise Damaged(f"'bad_kinds' has {_shortened(entry)} for {kind!r}")
        whole_number(entry, "count", kind, least=1)
        _of_kind(entry, "example", str, kind)
    if sum(entry["count"] for entry in kinds.values()) != num_bad:
        raise Damaged(f"'bad_kinds' does not sum up to {num_bad} bad documents")


def check_counts(
    entry: Mapping[str, Any], where: str, *, num_targets: int, has_weights: bool
) -> None:
    """Checks the counts of an entry of `num_targets` targets, those of weight 0 included."""
    num_bytes = whole_number(entry, "num_bytes", where, least=1 if num_targets else 0)
    documents = whole_number(entry, "num_documents", where, most=num_targets)
    if num_targets and not documents:
        raise Damaged(f"'{where}.num_documents' is 0, but there are {num_targets} targets")
    counted = whole_number(entry, "num_targets", where, most=num_targets)
    weight = number(entry, "total_target_weight", where, most=counted * _MOST_WEIGHT)
    loss_bytes = number(entry, "num_loss_bytes", where, most=num_bytes * _MOST_WEIGHT)
    if (counted > 0) != (weight > 0):
        raise Damaged(f"'{where}.total_target_weight' is {weight} for {counted} targets")
    if has_weights:
        return
    for key, value, expected in (
        ("num_targets", counted, num_targets),
        ("total_target_weight", weight, num_targets),
        ("num_loss_bytes", loss_bytes, num_bytes),
    ):
        if value != expected:
            raise Damaged(
                f"'{where}.{key}' is {value}, but without loss weights it must be {expected}"
            )


def whole_number(
    values: Mapping[str, Any], key: str, where: str = "", *, least: int = 0, most: int = _MOST
) -> int:
    """The whole number of that key. Raises Damaged if it is none, or outside [least, most]."""
    value = _get(values, key, where)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Damaged(
            f"{_name(key, where)} is {_shortened(value)}, not a whole number from {least} to {most}"
        )
    return value


def number(
    values: Mapping[str, Any],
    key: str,
    where: str = "",
    *,
    most: float = math.inf,
    above: float | None = None,
) -> float:
    """The finite number of that key. Raises Damaged if it is none, or outside [0, most]."""
    value = _get(values, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Damaged(f"{_name(key, where)} is {_shortened(value)}, not a number")
    if not 0 <= value <= most or value == math.inf or (above is not None and value <= above):
        raise Damaged(f"{_name(key, where)} is {_shortened(value)}, which it cannot be")
    return value


def sha256(values: Mapping[str, Any], key: str, where: str = "") -> None:
    """Raises Damaged unless the value of that key is a sha256, hexadecimal."""
    value = _get(values, key, where)
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise Damaged(f"{_name(key, where)} is {_shortened(value)}, not a sha256")


def _of_kind(values: Mapping[str, Any], key: str, kind: type, where: str = "") -> Any:
    value = _get(values, key, where)
    if not isinstance(value, kind):
        raise Damaged(f"{_name(key, where)} is {_shortened(value)}, not a {kind.__name__}")
    return value


def _get(values: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in values:
        raise Damaged(f"{_name(key, where)} is missing")
    return values[key]


def _name(key: str, where: str) -> str:
    return repr(f"{where}.{key}" if where else key)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _checksum(content: Mapping[str, Any]) -> str:
    covered = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()
