"""Where a run begins: its own newest checkpoint, another run's weights, or random weights."""

import dataclasses
import secrets

import jax
import numpy as np
from etils import epath

from keel_jax import config, errors
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import distributed, exit_codes
from keel_jax.training import ancestry, checkpoint, checkpoint_meta, init_from, transfer
from keel_jax.training import state as state_lib
from keel_jax.training import workdir as workdir_lib


def ended_before(
    cfg: config.Config, workdir: epath.Path, checkpoints: checkpoint.Checkpoints
) -> int | None:
    """The exit code, also printed, of a run that has nothing left to do; None if it has.

    A diverged run would diverge again with the same options. With others (a lower rate) it
    continues from its newest checkpoint before the divergence.

    Raises:
      UserError: it diverged, and there is no such checkpoint; or no checkpoint is whole.
    """
    try:
        checkpoints.set_damaged_aside()
    except errors.UserError as error:
        workdir_lib.record_failure(workdir, error)
        raise
    step = checkpoints.latest_step()
    if step is None:
        return None
    # As the lead sees it: on a network file system another process may see older files.
    diverged, done, is_early, is_same = distributed.from_lead(
        workdir_lib.has_ended_as(workdir, "diverged"),
        workdir_lib.has_ended_as(workdir, "done"),
        workdir_lib.has_stopped_early(workdir),
        not config.differences(checkpoint.load_config(workdir), cfg),
    )
    if diverged and not is_same:
        checkpoints.drop_diverged()
        return None
    if diverged:
        code, message = (
            exit_codes.DIVERGED,
            (
                f"this run diverged after step {step}; with the same options it would again. "
                "Change one (such as --config.optim.peak_lr), or start another --workdir."
            ),
        )
    elif done and step >= cfg.train.num_steps:
        code, message = exit_codes.DONE, f"this run is done: step {step} of {cfg.train.num_steps}."
    elif done and is_early and cfg.train.early_stopping_validations:
        code, message = (
            exit_codes.DONE,
            f"this run is done: it stopped early at step {step} of {cfg.train.num_steps}. With "
            "train.early_stopping_validations=0 it would go on.",
        )
    else:
        return None
    if distributed.is_lead():
        print(f"{workdir}: {message}")
    return code


def begin(
    cfg: config.Config,
    mesh: jax.sharding.Mesh,
    checkpoints: checkpoint.Checkpoints,
    meta: checkpoint_meta.Meta,
    clock: clock_lib.Clock,
) -> tuple[state_lib.TrainState, checkpoint_meta.Meta]:
    """The state to start from, and `meta` with its step and the run's identity.

    Learning rates are the config's, also for a restored state: they may be changed between runs.

    Args:
      meta: the run's metadata; a restored checkpoint must have the same data and tokenizer.
      clock: measures restoring.

    Raises:
      UserError: the checkpoint was trained on other data or with another tokenizer, the weights
        of `train.init_from` do not fit the model, or the step at which the optimizer should begin
        anew has not been reached.
    """
    latest, reset_at = checkpoints.latest_step(), cfg.train.reset_optimizer_at_step
    if reset_at and latest is None:
        raise errors.UserError(
            f"train.reset_optimizer_at_step={reset_at}, but {checkpoints.directory} holds no "
            "checkpoint from which the run could continue: set it to 0."
        )
    if latest is not None and reset_at > latest:
        raise errors.UserError(
            f"train.reset_optimizer_at_step={reset_at} is later than step {latest}, from which the "
            f"run continues: set it to {latest}, or to 0 to keep the optimizer's state."
        )
    if latest is None:
        state, ancestors = state_lib.create(cfg, mesh), []
        if cfg.train.init_from:
            params, ancestors = init_from.load(cfg, mesh, meta, state.params)
            state = dataclasses.replace(state, params=params)
        ancestry.record(checkpoints.directory.parent, ancestors)
        return state, dataclasses.replace(meta, run_id=_new_run_id())
    with clock.measure("restore"):
        state, restored = checkpoints.restore(state_lib.abstract(cfg, mesh))
    _check_same_data(checkpoints.directory, restored, meta)
    restored.check_model(meta.model or {}, checkpoints.directory.parent)
    if restored.step == reset_at:
        if distributed.is_lead():
            print(
                f"The optimizer begins anew: its moments and counts after step {reset_at} are not "
                f"used (train.reset_optimizer_at_step={reset_at}).",
                flush=True,
            )
        state = state_lib.with_new_optimizer(cfg, mesh, state)
    rates = np.asarray([rate for rate, _ in cfg.trial_settings], np.float32)
    rates = rates.reshape(state.peak_lr.shape)
    if cfg.train.early_stopping_validations:
        # What was stopped early stays stopped (`state.is_over`).
        rates = np.where(transfer.fetch(state.peak_lr) == 0, np.float32(0), rates)
    rates = transfer.put_everywhere(rates, state.peak_lr.sharding)
    run_id = restored.run_id or _new_run_id()
    meta = dataclasses.replace(
        meta,
        step=restored.step,
        run_id=run_id,
        validations=restored.validations,
        trial_steps=restored.trial_steps,
    )
    return dataclasses.replace(state, peak_lr=rates), meta


def _new_run_id() -> str:
    """Eight hexadecimal digits; only the lead's counts, which writes checkpoints and logs."""
    return secrets.token_hex(4)


def _check_same_data(directory: epath.Path, saved: checkpoint_meta.Meta, now: checkpoint_meta.Meta):
    for name, was, is_now in (
        ("tokenizer", saved.tokenizer_fingerprint, now.tokenizer_fingerprint),
        ("data", saved.data_fingerprint, now.data_fingerprint),
    ):
        if was != is_now:
            raise errors.UserError(
                f"The checkpoint in {directory} was trained with {name} {was[:12]}, data.path "
                f"holds {name} {is_now[:12]}: give it the same data, or start another --workdir "
                "with train.init_from."
            )
