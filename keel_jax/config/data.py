"""The options of the token shards."""

import dataclasses
import re
from collections.abc import Sequence

from keel_jax import errors
from keel_jax.config import limits
from keel_jax.config.options import Change, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which token shards are read, and how."""

    # Directory written by `python -m keel_jax.prepare`; several, separated by commas, are mixed. A
    # comma in a directory's name is written with a backslash before it.
    path: str = option("", Change.NOTHING)
    # Share of each directory in `path`; empty: in proportion to their tokens.
    weights: tuple[float, ...] = option((), Change.RUN)
    # Attention stays within a document, and positions restart at its beginning.
    mask_documents: bool = option(True, Change.RUN)
    # Threads that read ahead.
    num_threads: int = option(2, Change.NOTHING)
    # Batches kept ready ahead of the step; needs threads.
    prefetch_batches: int = option(4, Change.NOTHING)
    # Before training, token shards are read once and compared with their sha256.
    verify_checksums: bool = option(True, Change.NOTHING)

    def __post_init__(self):
        if self.weights and len(self.weights) != len(self.paths):
            raise errors.UserError(
                f"data.weights has {len(self.weights)} entries, data.path names "
                f"{len(self.paths)} directories: give one weight each, or none."
            )
        for weight in self.weights:
            limits.positive("data.weights", weight)
        limits.at_least("data.num_threads", self.num_threads, 0)
        limits.at_least("data.prefetch_batches", self.prefetch_batches, 1)

    @property
    def paths(self) -> tuple[str, ...]:
        """The directories of `path`."""
        return split_paths(self.path)


def split_paths(path: str) -> tuple[str, ...]:
    """The directories that commas separate; `\\,` is a comma in a directory's name."""
    parts = (part.strip().replace("\\,", ",") for part in re.split(r"(?<!\\),", path))
    return tuple(part for part in parts if part)


def join_paths(paths: Sequence[str]) -> str:
    """The inverse of `split_paths`."""
    return ",".join(path.replace(",", "\\,") for path in paths)
