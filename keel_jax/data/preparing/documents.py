"""Documents: parsed from a line, a record or a row, or rejected with a reason and counted."""

import codecs
import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, TypeGuard

import numpy as np

from keel_jax import errors

_MAX_EXAMPLES = 5
_NUM_BYTES_LOOKED_AT = 1024
UTF8_MARK = codecs.BOM_UTF8  # a byte-order mark, which is no part of the text
MISSING = object()  # where a field would be
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


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Why a record is no document: its `kind`, which is counted, and what is wrong with it."""

    kind: str
    reason: str = ""

    def __str__(self) -> str:
        return self.reason or self.kind


class KindCount(TypedDict):
    """How many bad documents are of one kind, and the first: its place and what is wrong."""

    count: int
    example: str


@dataclasses.dataclass
class Tally:
    """Counts the documents left out: bad ones by kind, empty ones, and those held out of a sample.

    The first bad ones are kept in `examples`, with place and reason.
    """

    num_bad: int = 0
    num_empty: int = 0
    num_held_out: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)
    kinds: dict[str, KindCount] = dataclasses.field(default_factory=dict)
    max_bad: int | None = None  # one more bad document is an error; None: any number is allowed

    def keep(self, document: Document | Rejection, where: str) -> TypeGuard[Document]:
        """Whether the result of parsing is a document to keep; if not, it is counted."""
        if isinstance(document, Rejection):
            self.add_bad(where, document)
            return False
        if not document.text:
            self.num_empty += 1
            return False
        return True

    def add_bad(self, where: str, rejection: Rejection) -> None:
        """Counts a bad document. Raises UserError if there are more than `max_bad`."""
        self.num_bad += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(f"{where}: {rejection}")
        example = f"{where}: {rejection.reason}" if rejection.reason else where
        self.kinds.setdefault(rejection.kind, {"count": 0, "example": example})["count"] += 1
        if self.max_bad is not None and self.num_bad > self.max_bad:
            raise too_many_bad(self.num_bad, self.max_bad, self.kinds)


def merge_kinds(all_kinds: Iterable[Mapping[str, KindCount]]) -> dict[str, KindCount]:
    """The sums of several counts by kind; the first example of each kind."""
    merged: dict[str, KindCount] = {}
    for kinds in all_kinds:
        for kind, entry in kinds.items():
            merged.setdefault(kind, {"count": 0, "example": entry["example"]})
            merged[kind]["count"] += entry["count"]
    return merged


def describe_kinds(kinds: Mapping[str, KindCount]) -> list[str]:
    """A line for each kind of bad documents, the most frequent first."""
    ordered = sorted(kinds.items(), key=lambda item: -item[1]["count"])
    return [f"{entry['count']} {kind} (such as {entry['example']})" for kind, entry in ordered]


def too_many_bad(num_bad: int, max_bad: int, kinds: Mapping[str, KindCount]) -> errors.UserError:
    """The error of a corpus with more bad documents than are allowed."""
    return errors.UserError(
        f"{num_bad} bad documents so far, more than --max_bad_documents={max_bad}: "
        + "; ".join(describe_kinds(kinds))
        + ". Correct the input, or allow more: they are left out and counted."
    )


def parse_record(record: bytes, text_field: str, *, plain_text: bool) -> Document | Rejection:
    """A document from a JSON object in UTF-8, or why it is none; a byte-order mark is left out.

    With `plain_text`, a record that is not a JSON object of a known form is the text itself.
    """
    decoded = decode(record)
    if isinstance(decoded, Rejection) or (plain_text and not decoded.startswith("{")):
        return decoded if isinstance(decoded, Rejection) else Document(decoded)
    try:
        values = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        return Document(decoded) if plain_text else Rejection("not JSON", f"not JSON ({error})")
    has_pair = {"prompt", "response"} <= values.keys() if plain_text else False
    if plain_text and look_up(values, text_field) is MISSING and not has_pair:
        return Document(decoded)
    return from_values(values, text_field)


def decode(content: bytes) -> str | Rejection:
    """UTF-8 text without its byte-order mark, or why it is none."""
    if encoding := wide_encoding(content):
        return Rejection(
            f"in {encoding}, not UTF-8",
            f"in {encoding}, not UTF-8: convert it with iconv -f {encoding} -t UTF-8",
        )
    try:
        return content.removeprefix(UTF8_MARK).decode()
    except UnicodeDecodeError as error:
        return undecodable(error)


def wide_encoding(content: bytes) -> str:
    """'UTF-16' or 'UTF-32' if the content is of one of these; else empty."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    # Without a mark: of Latin text, every other byte is 0, which is valid UTF-8.
    head = content[:_NUM_BYTES_LOOKED_AT]
    if b"\0" not in head:
        return ""
    few, many = sorted(head[offset::2].count(0) / len(head) for offset in (0, 1))
    return "UTF-16" if few < 0.05 and many > 0.4 else ""


def from_values(values: Any, text_field: str) -> Document | Rejection:
    """A document from a JSON value or a table's row, or why it is none. A null is no value."""
    if not isinstance(values, dict):
        return Rejection(f"a JSON {type(values).__name__}, not an object")
    text = look_up(values, text_field)
    if text is not MISSING:
        document = Document("" if text is None else text)
    elif "prompt" in values and "response" in values:
        prompt, response, weight = (values.get(key) for key in ("prompt", "response", "weight"))
        weight = 1.0 if weight is None else weight
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            return Rejection(
                "with a weight that is not a number", f"weight {weight!r:.40} is not a number"
            )
        if not 0 <= weight <= _MAX_WEIGHT:  # NaN fails too
            return Rejection(
                "with a weight out of range",
                f"weight {weight!r:.40} is not between 0 and {_MAX_WEIGHT:.0f}",
            )
        document = Document(
            "" if response is None else response, "" if prompt is None else prompt, float(weight)
        )
    else:
        missing = f"with neither {text_field!r} nor prompt and response"
        keys = ", ".join(map(repr, sorted(map(str, values))[:8]))
        return Rejection(missing, f"{missing}, but {keys[:200] or 'nothing'}")
    for part in (document.prompt, document.text):
        if not isinstance(part, str):
            return Rejection(f"whose text is a {type(part).__name__}, not a string")
        try:
            part.encode()
        except UnicodeEncodeError:
            return Rejection("whose text holds a lone surrogate, which UTF-8 cannot write")
    return document


def look_up(values: Mapping[str, Any], field: str) -> Any:
    """The value of `field`, MISSING if there is none; `a.b` is also the field b of the object a."""
    if field in values:
        return values[field]
    head, dot, rest = field.partition(".")
    while dot:
        if isinstance(inner := values.get(head), dict):
            found = look_up(inner, rest)
            if found is not MISSING:
                return found
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return MISSING


def undecodable(error: UnicodeDecodeError) -> Rejection:
    """Names the first byte that is not UTF-8."""
    reason = f"invalid UTF-8 (byte 0x{error.object[error.start]:02x}, {error.reason})"
    return Rejection("invalid UTF-8", reason)
