"""Whether a checkpoint is still what was written."""

import json
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from keel_jax import errors
from keel_jax.runtime import distributed
from keel_jax.training import manifest

# Of a checkpoint that `keel_jax.grow` or `import_hf` wrote, for a run that would continue from it.
WEIGHTS_ALONE = "it holds weights alone"
# Longest finding of one process that the others get to know.
_TEXT_BYTES = 256


def damage(directory: epath.Path, items: Sequence[str], *, contents: bool) -> list[str]:
    """What is wrong with some items of the checkpoint in `directory`; often nothing.

    A collective: each process reads its share of the files, and all return the same. Checkpoints
    of versions that wrote no manifest are only checked for their parts and their step.

    Args:
      directory: its name is the step.
      contents: whether to compare what the files contain; otherwise only their sizes.

    Raises:
      OSError: a file cannot be read, which says nothing about its content.
    """
    # The lead's view decides: on a network file system another process may see older files.
    [has_manifest] = distributed.from_lead((directory / manifest.FILE).exists())
    if has_manifest:
        found = _with_manifest(directory, items, contents)
    else:
        found = [f"{item}/ is missing" for item in items if not (directory / item).is_dir()]
        found = found or _contradictions_of_meta(directory)
        if not found:
            logging.warning(
                "%s has no %s, as checkpoints of earlier versions: only its parts and its step "
                "were checked.",
                directory,
                manifest.FILE,
            )
    found = found or _missing_handlers(directory, items)
    # Of each process the first finding.
    return found if jax.process_count() == 1 else _from_all(found)


def _with_manifest(directory: epath.Path, items: Sequence[str], contents: bool) -> list[str]:
    try:
        written = manifest.read(directory)
    except errors.UserError as error:
        return [str(error)]
    if written.step != int(directory.name):
        return [f"{manifest.FILE} is that of step {written.step}"]
    if "progress" in items and written.items == ("meta", "params"):
        return [WEIGHTS_ALONE]
    if contents and (unknown := len(written.num_bytes) - len(written.sha256)):
        logging.warning(
            "%s: %s files can only be checked by their size: the run was killed before their "
            "digests were written.",
            directory,
            unknown,
        )
    return manifest.damage(
        directory,
        written,
        items,
        contents=contents,
        rank=jax.process_index(),
        world_size=jax.process_count(),
    )


def _missing_handlers(directory: epath.Path, items: Sequence[str]) -> list[str]:
    """Orbax completes this file after the manifest, so that it has no digest."""
    path = directory / "_CHECKPOINT_METADATA"
    try:
        handlers = json.loads(path.read_text())["item_handlers"]
        complete = all(isinstance(handlers[item], str) for item in items)
    except FileNotFoundError:
        return [f"{path.name} is missing"]
    except (ValueError, KeyError, TypeError):
        complete = False
    return [] if complete else [f"{path.name} is not what was written"]


def _contradictions_of_meta(directory: epath.Path) -> list[str]:
    path = directory / "meta" / "metadata"
    try:
        step = json.loads(path.read_text())["step"]
    except FileNotFoundError:
        return ["meta/metadata is missing"]
    except (ValueError, KeyError, TypeError):
        return ["meta/metadata is not what was written"]
    return [] if step == int(directory.name) else [f"meta/metadata is that of step {step}"]


def _from_all(found: list[str]) -> list[str]:
    """The first finding of every process, on every process. A collective."""
    text = (found[0] if found else "").encode()[:_TEXT_BYTES]
    texts = multihost_utils.process_allgather(
        np.frombuffer(text.ljust(_TEXT_BYTES, b"\0"), np.uint8)
    )
    decoded = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in np.asarray(texts)]
    return [text for text in decoded if text]


def summary(found: Sequence[str]) -> str:
    """The first finding, and how many more there are."""
    more = len(found) - 1
    return found[0] + (f", and {more} more" if more else "")


def none_is_whole(checkpoints: epath.Path, damaged: dict[int, list[str]]) -> str:
    """The message for a directory of which every checkpoint that could be used is damaged."""
    found = "; ".join(f"step {step}: {summary(how)}" for step, how in damaged.items())
    return (
        f"No checkpoint in {checkpoints} is whole ({found}). Put back what is missing or changed, "
        "or move the directory away."
    )


def whole_step(
    checkpoints: epath.Path,
    steps: Sequence[int],
    step: int | None,
    damage_of: Callable[[int], list[str]],
) -> int:
    """`step` if it is whole, or (None) the newest of `steps` that is.

    Args:
      checkpoints: their directory, for messages.
      steps: those that there are, the newest first.
      damage_of: what is wrong with one of them.

    Raises:
      UserError: there is no such checkpoint, and those that exist are named; or it is damaged.
    """
    if not steps or (step is not None and step not in steps):
        wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        choice = f"the steps there: {list(steps[::-1])}" if steps else "there is none yet"
        raise errors.UserError(f"{checkpoints} does not hold {wanted}; {choice}.")
    damaged = {}
    for candidate in steps if step is None else [step]:
        if not (found := damage_of(candidate)):
            break
        damaged[candidate] = found
    else:
        raise errors.UserError(none_is_whole(checkpoints, damaged))
    for other, found in damaged.items():
        logging.warning(
            "%s is damaged (%s): step %s is used.",
            checkpoints / str(other),
            summary(found),
            candidate,
        )
    return candidate


def check_arrays(directory: epath.Path, wanted: dict[str, str]) -> None:
    """Refuses to read arrays of other dtypes or shapes, which Orbax would convert silently.

    Raises:
      UserError: they differ; both are named.
    """
    try:
        written = manifest.read(directory).arrays
    except FileNotFoundError:
        return
    different = [name for name in wanted if written.get(name, wanted[name]) != wanted[name]]
    if different:
        name, more = different[0], len(different) - 1
        raise errors.UserError(
            f"{directory} holds another model: {name} is {written[name]} there, {wanted[name]} in "
            f"this config{f' ({more} more differ)' if more else ''}."
        )


def check_path(workdir: epath.PathLike) -> None:
    """Refuses a path below which Orbax could not read a checkpoint back: it globs there.

    Raises:
      UserError: it contains *, ? or [.
    """
    path = str(epath.Path(workdir).absolute() if "://" not in str(workdir) else workdir)
    if special := sorted(set("*?[") & set(path)):
        raise errors.UserError(
            f"{path} contains {' and '.join(special)}: checkpoints could be written there and not "
            "be read back. Choose a path without *, ? and [."
        )
