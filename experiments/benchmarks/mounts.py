"""Disks that are too small or may only be read, in a mount namespace of this command's own."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

# Set in the process that has a mount namespace of its own.
_IS_INSIDE = "KEEL_DISK_NAMESPACE"


def enter_namespace(module: str) -> bool:
    """Starts this command, `python -m module`, again in a mount namespace of its own.

    Returns:
      True in that namespace; False if it is not allowed.
    """
    if os.environ.get(_IS_INSIDE):
        return True
    for prefix in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        probe = [*prefix, "mount", "-t", "tmpfs", "none", "/mnt"]
        if shutil.which("unshare") and not subprocess.run(probe, capture_output=True).returncode:
            os.environ[_IS_INSIDE] = "1"
            arguments = [sys.executable, "-m", module, *sys.argv[1:]]
            os.execvp("unshare", [*prefix, *arguments])
    return False


def mount_tmpfs(place: pathlib.Path, num_bytes: int, options: str = "") -> None:
    """Mounts a disk of that size in memory, or changes its size ("remount,")."""
    place.mkdir(parents=True, exist_ok=True)
    size = f"{options}size={num_bytes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(place)], check=True)


@contextlib.contextmanager
def read_only(place: pathlib.Path) -> Iterator[None]:
    """Within it a directory may only be read."""
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def fill(path: pathlib.Path) -> None:
    """Writes zeros until there is no room for one more byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def num_bytes(directory: pathlib.Path) -> int:
    """What the files of a directory take, in pages, as a tmpfs counts."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in paths)
