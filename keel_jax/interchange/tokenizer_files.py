"""The tokenizer's files of an exported folder, compared with SentencePiece before they are used."""

import dataclasses
import json

from absl import logging

from keel_jax import errors
from keel_jax.data import tokenizer as tokenizer_lib
from keel_jax.interchange import tokenizer_json

# Texts in which implementations are known to differ, besides every piece by itself.
_PROBES = (
    "",
    " ",
    "  a   b ",
    "def f(x):\n    return  x\t# y\r\n\n\n        end ",
    "\u2581a \u2581\u2581",
    "\x00\x1b\x1ba\x1c\x1d\x1e\x1f\x7f",
    "<0x0A><unk><s></s><keel_eos_1>",
    "e\u0301\u00e9\ufb01\u3000\u00a0\u200b\u2028\ufeff\ufffd",
    "漢字かな 한글 العربية 👩\u200d👧 \U0010ffff",
    "=" * 37 + " " * 53 + "\n" * 7 + "-" * 11,
)


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """Contents by file name."""

    files: dict[str, bytes]
    # What a reader should know; often nothing.
    notes: tuple[str, ...]


def check_installed() -> None:
    """Checks that the package that reads tokenizer.json is there.

    Raises:
      UserError: it is not.
    """
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise errors.UserError(
            "The export compares its tokenizer.json with the tokenizer, and needs the package "
            "tokenizers for that: pip install 'keel_jax[hf]'."
        ) from error


def make(model_bytes: bytes, seq_len: int) -> TokenizerFiles:
    """tokenizer.model, and what transformers reads: tokenizer.json and its configuration.

    A tokenizer that cannot be said in a tokenizer.json, or whose ids are others there, has only
    the first, and a note says why.

    Args:
      model_bytes: of a SentencePiece model.
      seq_len: of the model's training.
    """
    files = {"tokenizer.model": model_bytes}
    try:
        converted = tokenizer_json.convert(model_bytes)
        content = tokenizer_json.to_bytes(converted.content)
        _compare(model_bytes, content)
    except tokenizer_json.Unsupported as error:
        note = (
            f"There is no tokenizer.json, as the tokenizer cannot be written as one: {error}. Use "
            "tokenizer.model with the package sentencepiece."
        )
        return TokenizerFiles(files, (note,))
    eos, unk = converted.eos_piece, converted.unk_piece
    special = {"bos_token": eos, "eos_token": eos, "pad_token": eos, "unk_token": unk}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "model_max_length": seq_len,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        # "<keel_eos_1>" in a text is no end of a text.
        "split_special_tokens": True,
    }
    files |= {
        "tokenizer.json": content,
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json(special),
    }
    inexact = (
        "tokenizer.json gives the ids of tokenizer.model except where several ways of cutting a "
        "text are equally likely, as in runs of spaces: there SentencePiece's float32 decides. "
        "tokenizer.model is what the model was trained with.",
    )
    return TokenizerFiles(files, () if converted.is_exact else inexact)


def _compare(model_bytes: bytes, content: bytes) -> None:
    """Raises Unsupported where tokenizer.json gives other ids than the tokenizer."""
    import tokenizers

    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # that it is not lossless was said before
    try:
        ours = tokenizer_lib.Tokenizer(model_bytes)
    finally:
        logging.set_verbosity(level)
    theirs = tokenizers.Tokenizer.from_str(content.decode())
    texts = [*_PROBES, *map(ours.piece, range(ours.vocab_size))]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        found = theirs.encode(text, add_special_tokens=False).ids
        if found != ids.tolist():
            raise tokenizer_json.Unsupported(f"{text!r} would be {found}, and is {ids.tolist()}")


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
