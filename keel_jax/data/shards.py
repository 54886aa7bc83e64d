"""Token shards on disk: their format, and reading a finished set with every file checked."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from keel_jax import errors
from keel_jax.data import chat_template, integrity, tokenizer
from keel_jax.data import index as index_lib
from keel_jax.runtime import files

FORMAT = "keel_jax token shards"
VERSION = 2  # of the files and of what the index says of them
INDEX_FILE = "index.json"
PLAN_FILE = "preparation.json"
TOKENIZER_FILE = "tokenizer.model"
WEIGHT_DTYPE = np.dtype("<f2")


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 while every id fits, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def shard_file(split: str, number: int) -> str:
    """The token file of a work unit, which holds `d EOS` for each document d."""
    return f"{split}-{number:05d}.bin"


def weights_file(token_file: str) -> str:
    """The file of a token file's loss weights, one float16 per token; absent if all are 1."""
    return token_file.removesuffix(".bin") + ".weights"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One token file. `weights_sha256` is empty if every token has weight 1."""

    file: str
    num_tokens: int
    sha256: str
    weights_sha256: str

    def files(self, itemsize: int) -> Iterator[tuple[str, int, str]]:
        """(name, bytes, sha256) of each file, a token id taking `itemsize` bytes."""
        yield self.file, self.num_tokens * itemsize, self.sha256
        if self.weights_sha256:
            num_bytes = self.num_tokens * WEIGHT_DTYPE.itemsize
            yield weights_file(self.file), num_bytes, self.weights_sha256


class TokenSplit:
    """One split as a flat stream `EOS d1 EOS d2 ... EOS dn EOS`.

    The first EOS is in no file: the reader adds it, and token i > 0 of the stream is token i - 1 of
    the shards, taken in order.

    Attributes:
        name: such as "train".
        num_tokens: length of the stream, all EOS included; it has num_tokens - 1 targets.
        num_documents: documents in it.
        num_bytes: UTF-8 bytes of their text, prompts included.
        num_loss_bytes: bytes of the text, each counted with the loss weight of its document (0 in
            a prompt); equal to num_bytes if all weights are 1.
        num_targets: targets with a loss weight above 0.
        total_target_weight: sum of the loss weights of all targets.
        num_padding_tokens: tokens that fill the windows of a packed split, EOS of weight 0.
        unigram_entropy_bits_per_token, unigram_entropy_bits_per_byte: entropy of the stream's own
            token frequencies: the lowest loss of a model that ignores all context.
    """

    def __init__(
        self, name: str, directory: epath.Path, entry: dict[str, Any], dtype: np.dtype, eos_id: int
    ):
        self.name = name
        self.num_tokens: int = entry["num_tokens"]
        self.num_documents: int = entry["num_documents"]
        self.num_bytes: int = entry["num_bytes"]
        self.num_loss_bytes: float = entry["num_loss_bytes"]
        self.num_targets: int = entry["num_targets"]
        self.total_target_weight: float = entry["total_target_weight"]
        self.num_padding_tokens: int = entry.get("num_padding_tokens", 0)
        self.unigram_entropy_bits_per_token: float = entry["unigram_entropy_bits_per_token"]
        self.unigram_entropy_bits_per_byte: float = entry["unigram_entropy_bits_per_byte"]
        self.shards = tuple(Shard(**shard) for shard in entry["shards"])
        self._directory = directory
        self._dtype = dtype
        self._eos_id = eos_id
        # borders[k] is the stream position at which shard k begins; 0 is the leading EOS.
        self._borders = np.cumsum([1] + [shard.num_tokens for shard in self.shards])
        self._arrays: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        return f"TokenSplit({self.name}, {self.num_tokens} tokens, {self.num_documents} documents)"

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token of the stream."""
        return self.num_bytes / self.num_tokens

    @property
    def loss_bytes_per_token(self) -> float:
        """Weighted UTF-8 bytes per unit of target weight, which turns a loss into bits per byte.

        bits/byte = (sum of weight * nats) / (sum of weights) / ln 2 / loss_bytes_per_token.
        For plain text it is num_bytes / (num_tokens - 1). Prompts, or a common factor of all
        weights, do not change a text's bits per byte.
        """
        return self.num_loss_bytes / self.total_target_weight

    def files(self) -> Iterator[tuple[str, int, str]]:
        """(name, bytes, sha256) of each file."""
        for shard in self.shards:
            yield from shard.files(self._dtype.itemsize)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the stream, int32 [stop - start], across shard borders."""
        return self._read(start, stop, is_weight=False)

    def loss_weights(self, start: int, stop: int) -> np.ndarray:
        """Loss weights of the same tokens as targets, float32 [stop - start]."""
        return self._read(start, stop, is_weight=True)

    def contradiction(self) -> str:
        """How the files of loss weights contradict the index's sums; empty if they do not."""
        num_targets, total = 0, 0.0
        for shard in self.shards:
            if shard.weights_sha256:
                weights = self._array(weights_file(shard.file), WEIGHT_DTYPE)
                num_targets += int(np.count_nonzero(weights > 0))
                total += float(weights.sum(dtype=np.float64))
            else:
                num_targets += shard.num_tokens
                total += shard.num_tokens
        if num_targets != self.num_targets:
            return f"has {self.num_targets} targets, but {num_targets} have a loss weight above 0"
        if not math.isclose(total, self.total_target_weight, rel_tol=1e-9):
            return f"has a weight of {self.total_target_weight}, but the weights' sum is {total}"
        return ""

    def _read(self, start: int, stop: int, is_weight: bool) -> np.ndarray:
        if not 0 <= start <= stop <= self.num_tokens:
            raise errors.UserError(
                f"Tokens [{start}, {stop}) are not within the {self.num_tokens} tokens of split "
                f"{self.name!r}."
            )
        if is_weight:
            result = np.ones(stop - start, np.float32)
        else:
            result = np.full(stop - start, self._eos_id, np.int32)
        position = max(start, 1)
        number = int(np.searchsorted(self._borders, position, side="right")) - 1
        while position < stop:
            shard, begin = self.shards[number], int(self._borders[number])
            end = min(stop, begin + shard.num_tokens)
            if is_weight and shard.weights_sha256:
                array = self._array(weights_file(shard.file), WEIGHT_DTYPE)
                result[position - start : end - start] = array[position - begin : end - begin]
            elif not is_weight:
                array = self._array(shard.file, self._dtype)
                result[position - start : end - start] = array[position - begin : end - begin]
            position, number = end, number + 1
        return result

    def _array(self, file: str, dtype: np.dtype) -> np.ndarray:
        array = self._arrays.get(file)
        if array is None:
            path = os.fspath(self._directory / file)
            if "://" in path:  # cannot be mapped: the whole shard is fetched, once
                array = np.frombuffer(epath.Path(path).read_bytes(), dtype)
            else:
                array = np.memmap(path, dtype, mode="r")
            self._arrays[file] = array
        return array


class TokenSet:
    """A finished directory of token shards with its tokenizer; made by `open_set`.

    Attributes:
        path: the directory.
        vocab_size, eos_id: the tokenizer's.
        tokenizer_fingerprint: sha256 of the tokenizer model.
        fingerprint: identifies tokenizer and tokens, wherever and by whatever they were made.
        pack_tokens: tokens of the windows in which whole documents are packed; 0: they are not.
        chat_template: in which its conversations are written; None: it has none.
        index: the whole of index.json.
    """

    def __init__(self, path: epath.Path, index: dict[str, Any]):
        self.path = path
        self.index = index
        self.vocab_size: int = index["vocab_size"]
        self.eos_id: int = index["eos_id"]
        self.tokenizer_fingerprint: str = index["tokenizer_fingerprint"]
        self.pack_tokens: int = index["settings"].get("pack_tokens", 0)
        template = index.get("chat_template")
        self.chat_template = template and chat_template.ChatTemplate.from_json(template)
        self._splits = {
            name: TokenSplit(name, path, entry, np.dtype(index["dtype"]), self.eos_id)
            for name, entry in index["splits"].items()
        }
        content = {
            name: [dataclasses.astuple(shard)[1:] for shard in split.shards]
            for name, split in self._splits.items()
        }
        self.fingerprint = hashlib.sha256(
            json.dumps(
                [VERSION, index["dtype"], self.eos_id, self.tokenizer_fingerprint, content],
                sort_keys=True,
            ).encode()
        ).hexdigest()

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names of the splits, as in the index."""
        return tuple(self._splits)

    def split(self, name: str) -> TokenSplit:
        """The split of that name. Raises UserError, naming those that exist, if there is none."""
        if name not in self._splits:
            raise errors.UserError(
                f"{self.path} has no split {name!r}; it has {', '.join(self._splits)}."
            )
        return self._splits[name]

    def tokenizer(self) -> tokenizer.Tokenizer:
        """The tokenizer that made the tokens."""
        return tokenizer.Tokenizer.load(self.path / TOKENIZER_FILE)

    def verify(self, *, checksums: bool = True) -> None:
        """Compares every file's size and, with `checksums`, reads it and compares its sha256.

        Raises:
            UserError: a missing, truncated or changed file; the message says how it differs and
                what to do.
        """
        for split in self._splits.values():
            for name, num_bytes, sha256 in split.files():
                damage = integrity.describe_damage(
                    self.path / name, num_bytes, sha256 if checksums else ""
                )
                if damage:
                    raise errors.UserError(
                        f"{self.path / name} {damage}. Run the same prepare command again (it "
                        "rebuilds only what is missing or damaged), or copy the directory again."
                    )
            if checksums and (contradiction := split.contradiction()):
                raise errors.UserError(
                    f"{self.path / INDEX_FILE} is damaged: split {split.name!r} {contradiction}. "
                    "Run the same prepare command again, which rewrites it, or copy the directory "
                    "again."
                )


def open_set(path: epath.PathLike, *, verify: bool = False) -> TokenSet:
    """Opens a finished set: the index read, the tokenizer and every file's size checked.

    Args:
        path: the directory.
        verify: also read every file once and compare its sha256 (measured: 1.3 GB/s on one core,
            files in the page cache).

    Raises:
        UserError: no set, an unfinished one or another program's, or a missing, truncated or (with
            `verify`) changed file; the message has both sizes or checksums and says what to do.
    """
    path = epath.Path(path)
    index = _read_index(path)
    _check_tokenizer(path, index)
    token_set = TokenSet(path, index)
    token_set.verify(checksums=verify)
    return token_set


def _read_index(path: epath.Path) -> dict[str, Any]:
    try:
        index = files.read_json(path / INDEX_FILE)
    except ValueError as error:
        raise errors.UserError(
            f"{path / INDEX_FILE} is damaged ({error.__cause__}): run the same prepare command "
            "again, which rewrites it."
        ) from error
    if index is None:
        if (path / PLAN_FILE).exists():
            raise errors.UserError(
                f"The token set {path} is unfinished: it has no {INDEX_FILE} yet. Run the same "
                "prepare command again: it continues from what is finished."
            )
        raise errors.UserError(
            f"There is no token set at {path} (no {INDEX_FILE}): make one with `python -m "
            f"keel_jax.prepare --input=GLOB --output={path}`."
        )
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        other_format = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise errors.UserError(
            f"{path / INDEX_FILE} is not an index of {FORMAT!r} (format: {other_format!r}): "
            "another program wrote it."
        )
    if index.get("version") != VERSION:
        raise errors.UserError(
            f"{path} holds token shards of format version {index.get('version')!r}, but this "
            f"program reads version {VERSION}: prepare them again, or use the version that made "
            "them."
        )
    try:
        index_lib.check(index)
        if index["dtype"] != (dtype := token_dtype(index["vocab_size"]).str):
            raise index_lib.Damaged(
                f"'dtype' is {index['dtype']!r}, but {index['vocab_size']} ids are stored as "
                f"{dtype!r}"
            )
    except index_lib.Damaged as error:
        raise errors.UserError(
            f"{path / INDEX_FILE} is damaged: {error}. Run the same prepare command again, which "
            "rewrites it, or copy the directory again."
        ) from error
    return index


def _check_tokenizer(path: epath.Path, index: dict[str, Any]) -> None:
    file = path / TOKENIZER_FILE
    fingerprint = integrity.file_sha256(file) if file.exists() else "missing"
    if fingerprint != index["tokenizer_fingerprint"]:
        raise errors.UserError(
            f"{file} is not the tokenizer that made these shards (it is {fingerprint[:16]}, the "
            f"index says {index['tokenizer_fingerprint'][:16]}): restore the right file, or "
            "prepare the set again with --overwrite."
        )
    found = tokenizer.vocabulary(file)
    if found != (index["vocab_size"], index["eos_id"]):
        raise errors.UserError(
            f"{path / INDEX_FILE} is damaged: it says that the tokenizer has {index['vocab_size']} "
            f"ids and EOS {index['eos_id']}, but {file} has {found[0]} and {found[1]}. Run the "
            "same prepare command again, which rewrites it, or copy the directory again."
        )
