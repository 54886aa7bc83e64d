"""Checkpoints of a run, written by Orbax: asynchronous, sharded, independent of the mesh.

`WORKDIR/checkpoints/STEP/` holds three items: `params` (separate, so that evaluation and
`init_from` read only these), `progress` (the rest of the train state), and `meta` (JSON: the step,
and the fingerprints of the data and the tokenizer).
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from keel_jax import config, errors
from keel_jax.config import renamed
from keel_jax.runtime import files
from keel_jax.training import state as state_lib
from keel_jax.training import trials

DIRECTORY = "checkpoints"
CONFIG = "config.json"
_CONFIG_REMEDY = (
    "restore it from a copy (training with the same options writes the same file into any new "
    "--workdir)"
)


@dataclasses.dataclass(frozen=True)
class Meta:
    """The metadata of a checkpoint."""

    # Optimizer steps taken.
    step: int
    # Identity of the token shards.
    data_fingerprint: str
    # Identity of the tokenizer.
    tokenizer_fingerprint: str
    # Every trial has diverged; the state is the one before the non-finite step.
    diverged: bool = False

    @classmethod
    def from_json(cls, values: dict) -> "Meta":
        """The inverse of `dataclasses.asdict`; fields that no longer exist are ignored."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, without its own check for preemption.

    That check would set the preemption service's counter, which belongs to `stop.StopRequest`, to
    the step.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one work directory; use as a context manager."""

    def __init__(self, workdir: epath.PathLike, keep: int | None = None):
        """Opens them for reading or, with `keep`, for writing; the newest `keep` are kept."""
        directory = epath.Path(workdir) / DIRECTORY
        # Orbax takes absolute paths only; a gs:// path is one already.
        self.directory = directory if "://" in str(directory) else directory.absolute()
        self._keep = keep
        writing = keep is not None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep),
            create=writing,
            cleanup_tmp_directories=writing,
            # All processes use the steps that the first one sees.
            single_host_load_and_broadcast=True,
        )
        self._manager = _Manager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, _):
        if error is None or jax.process_count() == 1:
            self._manager.close()
        # Otherwise it would wait for processes that may be dead or may be waiting for this one.

    def latest_step(self) -> int | None:
        """The newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

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

    def save(self, state: state_lib.TrainState, meta: Meta) -> None:
        """Copies the state to the host and writes it in the background, unless it exists already.

        Raises:
          OSError: this save, or an earlier one in the background, failed.
        """
        self.check()
        if meta.step in self._manager.all_steps():
            return
        if meta.diverged and self._keep == 1 and self.latest_step() is not None:
            return  # it would replace the one to continue from
        progress = dataclasses.replace(state, params=None)
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            progress=ocp.args.StandardSave(_as_dict(progress)),
            meta=ocp.args.JsonSave(dataclasses.asdict(meta)),
        )
        # Orbax copies from the device implicitly, which the loop's transfer guard would refuse.
        with jax.transfer_guard("allow"), self._as_os_error():
            self._manager.save(meta.step, args=args)

    def save_weights(self, params: Any, meta: Meta) -> None:
        """Writes only the weights, which `train.init_from` reads, and waits until they are on disk.

        Raises:
          OSError: they could not be written.
        """
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave(dataclasses.asdict(meta))
        )
        with self._as_os_error():
            self._manager.save(meta.step, args=args)
        self.wait()

    def check(self) -> None:
        """Raises the error of a failed background write; never waits for a running one.

        Orbax itself does not report it until the next save, and counts the failed step as written.
        """
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          OSError: it could not be written; earlier checkpoints are unchanged.
        """
        with self._as_os_error():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _as_os_error(self):
        """Converts any exception that the storage raised during a write to an OSError."""
        try:
            yield
        except Exception as error:
            if jax.process_count() == 1:  # of several, one that failed alone would wait for all
                self._manager.reload()
            raise OSError(
                f"Writing a checkpoint to {self.directory} failed: {type(error).__name__}: {error}."
                f" The newest complete one is step {self._manager.latest_step()}."
            ) from error

    def restore(self, abstract: state_lib.TrainState) -> tuple[state_lib.TrainState, Meta]:
        """The newest checkpoint, sharded as `abstract` (on any mesh).

        Raises:
          UserError: it only holds weights.
        """
        if not (self.directory / str(self.latest_step()) / "progress").exists():
            raise errors.UserError(
                f"{self.directory.parent} only holds weights, written by keel_jax.grow, and no "
                "run to continue: use another --workdir, and start the run from these weights with "
                f"--config.train.init_from={self.directory.parent}."
            )
        progress = _as_dict(dataclasses.replace(abstract, params=None))
        restored = self._manager.restore(
            self.latest_step(),
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                progress=ocp.args.StandardRestore(progress),
                meta=ocp.args.JsonRestore(),
            ),
        )
        state = state_lib.TrainState(params=restored["params"], **restored["progress"])
        return state, Meta.from_json(restored["meta"])

    def restore_params(self, abstract_params: Any, step: int | None = None) -> tuple[dict, Meta]:
        """Only the weights, of `step` or the newest.

        Raises:
          UserError: there is no such checkpoint; those that exist are named.
        """
        steps = sorted(self._manager.all_steps())
        if not steps or (step is not None and step not in steps):
            wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            choice = f"the steps there: {steps}" if steps else "there is none yet"
            raise errors.UserError(f"{self.directory} does not hold {wanted}; {choice}.")
        restored = self._manager.restore(
            steps[-1] if step is None else step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract_params), meta=ocp.args.JsonRestore()
            ),
        )
        return restored["params"], Meta.from_json(restored["meta"])


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
        return config.from_dict(saved)
    except errors.UserError as error:
        raise errors.UserError(f"{path}: {error} If it is damaged, {_CONFIG_REMEDY}.") from error


@functools.cache  # once per file
def _say_renamed(path: str, old_names: tuple[tuple[str, str], ...]) -> None:
    changes = "; ".join(f"{old} is called {new} now" for old, new in old_names)
    logging.warning("%s was written under old names: %s.", path, changes)


def holder(workdir: epath.PathLike) -> epath.Path:
    """The directory that holds the checkpoints of `workdir`: the run's, if that is a trial's."""
    workdir = epath.Path(workdir)
    pointer = trials.pointer(workdir)
    return workdir / pointer.checkpoints_in if pointer else workdir


def load_params(
    workdir: epath.PathLike, mesh: jax.sharding.Mesh, step: int | None = None
) -> tuple[dict, Meta]:
    """The weights of the run, or the trial, in `workdir`, sharded over `mesh`.

    Raises:
      UserError: `workdir` holds several trials, no run, or no such checkpoint.
    """
    workdir = epath.Path(workdir)
    pointer = trials.pointer(workdir)
    cfg = load_config(holder(workdir))
    if cfg.num_trials > 1 and pointer is None:
        raise errors.UserError(
            f"{workdir} holds {cfg.num_trials} trials; name one of them: {workdir}/trials/000 …"
        )
    if not (holder(workdir) / DIRECTORY).exists():
        raise errors.UserError(f"{workdir} holds no checkpoint yet.")
    with Checkpoints(holder(workdir)) as checkpoints:
        params, meta = checkpoints.restore_params(state_lib.abstract(cfg, mesh).params, step)
    if pointer and pointer.trial >= cfg.num_trials:
        raise errors.UserError(
            f"{workdir}/trial.json names trial {pointer.trial}, but the run in {holder(workdir)} "
            f"has trials 0 to {cfg.num_trials - 1}: put the trial's own file back."
        )
    if pointer:
        params = state_lib.trial_of(params, pointer.trial, cfg.num_trials)
    return params, meta


def _as_dict(progress: state_lib.TrainState) -> dict:
    return {
        "step": progress.step,
        "peak_lr": progress.peak_lr,
        "diverged": progress.diverged,
        "opt_state": progress.opt_state,
    }
