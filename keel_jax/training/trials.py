"""The directories of a run's trials: `WORKDIR/trials/000/`, …, each with its own config and logs.

All trials share the run's checkpoints; `trial.json` in each directory points to them, so a trial's
directory can be evaluated like a run's.
"""

import typing

from etils import epath

from keel_jax import config, errors
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


def log_ids(run_id: str, cfg: config.Config) -> list[str]:
    """What the lines of each trial's log, and its status, call their run."""
    if cfg.num_trials == 1:
        return [run_id]
    return [f"{run_id}-{trial:03}" for trial in range(cfg.num_trials)]


def pointer(directory: epath.PathLike) -> Pointer | None:
    """The contents of a directory's `trial.json`; None if it is not the directory of a trial.

    Raises:
      UserError: the file is damaged.
    """
    directory = epath.Path(directory)
    for name, key in ((_POINTER, "trial"), (_OLD_POINTER, _OLD_KEY)):
        path = directory / name
        try:
            values = files.read_json(path)
            if values is None:
                continue
            match values:
                case {"checkpoints_in": str(place), **rest} if _is_index(rest.get(key)):
                    return Pointer(place, rest[key])
            raise errors.UserError(f"{path} holds {str(values)[:80]}.")
        except errors.UserError as error:
            raise errors.UserError(
                f"{error} It says which trial of which run this is; for the first trial it is "
                f'{{"checkpoints_in": "../..", "{key}": 0}}.'
            ) from error
    return None


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def holder(workdir: epath.PathLike) -> epath.Path:
    """The directory that holds the checkpoints of `workdir`: the run's, if that is a trial's."""
    workdir = epath.Path(workdir)
    to = pointer(workdir)
    return workdir / to.checkpoints_in if to else workdir


def write_pointer(directory: epath.Path, trial: int) -> None:
    """Marks `directory`, one of `directories`, as that of `trial`."""
    files.write_checked_json(directory / _POINTER, {"checkpoints_in": "../..", "trial": trial})


def rename_old(workdir: epath.Path) -> None:
    """Renames the files of an old run, in which trials were called lanes."""
    old = workdir / _OLD_DIRECTORY
    if not distributed.is_lead() or not old.exists() or (workdir / _DIRECTORY).exists():
        return
    for path in sorted(old.iterdir()):
        # The name says the same as the old pointer, which may be damaged.
        if path.name.isdecimal() and (path / _OLD_POINTER).exists():
            write_pointer(path, int(path.name))
            (path / _OLD_POINTER).unlink()
    old.rename(workdir / _DIRECTORY)
    print(f"{old} is {workdir / _DIRECTORY} now: lanes are called trials.", flush=True)
