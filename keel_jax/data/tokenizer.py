"""SentencePiece tokenizers that reproduce every text exactly, odd whitespace included."""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from absl import logging
from etils import epath

from keel_jax import errors

MODEL_TYPES = ("bpe", "unigram")

# The name of the end-of-sequence piece in models of `preparing.tokenizer_training`: it tells
# `Tokenizer` that their texts pass through `escape`. Any other model is used as it is.
EOS_PIECE = "<keel_eos_1>"
UNK_ID, EOS_ID = 0, 1
NUM_BASE_PIECES = 2 + 256  # unk, EOS and one piece for each byte value

# SentencePiece does not reproduce every text. Escaping the text first, and undoing that after
# decoding, makes it do so:
# - its trainer strips newlines and cuts pieces at tabs, so newline + indentation, the commonest
#   "word" of source code, could never become one piece. '\n', '\t' and '\r' are replaced by the
#   ASCII separators RS, US and GS (one byte each; str.replace on them is fast);
# - it writes a space as U+2581, so a U+2581 of the text itself would come back as a space. It is
#   replaced by ESC + a letter, and so are the characters that the escape itself uses.
_WHITESPACE = (("\n", "\x1e"), ("\t", "\x1f"), ("\r", "\x1d"))
_ESC = "\x1b"
_RARE = {"\u2581": "a", "\x1b": "b", "\x1d": "c", "\x1e": "d", "\x1f": "e"}
_RARE_PATTERN = re.compile("[" + "".join(_RARE) + "]")
_ESCAPED_PATTERN = re.compile(_ESC + "([" + "".join(_RARE.values()) + "])")
_UNESCAPED = {letter: character for character, letter in _RARE.items()}
# The same, for implementations that only replace one string by another, one after the other. The
# escape character is escaped first and unescaped last.
_RARE_STEPS = tuple(
    (character, _ESC + letter)
    for character, letter in sorted(_RARE.items(), key=lambda item: item[0] != _ESC)
)
ESCAPE_STEPS = (*_RARE_STEPS, *_WHITESPACE)
UNESCAPE_STEPS = (*_WHITESPACE, *reversed(_RARE_STEPS))

# Longer texts are encoded part by part: BPE slows down with length (measured on a 3 MB text: 1.2 M
# tokens/s in parts of 2**15, 0.6 M in parts of 2**20). Parts this long add 0.003 % of tokens.
MAX_ENCODE_CHARACTERS = 1 << 15
# The scores of our unigram models are multiples of this, so that float32 holds every sum of them
# over a part exactly: scores are at most about 20. Ways of cutting a text that are equally likely,
# as those of a run of spaces are, then tie in every implementation, instead of being chosen by
# the rounding of all that stands before.
SCORE_QUANTUM = 1 / 8
_PROBE = 'def f(x):\n    return  x\t# "ü" 漢字 \u2581 \U0001f600\r\n\n\n        end '


class Tokenizer:
    """A SentencePiece model: text to ids and back; decode(encode(text)) == text for our own models.

    Attributes:
      vocab_size: number of ids.
      eos_id: id that separates documents; never the result of encoding text.
      fingerprint: sha256 of the model file, hexadecimal.
      is_lossless: whether a probe text of code, unusual whitespace and rare characters is
        reproduced.
    """

    def __init__(self, model_bytes: bytes, name: str = "tokenizer"):
        """Reads a model from its bytes; `name` is for messages. Raises UserError if it is none."""
        self._processor, self.eos_id = processor(model_bytes, name)
        self.vocab_size = self._processor.vocab_size()
        self.fingerprint = hashlib.sha256(model_bytes).hexdigest()
        self._is_escaped = self._processor.id_to_piece(self.eos_id) == EOS_PIECE
        self.is_lossless = self.decode(self.encode(_PROBE)) == _PROBE
        if not self.is_lossless:
            logging.warning(
                "%s does not reproduce every text exactly (it normalizes, or drops whitespace or "
                "rare characters): bits per byte will count bytes that its tokens do not hold.",
                name,
            )

    @classmethod
    def load(cls, path: epath.PathLike) -> "Tokenizer":
        """Reads any SentencePiece .model file. Raises UserError if it is missing or unusable."""
        path = epath.Path(path)
        if not path.is_file():
            raise errors.UserError(f"There is no tokenizer model at {path}.")
        return cls(path.read_bytes(), name=str(path))

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [num_tokens], no EOS. Raises UserError on a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
        """Ids of each text, int32 [num_tokens] each, by `num_threads` SentencePiece threads."""
        parts, num_parts = [], []
        for text in texts:
            cuts = list(_encodable_parts(text))
            parts.extend(self.escaped(part) for part in cuts)
            num_parts.append(len(cuts))
        try:
            ids = self._processor.encode(parts, num_threads=num_threads)
        except TypeError as error:  # SentencePiece's error for a lone surrogate or a non-string
            raise errors.UserError(
                "A text holds a lone surrogate, which UTF-8 cannot write, or is not a string."
            ) from error
        arrays = [np.asarray(part_ids, np.int32) for part_ids in ids]
        if len(arrays) == len(texts):
            return arrays
        joined, start = [], 0
        for count in num_parts:
            joined.append(np.concatenate(arrays[start : start + count]))
            start += count
        return joined

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`, each below vocab_size; EOS gives no text."""
        ids = [int(token_id) for token_id in ids]
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise errors.UserError(
                    f"Token id {token_id} is outside the vocabulary of {self.vocab_size}."
                )
        return self._unescape(self._processor.decode(ids))

    def piece(self, token_id: int) -> str:
        """The text of one id, readable: a space is a space, a byte is <0x..>, EOS is its name."""
        return self._unescape(self._processor.id_to_piece(int(token_id)).replace("\u2581", " "))

    def escaped(self, text: str) -> str:
        """The text as SentencePiece receives it: escaped for our models, unchanged for others."""
        return escape(text) if self._is_escaped else text

    def _unescape(self, text: str) -> str:
        return unescape(text) if self._is_escaped else text


def vocabulary(path: epath.Path) -> tuple[int, int]:
    """(vocab_size, eos_id) of a model file. Raises UserError if it is unusable."""
    model, eos_id = processor(path.read_bytes(), str(path))
    return model.vocab_size(), eos_id


def processor(model_bytes: bytes, name: str) -> tuple[sentencepiece.SentencePieceProcessor, int]:
    """A model, and the id that separates documents. Raises UserError if it is unusable."""
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
    except RuntimeError as error:
        raise errors.UserError(
            f"{name} ({len(model_bytes)} bytes) is not a SentencePiece model: "
            f"{sentencepiece_message(error)}"
        ) from error
    eos_id = model.eos_id() if model.eos_id() >= 0 else model.bos_id()
    if eos_id < 0:
        raise errors.UserError(
            f"{name} has neither an EOS nor a BOS id, and one of them must separate documents: "
            "train it again with eos_id, or let keel_jax.prepare train one (leave out "
            "--tokenizer)."
        )
    return model, eos_id


def escape(text: str) -> str:
    """The text with the characters replaced that SentencePiece does not reproduce."""
    if _RARE_PATTERN.search(text):
        text = _RARE_PATTERN.sub(lambda match: _ESC + _RARE[match.group()], text)
    for character, stand_in in _WHITESPACE:
        text = text.replace(character, stand_in)
    return text


def unescape(text: str) -> str:
    """Undoes `escape`."""
    for character, stand_in in _WHITESPACE:
        text = text.replace(stand_in, character)
    if _ESC in text:
        # A model may generate half of an escape sequence, which is left as it is.
        text = _ESCAPED_PATTERN.sub(lambda match: _UNESCAPED[match.group(1)], text)
    return text


def _encodable_parts(text: str) -> Iterable[str]:
    """Cuts a very long text into parts, after a newline where there is one."""
    start = 0
    while len(text) - start > MAX_ENCODE_CHARACTERS:
        stop = start + MAX_ENCODE_CHARACTERS
        stop = text.rfind("\n", start, stop) + 1 or stop
        yield text[start:stop]
        start = stop
    yield text[start:] if start else text


def sentencepiece_message(error: RuntimeError) -> str:
    """SentencePiece's message without its source location and failed condition."""
    return re.sub(r"^.*?\.cc\(\d+\) (\[.*?\] )?", "", str(error)).strip() or "no reason given."
