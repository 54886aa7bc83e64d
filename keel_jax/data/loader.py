"""Batches of windows of tokens: sample i is a pure function of (seed, i)."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

from keel_jax import errors
from keel_jax.data import shards, windows

# grain is imported where it is used: it imports jax, which is not needed to prepare data.

_MAX_WINDOWS = 2**32  # grain's shuffle counts in 32 bits
# More than any run reads. grain's own endless length, sys.maxsize, overflows in batches of 1: grain
# divides in floats, which are exact up to 2**52.
_ENDLESS_SAMPLES = 2**52

Batch = dict[str, Shaped[np.ndarray, "B T"]]
_Row = dict[str, Shaped[np.ndarray, " T"]]


@runtime_checkable  # annotations are executed under pytest
class BatchIterator(Protocol):
    """An iterator of batches that reads ahead in threads."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """Ends the threads; no batch can be read after that."""


def train_batches(
    token_sets: Sequence[shards.TokenSet],
    *,
    weights: Sequence[float] = (),
    seq_len: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    split: str = "train",
    mask_documents: bool = True,
    rank: int = 0,
    world_size: int = 1,
    num_threads: int = 2,
    prefetch_batches: int = 4,
) -> BatchIterator:
    """Endless batches from `start_step` on; row b of step s is sample s * batch_size + b.

    Sample i of one set is window `permutation(seed, epoch)[i mod n]` of its n windows of
    seq_len + 1 tokens, epoch = i // n; windows that hold no target are not among them. A mixture
    interleaves its sets evenly, each in its own order.

    Args:
        token_sets: sets with one tokenizer.
        weights: proportion of the samples from each set; empty: that of their tokens.
        seq_len: tokens per row, T.
        batch_size: rows per step, B, of all processes together.
        seed: any integer; decides the order of the windows.
        start_step: the first step; nothing before it is read.
        split: which split of each set.
        mask_documents: segment ids count documents; otherwise they are all 0.
        rank, world_size: rank p of P reads rows [p * B / P, (p + 1) * B / P).
        num_threads: threads that read ahead; 0 reads each batch when it is asked for.
        prefetch_batches: batches held ready, if there are threads.

    Returns:
        An iterator of {"inputs", "targets", "segment_ids": int32 [B / P, T],
        "loss_weights": float32 [B / P, T]}.

    Raises:
        UserError: sets with different tokenizers, weights that do not fit them, a split shorter
            than one window, a set packed in windows of another length, a batch that `world_size`
            does not divide. It is raised by the call, not by the first batch.
    """
    import grain

    local_batch_size = _local_batch_size(batch_size, rank, world_size)
    for token_set in token_sets:
        _check_packing(token_set, seq_len)
    splits = [token_set.split(split) for token_set in token_sets]
    _check_mixture(token_sets, weights)
    sources = [
        _Windows(token_split, seq_len, token_set.eos_id, mask_documents)
        for token_set, token_split in zip(token_sets, splits, strict=True)
    ]
    shuffled = [
        grain.MapDataset.source(source).shuffle(_derived_seed(seed, number))
        for number, source in enumerate(sources)
    ]
    weights = weights or [token_split.num_tokens for token_split in splits]
    samples = shuffled[0] if len(shuffled) == 1 else grain.MapDataset.mix(shuffled, weights)
    # In batches of B / P rows, batch s * P + p is that of rank p in step s.
    num_epochs = -(-_ENDLESS_SAMPLES // len(samples))
    batches = samples.repeat(num_epochs).batch(local_batch_size)
    first = start_step * world_size + rank
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=prefetch_batches if num_threads else 0
    )
    return iter(batches[first::world_size].to_iter_dataset(options))


def num_windows(token_set: shards.TokenSet, *, seq_len: int, split: str = "train") -> int:
    """How many windows `train_batches` draws from one set in an epoch. Errors as there."""
    _check_packing(token_set, seq_len)
    return len(_Windows(token_set.split(split), seq_len, token_set.eos_id, True))


def validation_batches(
    token_set: shards.TokenSet,
    *,
    seq_len: int,
    batch_size: int,
    split: str = "validation",
    mask_documents: bool = True,
    rank: int = 0,
    world_size: int = 1,
    num_batches: int | None = None,
) -> Iterator[Batch]:
    """Every target of a split once, in order; padding at the end has loss weight 0.

    Rows that would hold no target are left out.

    Shapes, ranks and errors are those of `train_batches`; every rank has the same number of
    batches. The split has num_tokens - 1 targets; `num_batches` ends earlier.
    """
    local_batch_size = _local_batch_size(batch_size, rank, world_size)
    _check_packing(token_set, seq_len)
    token_split = token_set.split(split)
    count = num_validation_batches(
        token_set, seq_len=seq_len, batch_size=batch_size, split=split, num_batches=num_batches
    )

    kept = windows.with_targets(token_split, seq_len, False)

    def start_of(row: int) -> int:
        if kept is None:
            return row * seq_len
        return int(kept[row]) * seq_len if row < len(kept) else token_split.num_tokens

    def batches() -> Iterator[Batch]:
        for step in range(count):
            first_row = step * batch_size + rank * local_batch_size
            rows = [
                _padded_window(
                    token_split, start_of(row), seq_len, token_set.eos_id, mask_documents
                )
                for row in range(first_row, first_row + local_batch_size)
            ]
            yield _stacked(rows)

    return batches()  # a generator of its own, so that errors are raised by the call


def _stacked(rows: Sequence[_Row]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def num_validation_batches(
    token_set: shards.TokenSet,
    *,
    seq_len: int,
    batch_size: int,
    split: str = "validation",
    num_batches: int | None = None,
) -> int:
    """How many batches `validation_batches` yields."""
    token_split = token_set.split(split)
    kept = windows.with_targets(token_split, seq_len, False)
    num_rows = -(-(token_split.num_tokens - 1) // seq_len) if kept is None else len(kept)
    count = -(-num_rows // batch_size)
    return count if num_batches is None else min(count, num_batches)


class _Windows:
    """A split's windows of seq_len + 1 tokens, seq_len apart, as a random-access source for grain.

    The last window ends with the stream and overlaps the one before, so that no target is left out.
    """

    def __init__(
        self, token_split: shards.TokenSplit, seq_len: int, eos_id: int, mask_documents: bool
    ):
        if token_split.num_tokens < seq_len + 1:
            raise errors.UserError(
                f"Split {token_split.name!r} has {token_split.num_tokens} tokens, but one window "
                f"needs seq_len + 1 = {seq_len + 1}: use a shorter seq_len or more text."
            )
        self._split = token_split
        self._seq_len = seq_len
        self._eos_id = eos_id
        self._mask_documents = mask_documents
        self._kept = windows.with_targets(token_split, seq_len, True)
        num_windows = -(-(token_split.num_tokens - 1) // seq_len)
        self._length = num_windows if self._kept is None else len(self._kept)
        if self._length >= _MAX_WINDOWS:
            raise errors.UserError(
                f"Split {token_split.name!r} has {self._length} windows of {seq_len} tokens, more "
                f"than the {_MAX_WINDOWS} that can be shuffled: prepare it as several sets and mix "
                "them."
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> _Row:
        window = int(index) if self._kept is None else int(self._kept[index])
        last_start = self._split.num_tokens - self._seq_len - 1
        start = min(window * self._seq_len, last_start)
        stop = start + self._seq_len + 1
        return _example(
            self._split.tokens(start, stop),
            self._split.loss_weights(start, stop),
            self._eos_id,
            self._mask_documents,
        )


def _example(
    tokens: Int[np.ndarray, " W"],
    loss_weights: Float[np.ndarray, " W"],
    eos_id: int,
    mask_documents: bool,
) -> _Row:
    """A window [T + 1] as inputs and targets [T]; each EOS in the inputs begins a new segment."""
    inputs = tokens[:-1]
    if mask_documents:
        segment_ids = np.cumsum(inputs == eos_id, dtype=np.int32)
    else:
        segment_ids = np.zeros_like(inputs)
    return {
        "inputs": inputs,
        "targets": tokens[1:],
        "segment_ids": segment_ids,
        "loss_weights": loss_weights[1:],
    }


def _padded_window(
    token_split: shards.TokenSplit, start: int, seq_len: int, eos_id: int, mask_documents: bool
) -> _Row:
    """The window at `start`, padded after the end of the stream with EOS of weight 0."""
    tokens = np.full(seq_len + 1, eos_id, np.int32)
    loss_weights = np.zeros(seq_len + 1, np.float32)
    stop = min(start + seq_len + 1, token_split.num_tokens)
    if start < stop:
        tokens[: stop - start] = token_split.tokens(start, stop)
        loss_weights[: stop - start] = token_split.loss_weights(start, stop)
    return _example(tokens, loss_weights, eos_id, mask_documents)


def _local_batch_size(batch_size: int, rank: int, world_size: int) -> int:
    if not 0 <= rank < world_size:
        raise errors.UserError(
            f"Rank {rank} is outside the world size of {world_size}; give 0 to {world_size - 1}."
        )
    if batch_size < 1 or batch_size % world_size:
        raise errors.UserError(
            f"A batch of {batch_size} sequences cannot be divided equally among {world_size} "
            f"processes: make the batch size a multiple of {world_size}."
        )
    return batch_size // world_size


def _check_packing(token_set: shards.TokenSet, seq_len: int) -> None:
    """Raises UserError if windows of `seq_len` tokens would cut through packed documents."""
    if token_set.pack_tokens not in (0, seq_len):
        raise errors.UserError(
            f"{token_set.path} is packed in windows of {token_set.pack_tokens} tokens, and "
            f"train.seq_len is {seq_len}: documents would be cut. Set train.seq_len="
            f"{token_set.pack_tokens} (of evaluate: --seq_len), or prepare the set with "
            f"--pack_tokens={seq_len}."
        )


def _check_mixture(token_sets: Sequence[shards.TokenSet], weights: Sequence[float]) -> None:
    if not token_sets:
        raise errors.UserError("There is no token set to read.")
    if weights and len(weights) != len(token_sets):
        raise errors.UserError(
            f"There are {len(weights)} weights for {len(token_sets)} token sets: give one for each."
        )
    if not all(0 < weight < float("inf") for weight in weights):
        raise errors.UserError(
            f"Mixture weights are {list(weights)}: each must be positive and finite."
        )
    first = token_sets[0]
    for token_set in token_sets[1:]:
        if token_set.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise errors.UserError(
                f"{first.path} and {token_set.path} were made with different tokenizers "
                f"({first.tokenizer_fingerprint[:12]}, {token_set.tokenizer_fingerprint[:12]}): "
                f"prepare one again with --tokenizer={first.path / shards.TOKENIZER_FILE}."
            )


def _derived_seed(seed: int, number: int) -> int:
    """A 32-bit seed for set `number`.

    grain adds the epoch to the seed, so neighbouring seeds would give the same orders one epoch
    apart; a hash spreads them out.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
