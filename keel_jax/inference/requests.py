"""From texts to the tokens whose likelihood is asked for, as the evaluation harness forms them.

The conventions are those of EleutherAI's lm-evaluation-harness (lm_eval/api/model.py and
lm_eval/utils.py), so that scores can be compared with published ones: where a context ends in
spaces, they belong to the continuation; context and continuation are encoded together, and the
tokens after as many as the context has alone are the continuation's. Every text begins with EOS, as
every document does in training.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from keel_jax import errors
from keel_jax.data import tokenizer as tokenizer_lib

# The shortest program; each next one is half as long again, up to the training's windows.
_SHORTEST, _GROWTH = 32, 1.5


@dataclasses.dataclass(frozen=True)
class Row:
    """Consecutive tokens, of which the last are to be scored."""

    # int32 [T + 1]; the model reads the first T, and predicts the last.
    ids: np.ndarray
    # How many of the ids at the end are scored.
    num_scored: int
    # How many were cut off in front, as the model has no positions for them.
    num_cut: int = 0


def of_continuation(
    tokenizer: tokenizer_lib.Tokenizer, context: str, continuation: str, max_length: int
) -> Row:
    """The row that scores `continuation` after `context`.

    Where SentencePiece merges the end of the context with the beginning of the continuation into
    one piece, that piece counts as the context's, as in the harness.

    Args:
      max_length: positions that the model knows; of a longer context the end is kept.

    Raises:
      UserError: the continuation is empty, or longer than `max_length` tokens.
    """
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    whole, alone = tokenizer.encode_batch([context + continuation, context])
    num_scored = len(whole) - len(alone)
    if num_scored <= 0:
        raise errors.UserError(
            f"{continuation!r} has no tokens of its own after {context[-40:]!r}: there is nothing "
            "to score."
        )
    if num_scored > max_length:
        raise errors.UserError(
            f"{continuation[:40]!r}… has {num_scored} tokens, and the model was trained on windows "
            f"of {max_length}: it knows no later positions."
        )
    ids = np.concatenate([np.array([tokenizer.eos_id], np.int32), whole])
    return _cut(ids, num_scored, max_length)


def of_pairs(
    tokenizer: tokenizer_lib.Tokenizer,
    pairs: Sequence[tuple[str, str]],
    max_length: int,
    where: str,
) -> tuple[Row, ...]:
    """The rows of (context, continuation), as `of_continuation`; an error begins with `where`."""
    try:
        return tuple(of_continuation(tokenizer, *pair, max_length) for pair in pairs)
    except errors.UserError as error:
        raise errors.UserError(f"{where}: {error}") from error


def of_text(tokenizer: tokenizer_lib.Tokenizer, text: str, max_length: int) -> list[Row]:
    """Rows that score every token of `text` once, each but the first after a full window.

    The first row begins with EOS. The last one is as long as the others, so that its tokens have
    as much context as fits (the harness's rolling log-likelihood).
    """
    tokens = tokenizer.encode(text)
    ids = np.concatenate([np.array([tokenizer.eos_id], np.int32), tokens])
    rows = []
    for first in range(0, len(tokens), max_length):
        stop = min(first + max_length, len(tokens)) + 1  # in ids
        begin = max(0, stop - max_length - 1)
        rows.append(Row(ids[begin:stop], stop - 1 - first))
    return rows


def of_prompt(
    tokenizer: tokenizer_lib.Tokenizer, prompt: str, max_length: int, room: int | None = None
) -> Row:
    """EOS and the tokens of `prompt`, none of which is scored.

    Args:
      max_length: positions that the model knows.
      room: if given, only so many tokens at the end are kept (the harness's left truncation).

    Raises:
      UserError: the prompt is longer than `max_length` with its EOS, and there is no `room`.
    """
    eos = np.array([tokenizer.eos_id], np.int32)
    ids = np.concatenate([eos, tokenizer.encode(prompt)])
    if room is not None:
        num_cut = max(0, len(ids) - room)
        return Row(ids[num_cut:], 0, num_cut)
    if len(ids) > max_length:
        raise errors.UserError(
            f"The prompt has {len(ids)} tokens (the EOS before it included), but the model was "
            f"trained on windows of {max_length}: it knows no later positions. Give its "
            "last part alone (`generate` does with cut_prompts=True), or train with a longer "
            "train.seq_len."
        )
    return Row(ids, 0)


def lengths(longest: int, multiple: int) -> list[int]:
    """The lengths to which rows are padded, ascending: multiples of `multiple`."""
    found, length = [], float(min(_SHORTEST, longest))
    while True:
        rounded = -(-int(length) // multiple) * multiple
        if rounded >= longest:
            return [*found, -(-longest // multiple) * multiple]
        found.append(rounded)
        length *= _GROWTH


def by_length(rows: Sequence[Row], lengths: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(T, indices of rows) for each of `lengths`, ascending, that is the least for some rows."""
    needed = np.array([len(row.ids) - 1 for row in rows])
    places = np.searchsorted(np.asarray(lengths), needed)
    for place in np.unique(places):
        yield lengths[place], np.flatnonzero(places == place).tolist()


def _cut(ids: np.ndarray, num_scored: int, max_length: int) -> Row:
    num_cut = max(0, len(ids) - (max_length + 1))
    return Row(ids[num_cut:], num_scored, num_cut)
