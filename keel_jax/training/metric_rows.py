"""The lines of metrics.jsonl: one JSON object each, which ends with the identity of the run that
wrote it and with a checksum of the rest.

Experiments compute their results from these rows, so a changed digit must not be read as another
number, nor another run's log as this one's. Lines without either, of older runs, are accepted.
"""

import json
import math
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

# The end of a line, and what its checksum covers before it.
_END = re.compile(r'(?:, "run": "(?P<run>[^"]*)")?(?P<end>, "crc32": ".*"\})\Z')


class Scanned(NamedTuple):
    """What a log holds."""

    # Every intact line, without its newline, and its row.
    intact: Sequence[tuple[bytes, dict]]
    # Every damaged line: (line number, content, what is wrong with it).
    damaged: Sequence[tuple[int, bytes, str]]
    # The beginning of an unfinished last line: the writer was killed, or the file was cut.
    unfinished: bytes
    # The runs that wrote the intact lines.
    run_ids: Collection[str]

    @property
    def rows(self) -> list[dict]:
        return [row for _, row in self.intact]

    def describe_damage(self) -> str:
        """The damaged lines by their numbers, and what is wrong with the first."""
        numbers = [number for number, _, _ in self.damaged]
        shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        are = f"lines {shown} are damaged" if len(numbers) > 1 else f"line {shown} is damaged"
        return f"{are} ({self.damaged[0][2]})"


def to_line(row: Mapping[str, float], run_id: str) -> str:
    """One line of the run `run_id`, with its newline; non-finite numbers become null, as JSON has
    none.
    """
    finite = {
        key: value if not isinstance(value, float) or math.isfinite(value) else None
        for key, value in row.items()
    }
    text = f'{json.dumps(finite)[:-1]}, "run": "{run_id}"'
    return f"{text}{_checksum(text)}\n"


def scan(content: bytes, run_id: str = "") -> Scanned:
    """Reads all lines, good and bad; with `run_id`, lines that another run wrote are bad."""
    *lines, last = content.split(b"\n")
    intact, damaged, unfinished, run_ids = [], [], b"", set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row, written_by = _parse(line, run_id)
            intact.append((line, row))
            run_ids |= written_by
        except ValueError as error:
            damaged.append((number, line, str(error)))
    if last:
        try:
            row, written_by = _parse(last, run_id)
            intact.append((last, row))
            run_ids |= written_by
        except ValueError:
            unfinished = last
    return Scanned(intact, damaged, unfinished, run_ids)


def _checksum(text: str) -> str:
    """The end of a line that begins with `text`."""
    return f', "crc32": "{zlib.crc32(text.encode()):08x}"}}'


def _parse(line: bytes, run_id: str) -> tuple[dict, set[str]]:
    """The numbers of a line, and the run that wrote it if the line says so.

    Raises:
      ValueError: what is wrong with it.
    """
    text, written_by = line.decode(), set()
    if found := _END.search(text):
        if _checksum(text[: found.start("end")]) != found["end"]:
            raise ValueError("its checksum is not that of its content")
        if found["run"]:
            written_by.add(found["run"])
        if run_id and written_by - {run_id}:
            raise ValueError(f"it is of another run, {found['run']}, and this one is {run_id}")
        text = text[: found.start()] + "}"
    try:
        row = json.loads(text)
    except RecursionError as error:
        raise ValueError("not JSON: nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"step={step!r} is not a step")
    for key, value in row.items():
        if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool)):
            raise ValueError(f"{key}={str(value)[:40]!r} is not a number")
    return row, written_by
