"""The manifest of a checkpoint: what was written, so that damage is found before it is used.

Orbax neither keeps checksums of its files nor notices a wrong byte in one, and any directory whose
name is a number is a checkpoint to it. Therefore `STEP/manifest.json` records the step, every
array's dtype and shape, every file's size, and its sha256. It is written last, immediately before
Orbax commits the checkpoint: a committed checkpoint has one.

The digests are those of the files as read back. One process computes them before the commit. If
there are several, each computes its share after the commit, into `STEP/digests.RANK-of-WORLD.json`:
files whose digests are missing because the run was killed before are checked by their size.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from keel_jax import errors
from keel_jax.data import integrity
from keel_jax.runtime import files

FILE = "manifest.json"
_DIGESTS = "digests."
# Orbax completes these at the commit, when the manifest has been written.
_WRITTEN_AT_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")
# hashlib releases the interpreter's lock; more threads than this wait for the disk.
_NUM_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds."""

    # Optimizer steps taken: the name of its directory.
    step: int
    # Its items, as "params" or "progress".
    items: tuple[str, ...]
    # Key path of each array, as "params['embedding']": dtype and shape, as "float32[384,32]".
    arrays: dict[str, str]
    # Each file, relative to the checkpoint's directory, with its bytes.
    num_bytes: dict[str, int]
    # The digests of files that were computed before the commit.
    sha256: dict[str, str]


def describe_arrays(**items: Any) -> dict[str, str]:
    """Dtypes and shapes of trees of arrays, or of abstract ones, as in `Manifest.arrays`."""
    return {
        item + jax.tree_util.keystr(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for item, tree in items.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def write(directory: epath.Path, step: int, arrays: dict[str, str], *, digests: bool) -> None:
    """Writes the manifest of the files in `directory`, a checkpoint that is about to be committed.

    Args:
      arrays: from `describe_arrays`.
      digests: whether to compute them here.
    """
    num_bytes = {name: path.stat().length for name, path in _files(directory)}
    manifest = Manifest(
        step=step,
        items=tuple(sorted({name.split("/")[0] for name in num_bytes})),
        arrays=arrays,
        num_bytes=num_bytes,
        sha256=_sha256(directory, list(num_bytes)) if digests else {},
    )
    files.write_checked_json(directory / FILE, dataclasses.asdict(manifest))


def write_digests(directory: epath.Path, rank: int, world_size: int) -> None:
    """Writes the digests of this process's share of a committed checkpoint."""
    names = _share(sorted(read(directory).num_bytes), rank, world_size)
    values = {"sha256": _sha256(directory, names)}
    files.write_checked_json(directory / f"{_DIGESTS}{rank}-of-{world_size}.json", values)


def read(directory: epath.Path) -> Manifest:
    """The manifest of the checkpoint in `directory`, with all digests that there are.

    Raises:
      FileNotFoundError: it has none.
      UserError: it is damaged; the message begins with the name of the file.
    """
    match _read_checked(directory / FILE):
        case {
            "step": int(step),
            "items": list(items),
            "arrays": dict(arrays),
            "num_bytes": dict(num_bytes),
            "sha256": dict(sha256),
        } if (
            _are(str, items)
            and _are(str, arrays.values())
            and _are(int, num_bytes.values())
            and _are(str, sha256.values())
        ):
            pass
        case _:
            raise _not_what_was_written(directory / FILE)
    for path in sorted(directory.iterdir()):
        if path.name.startswith(_DIGESTS) and path.name.endswith(".json"):
            more = _read_checked(path).get("sha256")
            if not isinstance(more, dict) or not _are(str, more.values()):
                raise _not_what_was_written(path)
            sha256 = sha256 | more
    return Manifest(step, tuple(items), arrays, num_bytes, sha256)


def newest_step(checkpoints: epath.Path) -> int | None:
    """The newest complete step below `checkpoints`; None if there is none, or it cannot be read.

    A step that is being written is in a directory whose name is not a number, or, where Orbax
    writes to the final one, has no manifest until it is about to be committed.
    """
    try:
        names = [path.name for path in checkpoints.iterdir() if (path / FILE).exists()]
    except OSError:
        return None
    return max((int(name) for name in names if name.isdecimal()), default=None)


def damage(
    directory: epath.Path,
    manifest: Manifest,
    items: Sequence[str],
    *,
    contents: bool,
    rank: int = 0,
    world_size: int = 1,
) -> list[str]:
    """How the files of some items differ from what was written, a phrase each, as found by one
    process of `world_size`, which reads its share of them.

    Args:
      contents: whether to compare digests; sizes always are.

    Raises:
      OSError: a file cannot be read, which says nothing about its content.
    """
    names = sorted(name for name in manifest.num_bytes if name.split("/")[0] in items)
    names = _share(names, rank, world_size)

    def describe(name: str) -> str:
        sha256 = manifest.sha256.get(name, "") if contents else ""
        return integrity.describe_damage(directory / name, manifest.num_bytes[name], sha256)

    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = zip(names, pool.map(describe, names), strict=True)
        return [f"{name} {how}" for name, how in found if how]


def _share(names: list[str], rank: int, world_size: int) -> list[str]:
    return names[rank::world_size]


def _sha256(directory: epath.Path, names: list[str]) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        digests = pool.map(integrity.file_sha256, [directory / name for name in names])
        return dict(zip(names, digests, strict=True))


def _files(directory: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """All files that were written before the commit, by their names relative to the checkpoint."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif prefix or path.name not in (*_WRITTEN_AT_COMMIT, FILE):
            yield prefix + path.name, path


def _read_checked(path: epath.Path) -> dict[str, Any]:
    try:
        values = files.read_json(path, needs_checksum=True)
    except errors.UserError as error:
        raise _not_what_was_written(path) from error
    if values is None:
        raise FileNotFoundError(path)
    return values


def _not_what_was_written(path: epath.Path) -> errors.UserError:
    return errors.UserError(f"{path.name} is not what was written")


def _are(kind: type, values: Iterable[Any]) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
