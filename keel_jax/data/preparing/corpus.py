"""The text corpus of a preparation: its files, cut into work units, and their documents."""

import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from keel_jax import errors
from keel_jax.data.preparing import documents, embedded, formats

EMBEDDED = "embedded"
INPUT_FORMATS = ("auto", *formats.READERS)

# Work units are as small as possible while their number stays near 1024: few enough files to open
# at once, and enough to divide among workers and hosts.
_MIN_UNIT_BYTES = 1 << 20
_TARGET_NUM_UNITS = 1024

_FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
    ".array_record": "array_record",
    ".arrayrecord": "array_record",
}


@dataclasses.dataclass(frozen=True)
class WorkUnit:
    """A piece of the input that one worker reads from beginning to end; it becomes one shard.

    Attributes:
      format: key of `formats.READERS`.
      paths: files, one except for runs of small text files.
      start, stop: the range inside the file: bytes (JSONL), row groups (Parquet), records
        (ArrayRecord); 0 and -1 for whole files.
      num_bytes: size on disk, for progress.
      digest: identifies the content by what the file system says of it: paths, sizes and
        modification times; for the embedded corpus by relative paths and contents.
    """

    format: str
    paths: tuple[str, ...]
    start: int
    stop: int
    num_bytes: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """An input cut into units: `digest` identifies them all, `description` goes into the index."""

    units: tuple[WorkUnit, ...]
    num_bytes: int
    digest: str
    description: dict[str, Any]


def discover(inputs: Sequence[str], *, input_format: str = "auto", unit_bytes: int = 0) -> Corpus:
    """Finds the files of `inputs` and cuts them into work units, the same way on every host.

    Args:
      inputs: globs (`**` descends into directories), or the one word 'embedded'.
      input_format: 'auto' goes by file name (a name that is not known means text, one document per
        file); or one of `formats.READERS` for all files.
      unit_bytes: target size of a unit; 0 chooses by the size of the input.

    Raises:
      UserError: a glob that matches no file, an unknown format, or only empty files.
    """
    if input_format not in INPUT_FORMATS:
        raise errors.UserError(
            f"Input format {input_format!r} is unknown; choose one of {INPUT_FORMATS}."
        )
    if not inputs:
        raise errors.UserError(
            "There is no input: give a glob, such as 'texts/**/*.txt', or 'embedded'."
        )
    if EMBEDDED in inputs:
        if len(inputs) > 1:
            raise errors.UserError(
                f"'embedded' stands alone, but the inputs are {list(inputs)}: prepare it into a "
                "directory of its own and mix the two in training; a file of that name is written "
                "'./embedded'."
            )
        files = [
            _File(item.path, item.num_bytes, f"{item.relative_path}:{item.sha256}", "text")
            for item in embedded.source_files()
        ]
        description = {
            "name": EMBEDDED,
            "package": f"{embedded.PACKAGE} {embedded.VERSION}",
            "license": embedded.LICENSE,
            "digest": embedded.DIGEST,
        }
    else:
        files = _match_files(inputs, input_format)
        description = {"name": "files"}
    num_bytes = sum(file.num_bytes for file in files)
    if not num_bytes:
        raise errors.UserError(
            f"The corpus is empty: the {len(files)} files of {list(inputs)} hold 0 bytes."
        )
    unit_bytes = unit_bytes or max(_MIN_UNIT_BYTES, num_bytes // _TARGET_NUM_UNITS)
    units = tuple(_cut(files, unit_bytes))
    return Corpus(
        units=units,
        num_bytes=num_bytes,
        digest=_digest([unit.digest for unit in units]),
        description=description | {"num_files": len(files), "num_bytes": num_bytes},
    )


def read_documents(
    unit: WorkUnit, tally: documents.Tally, *, text_field: str = "text"
) -> Iterator[documents.Document]:
    """The documents of a unit in order; bad and empty ones are left out and counted in `tally`.

    Raises:
      UserError: a file that is not of its format, or has no column for the text.
    """
    reader = formats.READERS[unit.format]
    for path in unit.paths:
        try:
            yield from reader(path, unit.start, unit.stop, tally, text_field)
        except FileNotFoundError as error:
            raise errors.UserError(f"{path} was removed after the preparation began.") from error


def is_validation(document: documents.Document, validation_fraction: float) -> bool:
    """Whether a document belongs to the validation split; only its content's hash decides."""
    content = document.text if not document.prompt else f"{document.prompt}\0{document.text}"
    digest = hashlib.sha256(content.encode()).digest()
    return int.from_bytes(digest[:8], "big") < validation_fraction * 2**64


def sample_training_texts(
    corpus: Corpus, *, num_bytes: int, validation_fraction: float, text_field: str = "text"
) -> Iterator[str]:
    """Texts of training documents, about `num_bytes` in all, the same ones on every machine.

    If the corpus is larger than that, each unit gives at most 1/64 of the sample (or 1 MiB), in an
    order fixed by the units' digests, so that the sample does not come from a single file.
    """
    unit_limit = num_bytes if corpus.num_bytes <= num_bytes else max(num_bytes // 64, 1 << 20)
    remaining = num_bytes
    for unit in sorted(corpus.units, key=lambda unit: unit.digest):
        unit_remaining = min(unit_limit, remaining)
        # Bad documents are reported when the unit is tokenized, not here.
        for document in read_documents(unit, documents.Tally(), text_field=text_field):
            if is_validation(document, validation_fraction):
                continue
            for text, _ in document.parts():
                yield text
                unit_remaining -= len(text.encode())
                remaining -= len(text.encode())
            if unit_remaining <= 0:
                break
        if remaining <= 0:
            return


@dataclasses.dataclass(frozen=True)
class _File:
    """A file of the input; `identity` stands for its content in digests."""

    path: str
    num_bytes: int
    identity: str
    format: str


def _match_files(patterns: Sequence[str], input_format: str) -> list[_File]:
    paths = set()
    for pattern in patterns:
        matches = [path for path in _glob(pattern) if not epath.Path(path).is_dir()]
        if not matches:
            hint = (
                f": it is a directory, give '{pattern}/**'" if epath.Path(pattern).is_dir() else ""
            )
            raise errors.UserError(f"The input {pattern!r} matches no file{hint}.")
        paths.update(matches)
    files = []
    for path in sorted(paths):
        num_bytes, modified = _size_and_modification(path)
        files.append(
            _File(
                path=path,
                num_bytes=num_bytes,
                identity=f"{path}:{num_bytes}:{modified}",
                format=_format(path) if input_format == "auto" else input_format,
            )
        )
    return files


def _glob(pattern: str) -> list[str]:
    if "://" not in pattern:
        return glob.glob(os.path.abspath(os.path.expanduser(pattern)), recursive=True)
    scheme, _, rest = pattern.partition("://")
    parts = rest.split("/")
    first_wild = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    base = epath.Path(f"{scheme}://" + "/".join(parts[:first_wild]))
    return [os.fspath(path) for path in base.glob("/".join(parts[first_wild:]))]


def _size_and_modification(path: str) -> tuple[int, int]:
    if "://" in path:
        stat = epath.Path(path).stat()
        return stat.length, stat.mtime
    stat = os.stat(path)  # epath's has whole seconds only: two quick edits would look like one
    return stat.st_size, stat.st_mtime_ns


def _format(path: str) -> str:
    name = os.path.basename(path).lower()
    for suffix, name_format in _FORMAT_OF_SUFFIX.items():
        if name.endswith(suffix):
            return name_format
    return "text"


def _cut(files: Sequence[_File], unit_bytes: int) -> Iterator[WorkUnit]:
    """Units: runs of small text files, and ranges of single files of the other formats."""
    run: list[_File] = []
    for file in files:
        if file.format == "text":
            if run and sum(f.num_bytes for f in run) + file.num_bytes > unit_bytes:
                yield _unit(run)
                run = []
            run.append(file)
            continue
        if run:
            yield _unit(run)
            run = []
        for start, stop, num_bytes in formats.ranges(
            file.format, file.path, file.num_bytes, unit_bytes
        ):
            yield _unit([file], start, stop, num_bytes)
    if run:
        yield _unit(run)


def _unit(files: Sequence[_File], start: int = 0, stop: int = -1, num_bytes: int = -1) -> WorkUnit:
    return WorkUnit(
        format=files[0].format,
        paths=tuple(file.path for file in files),
        start=start,
        stop=stop,
        num_bytes=sum(file.num_bytes for file in files) if num_bytes < 0 else num_bytes,
        digest=_digest([files[0].format, start, stop, *(file.identity for file in files)]),
    )


def _digest(values: Sequence) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
