"""SentencePiece tokenizers that give back every text exactly, whitespace and odd characters too."""

import collections
import hashlib
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from absl import logging
from etils import epath

from keel_jax import errors

MODEL_TYPES = ("bpe", "unigram")

# A tokenizer that `train` made names its end-of-sequence piece so; `Tokenizer` then knows that its
# texts pass through `_escape`. A user's model has another name there and is used as it is.
EOS_PIECE = "<keel_eos_1>"
UNK_ID, EOS_ID = 0, 1
NUM_BASE_PIECES = 2 + 256  # unk, EOS and one piece for each byte value

# SentencePiece breaks three things, and an escape before it (undone after it) mends them:
# - its trainer strips newlines and cuts pieces at tabs, so newline + indentation, the commonest
#   "word" of source code, could never become one piece: '\n', '\t', '\r' travel as the ASCII
#   separators RS, US, GS (one byte each; str.replace on them costs nothing);
# - it writes a space as U+2581, so a U+2581 of the text itself would come back as a space: it
#   travels as ESC + letter;
# - so do the few characters that the escape itself uses.
_WHITESPACE = (("\n", "\x1e"), ("\t", "\x1f"), ("\r", "\x1d"))
_ESC = "\x1b"
_RARE = {"\u2581": "a", "\x1b": "b", "\x1d": "c", "\x1e": "d", "\x1f": "e"}
_RARE_PATTERN = re.compile("[" + "".join(_RARE) + "]")
_ESCAPED_PATTERN = re.compile(_ESC + "([" + "".join(_RARE.values()) + "])")
_UNESCAPED = {letter: character for character, letter in _RARE.items()}

# The words inside which pieces may grow. Together the alternatives match every character once.
# A line's closing punctuation, its newline, the next line's indentation and its first word are one
# word: on Python source this gives 3.84 bytes/token at 4096 pieces, where pieces cut at whitespace
# give 3.37 (measured: stdlib of Python 3.11). All repeats are bounded: no pattern is quadratic.
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
# The same number on every machine: unigram training sums floats thread by thread.
_NUM_TRAINING_THREADS = 4
# Longer texts are encoded part by part: BPE slows down with length (measured on a 3 MB text: 1.2 M
# tokens/s in parts of 2**15, 0.6 M in parts of 2**20), and parts this long add 0.003 % of tokens.
_MAX_ENCODE_CHARACTERS = 1 << 15
_PROBE = 'def f(x):\n    return  x\t# "ü" 漢字 \u2581 \U0001f600\r\n\n\n        end '


def train(
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
      vocab_size: number of ids, all included: 2 special ones, 256 bytes, characters, pieces.
      model_type: 'bpe' or 'unigram'.
      character_coverage: share of the text's characters that get a piece of their own; the rest are
        spelt in bytes. 0.9995 is SentencePiece's own default.
      max_piece_characters: longest piece.

    Returns:
      The fingerprint: sha256 of the model file, hexadecimal.

    Raises:
      UserError: no text, an unknown model type, or a vocabulary that the text cannot fill or that
        cannot hold its characters.
    """
    if model_type not in MODEL_TYPES:
        raise errors.UserError(
            f"Tokenizer type {model_type!r} is unknown; choose one of {MODEL_TYPES}."
        )
    word_counts = collections.Counter()
    for text in texts:
        word_counts.update(_WORD_PATTERN.findall(text))
    if not word_counts:
        raise errors.UserError("There is no text to train a tokenizer on: every document is empty.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_word_lines(word_counts),
            input_format="tsv",  # word, tab, how often it occurs: distinct words are few
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            required_chars="\x1e\x1f",  # newline and tab: as bytes they could not grow
            max_sentencepiece_length=max_piece_characters,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            # _WORD_PATTERN has cut already, and better for code.
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_by_number=False,
            unk_id=UNK_ID,
            eos_id=EOS_ID,
            eos_piece=EOS_PIECE,
            bos_id=-1,
            pad_id=-1,
            num_threads=_NUM_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise errors.UserError(
            f"SentencePiece cannot make a vocabulary of {vocab_size} pieces from this text of"
            f" {len(word_counts)} distinct words: {_reason(error)} Choose another --vocab_size (at"
            f" least {NUM_BASE_PIECES} and the characters of the text), or give more text."
        ) from error
    model_bytes = model.getvalue()
    epath.Path(output_path).write_bytes(model_bytes)
    return hashlib.sha256(model_bytes).hexdigest()


class Tokenizer:
    """A SentencePiece model: text to ids and back; decode(encode(text)) == text for our own models.

    Attributes:
      vocab_size: number of ids.
      eos_id: id that separates documents; never the result of encoding text.
      fingerprint: sha256 of the model file, hexadecimal.
      is_lossless: whether a probe text of code, odd whitespace and rare characters came back.
    """

    def __init__(self, model_bytes: bytes, name: str = "tokenizer"):
        """Reads a model from its bytes; `name` is for messages. Raises ValueError if it is none."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise errors.UserError(
                f"{name} ({len(model_bytes)} bytes) is not a SentencePiece model: {_reason(error)}"
            ) from error
        self.vocab_size = self._processor.vocab_size()
        self.fingerprint = hashlib.sha256(model_bytes).hexdigest()
        self.eos_id = self._processor.eos_id()
        if self.eos_id < 0:
            self.eos_id = self._processor.bos_id()
        if self.eos_id < 0:
            raise errors.UserError(
                f"{name} has neither an EOS nor a BOS id, and one of them must separate documents: "
                "train it again with eos_id, or let keel_jax.prepare train one (leave out "
                "--tokenizer)."
            )
        self._is_escaped = self._processor.id_to_piece(self.eos_id) == EOS_PIECE
        self.is_lossless = self.decode(self.encode(_PROBE)) == _PROBE
        if not self.is_lossless:
            logging.warning(
                "%s does not give back every text exactly (it normalizes, or drops whitespace or "
                "rare characters): bits per byte will count bytes that its tokens do not hold.",
                name,
            )

    @classmethod
    def load(cls, path: epath.PathLike) -> "Tokenizer":
        """Reads a .model file, ours or another's. Raises ValueError if missing or unusable."""
        path = epath.Path(path)
        if not path.is_file():
            raise errors.UserError(f"There is no tokenizer model at {path}.")
        return cls(path.read_bytes(), name=str(path))

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [num_tokens], no EOS. Raises ValueError on a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
        """Ids of each text, int32 [num_tokens] each; `num_threads` threads of SentencePiece."""
        parts, num_parts = [], []
        for text in texts:
            cuts = list(_encodable_parts(text))
            parts.extend(self.escaped(part) for part in cuts)
            num_parts.append(len(cuts))
        try:
            ids = self._processor.encode(parts, num_threads=num_threads)
        except TypeError as error:  # what SentencePiece says of a lone surrogate, and of no string
            raise errors.UserError(
                "A text holds a lone surrogate, or is no string: not UTF-8."
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
        """Text of `ids`, any sequence of integers below vocab_size; EOS gives nothing."""
        ids = [int(token_id) for token_id in ids]
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise errors.UserError(
                    f"Token id {token_id} is outside the vocabulary of {self.vocab_size}."
                )
        return self._unescape(self._processor.decode(ids))

    def piece(self, token_id: int) -> str:
        """The text of one id for people: a space is a space, a byte is <0x..>, EOS its name."""
        return self._unescape(self._processor.id_to_piece(int(token_id)).replace("\u2581", " "))

    def escaped(self, text: str) -> str:
        """The text as SentencePiece sees it: for our models escaped, for others as it is."""
        return _escape(text) if self._is_escaped else text

    def _unescape(self, text: str) -> str:
        return _unescape(text) if self._is_escaped else text


def _escape(text: str) -> str:
    if _RARE_PATTERN.search(text):
        text = _RARE_PATTERN.sub(lambda match: _ESC + _RARE[match.group()], text)
    for character, stand_in in _WHITESPACE:
        text = text.replace(character, stand_in)
    return text


def _unescape(text: str) -> str:
    for character, stand_in in _WHITESPACE:
        text = text.replace(stand_in, character)
    if _ESC in text:
        # A model may sample half an escape: what is not one stays as it is.
        text = _ESCAPED_PATTERN.sub(lambda match: _UNESCAPED[match.group(1)], text)
    return text


def _encodable_parts(text: str) -> Iterable[str]:
    """Cuts a very long text, after a newline where there is one."""
    start = 0
    while len(text) - start > _MAX_ENCODE_CHARACTERS:
        stop = start + _MAX_ENCODE_CHARACTERS
        stop = text.rfind("\n", start, stop) + 1 or stop
        yield text[start:stop]
        start = stop
    yield text[start:] if start else text


def _word_lines(word_counts: collections.Counter) -> Iterable[str]:
    """The trainer's input, one `word TAB count` a line, in an order that only the counts decide."""
    for word, count in sorted(word_counts.items(), key=lambda item: (-item[1], item[0])):
        if not any(character in word for character in _UNTRAINABLE):
            yield f"{_escape(word)}\t{count}"


def _reason(error: RuntimeError) -> str:
    """SentencePiece's message without its source location and failed condition."""
    return re.sub(r"^.*?\.cc\(\d+\) (\[.*?\] )?", "", str(error)).strip() or "no reason given."
