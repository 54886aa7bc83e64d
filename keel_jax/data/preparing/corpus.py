"""The text corpus of a preparation: its files, cut into work units, and their documents."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from keel_jax import errors
from keel_jax.data.preparing import documents, embedded, formats, input_files, records

EMBEDDED = "embedded"
INPUT_FORMATS = ("auto", *formats.READERS)

# Work units are as small as possible while their number stays near 1024: few enough files to open
# at once, and enough to divide among workers and hosts.
_MIN_UNIT_BYTES = 1 << 20
_TARGET_NUM_UNITS = 1024
_TEXT = records.Layout()


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
      inputs: paths, or globs (`**` descends into directories), or the one word 'embedded'.
      input_format: 'auto' goes by file name and asks where a name says nothing; or one of
        `formats.READERS` for all files.
      unit_bytes: target size of a unit; 0 chooses by the size of the input.

    Raises:
      UserError: a glob that matches no file, an unknown format, a file of another one than its
        name says, or only empty files.
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
            input_files.InputFile(
                item.path, item.num_bytes, f"{item.relative_path}:{item.sha256}", "text"
            )
            for item in embedded.source_files()
        ]
        description = {
            "name": EMBEDDED,
            "package": f"{embedded.PACKAGE} {embedded.VERSION}",
            "license": embedded.LICENSE,
            "digest": embedded.DIGEST,
        }
    else:
        files = input_files.find(inputs, input_format)
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
    unit: WorkUnit, tally: documents.Tally, layout: records.Layout = _TEXT
) -> Iterator[documents.Document]:
    """The documents of a unit in order; bad and empty ones are left out and counted in `tally`.

    Raises:
      UserError: a file that is not of its format, or has no column for the text.
    """
    reader = formats.READERS[unit.format]
    for path in unit.paths:
        try:
            yield from reader(path, unit.start, unit.stop, tally, layout)
        except FileNotFoundError as error:
            raise errors.UserError(f"{path} was removed after the preparation began.") from error


def is_validation(document: documents.Document, validation_fraction: float) -> bool:
    """Whether a document belongs to the validation split: its content's, or its group's, hash."""
    content = document.text if not document.prompt else f"{document.prompt}\0{document.text}"
    content = document.group or content
    digest = hashlib.sha256(content.encode()).digest()
    return int.from_bytes(digest[:8], "big") < validation_fraction * 2**64


def sample_training_texts(
    corpus: Corpus,
    *,
    num_bytes: int,
    validation_fraction: float,
    layout: records.Layout = _TEXT,
    tally: documents.Tally | None = None,
) -> Iterator[str]:
    """Texts of training documents, about `num_bytes` in all, the same ones on every machine.

    What is left out on the way is counted in `tally`: bad and empty documents, and those held out.
    If the corpus is larger than that, each unit gives at most 1/64 of the sample (or 1 MiB), in an
    order fixed by the units' digests, so that the sample does not come from a single file.
    """
    unit_limit = num_bytes if corpus.num_bytes <= num_bytes else max(num_bytes // 64, 1 << 20)
    remaining = num_bytes
    tally = tally or documents.Tally()
    for unit in sorted(corpus.units, key=lambda unit: unit.digest):
        unit_remaining = min(unit_limit, remaining)
        for document in read_documents(unit, tally, layout):
            if is_validation(document, validation_fraction):
                tally.num_held_out += 1
                continue
            for text, _ in document.parts():
                yield text
                unit_remaining -= len(text.encode())
                remaining -= len(text.encode())
            if unit_remaining <= 0:
                break
        if remaining <= 0:
            return


def _cut(files: Sequence[input_files.InputFile], unit_bytes: int) -> Iterator[WorkUnit]:
    """Units: runs of small text files, and ranges of single files of the other formats."""
    run: list[input_files.InputFile] = []
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


def _unit(
    files: Sequence[input_files.InputFile], start: int = 0, stop: int = -1, num_bytes: int = -1
) -> WorkUnit:
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
