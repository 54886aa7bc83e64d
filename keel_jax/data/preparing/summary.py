"""What a preparation reports: its progress after each unit, and its outcome."""

import dataclasses
from typing import TypedDict

from keel_jax.data import shards
from keel_jax.data.preparing import documents


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far this host is with its own units, those finished by an earlier run included."""

    num_units: int
    num_units_done: int
    num_bytes: int
    num_bytes_done: int
    num_tokens_done: int
    num_new_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens made by this run per second of tokenizing."""
        return self.num_new_tokens / self.seconds if self.seconds else 0.0


class SplitSummary(TypedDict):
    """The figures of one split."""

    num_tokens: int
    num_documents: int
    num_bytes: int
    unigram_entropy_bits_per_byte: float
    num_padding_tokens: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcome; `state` is "done", "already done", or "share done" while other hosts work."""

    output: str
    state: str
    num_documents: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    bytes_per_token: float = 0.0
    vocab_size: int = 0
    num_bad_documents: int = 0
    bad_examples: tuple[str, ...] = ()
    bad_kinds: dict[str, documents.KindCount] = dataclasses.field(default_factory=dict)
    num_empty_documents: int = 0
    # Of a packed set: the length of its windows, the documents that are longer, and whether these
    # were cut.
    pack_tokens: int = 0
    num_long_documents: int = 0
    are_long_cut: bool = False
    num_units: int = 0
    num_units_reused: int = 0
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    splits: dict[str, SplitSummary] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""


def summarize(
    token_set: shards.TokenSet,
    *,
    state: str,
    num_units: int,
    num_units_reused: int,
    tokens_per_second: float = 0.0,
) -> Summary:
    """The summary of a finished set, its `seconds` still 0; the arguments are passed on."""
    splits = [token_set.split(name) for name in token_set.split_names]
    num_bytes = sum(split.num_bytes for split in splits)
    num_tokens = sum(split.num_tokens for split in splits)
    return Summary(
        output=str(token_set.path),
        state=state,
        num_documents=sum(split.num_documents for split in splits),
        num_bytes=num_bytes,
        num_tokens=num_tokens,
        bytes_per_token=num_bytes / num_tokens,
        vocab_size=token_set.vocab_size,
        num_bad_documents=token_set.index["num_bad_documents"],
        bad_examples=tuple(token_set.index["bad_examples"]),
        bad_kinds=token_set.index.get("bad_kinds", {}),
        num_empty_documents=token_set.index["num_empty_documents"],
        pack_tokens=token_set.pack_tokens,
        num_long_documents=token_set.index.get("num_long_documents", 0),
        are_long_cut=token_set.index["settings"].get("long_documents") == "cut",
        num_units=num_units,
        num_units_reused=num_units_reused,
        tokens_per_second=tokens_per_second,
        splits={
            split.name: {
                "num_tokens": split.num_tokens,
                "num_documents": split.num_documents,
                "num_bytes": split.num_bytes,
                "unigram_entropy_bits_per_byte": split.unigram_entropy_bits_per_byte,
                "num_padding_tokens": split.num_padding_tokens,
            }
            for split in splits
        },
        fingerprint=token_set.fingerprint,
    )
