"""The work directory of a run: its contents, and whether a run may continue in it.

config.json       the completed config          versions.json   versions and devices
status.json       the current status            metrics.jsonl   one object per logged step
tokenizer.model   a copy, so that samples need no data
events.jsonl      see training/events.py        hangs/          stacks of processes that hung
checkpoints/      see training/checkpoint.py    tensorboard/    the same metrics, and traces
ancestry.json     of a run with train.init_from: where its weights came from
owner.json        while a run is going on: the process that holds the directory
checkpoints_damaged/  see training/set_aside.py
trials/000/ …     with several trials: each trial's config, metrics and status
"""

import contextlib
import secrets
import time
from collections.abc import Iterator

import jax
from etils import epath

from keel_jax import config, errors
from keel_jax.config import options
from keel_jax.runtime import (
    best_effort,
    distributed,
    exit_codes,
    files,
    ownership,
    versions,
)
from keel_jax.training import checkpoint, telemetry_records, trials, verification
from keel_jax.training import status as status_lib

VERSIONS = "versions.json"
# How long a network file system may take to show a new file to another host.
_SHARED_SECONDS = 20.0


@contextlib.contextmanager
def opened(workdir: epath.PathLike, cfg: config.Config) -> Iterator[epath.Path]:
    """The directory, created or checked for whether the run in it may continue with `cfg`; held
    (`runtime.ownership`) until the context ends.

    Raises:
      UserError: it cannot be written to, it is not the same directory for every process, another
        run is using it, or it holds a run with different options that may not change; both values
        are named, and nothing is written.
    """
    verification.check_path(workdir)
    workdir = files.make_writable_directory(workdir)
    with claimed(workdir):
        if checkpoint.exist(workdir):
            _check_unchanged(workdir, checkpoint.load_config(workdir), cfg)
        # From here on the lead writes: all processes have read the directory's contents.
        _check_shared(workdir)
        trials.rename_old(workdir)
        if distributed.is_lead():
            for directory in (workdir, *trials.directories(workdir, cfg)):
                for name in (status_lib.FILE, VERSIONS, telemetry_records.DIVERGENCE):
                    best_effort.keep_damaged(directory / name)
        yield workdir


@contextlib.contextmanager
def claimed(workdir: epath.Path) -> Iterator[None]:
    """Holds the directory for all processes, of which the lead claims it. A collective."""
    with contextlib.ExitStack() as resources:
        refusal = None
        if distributed.is_lead():
            try:
                resources.enter_context(ownership.Claim(workdir))
            except errors.UserError as error:
                refusal = error
        [is_refused] = distributed.from_lead(refusal is not None)
        if is_refused:
            raise refusal or errors.UserError(f"{workdir} is in use: process 0 says by whom.")
        yield


def check_empty(directory: epath.Path, flag: str) -> None:
    """Refuses a directory that holds more than its owner's claim. A collective.

    Args:
      flag: that named it, for the message.

    Raises:
      UserError: it is not empty.
    """
    names = sorted({path.name for path in directory.iterdir()} - {ownership.FILE})
    [is_taken] = distributed.from_lead(bool(names))
    if is_taken:
        raise errors.UserError(
            f"{flag}={directory} is not empty ({', '.join(names[:3])}): choose a new or empty "
            "directory."
        )


def has_ended_as(workdir: epath.Path, state: str) -> bool:
    """Whether the last run here ended in `state` ("done", "diverged", …)."""
    return best_effort.read_object(workdir / status_lib.FILE).get("state") == state


def has_stopped_early(workdir: epath.Path) -> bool:
    """Whether the last run here ended before its length, as its validation loss rose."""
    return best_effort.read_object(workdir / status_lib.FILE).get("stopped_early") is True


def record_failure(workdir: epath.Path, error: Exception) -> None:
    """Records that the run here cannot go on, whatever its status said."""
    path = workdir / status_lib.FILE
    if distributed.is_lead() and (status := best_effort.read_object(path)):
        failed = exit_codes.STATES[exit_codes.ERROR]
        values = {"state": failed, "exit_code": exit_codes.ERROR, "error": str(error)}
        with best_effort.writing(path):
            files.write_checked_json(path, status | values)


def describe(workdir: epath.Path, cfg: config.Config, tokenizer: epath.Path) -> None:
    """Writes the run's description, for the run and for each trial."""
    if not distributed.is_lead():
        return
    _describe_one(workdir, cfg, tokenizer)
    if cfg.num_trials > 1:
        for trial, directory in enumerate(trials.directories(workdir, cfg)):
            _describe_one(directory, cfg.for_trial(trial), tokenizer)
            trials.write_pointer(directory, trial)
    with best_effort.writing(workdir / VERSIONS):
        files.write_checked_json(workdir / VERSIONS, versions.describe())


def _describe_one(directory: epath.Path, cfg: config.Config, tokenizer: epath.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    files.write_checked_json(directory / checkpoint.CONFIG, config.to_dict(cfg))
    # Atomically: a full disk must not cost the copy that is there.
    files.write_bytes(directory / "tokenizer.model", tokenizer.read_bytes())


def _check_shared(workdir):
    """Checks that every process sees what the lead writes here; a collective."""
    if jax.process_count() == 1:
        return
    mark = workdir / f".shared.{distributed.from_lead(secrets.randbits(31))[0]}"
    if distributed.is_lead():
        mark.write_bytes(b"")
    distributed.from_all(True)  # written
    deadline = time.monotonic() + _SHARED_SECONDS
    while not (is_visible := mark.exists()) and time.monotonic() < deadline:
        time.sleep(0.5)
    visible = distributed.from_all(is_visible)
    missing = [number for number, is_there in enumerate(visible) if not is_there]
    if distributed.is_lead():
        mark.unlink()
    if missing:
        raise errors.UserError(
            f"{workdir} is another directory on process {', '.join(map(str, missing))} than on "
            "process 0: give a --workdir on a file system that all of them share, or gs://."
        )


def _check_unchanged(workdir, saved: config.Config, cfg: config.Config):
    fields = options.fields(config.Config)
    changed = {
        key: values
        for key, values in config.differences(saved, cfg).items()
        if options.change_of(fields[key]) in (options.Change.MODEL, options.Change.RUN)
    }
    if changed:
        lines = "; ".join(
            f"{key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items()
        )
        raise errors.UserError(
            f"{workdir} holds a run with other options ({lines}). Use the run's own options, or "
            "another --workdir; train.init_from starts a new run from its weights."
        )
