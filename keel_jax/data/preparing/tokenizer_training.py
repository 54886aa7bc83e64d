"""Training a SentencePiece tokenizer whose pieces may span a newline and indentation."""

import collections
import hashlib
import io
import re
from collections.abc import Iterable
from typing import Any

import sentencepiece
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from keel_jax import errors
from keel_jax.data import tokenizer

# The words inside which pieces may grow. Together the alternatives match every character once.
# A line's closing punctuation, its newline, the next line's indentation and its first word are one
# word. On Python source this gives 3.84 bytes/token at 4096 pieces, where pieces cut at whitespace
# give 3.37 (measured: Python 3.11's standard library). All repeats are bounded, so matching takes
# linear time.
_WORD_PATTERN = re.compile(
    r"[^\w\s]{0,8}[\r\n ]{0,64}\n[ \t]{0,64}[^\W\d_]{0,64}"
    r"|[ ._(]?[^\W\d_]{1,64}"
    r"|[ ]?_{1,64}"
    r"|[ ]?\d{1,3}"
    r"|[ ]?[^\w\s]{1,32}"
    r"|[ ]{1,64}(?=[ ])"
    r"|\s"
)
# The trainer refuses sentences with these two (U+2585 is its own mark for an unknown character);
# encoding handles them as bytes.
_UNTRAINABLE = ("\x00", "\u2585")
_TRAINER_OPTIONS: dict[str, Any] = dict(
    required_chars="\x1e\x1f",  # newline and tab, escaped: as bytes they could not grow into pieces
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    # _WORD_PATTERN has split the text already, and better for code.
    split_by_whitespace=False,
    split_by_unicode_script=False,
    split_by_number=False,
    unk_id=tokenizer.UNK_ID,
    eos_id=tokenizer.EOS_ID,
    eos_piece=tokenizer.EOS_PIECE,
    bos_id=-1,
    pad_id=-1,
    # The same number on every machine: unigram training sums floats thread by thread.
    num_threads=4,
    minloglevel=2,
)


def train_tokenizer(
    texts: Iterable[str],
    output_path: epath.PathLike,
    vocab_size: int,
    model_type: str = "bpe",
    *,
    character_coverage: float = 0.9995,
    max_piece_characters: int = 32,
) -> str:
    """Trains a tokenizer on `texts` and writes it; the same texts in any order give the same file.

    Args:
      texts: any number of strings, held one at a time (only distinct words stay in memory).
      output_path: the model file; its directory exists.
      vocab_size: number of ids in all: 2 special ones, 256 bytes, characters, pieces.
      model_type: 'bpe' or 'unigram'.
      character_coverage: fraction of the text's characters that have a piece of their own; the
        rest are spelt in bytes. 0.9995 is SentencePiece's own default.
      max_piece_characters: length of the longest piece.

    Returns:
      The fingerprint: sha256 of the model file, hexadecimal.

    Raises:
      UserError: no text, an unknown model type, or a vocabulary too large for the text or too small
        for its characters.
    """
    if model_type not in tokenizer.MODEL_TYPES:
        raise errors.UserError(
            f"Tokenizer type {model_type!r} is unknown; choose one of {tokenizer.MODEL_TYPES}."
        )
    word_counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        word_counts.update(_WORD_PATTERN.findall(text))
    if not word_counts:
        raise errors.UserError("There is no text to train a tokenizer on: every document is empty.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_word_lines(word_counts),
            input_format="tsv",  # word, tab, count: there are few distinct words
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            max_sentencepiece_length=max_piece_characters,
            **_TRAINER_OPTIONS,
        )
    except RuntimeError as error:
        raise errors.UserError(
            f"SentencePiece cannot make a vocabulary of {vocab_size} pieces from this text of "
            f"{len(word_counts)} distinct words: {tokenizer.sentencepiece_message(error)} Choose "
            f"another --vocab_size (at least {tokenizer.NUM_BASE_PIECES} and the characters of the "
            "text), or give more text."
        ) from error
    model_bytes = model.getvalue()
    if model_type == "unigram":
        model_bytes = _with_rounded_scores(model_bytes)
    epath.Path(output_path).write_bytes(model_bytes)
    return hashlib.sha256(model_bytes).hexdigest()


def _with_rounded_scores(model_bytes: bytes) -> bytes:
    """The model with the scores of its pieces rounded to `tokenizer.SCORE_QUANTUM`."""
    pb2: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    model = pb2.ModelProto.FromString(model_bytes)
    for piece in model.pieces:
        if piece.type == model.SentencePiece.NORMAL:
            piece.score = round(piece.score / tokenizer.SCORE_QUANTUM) * tokenizer.SCORE_QUANTUM
    return model.SerializeToString(deterministic=True)


def _word_lines(word_counts: collections.Counter[str]) -> Iterable[str]:
    """The trainer's input, `word TAB count` per line, in an order that depends on these only."""
    for word, count in sorted(word_counts.items(), key=lambda item: (-item[1], item[0])):
        if not any(character in word for character in _UNTRAINABLE):
            yield f"{tokenizer.escape(word)}\t{count}"
