"""Safetensors files, written tensor by tensor and read in place.

A file is the length of its header (8 bytes, little-endian), the header, and the tensors' bytes. The
header is a JSON object: each tensor's name with "dtype", "shape" and "data_offsets" (begin and end,
counted from the end of the header), and optionally "__metadata__", an object of strings.
Source: the documentation of safetensors, "Format".
"""

import dataclasses
import json
import math
import mmap
import pathlib
from collections.abc import Iterable, Iterator
from typing import IO, Any

import ml_dtypes
import numpy as np

from keel_jax import errors

# Their names of the dtypes of weights.
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The format's own limit, against absurd lengths in damaged files.
_MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor that is to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(file: IO[bytes], tensors: list[Tensor], values: Iterable[np.ndarray]) -> None:
    """Writes a file of `tensors`, whose values, in their order, are asked for one at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.num_bytes],
        }
        begin += tensor.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor, value in zip(tensors, values, strict=True):
        assert value.shape == tensor.shape and value.dtype == tensor.dtype, (tensor, value.dtype)
        file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


class Reader:
    """The tensors of one file, which stay on disk until they are used."""

    def __init__(self, path: pathlib.Path):
        """Opens a file.

        Raises:
          UserError: it is missing, cut off, or no safetensors file; the path is named.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise errors.UserError(f"There is no {path}, whose weights are asked for.") from error
        except ValueError as error:
            raise self._damaged("it is empty") from error
        self._begin, self._tensors = self._read_header()

    def names(self) -> Iterator[str]:
        return iter(self._tensors)

    def dtype(self, name: str) -> np.dtype:
        return self._tensors[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1]

    def read(self, name: str) -> np.ndarray:
        """The tensor, a view of the file."""
        dtype, shape, begin = self._tensors[name]
        flat = np.frombuffer(self._bytes, dtype, math.prod(shape), self._begin + begin)
        return flat.reshape(shape)

    def _read_header(self) -> tuple[int, dict[str, tuple[np.dtype, tuple[int, ...], int]]]:
        size = len(self._bytes)
        length = int.from_bytes(self._bytes[:8], "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise self._damaged(f"its header would be longer than its {size} bytes")
        try:
            header = json.loads(self._bytes[8 : 8 + length])
        except (ValueError, RecursionError) as error:
            raise self._damaged("its header is not JSON") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is not an object")
        header.pop("__metadata__", None)
        tensors, end_of_all = {}, 0
        for name, entry in header.items():
            match entry:
                case {
                    "dtype": str(dtype),
                    "shape": list(shape),
                    "data_offsets": [int(begin), int(end)],
                } if all(isinstance(dim, int) and dim >= 0 for dim in shape):
                    pass
                case _:
                    raise self._damaged(f"its entry {name} is not that of a tensor")
            if dtype not in DTYPES:
                raise errors.UserError(
                    f"{self.path}: {name} is of dtype {dtype}; weights are read in "
                    f"{', '.join(DTYPES)}, not in quantized or integer ones."
                )
            if begin < 0 or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
                raise self._damaged(f"{name} has other bytes than its shape")
            tensors[name] = (DTYPES[dtype], tuple(shape), begin)
            end_of_all = max(end_of_all, end)
        if 8 + length + end_of_all != size:
            raise self._damaged(
                f"it has {size} bytes, and its header says {8 + length + end_of_all}"
            )
        return 8 + length, tensors

    def _damaged(self, how: str) -> errors.UserError:
        return errors.UserError(f"{self.path} is damaged, or no safetensors file: {how}.")
