"""The directories of a run's trials: `WORKDIR/trials/000/`, …, each with its own config and logs.

All trials share the run's checkpoints; `trial.json` in each directory points to them, so a trial's
directory can be evaluated like a run's.
"""

import typing

from etils import epath

from keel_jax import config
from keel_jax.runtime import distributed, files

_DIRECTORY, _POINTER = "trials", "trial.json"
# Their former names.
_OLD_DIRECTORY, _OLD_POINTER, _OLD_KEY = "lanes", "lane.json", "lane"


class Pointer(typing.NamedTuple):
    """Points from a trial's directory to the checkpoints that contain it."""

    # The directory of the checkpoints, relative to the trial's.
    checkpoints_in: str
    # The trial's index along the leading axis of their arrays.
    trial: int


def directories(workdir: epath.Path, cfg: config.Config) -> list[epath.Path]:
    """The directory of each trial's metrics and status; with one trial, the work directory."""
    if cfg.num_trials == 1:
        return [workdir]
    return [workdir / _DIRECTORY / f"{trial:03}" for trial in range(cfg.num_trials)]


def pointer(directory: epath.PathLike) -> Pointer | None:
    """The contents of a directory's `trial.json`; None if it is not the directory of a trial."""
    directory = epath.Path(directory)
    if values := files.read_json(directory / _POINTER):
        return Pointer(values["checkpoints_in"], values["trial"])
    if values := files.read_json(directory / _OLD_POINTER):
        return Pointer(values["checkpoints_in"], values[_OLD_KEY])
    return None


def write_pointer(directory: epath.Path, trial: int) -> None:
    """Marks `directory`, one of `directories`, as that of `trial`."""
    files.write_json(directory / _POINTER, {"checkpoints_in": "../..", "trial": trial})


def rename_old(workdir: epath.Path) -> None:
    """Renames the files of an old run, in which trials were called lanes."""
    old = workdir / _OLD_DIRECTORY
    if not distributed.is_lead() or not old.exists() or (workdir / _DIRECTORY).exists():
        return
    for path in sorted(old.iterdir()):
        if old_pointer := pointer(path):
            write_pointer(path, old_pointer.trial)
            (path / _OLD_POINTER).unlink(missing_ok=True)
    old.rename(workdir / _DIRECTORY)
    print(f"{old} is {workdir / _DIRECTORY} now: lanes are called trials.", flush=True)
