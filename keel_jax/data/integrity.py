"""Whether the files of a token set are still what was written."""

import hashlib

from etils import epath

_CHUNK_BYTES = 1 << 20  # stays in the processor's cache


def file_sha256(path: epath.Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def describe_damage(path: epath.Path, num_bytes: int, sha256: str = "") -> str:
    """Says how a file differs from what was written; empty if it does not.

    The content is read only if `sha256` is given.
    """
    num_bytes_now = path.stat().length if path.exists() else None
    if num_bytes_now is None:
        return f"is missing ({num_bytes} bytes were written)"
    if num_bytes_now != num_bytes:
        return f"has {num_bytes_now} bytes, but {num_bytes} bytes were written"
    if sha256 and (sha256_now := file_sha256(path)) != sha256:
        return (
            f"has sha256 {sha256_now[:12]}, but {sha256[:12]} was written: its content has changed"
        )
    return ""
