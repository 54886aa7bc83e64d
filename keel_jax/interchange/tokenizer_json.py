"""A SentencePiece model as tokenizer.json, which the tokenizers package reads: the same ids.

What has to be said differently there:

- BPE merges are pairs in an order there, and pieces with scores here. Of all ways to put a piece
  together, SentencePiece only ever takes the one by which it would be made of its own characters
  alone: until the piece is made, nothing has crossed its ends, so what happened between them is
  what happens without a context. So each piece has one merge, and ties are decided from the left
  in both.
- The names of byte, unknown and end-of-sequence pieces are found in texts by the unigram model
  there, as "<0x0A>" in "the byte <0x0A>". A cut within such a name prevents it. It is made
  where no piece has those two characters in a row, so that it changes nothing else.
- Texts pass through `tokenizer.escape`, and long ones are cut into parts.

A unigram model's ids are the same only if its scores add up exactly in float32, in which
SentencePiece adds them: `tokenizer_training` rounds them for this. Otherwise rounding decides
between ways of cutting a text that are equally likely (`Converted.is_exact`).
"""

import dataclasses
import json
import re
from typing import Any

import numpy as np

from keel_jax.data import tokenizer as tokenizer_lib
from keel_jax.interchange import sentencepiece_model
from keel_jax.interchange.sentencepiece_model import Model, Unsupported

# How SentencePiece writes a space.
_SPACE = "\u2581"
# SentencePiece's text for an id that is no text.
_UNKNOWN_TEXT = " \u2047 "
# What SentencePiece's unigram model adds to the lowest score for an unknown character.
_UNKNOWN_PENALTY = 10.0


@dataclasses.dataclass(frozen=True)
class Converted:
    """A tokenizer.json."""

    content: dict[str, Any]
    # Whether its ids are SentencePiece's on any text.
    is_exact: bool
    eos_piece: str
    unk_piece: str


def convert(model_bytes: bytes) -> Converted:
    """The content of tokenizer.json for a SentencePiece model.

    Raises:
      Unsupported: it has a setting or a piece that cannot be reproduced.
    """
    model = sentencepiece_model.read(model_bytes)
    _check_characters(model)
    is_bpe = model.kind == "bpe"
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        # None: an added token would be found in texts. EOS comes from the post-processor.
        "added_tokens": [],
        "normalizer": _sequence("normalizers", _normalizers(model)),
        "pre_tokenizer": _sequence("pretokenizers", _cuts(model)),
        "post_processor": _begins_with_eos(model),
        "decoder": _sequence("decoders", _decoders(model)),
        "model": _bpe(model) if is_bpe else _unigram(model),
    }
    return Converted(
        content=content,
        is_exact=is_bpe or _adds_up_exactly(model),
        eos_piece=model.pieces[model.eos_id][0],
        unk_piece=model.pieces[model.unk_id][0],
    )


def to_bytes(content: dict[str, Any]) -> bytes:
    """The file's bytes."""
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _normalizers(model: Model) -> list[dict]:
    steps = []
    if model.is_escaped:
        # One after the other: what one of them writes, no later one reads.
        steps = [_replace(a, b) for a, b in tokenizer_lib.ESCAPE_STEPS]
    steps.append(_replace(" ", _SPACE))
    if model.adds_space:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    return steps


def _decoders(model: Model) -> list[dict]:
    eos, unk = (model.pieces[number][0] for number in (model.eos_id, model.unk_id))
    steps = [
        _replace(rf"\A{re.escape(eos)}\z", "", "Regex"),
        _replace(rf"\A{re.escape(unk)}\z", _UNKNOWN_TEXT, "Regex"),
        _replace(_SPACE, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.adds_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    if model.is_escaped:
        steps += [_replace(b, a) for a, b in tokenizer_lib.UNESCAPE_STEPS]
    return steps


def _cuts(model: Model) -> list[dict]:
    """Cuts that `Tokenizer` makes in long texts, and those within names of special pieces."""
    most = tokenizer_lib.MAX_ENCODE_CHARACTERS
    # A character of the text: an escape sequence is one.
    one, newline = (r"(?>\x1b[a-e]|[^\x1b])", r"\x1e") if model.is_escaped else (r"[\s\S]", r"\n")
    part = rf"{one}{{1,{most}}}\z|{one}{{0,{most - 1}}}{newline}|{one}{{{most}}}"
    cuts = [{"type": "Split", "pattern": {"Regex": part}, "behavior": "Isolated", "invert": False}]
    if model.kind == "unigram" and (names := _cut_names(model)):
        cuts.append(
            {
                "type": "Split",
                "pattern": {"Regex": "|".join(names)},
                "behavior": "MergedWithPrevious",
                "invert": False,
            }
        )
    return cuts


def _cut_names(model: Model) -> list[str]:
    """A pattern for the beginning of each special name, up to where it may be cut."""
    pairs = {
        piece[n : n + 2]
        for number in model.normal_ids
        if len(piece := model.pieces[number][0]) > 1
        for n in range(len(piece) - 1)
    }
    patterns = []
    for number, (name, _) in enumerate(model.pieces):
        if number in model.normal_ids:
            continue
        places = [n for n in range(1, len(name)) if name[n - 1 : n + 1] not in pairs]
        if not places:
            raise Unsupported(f"the name of its piece {number}, {name!r}, can be put together")
        before, after = name[: places[0]], name[places[0] :]
        patterns.append(f"{re.escape(before)}(?={re.escape(after)})")
    return patterns


def _begins_with_eos(model: Model) -> dict:
    """EOS before every text, as before every document in training."""
    eos = model.pieces[model.eos_id][0]

    def begins(sequence: str, type_id: int) -> list[dict]:
        return [
            {"SpecialToken": {"id": eos, "type_id": type_id}},
            {"Sequence": {"id": sequence, "type_id": type_id}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": begins("A", 0),
        "pair": begins("A", 0) + begins("B", 1),
        "special_tokens": {eos: {"id": eos, "ids": [model.eos_id], "tokens": [eos]}},
    }


def _bpe(model: Model) -> dict:
    scores = {model.pieces[number][0]: model.pieces[number][1] for number in model.normal_ids}
    long = sorted((piece for piece in scores if len(piece) > 1), key=lambda piece: -scores[piece])
    if len({scores[piece] for piece in long}) != len(long):
        raise Unsupported("two of its pieces have the same score")
    merges = [pair for piece in long if (pair := _last_merge(piece, scores))]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {piece: number for number, (piece, _) in enumerate(model.pieces)},
        "merges": merges,
    }


def _last_merge(piece: str, scores: dict[str, float]) -> list[str] | None:
    """The two parts of which SentencePiece makes a piece; None: it never does."""
    symbols = list(piece)
    while len(symbols) > 1:
        merged = [a + b for a, b in zip(symbols, symbols[1:], strict=False)]
        known = [n for n, symbol in enumerate(merged) if symbol in scores]
        if not known:
            return None
        # The highest score; of equal ones the leftmost.
        best = max(known, key=lambda n: (scores[merged[n]], -n))
        if len(symbols) == 2:
            return symbols
        symbols[best : best + 2] = [merged[best]]
    return None


def _unigram(model: Model) -> dict:
    lowest = min(model.pieces[number][1] for number in model.normal_ids)
    # The score of a special piece is never read, but counts for the lowest.
    vocab = [
        [piece, score if number in model.normal_ids else lowest]
        for number, (piece, score) in enumerate(model.pieces)
    ]
    return {"type": "Unigram", "unk_id": model.unk_id, "vocab": vocab, "byte_fallback": True}


def _adds_up_exactly(model: Model) -> bool:
    """Whether float32 holds every sum of scores over the longest part of a text."""
    scores = np.array([model.pieces[number][1] for number in sorted(model.normal_ids)])
    quantum = tokenizer_lib.SCORE_QUANTUM
    # An escaped character is two.
    worst = 2 * tokenizer_lib.MAX_ENCODE_CHARACTERS * (np.abs(scores).max() + _UNKNOWN_PENALTY)
    are_multiples = np.array_equal(np.round(scores / quantum) * quantum, scores)
    return bool(are_multiples and worst / quantum < 2**24)


def _check_characters(model: Model) -> None:
    """SentencePiece puts pieces together of unknown characters, the other only of known ones."""
    known = {model.pieces[number][0] for number in model.normal_ids}
    for piece in known:
        if missing := set(piece) - known:
            raise Unsupported(f"its piece {piece!r} has a character without a piece, {missing}")


def _replace(old: str, new: str, kind: str = "String") -> dict:
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def _sequence(name: str, steps: list[dict]) -> dict:
    return {"type": "Sequence", name: steps}
