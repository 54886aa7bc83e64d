"""Where a run's first weights came from: `ancestry.json`, oldest ancestor first.

A list of objects, one per ancestor: "action" ("init_from", "grow" or "import_hf"), "source" (the
directory that the weights were read from), "step" (of that checkpoint), "num_blocks" (its depth),
and for the last two what was done. The list is copied from directory to directory, so the last one
has the complete history even if the earlier directories have been deleted.
"""

import os
from typing import Any

from etils import epath

from keel_jax import config, errors
from keel_jax.runtime import best_effort, distributed, files
from keel_jax.training import trials

FILE = "ancestry.json"


def read(workdir: epath.PathLike) -> list[dict]:
    """The ancestors of the weights in `workdir` (of a run or of one of its trials); often none.

    A damaged file is named once, and its ancestors are left out: no number depends on them.
    """
    path = trials.holder(workdir) / FILE
    try:
        ancestors = files.read_json(path) or []
        if not isinstance(ancestors, list) or not all(isinstance(e, dict) for e in ancestors):
            raise errors.UserError(f"{path} is not a list of ancestors.")
    except (errors.UserError, OSError) as error:
        best_effort.warn(f"{error} The ancestors of these weights are left out.")
        return []
    return ancestors


def entry(
    action: str, source: epath.PathLike, step: int, model: config.ModelConfig, **more: Any
) -> dict:
    """The entry of one ancestor: `model` at `step` in `source`."""
    source = os.fspath(source)
    return {
        "action": action,
        "source": source if "://" in source else os.path.abspath(source),
        "step": step,
        "num_blocks": model.num_blocks,
        **more,
    }


def record(workdir: epath.PathLike, entries: list[dict]) -> None:
    """Writes the entries; without any, removes the file, which a failed start may have left."""
    if not distributed.is_lead():
        return
    path = epath.Path(workdir) / FILE
    if entries:
        files.write_json(path, entries)
    else:
        path.unlink(missing_ok=True)
