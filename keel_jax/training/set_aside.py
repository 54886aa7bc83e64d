"""Damaged checkpoints that a run moved out of its way: `WORKDIR/checkpoints_damaged/STEP/`.

They are never deleted: a file of theirs may be restored from a backup, and moved back. `why.json`
in each says what was found.
"""

from collections.abc import Sequence

from etils import epath

from keel_jax import errors
from keel_jax.runtime import files
from keel_jax.training import verification

DIRECTORY = "checkpoints_damaged"
_WHY = "why.json"


def move_all(checkpoints: epath.Path, damaged: dict[int, list[str]]) -> None:
    """Moves damaged steps of a directory of checkpoints away, and says what the run loses.

    Args:
      damaged: what is wrong with each.
    """
    # A directory that somebody made is not a step that was taken.
    taken = [step for step in damaged if any((checkpoints / str(step)).iterdir())]
    for step, damage in damaged.items():
        place = _move(checkpoints / str(step), damage)
        found = verification.summary(damage)
        print(f"{checkpoints / str(step)} is damaged: {found}. Moved to {place}.")
    newest = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())
    num_lost = max(taken, default=newest) - newest
    print(
        f"Continuing from step {newest}, the newest checkpoint that is whole: up to {num_lost} "
        "steps are computed again.",
        flush=True,
    )


def _move(step_directory: epath.Path, damage: Sequence[str]) -> epath.Path:
    parent = step_directory.parent.parent / DIRECTORY
    parent.mkdir(exist_ok=True)
    names = (step_directory.name + suffix for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    place = next(place for name in names if not (place := parent / name).exists())
    step_directory.rename(place)
    why = {"step": int(step_directory.name), "damage": list(damage), "moved_to": str(place)}
    files.write_json(place / _WHY, why)
    return place


def listed(workdir: epath.Path) -> list[dict]:
    """What `move_all` recorded in this work directory, oldest step first."""
    directory = workdir / DIRECTORY
    if not directory.is_dir():
        return []
    records = []
    for path in sorted(directory.iterdir()):
        try:
            record = files.read_json(path / _WHY)
        except errors.UserError:
            record = None
        records.append(record or {"damage": [f"unknown: {path} has no {_WHY}"]})
    return sorted(records, key=lambda record: record.get("step", -1))
