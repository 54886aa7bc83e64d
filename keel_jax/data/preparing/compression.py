"""Compressed files of text: gzip, bzip2, xz and Zstandard, recognized by their first bytes."""

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from keel_jax import errors

_CHUNK_BYTES = 1 << 20
# No UTF-8 text begins with one of these, but for bzip2's, which is longer for that.
_MAGIC = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
}
_BZIP2_BLOCK = (b"1AY&SY", b"\x17rE8P\x90")  # of a file with data, and of an empty one
SUFFIXES = tuple(_MAGIC.values())


def compression(path: str) -> str:
    """The suffix of the file's compression, by its content; empty if it has none.

    Raises:
      UserError: its name says that it is compressed, and its content that it is not.
    """
    with epath.Path(path).open("rb") as raw:
        head = raw.read(16)
    for magic, suffix in _MAGIC.items():
        if head.startswith(magic) and (suffix != ".bz2" or head[4:].startswith(_BZIP2_BLOCK)):
            return suffix
    named = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")
    if named and head:
        raise errors.UserError(
            f"{path} is damaged, or not compressed as its name says: it does not begin as a "
            f"{named} file does, but with the bytes {head[:4].hex(' ')}. Replace it, or rename it."
        )
    return ""


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[IO[bytes] | io.BufferedIOBase]:
    """The file's bytes, decompressed.

    Raises:
      UserError: where the file is read, too: it is damaged or cut short.
    """
    suffix = compression(path)
    with contextlib.ExitStack() as opened:
        raw = opened.enter_context(epath.Path(path).open("rb"))  # GzipFile would leave it open
        opened.enter_context(_intact(path))
        if suffix == ".zst":
            zstd = _ZstdFile(raw, package("zstandard", path))
            yield opened.enter_context(io.BufferedReader(zstd, _CHUNK_BYTES))
        elif suffix:
            open_file: Callable[[IO[bytes]], Any] = {
                ".gz": lambda file: gzip.GzipFile(fileobj=file),
                ".bz2": bz2.BZ2File,
                ".xz": lzma.LZMAFile,
            }[suffix]
            yield opened.enter_context(open_file(raw))
        else:
            yield raw


@contextlib.contextmanager
def _intact(path: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise errors.UserError(f"{path} is damaged or cut short: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's, not the decompressor's
            raise
        raise errors.UserError(f"{path} is damaged or cut short: {error}") from error


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


def package(module: str, path: str) -> Any:
    """Imports an optional package, which is needed only to read its format."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise errors.UserError(
            f"Reading {path} needs the package {package!r}, which is not installed: pip install"
            f" {package}."
        ) from error
