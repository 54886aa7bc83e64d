"""The files of a preparation's input: which ones its globs name, and the format of each."""

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence

from etils import epath

from keel_jax import errors
from keel_jax.data.preparing import compression, formats

FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".array_record": "array_record",
    ".arrayrecord": "array_record",
    **dict.fromkeys(
        # Prose and markup; source code.
        ".txt .text .md .markdown .rst .tex .html .htm .xml .log "
        ".py .pyi .c .h .cc .cpp .hpp .cu .java .js .ts .go .rs .jl .r .rb .sh .sql".split(),
        "text",
    ),
}
# Text files whose beginning is looked at, of each suffix. Of a directory of a million small files,
# one kind of file, the others are not opened before their turn.
_MAX_LOOKED_AT = 64


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of the input; `identity` stands for its content in digests."""

    path: str
    num_bytes: int
    identity: str
    format: str


def find(patterns: Sequence[str], input_format: str) -> list[InputFile]:
    """The files that the patterns name, sorted by path, each once.

    What exists under its literal name is taken as it is; only the rest of a path is a pattern.

    Args:
      input_format: a key of `formats.READERS` for all files, or 'auto', which goes by their names.

    Raises:
      UserError: a pattern without a file, or, with 'auto', names that say nothing of the format, or
        a text file that looks like another format.
    """
    paths: set[str] = set()
    for pattern in patterns:
        matches = [path for path in _matches(pattern) if not epath.Path(path).is_dir()]
        if not matches:
            hint = (
                f": it is a directory, give '{pattern.rstrip('/')}/**'"
                if epath.Path(os.path.expanduser(pattern)).is_dir()
                else ""
            )
            raise errors.UserError(f"The input {pattern!r} matches no file{hint}.")
        paths.update(matches)
    sizes = {path: _size_and_modification(path) for path in sorted(paths)}
    if input_format == "auto":
        by_path = _formats([path for path, (num_bytes, _) in sizes.items() if num_bytes])
    else:
        by_path = dict.fromkeys(sizes, input_format)
    return [
        InputFile(
            path=path,
            num_bytes=num_bytes,
            identity=f"{path}:{num_bytes}:{modified}",
            format=by_path.get(path, "text"),  # an empty file is of any format
        )
        for path, (num_bytes, modified) in sizes.items()
    ]


def _matches(pattern: str) -> Iterator[str]:
    """The paths that `pattern` names, directories included."""
    if "://" in pattern:
        yield from _remote_matches(pattern)
        return
    base, rest = os.path.abspath(os.path.expanduser(pattern)), ""
    if os.path.lexists(base):
        yield base
        return
    while not os.path.isdir(base):
        base, part = os.path.split(base)
        rest = os.path.join(part, rest) if rest else part
    for match in glob.glob(rest, root_dir=base, recursive=True):
        yield os.path.join(base, match)


def _remote_matches(pattern: str) -> Iterator[str]:
    if epath.Path(pattern).exists():
        yield pattern
        return
    scheme, _, rest = pattern.partition("://")
    parts = rest.split("/")
    first_wild = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    base = epath.Path(f"{scheme}://" + "/".join(parts[:first_wild]))
    for path in base.glob("/".join(parts[first_wild:])):
        yield os.fspath(path)


def _size_and_modification(path: str) -> tuple[int, int]:
    if "://" in path:
        stat = epath.Path(path).stat()
        return stat.length, stat.mtime
    stat = os.stat(path)  # epath's has whole seconds only: two quick edits would look like one
    return stat.st_size, stat.st_mtime_ns


def _formats(paths: Sequence[str]) -> dict[str, str]:
    """The format of each file by its name."""
    by_path: dict[str, str] = {}
    unknown: dict[str, list[str]] = {}
    num_looked_at: dict[str, int] = {}
    for path in paths:
        suffix = _suffix(path)
        if suffix not in FORMAT_OF_SUFFIX:
            unknown.setdefault(suffix, []).append(path)
            continue
        by_path[path] = FORMAT_OF_SUFFIX[suffix]
        if by_path[path] == "text" and num_looked_at.get(suffix, 0) < _MAX_LOOKED_AT:
            num_looked_at[suffix] = num_looked_at.get(suffix, 0) + 1
            if looks_like := formats.other_format_of(path):
                raise errors.UserError(
                    f"{path} has the name of a text file, but looks like {looks_like}: say what it "
                    f"is with --input_format={looks_like} or, if each file is one document, "
                    "--input_format=text."
                )
    if unknown:
        raise errors.UserError(_ask_for_format(unknown))
    return by_path


def _suffix(path: str) -> str:
    """The last suffix of a name, in lower case; before that of a compression."""
    name = os.path.basename(path).lower()
    for suffix in compression.SUFFIXES:
        name = name.removesuffix(suffix)
    return os.path.splitext(name)[1]


def _ask_for_format(unknown: dict[str, list[str]]) -> str:
    kinds = "; ".join(
        f"{len(paths)} {f'with {suffix}' if suffix else 'without a suffix'}, such as {paths[0]}"
        for suffix, paths in list(unknown.items())[:5]
    )
    first = next(iter(unknown.values()))[0]
    looks_like = formats.other_format_of(first)
    hint = f" ({first} looks like {looks_like})" if looks_like else ""
    return (
        f"The format of {sum(map(len, unknown.values()))} files is not known by their names: "
        f"{kinds}. Give it with --input_format, which holds for all files: text (one document a "
        f"file), {', '.join(name for name in formats.READERS if name != 'text')}{hint}; or name "
        "fewer files with --input."
    )
