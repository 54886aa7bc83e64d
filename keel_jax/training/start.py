"""Where a run begins: its own newest checkpoint, another run's weights, or random weights."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from keel_jax import config, errors
from keel_jax.config import options
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import distributed, exit_codes
from keel_jax.training import ancestry, checkpoint, checkpoint_meta, trained, transfer
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
    diverged, done, is_same = distributed.from_lead(
        workdir_lib.has_ended_as(workdir, "diverged"),
        workdir_lib.has_ended_as(workdir, "done"),
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
) -> tuple[state_lib.TrainState, int]:
    """The state to start from, and the number of steps that it has taken.

    Learning rates are the config's, also for a restored state: they may be changed between runs.

    Args:
      meta: the run's metadata; a restored checkpoint must have the same data and tokenizer.
      clock: measures restoring.

    Raises:
      UserError: the checkpoint was trained on other data or with another tokenizer, or the
        weights of `train.init_from` do not fit the model.
    """
    if checkpoints.latest_step() is None:
        state, ancestors = state_lib.create(cfg, mesh), []
        if cfg.train.init_from:
            params, ancestors = _initial_params(cfg, mesh, meta, state.params)
            state = dataclasses.replace(state, params=params)
        ancestry.record(checkpoints.directory.parent, ancestors)
        return state, 0
    with clock.measure("restore"):
        state, restored = checkpoints.restore(state_lib.abstract(cfg, mesh))
    _check_same_data(checkpoints.directory, restored, meta)
    restored.check_model(meta.model or {}, checkpoints.directory.parent)
    rates = np.asarray([rate for rate, _ in cfg.trial_settings], np.float32)
    rates = rates.reshape(state.peak_lr.shape)
    rates = transfer.put_everywhere(rates, state.peak_lr.sharding)
    return dataclasses.replace(state, peak_lr=rates), restored.step


def _initial_params(cfg, mesh, meta, like):
    """The weights of `train.init_from` for every trial, sharded as `like`; and their ancestry."""
    workdir, step = parse_checkpoint(cfg.train.init_from)
    their_model = checkpoint.load_config(workdir).model
    changed = {
        name: (getattr(their_model, name), getattr(cfg.model, name))
        for name, field in options.fields(config.ModelConfig).items()
        if options.change_of(field) is options.Change.MODEL
        and getattr(their_model, name) != getattr(cfg.model, name)
    }
    if changed:
        lines = "; ".join(f"model.{k}: {a!r} there, {b!r} here" for k, (a, b) in changed.items())
        raise errors.UserError(
            f"train.init_from={cfg.train.init_from} holds another model ({lines})."
        )
    params, their_meta = trained.load_params(workdir, mesh, step)
    if their_meta.tokenizer_fingerprint != meta.tokenizer_fingerprint:
        raise errors.UserError(
            f"train.init_from={cfg.train.init_from} was trained with tokenizer "
            f"{their_meta.tokenizer_fingerprint[:12]}, data.path was made with "
            f"{meta.tokenizer_fingerprint[:12]}: prepare the data with that run's tokenizer.model."
        )
    ancestor = ancestry.entry("init_from", workdir, their_meta.step, their_model)
    ancestors = [*ancestry.read(workdir), ancestor]
    if cfg.num_trials > 1:
        spread = jax.jit(
            lambda tree: jax.tree.map(
                lambda p: jnp.broadcast_to(p, (cfg.num_trials, *p.shape)), tree
            ),
            out_shardings=jax.tree.map(lambda p: p.sharding, like),
        )
        params = spread(params)
    return params, ancestors


def parse_checkpoint(path: str) -> tuple[epath.Path, int | None]:
    """(work directory, step) of "DIR" (step None: the newest) or of "DIR/checkpoints/STEP"."""
    match = re.fullmatch(rf"(.+)/{checkpoint.DIRECTORY}/(\d+)/?", path)
    return (epath.Path(match[1]), int(match[2])) if match else (epath.Path(path), None)


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
