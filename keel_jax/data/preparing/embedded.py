"""The embedded corpus: the source of one version of SymPy, the same bytes on every Python.

SymPy (https://www.sympy.org) is Python through and through, 16 MB of code, docstrings and comments
under the 3-clause BSD licence, and one pure-Python wheel of it serves every interpreter and every
platform. The version is pinned and the content is verified, so that a number measured on this
corpus can be compared with any other measured on it.
"""

import dataclasses
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Sequence

from keel_jax import errors

PACKAGE = "sympy"
VERSION = "1.14.0"
LICENSE = "BSD-3-Clause"
# Of `digest(source_files())`.
DIGEST = "f0c2af205e1934b141c01d8486757e2facf1abde300e89e2dcdf41ea270719e5"

# Tests and benchmarks are lists of cases, and parsers that a program wrote are tables: they say
# little about how people write Python.
_LEFT_OUT_DIRECTORIES = frozenset(("tests", "benchmarks", "_antlr", "__pycache__"))


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of the corpus; `relative_path` (with /) and `sha256` do not depend on the machine."""

    path: str
    relative_path: str
    num_bytes: int
    sha256: str


def source_files() -> list[SourceFile]:
    """The corpus, one document a file, each content once, in the order of relative paths.

    Raises:
      UserError: SymPy is not installed, or it is another version or a changed copy.
    """
    root = _root()
    files, contents = [], set()
    for relative_path in sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py")):
        if not _LEFT_OUT_DIRECTORIES.isdisjoint(relative_path.split("/")[:-1]):
            continue
        content = (root / relative_path).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if content and sha256 not in contents:
            contents.add(sha256)
            files.append(SourceFile(str(root / relative_path), relative_path, len(content), sha256))
    if (found := digest(files)) != DIGEST:
        raise errors.UserError(
            f"The {PACKAGE} {VERSION} in {root} is not the one that was released: the embedded "
            f"corpus has digest {DIGEST[:12]}, this one {found[:12]}. Install it anew: pip install "
            f"--force-reinstall --no-deps {PACKAGE}=={VERSION}"
        )
    return files


def digest(files: Sequence[SourceFile]) -> str:
    """SHA-256 of the relative paths and the contents."""
    lines = (f"{file.relative_path}:{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _root() -> pathlib.Path:
    command = f"pip install {PACKAGE}=={VERSION}"
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise errors.UserError(
            f"The embedded corpus is the source of {PACKAGE} {VERSION}, which is not installed: "
            f"{command} (or keel_jax[corpus]), or give --input=GLOB."
        ) from error
    if distribution.version != VERSION:
        raise errors.UserError(
            f"The embedded corpus is the source of {PACKAGE} {VERSION}, and "
            f"{distribution.version} is installed: {command}, in an environment of its own if "
            "something else needs the other, or give --input=GLOB."
        )
    return pathlib.Path(str(distribution.locate_file(PACKAGE)))
