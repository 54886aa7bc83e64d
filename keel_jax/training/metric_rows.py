"""The lines of metrics.jsonl: one JSON object each, which ends with a checksum of the rest.

Experiments compute their results from these rows, so a changed digit must not be read as another
number. Lines without a checksum, of older runs, are accepted.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_CHECKSUM = ', "crc32": "'
_LENGTH = len(_CHECKSUM) + len('00000000"}')


class Scanned(NamedTuple):
    """What a log holds."""

    # Every intact line, without its newline, and its row.
    intact: Sequence[tuple[bytes, dict]]
    # Every damaged line: (line number, content, what is wrong with it).
    damaged: Sequence[tuple[int, bytes, str]]
    # The begin of a last line that was not finished: the writer was killed, or the file was cut.
    unfinished: bytes

    @property
    def rows(self) -> list[dict]:
        return [row for _, row in self.intact]

    def describe_damage(self) -> str:
        """The damaged lines by their numbers, and what is wrong with the first."""
        numbers = [number for number, _, _ in self.damaged]
        shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        are = f"lines {shown} are damaged" if len(numbers) > 1 else f"line {shown} is damaged"
        return f"{are} ({self.damaged[0][2]})"


def to_line(row: Mapping[str, float]) -> str:
    """One line, with its newline; non-finite numbers become null, as JSON has none."""
    finite = {
        key: value if not isinstance(value, float) or math.isfinite(value) else None
        for key, value in row.items()
    }
    text = json.dumps(finite)[:-1]
    return f'{text}{_CHECKSUM}{zlib.crc32(text.encode()):08x}"}}\n'


def scan(content: bytes) -> Scanned:
    """Reads all lines, good and bad."""
    *lines, last = content.split(b"\n")
    intact, damaged, unfinished = [], [], b""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            intact.append((line, _parse(line)))
        except ValueError as error:
            damaged.append((number, line, str(error)))
    if last:
        try:
            intact.append((last, _parse(last)))
        except ValueError:
            unfinished = last
    return Scanned(intact, damaged, unfinished)


def _parse(line: bytes) -> dict:
    """The row of a line, without its checksum.

    Raises:
      ValueError: what is wrong with it.
    """
    text = line.decode()
    body, end = text[:-_LENGTH], text[-_LENGTH:]
    if end.startswith(_CHECKSUM):
        if f'{_CHECKSUM}{zlib.crc32(body.encode()):08x}"}}' != end:
            raise ValueError("its checksum is not that of its content")
        text = body + "}"
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
    return row
