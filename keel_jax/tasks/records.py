"""Records of benchmark files: JSON Lines, JSON, CSV, Parquet and plain text, also gzipped.

A record knows its file and line, and every field that is missing or of another type is named with
them: a benchmark of which some records were silently left out would be another benchmark.
"""

import csv
import dataclasses
import gzip
import importlib
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keel_jax import errors

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
# CSV fields of the csv module are at most 128 KiB long by default; passages may be longer.
_LONGEST_FIELD = 1 << 24


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a file."""

    values: Mapping[str, Any]
    # File and line, for messages.
    where: str
    # What the file's name says of its contents, as "abstract_algebra"; "" if nothing.
    subject: str = ""

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def text(self, name: str) -> str:
        """A field that is a string; of a number, its digits."""
        value = self._value(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self._unlike(name, value, "a text")
        return value

    def integer(self, name: str) -> int:
        """A field that is an integer, or a string of one."""
        value = self._value(name)
        try:
            if isinstance(value, bool) or int(value) != float(value):
                raise ValueError
        except (TypeError, ValueError):
            raise self._unlike(name, value, "an integer") from None
        return int(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a list of strings, of which there is at least one."""
        value = self._value(name)
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list or not value or not all(isinstance(entry, str) for entry in value):
            raise self._unlike(name, value, "a list of texts")
        return tuple(value)

    def one_of(self, name: str, choices: Sequence[str]) -> int:
        """The place of a field's text among `choices`."""
        value = self.text(name).strip()
        if value not in choices:
            raise self._unlike(name, value, "one of " + ", ".join(choices))
        return choices.index(value)

    def inner(self, name: str) -> "Record":
        """A field that is an object."""
        value = self._value(name)
        if not isinstance(value, Mapping):
            raise self._unlike(name, value, "an object")
        return dataclasses.replace(self, values=value)

    def inner_list(self, name: str) -> list["Record"]:
        """A field that is a list of objects."""
        value = self._value(name)
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            raise self._unlike(name, value, "a list of objects")
        return [dataclasses.replace(self, values=entry) for entry in value]

    def error(self, problem: str) -> errors.UserError:
        """An error that names the file and the line."""
        return errors.UserError(f"{self.where}: {problem}")

    def _value(self, name: str) -> Any:
        if self.values.get(name) is None:
            raise self.error(
                f"there is no field {name!r}; the record has {', '.join(self.values) or 'none'}."
            )
        return self.values[name]

    def _unlike(self, name: str, value: Any, wanted: str) -> errors.UserError:
        return self.error(f"{name!r} is {str(value)[:60]!r}, which is not {wanted}.")


def read(path: pathlib.Path, *, columns: Sequence[str] = (), subject: str = "") -> Iterator[Record]:
    """The records of a file, by its suffix; lines of a text are records of one field, "text".

    Args:
      columns: names of a CSV's columns, if it has no line of names.

    Raises:
      UserError: the file is damaged or not what its suffix says, or a record is no object.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")
    if kind == ".parquet":
        rows = _parquet(path)
    else:
        content = _content(path, is_gzipped=suffixes[-1:] == [".gz"])
        if kind == ".jsonl":
            rows = _json_lines(path, content)
        elif kind == ".json":
            rows = _json(path, content)
        elif kind == ".txt":
            rows = (
                (f"{path}, line {number}", {"text": line})
                for number, line in enumerate(content.splitlines(), 1)
                if line.strip()
            )
        else:
            rows = _csv(path, content, columns, "\t" if kind == ".tsv" else ",")
    for where, values in rows:
        if not isinstance(values, Mapping):
            raise errors.UserError(f"{where}: this is no object with fields: {str(values)[:60]!r}.")
        yield Record(values, where, subject)


def read_text(path: pathlib.Path) -> str:
    """The whole of a text file, UTF-8. Raises UserError if it is not."""
    return _content(path, is_gzipped=path.suffix == ".gz")


def _content(path: pathlib.Path, *, is_gzipped: bool) -> str:
    try:
        content = path.read_bytes()
        if is_gzipped:
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise errors.UserError(f"{path} cannot be read: {error}.") from error
    try:
        # A byte-order mark, which some spreadsheets write, is no part of a name.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise errors.UserError(
            f"{path}, line {line}: this is not UTF-8 ({error.reason})."
        ) from error


def _json_lines(path: pathlib.Path, content: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines: JSON may hold U+2028, which ends a line to Python alone.
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise errors.UserError(f"{where}: this is not JSON: {error}.") from error


def _json(path: pathlib.Path, content: str) -> Iterator[tuple[str, Any]]:
    """A list of records, or an object with the list "examples" (BIG-Bench Hard)."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise errors.UserError(f"{path} is not JSON: {error}.") from error
    if isinstance(value, dict):
        value = value.get("examples")
    if not isinstance(value, list):
        raise errors.UserError(f'{path} holds neither a list of records nor a list "examples".')
    for number, record in enumerate(value, 1):
        yield f"{path}, record {number}", record


def _csv(
    path: pathlib.Path, content: str, columns: Sequence[str], delimiter: str
) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    names = list(columns)
    first = 1
    try:
        for row in reader:
            where, first = f"{path}, line {first}", reader.line_num + 1
            if not row:
                continue
            if not names:
                names = row
                continue
            if len(row) != len(names):
                raise errors.UserError(
                    f"{where}: there are {len(row)} columns, where {len(names)} are expected: "
                    f"{', '.join(name or 'a number' for name in names)}."
                )
            yield where, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise errors.UserError(f"{path}, line {reader.line_num}: {error}.") from error


def _parquet(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise errors.UserError(
            f"{path} is Parquet, for which pyarrow is needed: pip install 'keel_jax[formats]'."
        ) from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise errors.UserError(f"{path} is not a complete Parquet file: {error}.") from error
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row
