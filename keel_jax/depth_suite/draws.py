"""Random choices that are the same on every Python, every NumPy and every machine.

NumPy's generators may draw other numbers from one version to the next, and so may most methods of
Python's `random`. These draws are made of SHAKE-256 (FIPS 202) and integer arithmetic alone.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")
_BLOCK_WORDS = 32
_WORD_BYTES = 8


class Draws:
    """A stream of independent uniform choices, a function of its key alone."""

    def __init__(self, *key: str | int):
        # Lengths, so that ("a", "bc") and ("ab", "c") are different keys.
        self._key = "".join(f"{len(str(part))}:{part}" for part in key).encode()
        self._num_blocks = 0
        self._words: list[int] = []

    def below(self, bound: int) -> int:
        """An integer of [0, bound), each with exactly the same probability."""
        # Words above the last multiple of `bound` would favour small results.
        limit = 2 ** (8 * _WORD_BYTES) // bound * bound
        while (word := self._next_word()) >= limit:
            pass
        return word % bound

    def coin(self) -> bool:
        """True or False, each with probability 1/2."""
        return bool(self.below(2))

    def choice(self, values: Sequence[_T]) -> _T:
        """One of the values."""
        return values[self.below(len(values))]

    def sample(self, values: Sequence[_T], count: int) -> list[_T]:
        """`count` different places of `values`, in random order."""
        rest = list(values)
        for place in range(count):
            other = place + self.below(len(rest) - place)
            rest[place], rest[other] = rest[other], rest[place]
        return rest[:count]

    def shuffled(self, values: Sequence[_T]) -> list[_T]:
        """All values in random order."""
        return self.sample(values, len(values))

    def _next_word(self) -> int:
        if not self._words:
            block = hashlib.shake_256(self._key + f"/{self._num_blocks}".encode())
            content = block.digest(_BLOCK_WORDS * _WORD_BYTES)
            self._num_blocks += 1
            self._words = [
                int.from_bytes(content[start : start + _WORD_BYTES], "little")
                for start in range(0, len(content), _WORD_BYTES)
            ]
        return self._words.pop()
