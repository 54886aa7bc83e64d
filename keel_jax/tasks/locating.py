"""Where the files of a benchmark are: in the layouts in which they are distributed.

The files of the benchmark NAME are those below TASK_DATA/NAME, or, where there is no such
directory, the files in TASK_DATA whose names begin with NAME. Which split a file holds is said by
the words of its path: `hellaswag_val.jsonl`, `data/validation-00000-of-00001.parquet`,
`ARC-Easy-Test.jsonl`, `test/abstract_algebra_test.csv`.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence

from keel_jax import errors
from keel_jax.tasks import records

VALIDATION = ("validation", "valid", "val", "dev")
# What no subject is called.
_SPLITS = frozenset({"train", "test", *VALIDATION})
# Some distributions hold all subjects a second time, in one folder of this name.
_ALL = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Which files of a benchmark are read.

    Attributes:
      scored: words, one of which is in the path of a file that is scored; empty: any file.
      shots: the same for the files that examples in the prompt are taken from; empty: the scored.
      only: words that must be in a path, as "easy" for one half of ARC.
      never: words that must not be.
      never_subjects: subjects that are left out.
      columns: names of the columns of CSV files that have no line of names.
      has_subjects: whether the rest of a path names a part of the benchmark.
      folder: the directory's name, if it is not the task's.
    """

    scored: tuple[str, ...] = ()
    shots: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    never_subjects: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    has_subjects: bool = False
    folder: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """One file of a split."""

    path: pathlib.Path
    subject: str


def find(name: str, files: Files, task_data: pathlib.Path, split: Sequence[str]) -> list[Source]:
    """The files of a split, sorted by subject and path.

    Raises:
      UserError: there are none, or two files hold the same subject in different formats.
    """
    root, paths = candidates(files.folder or name, task_data)
    found = [
        Source(path, _subject(path.relative_to(root), files) if files.has_subjects else "")
        for path in paths
        if _holds(path.relative_to(root), files, split)
    ]
    found = [source for source in found if source.subject not in files.never_subjects]
    if not found:
        wanted = " or ".join(split) if split else "the benchmark's items"
        seen = ", ".join(str(path.relative_to(root)) for path in paths[:5]) or "no file"
        raise errors.UserError(
            f"{name}: no file of {root} is named as one with {wanted}"
            + (f" of {' '.join(files.only)}" if files.only else "")
            + f"; there is {seen}{', …' if len(paths) > 5 else ''}. docs/tasks.md lists the "
            "layouts that are read."
        )
    if len({source.subject for source in found}) > 1:
        found = [source for source in found if source.subject != _ALL]
    _check_distinct(name, found)
    return sorted(found, key=lambda source: (source.subject, source.path))


def candidates(folder: str, task_data: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """(root, the benchmark's files with a suffix that is read), sorted.

    Raises:
      UserError: `task_data` is no directory.
    """
    if not task_data.is_dir():
        raise errors.UserError(f"--task_data={task_data} is not a directory.")
    for entry in sorted(task_data.iterdir()):
        if entry.is_dir() and _same_name(entry.name, folder):
            return entry, sorted(path for path in entry.rglob("*") if _is_read(path))
    prefix = _letters(folder)
    return task_data, sorted(
        path
        for path in task_data.iterdir()
        if _letters(path.name).startswith(prefix) and _is_read(path)
    )


def read(source: Source, files: Files) -> Iterator[records.Record]:
    """The records of one file."""
    yield from records.read(source.path, columns=files.columns, subject=source.subject)


def _is_read(path: pathlib.Path) -> bool:
    kinds = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return path.is_file() and bool(kinds) and kinds[-1] in records.SUFFIXES


def _holds(path: pathlib.Path, files: Files, split: Sequence[str]) -> bool:
    words = set(_words(str(path)))
    return (
        (not split or bool(words & set(split)))
        and words >= set(files.only)
        and not words & set(files.never)
    )


def _subject(path: pathlib.Path, files: Files) -> str:
    """The file's name without the words of a split, or that of its directory if nothing is left."""
    spent = {*_SPLITS, *files.only}
    for part in (path.name.split(".")[0], *reversed(path.parts[:-1])):
        # Parts of one split are numbered: "test-00000-of-00001".
        part = re.sub(r"-\d+-of-\d+", "", part)
        kept = [word for word in re.split(r"[_\s]+", part) if word and word.lower() not in spent]
        if kept:
            return "_".join(kept)
    return ""


def _check_distinct(name: str, found: list[Source]) -> None:
    first: dict[str, Source] = {}
    for source in found:
        other = first.setdefault(source.subject, source)
        if _unnumbered(other.path) != _unnumbered(source.path):
            subject = f" ({source.subject})" if source.subject else ""
            raise errors.UserError(
                f"{name}{subject}: {other.path} and {source.path} both hold the same split: leave "
                "one of them there, or no item would be counted once."
            )


def _unnumbered(path: pathlib.Path) -> str:
    return re.sub(r"-\d+-of-\d+", "", str(path))


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _same_name(one: str, other: str) -> bool:
    return _letters(one) == _letters(other)
