"""The weights of a checkpoint, read one array at a time: memory for the largest suffices."""

import dataclasses

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from keel_jax import config, errors
from keel_jax.training import (
    checkpoint,
    checkpoint_meta,
    manifest,
    trained,
    trials,
    verification,
)
from keel_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Leaves:
    """The weights of a run, or of one of its trials, on disk."""

    # The run's config.
    cfg: config.Config
    # The checkpoint's metadata.
    meta: checkpoint_meta.Meta
    # Of the checkpoint, whose files are whole.
    directory: epath.Path
    # Of the run's trials, the one whose weights they are; None: it has no other.
    trial: int | None

    def read(self, path: tuple[str, ...]) -> np.ndarray:
        """The float32 array at this path of the parameters, as ("block", "ffn", "up").

        Raises:
          UserError: it cannot be read.
        """
        item, how = 0, ocp.RestoreArgs(restore_type=np.ndarray)
        for name in reversed(path):
            item, how = {name: item}, {name: how}
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        try:
            leaf = ocp.PyTreeCheckpointer().restore(self.directory / "params", args=args)
            for name in path:
                leaf = leaf[name]
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise errors.UserError(
                f"{self.directory} cannot be read ({type(error).__name__}: {reason}): move it "
                "away, and the newest checkpoint before it is used."
            ) from error
        return leaf if self.trial is None else leaf[self.trial]


def find(workdir: epath.PathLike, step: checkpoint.Step = None) -> Leaves:
    """The weights of `workdir`, the directory of a run or of one of its trials; none is read yet.

    Raises:
      UserError: no run, no such checkpoint, a damaged one, or a directory of several trials.
    """
    workdir, step = trained.find_best(epath.Path(workdir), step)
    cfg = trained.load_trial_config(workdir)
    whole, pointer = trained.check_source(workdir)
    holder = trials.holder(workdir)
    with checkpoint.Checkpoints(holder) as checkpoints:
        directory, meta = checkpoints.find_params(step)
    meta.check_model(config.model_options(whole), holder)
    wanted = manifest.describe_arrays(params=state_lib.shapes(whole).params)
    verification.check_arrays(directory, wanted)
    trial = pointer.trial if pointer and whole.num_trials > 1 else None
    return Leaves(cfg, meta, directory, trial)
