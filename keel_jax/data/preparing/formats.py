"""File formats: how a range of one file becomes documents; bad ones are counted and left out."""

import contextlib
import gzip
import importlib
import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from keel_jax import errors
from keel_jax.data.preparing import documents

_CHUNK_BYTES = 1 << 20
_NUM_RECORDS_AT_ONCE = 1024

Documents = Iterator[documents.Document]


def read_text(
    path: str, start: int, stop: int, tally: documents.Tally, text_field: str
) -> Documents:
    """The whole file is one document, byte for byte: no newline is translated."""
    del start, stop, text_field
    content = epath.Path(path).read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        tally.add_bad(f"{path}, line {line}", documents.describe_undecodable(error))
        return
    document = documents.Document(text)
    if tally.keep(document, path):
        yield document


def read_jsonl(
    path: str, start: int, stop: int, tally: documents.Tally, text_field: str
) -> Documents:
    """The lines that begin in [start, stop) of a file, or all lines of a compressed one."""
    with _open(path) as file:
        first_line = 1
        if start:
            # A line that `start` cuts in two belongs to the unit before; one that begins exactly at
            # `start` is ours. Skipping the rest of the line that holds start - 1 does both.
            file.seek(start - 1)
            file.readline()
            first_line = 0  # not known yet; counted only if there is something to report
        offset = begin = file.tell() if stop >= 0 else 0
        try:
            for number, line in enumerate(file):
                if 0 <= stop <= offset:
                    break
                offset += len(line)
                if not line.strip():
                    continue
                document = documents.parse_record(line, text_field, plain_text=False)
                if isinstance(document, str):
                    first_line = first_line or _line_number(path, begin)
                if tally.keep(document, f"{path}, line {first_line + number}"):
                    yield document
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise errors.UserError(f"{path} is damaged or cut short: {error}") from error


def read_parquet(
    path: str, start: int, stop: int, tally: documents.Tally, text_field: str
) -> Documents:
    """The rows of row groups [start, stop)."""
    with epath.Path(path).open("rb") as raw:
        file = _parquet_file(raw, path)
        names = file.schema_arrow.names
        if text_field in names:
            columns = [text_field]
        elif {"prompt", "response"} <= set(names):
            columns = ["prompt", "response"] + ["weight"] * ("weight" in names)
        else:
            raise errors.UserError(
                f"{path} has no column {text_field!r} (nor prompt and response); its columns are"
                f" {names}: choose one with --text_field."
            )
        row = sum(file.metadata.row_group(group).num_rows for group in range(start))
        for batch in file.iter_batches(
            batch_size=1024, row_groups=list(range(start, stop)), columns=columns
        ):
            for values in batch.to_pylist():
                values = {name: value for name, value in values.items() if value is not None}
                document = documents.from_values(values, text_field)
                row += 1
                if tally.keep(document, f"{path}, row {row}"):
                    yield document


def read_array_record(
    path: str, start: int, stop: int, tally: documents.Tally, text_field: str
) -> Documents:
    """Records [start, stop): JSON objects as in JSONL; anything else is the text itself."""
    for first in range(start, stop, _NUM_RECORDS_AT_ONCE):
        last = min(first + _NUM_RECORDS_AT_ONCE, stop)
        with _array_record(path) as reader:
            records = reader.read(first, last)
        for number, record in enumerate(records, first + 1):
            document = documents.parse_record(record, text_field, plain_text=True)
            if tally.keep(document, f"{path}, record {number}"):
                yield document


Reader = Callable[[str, int, int, documents.Tally, str], Documents]
READERS: dict[str, Reader] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "array_record": read_array_record,
}


def ranges(
    file_format: str, path: str, num_bytes: int, unit_bytes: int
) -> Iterator[tuple[int, int, int]]:
    """Cuts a file into (start, stop, num_bytes) of about `unit_bytes`, in its reader's own units.

    Raises:
      UserError: the file is not of its format.
    """
    if file_format == "jsonl":
        if path.lower().endswith((".gz", ".zst")):  # cannot be read from the middle
            yield 0, -1, num_bytes
            return
        for start in range(0, num_bytes, unit_bytes):
            stop = min(start + unit_bytes, num_bytes)
            yield start, stop, stop - start
        return
    if file_format == "parquet":
        with epath.Path(path).open("rb") as raw:
            metadata = _parquet_file(raw, path).metadata
            sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        total = sum(sizes)
        sizes = [size * num_bytes // max(total, 1) for size in sizes]
        start = 0
        for stop in range(1, len(sizes) + 1):
            size = sum(sizes[start:stop])
            if stop == len(sizes) or size + sizes[stop] > unit_bytes:
                yield start, stop, size
                start = stop
        return
    assert file_format == "array_record", file_format
    with _array_record(path) as reader:
        num_records = reader.num_records()
    records_per_unit = max(1, num_records * unit_bytes // max(num_bytes, 1))
    for start in range(0, num_records, records_per_unit):
        stop = min(start + records_per_unit, num_records)
        yield start, stop, num_bytes * (stop - start) // num_records


def _line_number(path: str, offset: int) -> int:
    """1-based number of the line that begins at `offset`."""
    count = 1
    with epath.Path(path).open("rb") as file:
        while offset > 0:
            chunk = file.read(min(offset, _CHUNK_BYTES))
            if not chunk:
                break
            count += chunk.count(b"\n")
            offset -= len(chunk)
    return count


@contextlib.contextmanager
def _open(path: str) -> Iterator[IO[bytes] | io.BufferedIOBase]:
    """The file's bytes, decompressed. Also closes the raw file, which GzipFile leaves open."""
    with epath.Path(path).open("rb") as raw:
        if path.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as file:
                yield file
        elif path.lower().endswith(".zst"):
            zstd = _ZstdFile(raw, _package("zstandard", path))
            with io.BufferedReader(zstd, _CHUNK_BYTES) as file:
                yield file
        else:
            yield raw


class _ZstdFile(io.RawIOBase):
    """Decompresses frame after frame; the package's own reader does not notice a truncated file."""

    def __init__(self, raw: IO[bytes], zstandard: Any):
        self._raw = raw
        self._zstandard = zstandard
        self._frame = None
        self._decompressed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._decompressed:
            compressed = self._frame.unused_data if self._frame and self._frame.eof else b""
            compressed = compressed or self._raw.read(_CHUNK_BYTES)
            if not compressed:
                if self._frame and not self._frame.eof:
                    raise EOFError("it ends inside a zstd frame")
                return 0
            if not self._frame or self._frame.eof:
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._decompressed = self._frame.decompress(compressed)
            except self._zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
        count = min(len(buffer), len(self._decompressed))
        buffer[:count] = self._decompressed[:count]
        self._decompressed = self._decompressed[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _package(module: str, path: str) -> Any:
    """Imports an optional package, which is needed only to read its format."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise errors.UserError(
            f"Reading {path} needs the package {package!r}, which is not installed: pip install"
            f" {package}."
        ) from error


def _parquet_file(raw: IO[bytes], path: str) -> Any:
    parquet = _package("pyarrow.parquet", path)
    try:
        return parquet.ParquetFile(raw)
    except (ValueError, OSError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise errors.UserError(f"{path} is not an intact Parquet file: {error}") from error


@contextlib.contextmanager
def _array_record(path: str) -> Iterator[Any]:
    module = _package("array_record.python.array_record_module", path)
    reader = None
    try:
        reader = module.ArrayRecordReader(path)
        yield reader
        reader.close()  # damage may be reported only here
    except (ValueError, RuntimeError) as error:
        raise errors.UserError(f"{path} is not an intact ArrayRecord file: {error}") from error
