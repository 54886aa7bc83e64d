"""Checkpoints of a run, written by Orbax: asynchronous, sharded, independent of the mesh.

`WORKDIR/checkpoints/STEP/` holds three items: `params` (separate, so that evaluation and
`init_from` read only these), `progress` (the rest of the train state), and `meta` (JSON: the step,
and the fingerprints of the data and the tokenizer); and a manifest (`training.manifest`), by which
they are verified before they are used. A run moves damaged ones away (`training.set_aside`) and
continues from the newest one that is whole.
"""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from keel_jax import config, errors
from keel_jax.config import renamed
from keel_jax.runtime import distributed, files
from keel_jax.training import (
    checkpoint_meta,
    manifest,
    retention,
    set_aside,
    transfer,
    verification,
)
from keel_jax.training import state as state_lib

# Which checkpoint: that of a step, the one with the lowest validation loss, or (None) the newest.
Step = int | Literal["best"] | None

DIRECTORY = "checkpoints"
CONFIG = "config.json"
_CONFIG_REMEDY = (
    "restore it from a copy (training with the same options writes the same file into any new "
    "--workdir)"
)
_WEIGHTS = ("meta", "params")
_ALL_ITEMS = (*_WEIGHTS, "progress")


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, without two things that it does by itself."""

    def reached_preemption(self, step: int) -> bool:
        # Its check would set the preemption service's counter, which belongs to
        # `stop.StopRequest`, to the step.
        return False

    def _load_checkpoint_infos(self, skip_metadata_read: bool = True):
        # It would read times and metrics, which nobody asks for, from files that have not been
        # verified yet: a damaged one of any step would be a traceback.
        return super()._load_checkpoint_infos(skip_metadata_read=True)


class Checkpoints:
    """The checkpoints of one work directory; use as a context manager."""

    def __init__(self, workdir: epath.PathLike, writes: config.TrainConfig | None = None):
        """Opens them for reading or, with the options of a run, for writing.

        Raises:
          UserError: checkpoints below this path could not be read back.
        """
        verification.check_path(workdir)
        directory = epath.Path(workdir) / DIRECTORY
        # Orbax takes absolute paths only; a gs:// path is one already.
        self.directory = directory if "://" in str(directory) else directory.absolute()
        self._writes = writes
        self._verifies_contents = writes is None or writes.verify_checkpoints == "contents"
        # The manifest's part of the save in progress: the step, and `manifest.describe_arrays`.
        self._saving: tuple[int, dict[str, str]] = (-1, {})
        # Computes this process's share of the digests; None if it is the only process.
        self._digesting: threading.Thread | None = None
        self._save_failed = threading.Event()
        # Whether a save of this process has been read back.
        self._is_read_back = False
        # Whether nobody knows yet how the last save ended.
        self._is_unchecked = False
        options = ocp.CheckpointManagerOptions(
            preservation_policy=retention.policy(self.directory, writes),
            create=writes is not None,
            cleanup_tmp_directories=writes is not None,
            # All processes use the steps that the first one sees.
            single_host_load_and_broadcast=True,
            # On the lead, after all items have been written and before the commit.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        self._manager = _Manager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, _):
        if error is None or jax.process_count() == 1:
            self._manager.close()
        # Otherwise it would wait for processes that may be dead or may be waiting for this one.

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def set_damaged_aside(self) -> None:
        """Moves the checkpoints away that are newer than the newest whole one, and says so.

        A collective: each process reads its share of the files.

        Raises:
          UserError: there are checkpoints, but none that is whole, and all stay where they are; or
            the directory only holds weights.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged = {}
        for step in steps:
            if not (damage := self._damage(step, _ALL_ITEMS)):
                break
            damaged[step] = damage
        if damaged.get(max(steps, default=0)) == [verification.WEIGHTS_ALONE]:
            raise errors.UserError(
                f"{self.directory.parent} only holds weights, written by keel_jax.grow or "
                "keel_jax.import_hf, and no run to continue: use another --workdir, and start the "
                "run from these weights with "
                f"--config.train.init_from={self.directory.parent}."
            )
        if damaged and len(damaged) == len(steps):
            raise errors.UserError(verification.none_is_whole(self.directory, damaged))
        if damaged and distributed.is_lead():
            set_aside.move_all(self.directory, damaged)
        if damaged:
            distributed.from_all(True)  # moved
            self._manager.reload()

    def _damage(self, step: int, items: Sequence[str]) -> list[str]:
        directory = self.directory / str(step)
        return verification.damage(directory, items, contents=self._verifies_contents)

    def drop_diverged(self) -> None:
        """Removes checkpoints of diverged states, so that the run can continue from the newest one.

        Raises:
          UserError: there is no other checkpoint.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            if not self._manager.restore(step, args=args)["meta"]["diverged"]:
                return
            if len(self._manager.all_steps()) == 1:
                raise errors.UserError(
                    f"{self.directory} only holds the diverged state of step {step}: start "
                    "another --workdir."
                )
            self._manager.delete(step)

    def save(self, state: state_lib.TrainState, meta: checkpoint_meta.Meta) -> None:
        """Copies the state to the host and writes it in the background, unless it exists already.

        Raises:
          OSError: this save, or an earlier one in the background, failed.
        """
        self.check()
        if meta.step in self._manager.all_steps():
            return
        assert self._writes is not None
        if meta.diverged and self._writes.keep_checkpoints == 1 and self.latest_step() is not None:
            return  # it would replace the one to continue from
        progress = _as_dict(dataclasses.replace(state, params=None))
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            progress=ocp.args.StandardSave(progress),
            meta=ocp.args.JsonSave(dataclasses.asdict(meta)),
        )
        arrays = manifest.describe_arrays(params=state.params, progress=progress)
        self._start_save(meta.step, args, arrays)

    def save_weights(self, params: Any, meta: checkpoint_meta.Meta) -> None:
        """Writes only the weights, which `train.init_from` reads, and waits until they are on disk.

        Raises:
          OSError: they could not be written.
        """
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave(dataclasses.asdict(meta))
        )
        self._start_save(meta.step, args, manifest.describe_arrays(params=params))
        self.wait()

    def _start_save(self, step: int, args: ocp.args.Composite, arrays: dict[str, str]) -> None:
        self.wait()  # `_saving` is that of one save
        self._saving, self._is_unchecked = (step, arrays), True
        # Orbax copies from the device implicitly, which the loop's transfer guard would refuse.
        with jax.transfer_guard("allow"), self._as_os_error():
            self._manager.save(step, args=args)
        if jax.process_count() > 1:
            # A daemon, as a process that ends after an error must not wait for it.
            self._digesting = threading.Thread(target=self._digest, args=(step,), daemon=True)
            self._digesting.start()

    def _write_manifest(self) -> None:
        step, arrays = self._saving
        # Depending on the file system Orbax writes to a temporary directory or to the final one.
        [directory] = [
            path for path in self.directory.iterdir() if path.name.split(".")[0] == str(step)
        ]
        manifest.write(directory, step, arrays, digests=jax.process_count() == 1)

    def _digest(self, step: int) -> None:
        directory = self.directory / str(step)
        while not (directory / manifest.FILE).exists():  # the commit
            if self._save_failed.wait(timeout=0.5):
                return
        try:
            manifest.write_digests(directory, jax.process_index(), jax.process_count())
        except (OSError, errors.UserError) as error:
            logging.warning("The digests of step %s were not written: %s", step, error)

    def check(self) -> None:
        """Raises the error of a failed background write; never waits for a running one.

        Orbax itself does not report it until the next save, and counts the failed step as written.

        Raises:
          OSError: as `wait`.
        """
        is_digesting = self._digesting is not None and self._digesting.is_alive()
        if self._is_unchecked and not is_digesting and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk, and reads the first one back.

        Raises:
          OSError: it could not be written or read; earlier checkpoints are unchanged.
        """
        self._is_unchecked = False
        with self._as_os_error():
            self._manager.wait_until_finished()
            if self._digesting is not None:
                self._digesting.join()
                self._digesting = None
            self._read_back()

    def _read_back(self) -> None:
        """Reads the first save, as far as that needs no other process and little memory."""
        step, _ = self._saving
        if self._is_read_back or step < 0:
            return
        self._is_read_back = True
        directory = self.directory / str(step)
        written = manifest.read(directory)
        if damage := manifest.damage(directory, written, written.items, contents=False):
            raise OSError(f"step {step} was written, and {verification.summary(damage)}")
        if jax.process_count() == 1:
            for item, metadata in self._manager.item_metadata(step).items():
                if item != "meta" and metadata is None:
                    raise OSError(f"step {step} was written, and {item}/ cannot be read back")

    @contextlib.contextmanager
    def _as_os_error(self):
        """Converts any exception that the storage raised during a write to an OSError."""
        try:
            yield
        except Exception as error:
            self._save_failed.set()
            if jax.process_count() == 1:  # of several, one that failed alone would wait for all
                self._manager.reload()
            # Orbax's own would be the step that it has begun to write.
            newest = manifest.newest_step(self.directory)
            raise OSError(
                f"Writing a checkpoint to {self.directory} failed: {type(error).__name__}: {error}."
                f" The newest complete one is step {'-' if newest is None else newest}."
            ) from error

    def restore(
        self, abstract: state_lib.TrainState
    ) -> tuple[state_lib.TrainState, checkpoint_meta.Meta]:
        """The newest checkpoint, sharded as `abstract` (on any mesh).

        Raises:
          UserError: it is one of another model, or it contradicts itself.
        """
        step = self.latest_step()
        assert step is not None
        progress = _as_dict(dataclasses.replace(abstract, params=None))
        restored, meta = self._restore(step, {"params": abstract.params, "progress": progress})
        state = state_lib.TrainState(params=restored["params"], **restored["progress"])
        state_step = int(transfer.fetch(state.step).max())
        if state_step != step:
            raise errors.UserError(
                f"{self.directory / str(step)} holds the state of step {state_step}: move it away, "
                "and the run continues from the checkpoint before it."
            )
        return state, meta

    def restore_params(
        self, abstract_params: Any, step: int | None = None
    ) -> tuple[dict, checkpoint_meta.Meta]:
        """Only the weights, of `step`; None is the newest checkpoint that is whole.

        Raises:
          UserError: there is no such checkpoint, and those that exist are named; it is damaged, or
            one of another model.
        """
        restored, meta = self._restore(self._choose(step), {"params": abstract_params})
        return restored["params"], meta

    def find_params(self, step: int | None = None) -> tuple[epath.Path, checkpoint_meta.Meta]:
        """The directory of `step`, verified, for `leaves`; errors as in `restore_params`."""
        chosen = self._choose(step)
        return self.directory / str(chosen), self._restore(chosen, {})[1]

    def _choose(self, step: int | None) -> int:
        steps = sorted(self._manager.all_steps(), reverse=True)
        return verification.whole_step(
            self.directory, steps, step, lambda candidate: self._damage(candidate, _WEIGHTS)
        )

    def _restore(
        self, step: int, items: dict[str, Any]
    ) -> tuple[dict[str, Any], checkpoint_meta.Meta]:
        """Items of a verified checkpoint, as the given abstract trees, and its metadata."""
        directory = self.directory / str(step)
        verification.check_arrays(directory, manifest.describe_arrays(**items))
        args = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args)
            )
            return dict(restored), checkpoint_meta.Meta.from_json(restored["meta"])
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise errors.UserError(
                f"{directory} cannot be read ({type(error).__name__}: {reason}): move it away, "
                "and the newest checkpoint before it is used."
            ) from error


def exist(workdir: epath.Path) -> bool:
    """Whether a run has written a checkpoint there: a killed start may leave an empty directory."""
    directory = workdir / DIRECTORY
    return directory.exists() and any(path.name.isdecimal() for path in directory.iterdir())


def load_config(workdir: epath.PathLike) -> config.Config:
    """The completed config of the run in `workdir`.

    Raises:
      UserError: there is no run, or its config.json is damaged.
    """
    path = epath.Path(workdir) / CONFIG
    saved = files.read_json(path, remedy=_CONFIG_REMEDY)
    if saved is None:
        raise errors.UserError(
            f"{workdir} is not a work directory of a run: it has no config.json."
        )
    if not isinstance(saved, dict):
        raise errors.UserError(
            f"{path} is not a JSON object but {str(saved)[:40]!r}; {_CONFIG_REMEDY}."
        )
    if old_names := renamed.names_in(saved):
        _say_renamed(str(path), tuple(old_names.items()))
    try:
        cfg = config.from_dict(saved)
        if not cfg.model.vocab_size:
            raise errors.UserError("model.vocab_size is missing, as in no completed config.")
    except errors.UserError as error:
        raise errors.UserError(f"{path}: {error} If it is damaged, {_CONFIG_REMEDY}.") from error
    return cfg


@functools.cache  # once per file
def _say_renamed(path: str, old_names: tuple[tuple[str, str], ...]) -> None:
    changes = "; ".join(f"{old} is called {new} now" for old, new in old_names)
    logging.warning("%s was written under old names: %s.", path, changes)


def _as_dict(progress: state_lib.TrainState) -> dict:
    return {
        "step": progress.step,
        "peak_lr": progress.peak_lr,
        "diverged": progress.diverged,
        "opt_state": progress.opt_state,
    }
