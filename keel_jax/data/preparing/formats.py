"""File formats: how a range of one file becomes documents; bad ones are counted and left out."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from keel_jax import errors
from keel_jax.data.preparing import compression, conversations, documents, records

_CHUNK_BYTES = 1 << 20
_NUM_RECORDS_AT_ONCE = 1024
_NUM_BYTES_LOOKED_AT = 1 << 16  # the first lines of a file are longer only in odd ones
_PARQUET_MAGIC = b"PAR1"

Documents = Iterator[documents.Document]


def read_text(
    path: str, start: int, stop: int, tally: documents.Tally, layout: records.Layout
) -> Documents:
    """The whole file is one document: no newline is translated, a byte-order mark is left out."""
    del start, stop
    if layout.template:
        rejection = documents.Rejection("whole files of text, which are no conversations")
        tally.add_bad(path, rejection)
        return
    with compression.open_bytes(path) as file:
        content = file.read()
    text = documents.decode(content)
    if isinstance(text, documents.Rejection):
        tally.add_bad(f"{path}, line {_first_bad_line(content)}", text)
        return
    yield from tally.kept([documents.Document(text)], path)


def read_jsonl(
    path: str, start: int, stop: int, tally: documents.Tally, layout: records.Layout
) -> Documents:
    """The lines that begin in [start, stop) of a file, or all lines of a compressed one."""
    with compression.open_bytes(path) as file:
        first_line = 1
        if start:
            # A line that `start` cuts in two belongs to the unit before; one that begins exactly at
            # `start` is ours. Skipping the rest of the line that holds start - 1 does both.
            file.seek(start - 1)
            file.readline()
            first_line = 0  # not known yet; counted only if there is something to report
        offset = begin = file.tell() if stop >= 0 else 0
        for number, line in enumerate(file):
            if 0 <= stop <= offset:
                break
            offset += len(line)
            if not line.strip():
                continue
            parsed = records.parse(line, layout, plain_text=False)
            if isinstance(parsed, documents.Rejection):
                first_line = first_line or _line_number(path, begin)
            yield from tally.kept(parsed, f"{path}, line {first_line + number}")


def read_parquet(
    path: str, start: int, stop: int, tally: documents.Tally, layout: records.Layout
) -> Documents:
    """The rows of row groups [start, stop)."""
    with epath.Path(path).open("rb") as raw:
        file = _parquet_file(raw, path)
        columns = _columns(file.schema_arrow, path, layout)
        row = sum(file.metadata.row_group(group).num_rows for group in range(start))
        with _intact_parquet(path):
            for batch in file.iter_batches(
                batch_size=1024, row_groups=list(range(start, stop)), columns=columns
            ):
                for values in _rows(batch):
                    row += 1
                    if isinstance(values, UnicodeDecodeError):
                        tally.add_bad(f"{path}, row {row}", documents.undecodable(values))
                        continue
                    parsed = records.from_values(values, layout)
                    yield from tally.kept(parsed, f"{path}, row {row}")


def read_array_record(
    path: str, start: int, stop: int, tally: documents.Tally, layout: records.Layout
) -> Documents:
    """Records [start, stop): JSON objects as in JSONL; anything else is the text itself."""
    for first in range(start, stop, _NUM_RECORDS_AT_ONCE):
        last = min(first + _NUM_RECORDS_AT_ONCE, stop)
        with _array_record(path) as reader:
            read = reader.read(first, last)
        for number, record in enumerate(read, first + 1):
            parsed = records.parse(record, layout, plain_text=True)
            yield from tally.kept(parsed, f"{path}, record {number}")


Reader = Callable[[str, int, int, documents.Tally, records.Layout], Documents]
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
        with compression.open_bytes(path) as file:
            _check_lines(path, file.read(_NUM_BYTES_LOOKED_AT))
        if compression.compression(path):  # cannot be read from the middle
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


def other_format_of(path: str) -> str:
    """The format that a file with another name looks like: 'jsonl', 'parquet', or neither, ''."""
    with compression.open_bytes(path) as file:
        head = file.read(_NUM_BYTES_LOOKED_AT)
    if head.startswith(_PARQUET_MAGIC):
        return "parquet"
    lines = head.removeprefix(documents.UTF8_MARK).splitlines()
    if len(head) == _NUM_BYTES_LOOKED_AT:
        lines = lines[:-1]  # cut off
    lines = [line for line in lines[:3] if line.strip()]
    return "jsonl" if lines and all(_is_object(line) for line in lines) else ""


def _is_object(line: bytes) -> bool:
    """Whether a line is a JSON object with something in it."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value)


def _check_lines(path: str, head: bytes) -> None:
    """Raises UserError if a file of JSON lines begins as one of something else."""
    if encoding := documents.wide_encoding(head):
        raise errors.UserError(
            f"{path} is in {encoding}, not UTF-8: convert it with iconv -f {encoding} -t UTF-8."
        )
    if head.startswith(_PARQUET_MAGIC):
        raise errors.UserError(
            f"{path} looks like a Parquet file, not JSON lines: rename it, or give "
            "--input_format=parquet."
        )
    first, newline, rest = head.removeprefix(documents.UTF8_MARK).lstrip().partition(b"\n")
    if len(head) == _NUM_BYTES_LOOKED_AT and not newline:
        is_array = first.startswith(b"[")  # of one very long line
    else:
        is_array = _is_array(first, rest)
    if is_array:
        raise errors.UserError(
            f"{path} is one JSON array, not one JSON object a line: write its elements one a line, "
            "as jq -c '.[]' does."
        )
    if newline and first.strip() == b"{":
        raise errors.UserError(
            f"{path} has a JSON object over several lines, not one object a line: write each in "
            "one line, as jq -c . does."
        )


def _is_array(first: bytes, rest: bytes) -> bool:
    """Whether a first line and what follows it are one array, not a line each."""
    try:
        return isinstance(json.loads(first), list) and not rest.strip()
    except (ValueError, RecursionError):
        return first.strip() in (b"[", b"[{")


def _first_bad_line(content: bytes) -> int:
    """1-based number of the first line that is not UTF-8; 1 if all are."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return content.count(b"\n", 0, error.start) + 1
    return 1


def _columns(schema: Any, path: str, layout: records.Layout) -> list[str]:
    """The columns of a Parquet file that hold the documents, or the conversations."""
    if not layout.template:
        return _text_columns(schema, path, layout.text_field)
    if not conversations.is_one(dict.fromkeys(schema.names)):
        raise errors.UserError(
            f"{path} has no columns of a conversation ({', '.join(conversations.FIELDS[1:])}); its "
            f"columns are {schema.names}."
        )
    return [name for name in schema.names if name in conversations.FIELDS]


def _text_columns(schema: Any, path: str, text_field: str) -> list[str]:
    """The columns of a Parquet file that hold the documents' text."""
    kind = _column_type(schema, text_field)
    if kind is None and {"prompt", "response"} <= set(schema.names):
        columns = ["prompt", "response"]
        kinds = {name: schema.field(name).type for name in columns}
        columns += ["weight"] * ("weight" in schema.names)
    else:
        columns, kinds = [text_field], {text_field: kind}
    wrong = {name: kind for name, kind in kinds.items() if not _is_string(kind)}
    if not wrong:
        return columns
    strings = [name for name in _leaves(schema) if _is_string(_column_type(schema, name))]
    choose = f"{sorted(strings)[:8]}: choose one with --text_field" if strings else "none"
    if kind is None:
        raise errors.UserError(
            f"{path} has no column {text_field!r} (nor prompt and response); its columns are "
            f"{schema.names}, those of strings {choose}."
        )
    [name, kind] = next(iter(wrong.items()))
    raise errors.UserError(
        f"The column {name!r} of {path} is of type {str(kind)[:100]}, not of strings; those of "
        f"strings are {choose}."
    )


def _column_type(schema: Any, name: str) -> Any:
    """The type of a column or, by a dotted name, of a field within structs; None: there is none."""
    if name in schema.names:
        return schema.field(schema.names.index(name)).type
    head, dot, rest = name.partition(".")
    if not dot or head not in schema.names:
        return None
    kind = schema.field(schema.names.index(head)).type
    for part in rest.split("."):
        if not hasattr(kind, "get_field_index") or (at := kind.get_field_index(part)) < 0:
            return None
        kind = kind.field(at).type
    return kind


def _leaves(schema: Any) -> Iterator[str]:
    """The dotted names of all columns that are not structs."""

    def within(name: str, kind: Any) -> Iterator[str]:
        if not hasattr(kind, "get_field_index"):
            yield name
            return
        for at in range(kind.num_fields):
            yield from within(f"{name}.{kind.field(at).name}", kind.field(at).type)

    for name, kind in zip(schema.names, schema.types, strict=True):
        yield from within(name, kind)


def _is_string(kind: Any) -> bool:
    """Whether a column's values are strings, or all null."""
    kind = getattr(kind, "value_type", None) if str(kind).startswith("dictionary<") else kind
    return str(kind) in ("string", "large_string", "string_view", "null")


def _rows(batch: Any) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """The rows of a batch; for one whose strings are not UTF-8, the error."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            try:
                [values] = batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield error
            else:
                yield values


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


def _parquet_file(raw: IO[bytes], path: str) -> Any:
    parquet = compression.package("pyarrow.parquet", path)
    with _intact_parquet(path):
        return parquet.ParquetFile(raw)


@contextlib.contextmanager
def _intact_parquet(path: str) -> Iterator[None]:
    arrow = compression.package("pyarrow", path)
    try:
        yield
    except errors.UserError:
        raise
    except (arrow.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's
            raise
        raise errors.UserError(f"{path} is not an intact Parquet file: {error}") from error


@contextlib.contextmanager
def _array_record(path: str) -> Iterator[Any]:
    module = compression.package("array_record.python.array_record_module", path)
    reader = None
    try:
        reader = module.ArrayRecordReader(path)
        yield reader
        reader.close()  # damage may be reported only here
    except (ValueError, RuntimeError) as error:
        raise errors.UserError(f"{path} is not an intact ArrayRecord file: {error}") from error
