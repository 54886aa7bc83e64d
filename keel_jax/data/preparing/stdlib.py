"""The embedded corpus: the running Python's own standard-library source."""

import dataclasses
import hashlib
import pathlib
import sysconfig

from keel_jax import errors

# Tests and tables say little about how people write Python; packages that were installed beside
# the library, and files that describe one build, differ from machine to machine.
_LEFT_OUT_DIRECTORIES = frozenset(
    ("test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__")
)
_LEFT_OUT_PREFIXES = ("_sysconfigdata", "sitecustomize", "usercustomize", "config-")


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of the corpus; `relative_path` (with /) and `sha256` do not depend on the machine."""

    path: str
    relative_path: str
    num_bytes: int
    sha256: str


def source_files() -> list[SourceFile]:
    """The library's .py files, UTF-8 ones, each content once, in the order of relative paths.

    Raises:
      UserError: this Python has no source files (a zipped or stripped installation).
    """
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    relative_paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    files, seen = [], set()
    for relative_path in relative_paths:
        parts = relative_path.split("/")
        if not _LEFT_OUT_DIRECTORIES.isdisjoint(parts[:-1]):
            continue
        if any(part.startswith(_LEFT_OUT_PREFIXES) for part in parts):
            continue
        content = (root / relative_path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest in seen or not content or not _is_utf8(content):
            continue
        seen.add(digest)
        files.append(SourceFile(str(root / relative_path), relative_path, len(content), digest))
    if not files:
        raise errors.UserError(
            f"This Python has no standard-library source at {root}: give --input=GLOB."
        )
    return files


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
