"""The options of a preparation: defaults, meaning and limits, for the API and for the flags."""

import dataclasses
import math
import typing

from etils import epath

from keel_jax import errors
from keel_jax.data import chat_template, tokenizer
from keel_jax.data.preparing import corpus, records

DEFAULT_VOCAB_SIZE = 8192
TRAIN, VALIDATION = "train", "validation"
# What becomes of an example that is longer than a window.
LEAVE_OUT, CUT = "leave_out", "cut"
LONG_DOCUMENTS = (LEAVE_OUT, CUT)


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """The options that decide a work unit's tokens, together with its text and the tokenizer."""

    validation_fraction: float
    text_field: str
    chat_template: str = chat_template.NONE
    # 0: documents follow one another and are not packed.
    pack_tokens: int = 0
    long_documents: str = LEAVE_OUT

    def to_json(self) -> dict[str, str | int | float]:
        """The settings, without those of a later version that are at their defaults.

        So a directory that was prepared before there were these options still belongs to its plan.
        The template is there with its digest: another text under its name is another setting.
        """
        values: dict[str, str | int | float] = {
            "validation_fraction": self.validation_fraction,
            "text_field": self.text_field,
        }
        if template := self.layout.template:
            values |= {"chat_template": template.name, "chat_template_digest": template.digest}
        if self.pack_tokens:
            values |= {"pack_tokens": self.pack_tokens, "long_documents": self.long_documents}
        return values

    @property
    def layout(self) -> records.Layout:
        """How a record of the input is read."""
        return records.Layout(self.text_field, chat_template.by_name(self.chat_template))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are written."""
        return (TRAIN, VALIDATION) if self.validation_fraction > 0 else (TRAIN,)


def _option(
    default: typing.Any, help_text: str, *, flag: str = "", choices: tuple[str, ...] = ()
) -> typing.Any:
    """A field with its help; `flag` is the flag's name where it is not the field's."""
    metadata = {"help": help_text, "flag": flag, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparationOptions:
    """How a corpus becomes a token set; `keel_jax.prepare` has one flag for each field.

    Raises:
        UserError: a value outside its limits, or two options that exclude each other.
    """

    vocab_size: int | None = _option(
        None, f"Number of ids of the tokenizer to train [{DEFAULT_VOCAB_SIZE}]."
    )
    tokenizer_type: str = _option(
        "bpe", "Kind of tokenizer to train.", choices=tokenizer.MODEL_TYPES
    )
    tokenizer_model: epath.PathLike = _option(
        "", "SentencePiece model to use unchanged; empty trains one.", flag="tokenizer"
    )
    tokenizer_sample_bytes: int = _option(
        50_000_000, "The tokenizer is trained on about this many bytes of text at most."
    )
    validation_fraction: float = _option(
        0.02, "Fraction of the documents held out, chosen by content hash; 0 for none."
    )
    text_field: str = _option(
        "text", "JSON field or column that holds a document's text; a.b is the field b of a."
    )
    input_format: str = _option(
        "auto",
        "Format of all input files; auto goes by each file's name, and asks where it says nothing.",
        choices=corpus.INPUT_FORMATS,
    )
    chat_template: str = _option(
        chat_template.NONE,
        "Read conversations (prompt and response, instruction and output, messages) and write them "
        "in this form; none: texts, and prompts and responses as they are.",
        choices=chat_template.NAMES,
    )
    pack_tokens: int = _option(
        0,
        "Pack whole documents into windows of this many tokens, the train.seq_len of the runs that "
        "will read them; 0: documents follow one another, and windows cut through them.",
    )
    long_documents: str = _option(
        LEAVE_OUT,
        "What becomes of a document longer than a window; both are counted.",
        choices=LONG_DOCUMENTS,
    )
    unit_bytes: int = _option(0, "Bytes of input per shard; 0 chooses by the size of the input.")
    max_bad_documents: int = _option(
        100, "Undecodable or malformed documents that are tolerated; one more is an error."
    )
    num_workers: int = _option(1, "Processes that tokenize; 1 works in this one.", flag="workers")
    overwrite: bool = _option(
        False, "Redo a directory that was prepared from other input or with other options."
    )
    host_index: int = _option(0, "Index of this host, from 0; it makes every host_count-th shard.")
    host_count: int = _option(1, "Number of hosts that share one output directory.")
    host_wait_seconds: float = _option(
        3600.0, "Seconds that hosts other than 0 wait for host 0's tokenizer."
    )

    def __post_init__(self):
        if not 0 <= self.validation_fraction < 1:
            raise errors.UserError(
                f"The validation fraction is {self.validation_fraction}; it must be at least 0 and "
                "below 1."
            )
        if self.vocab_size is not None and self.vocab_size < tokenizer.NUM_BASE_PIECES:
            raise errors.UserError(
                f"A vocabulary of {self.vocab_size} pieces is too small: it needs at least "
                f"{tokenizer.NUM_BASE_PIECES}, one for each byte and two special ones, and the "
                "characters of the text."
            )
        if self.tokenizer_sample_bytes < 1:
            raise errors.UserError(
                f"A tokenizer cannot be trained on {self.tokenizer_sample_bytes} bytes; give 1 or "
                "more."
            )
        if self.max_bad_documents < 0:
            raise errors.UserError(
                f"The number of bad documents cannot be at most {self.max_bad_documents}; give 0 "
                "or more."
            )
        if not self.text_field:
            raise errors.UserError(
                "The text field is empty; give the name of the JSON field or column that holds a "
                "document's text."
            )
        if self.pack_tokens < 0 or self.pack_tokens == 1:
            raise errors.UserError(
                f"Windows of {self.pack_tokens} tokens hold no document and its EOS; give 2 or "
                "more, or 0 for no packing."
            )
        if self.long_documents != LEAVE_OUT and not self.pack_tokens:
            raise errors.UserError(
                f"--long_documents={self.long_documents} has no effect without --pack_tokens: no "
                "document is too long where windows cut through them."
            )
        if self.chat_template != chat_template.NONE and self.text_field != "text":
            raise errors.UserError(
                f"--text_field={self.text_field} has no effect with --chat_template="
                f"{self.chat_template}, which reads the fields of a conversation: leave one out."
            )
        if not 0 <= self.host_wait_seconds < math.inf:
            raise errors.UserError(
                f"Hosts cannot wait for {self.host_wait_seconds} seconds; give a finite number of "
                "at least 0."
            )
        if self.unit_bytes < 0:
            raise errors.UserError(
                f"A shard cannot be made from {self.unit_bytes} bytes; give 1 or more, or 0 to "
                "choose by the size of the input."
            )
        if self.num_workers < 1:
            raise errors.UserError(
                f"{self.num_workers} workers cannot do any work; give 1 or more."
            )
        if not 0 <= self.host_index < self.host_count:
            raise errors.UserError(
                f"Host index {self.host_index} is outside the {self.host_count} hosts; give 0 to "
                f"{self.host_count - 1}."
            )
        if self.overwrite and self.host_count > 1:
            raise errors.UserError(
                f"With --overwrite, one of the {self.host_count} hosts could delete what another "
                "has just written: delete the directory yourself, then start all hosts without it."
            )
        if self.tokenizer_model and (self.vocab_size is not None or self.tokenizer_type != "bpe"):
            raise errors.UserError(
                "A vocabulary size or tokenizer type has no effect on the given tokenizer "
                f"{self.tokenizer_model}: leave them out, or leave out the tokenizer to train one."
            )

    @property
    def trained_vocab_size(self) -> int:
        """Number of ids of the tokenizer, if one is trained."""
        return DEFAULT_VOCAB_SIZE if self.vocab_size is None else self.vocab_size

    @property
    def shard_settings(self) -> ShardSettings:
        """The part of the options that decides the tokens."""
        return ShardSettings(
            self.validation_fraction,
            self.text_field,
            self.chat_template,
            self.pack_tokens,
            self.long_documents,
        )


def flag_name(field: dataclasses.Field) -> str:
    """The flag that sets a field of `PreparationOptions`."""
    return field.metadata["flag"] or field.name
