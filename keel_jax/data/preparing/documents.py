"""Documents: parsed from a line, a record or a row, or rejected with a reason and counted."""

import dataclasses
import json
from typing import Any, TypeGuard

import numpy as np

from keel_jax import errors

_MAX_EXAMPLES = 5
_MAX_WEIGHT = float(np.finfo(np.float16).max)  # weights are stored as float16


@dataclasses.dataclass(frozen=True)
class Document:
    """A document: `weight` is the loss weight of its text's tokens; its prompt's have weight 0."""

    text: str
    prompt: str = ""
    weight: float = 1.0

    def parts(self) -> tuple[tuple[str, float], ...]:
        """(text, loss weight) parts in order; each is tokenized on its own."""
        if self.prompt:
            return (self.prompt, 0.0), (self.text, self.weight)
        return ((self.text, self.weight),)


@dataclasses.dataclass
class Tally:
    """Counts the documents left out, bad or empty; the first bad ones with place and reason."""

    num_bad: int = 0
    num_empty: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)
    max_bad: int | None = None  # one more bad document is an error; None: any number is allowed

    def keep(self, document: Document | str, where: str) -> TypeGuard[Document]:
        """Whether the result of parsing is a document to keep; if not, it is counted."""
        if isinstance(document, str):
            self.add_bad(where, document)
            return False
        if not document.text:
            self.num_empty += 1
            return False
        return True

    def add_bad(self, where: str, reason: str) -> None:
        """Counts a bad document. Raises UserError if there are more than `max_bad`."""
        self.num_bad += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(f"{where}: {reason}")
        if self.max_bad is not None and self.num_bad > self.max_bad:
            raise too_many_bad(self.num_bad, self.max_bad, self.examples)


def too_many_bad(num_bad: int, max_bad: int, examples: list[str]) -> errors.UserError:
    """The error of a corpus with more bad documents than are allowed."""
    return errors.UserError(
        f"{num_bad} bad documents so far, more than --max_bad_documents={max_bad}. The first ones: "
        + "; ".join(examples)
        + ". Correct the input, or allow more: they are left out and counted."
    )


def parse_record(record: bytes, text_field: str, *, plain_text: bool) -> Document | str:
    """A document from a JSON object in UTF-8, or the reason why it is none.

    With `plain_text`, a record that is not a JSON object of a known form is the text itself.
    """
    try:
        text = record.decode()
    except UnicodeDecodeError as error:
        return describe_undecodable(error)
    if plain_text and not text.startswith("{"):
        return Document(text)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Document(text) if plain_text else f"not JSON ({error})"
    if plain_text and text_field not in values and not {"prompt", "response"} <= values.keys():
        return Document(text)
    return from_values(values, text_field)


def from_values(values: Any, text_field: str) -> Document | str:
    """A document from a JSON value or a table's row, or the reason why it is none."""
    if not isinstance(values, dict):
        return f"a JSON {type(values).__name__}, not an object"
    if text_field in values:
        document = Document(values[text_field])
    elif "prompt" in values and "response" in values:
        weight = values.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            return f"weight {weight!r} is not a number"
        if not 0 <= weight <= _MAX_WEIGHT:  # NaN fails too
            return f"weight {weight!r} is not between 0 and {_MAX_WEIGHT:.0f}"
        document = Document(values["response"], values["prompt"], float(weight))
    else:
        return f"has neither {text_field!r} nor prompt and response, but {sorted(values)[:8]}"
    for text in (document.prompt, document.text):
        if not isinstance(text, str):
            return f"its text is a {type(text).__name__}, not a string"
        try:
            text.encode()
        except UnicodeEncodeError:
            return "its text holds a lone surrogate, which UTF-8 cannot write"
    return document


def describe_undecodable(error: UnicodeDecodeError) -> str:
    """Names the first byte that is not UTF-8."""
    return f"invalid UTF-8 (byte 0x{error.object[error.start]:02x}, {error.reason})"
