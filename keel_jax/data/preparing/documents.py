"""Documents, and those that are left out: counted by kind, with a reason."""

import codecs
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from keel_jax import errors

_MAX_EXAMPLES = 5
_NUM_BYTES_LOOKED_AT = 1024
UTF8_MARK = codecs.BOM_UTF8  # a byte-order mark, which is no part of the text


@dataclasses.dataclass(frozen=True)
class Document:
    """A document: `weight` is the loss weight of its text's tokens; its prompt's have weight 0.

    Documents of one `group` belong to one split; "": each document by itself.
    """

    text: str
    prompt: str = ""
    weight: float = 1.0
    group: str = ""

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

    def kept(self, parsed: Sequence[Document] | Rejection, where: str) -> list[Document]:
        """The documents of a record that have text; what is left out is counted."""
        if isinstance(parsed, Rejection):
            self.add_bad(where, parsed)
            return []
        kept = [document for document in parsed if document.text]
        self.num_empty += len(parsed) - len(kept)
        return kept

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


def undecodable(error: UnicodeDecodeError) -> Rejection:
    """Names the first byte that is not UTF-8."""
    reason = f"invalid UTF-8 (byte 0x{error.object[error.start]:02x}, {error.reason})"
    return Rejection("invalid UTF-8", reason)
