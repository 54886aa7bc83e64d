"""What a model said to single items, written as it comes, so that a second start goes on.

One file a benchmark, a JSON object a line. A line counts for an item only if its key is that of the
very request: the checkpoint, the texts, and how they were asked.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from keel_jax.runtime import files


class Kept:
    """The lines of one file."""

    def __init__(self, path: epath.Path):
        self.path = path
        self._lines: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().split("\n"):
                try:
                    value = json.loads(line)
                    self._lines[value["key"]] = value
                except (ValueError, TypeError, KeyError):
                    continue  # a line that a kill cut off: its item is scored again

    def get(self, key: str) -> Mapping[str, Any] | None:
        """What was kept under a key, or None."""
        return self._lines.get(key)

    def add(self, values: Sequence[Mapping[str, Any]]) -> None:
        """Appends objects, each with its "key".

        Raises:
          OSError: they could not be written.
        """
        # The newline first: the file may end in a line that was cut off.
        lines = ["\n" + json.dumps(value, ensure_ascii=False) for value in values]
        with files.explained(self.path):
            files.append_text(self.path, "".join(lines))
        self._lines.update({value["key"]: dict(value) for value in values})


def key(*parts: Any) -> str:
    """The digest of what decides the answer to an item."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]
