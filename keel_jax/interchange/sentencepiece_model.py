"""A SentencePiece model's pieces and settings, as far as another implementation needs them."""

import dataclasses
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from keel_jax.data import tokenizer as tokenizer_lib

# Its classes are made when it is imported.
_PB2: Any = sentencepiece_model_pb2
_PIECE, _TRAINER = _PB2.ModelProto.SentencePiece, _PB2.TrainerSpec


@dataclasses.dataclass(frozen=True)
class Model:
    """A model whose settings another implementation can follow."""

    # "bpe" or "unigram".
    kind: str
    # The text and the score of each id.
    pieces: tuple[tuple[str, float], ...]
    # Ids whose pieces are found in texts; the others are special or a byte.
    normal_ids: frozenset[int]
    unk_id: int
    eos_id: int
    # A space is put before a text that is not empty, and taken away again.
    adds_space: bool
    # Texts pass through `tokenizer.escape`.
    is_escaped: bool


class Unsupported(Exception):
    """The settings cannot be followed exactly; the message says which."""


def read(model_bytes: bytes) -> Model:
    """Reads a model that `tokenizer.Tokenizer` has accepted.

    Raises:
      Unsupported: it has a setting that `tokenizer_json` does not reproduce.
    """
    proto = _PB2.ModelProto.FromString(model_bytes)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kinds = {_TRAINER.BPE: "bpe", _TRAINER.UNIGRAM: "unigram"}
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    unknown = [n for n, piece in enumerate(pieces) if piece[2] == _PIECE.UNKNOWN]
    num_bytes = sum(piece[2] == _PIECE.BYTE for piece in pieces)
    for is_wrong, what in (
        (trainer.model_type not in kinds, "its type is neither BPE nor unigram"),
        (len(unknown) != 1, "it has no single unknown piece"),
        (not trainer.byte_fallback or num_bytes != 256, "it has no byte fallback"),
        (trainer.treat_whitespace_as_suffix, "it writes spaces after words"),
        (bool(normalizer.precompiled_charsmap), f"it normalizes texts ({normalizer.name})"),
        (normalizer.remove_extra_whitespaces, "it removes repeated spaces"),
        (not normalizer.escape_whitespaces, "it does not escape spaces"),
        (bool(proto.denormalizer_spec.precompiled_charsmap), "it changes texts when decoding"),
        (
            any(piece[2] in (_PIECE.USER_DEFINED, _PIECE.UNUSED) for piece in pieces),
            "it has pieces that a user defined, or unused ones",
        ),
    ):
        if is_wrong:
            raise Unsupported(what)
    _, eos_id = tokenizer_lib.processor(model_bytes, "the tokenizer")
    return Model(
        kind=kinds[trainer.model_type],
        pieces=tuple((piece, score) for piece, score, _ in pieces),
        normal_ids=frozenset(n for n, piece in enumerate(pieces) if piece[2] == _PIECE.NORMAL),
        unk_id=unknown[0],
        eos_id=eos_id,
        adds_space=normalizer.add_dummy_prefix,
        is_escaped=pieces[eos_id][0] == tokenizer_lib.EOS_PIECE,
    )
