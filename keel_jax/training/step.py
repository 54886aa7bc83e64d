"""The train step and the evaluation step: pure functions, and compiled for a mesh.

Dimension letters: B batch, T time, A accumulation steps.
"""

import collections.abc
import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from keel_jax import config, errors
from keel_jax.model import attention, depth, instruments, layers, lm
from keel_jax.parallel import pipeline, sharding
from keel_jax.runtime import compiler_options
from keel_jax.training import loss, optim, schedule
from keel_jax.training import state as state_lib

# The arrays of a batch, each [B, T]: int32, int32, int32, float32.
BATCH_KEYS = ("inputs", "targets", "segment_ids", "loss_weights")
_BATCH_AXES = ("batch", "time")

Sums = dict[str, jax.Array]


def batch_sums(params: Any, batch: dict, cfg: config.Config) -> Sums:
    """The loss sums (`loss.cross_entropy_sums`) of a batch [B, T]."""
    return batch_sums_and_stats(params, batch, cfg, instruments.NONE)[0]


def batch_sums_and_stats(
    params: Any, batch: dict, cfg: config.Config, measured: instruments.Instruments
) -> tuple[Sums, dict | None]:
    """`batch_sums`, and the blocks' telemetry if there are probes (keel_jax/model/telemetry.py)."""
    model = lm.LanguageModel(cfg.model)
    # The results are sums over tokens, so these may be in the order that the kernel needs.
    tokens, targets, weights, context = attention.in_order_of(
        cfg.model.attention,
        (
            batch["inputs"],
            batch["targets"],
            batch["loss_weights"],
            lm.ordered_context(batch["segment_ids"]),
        ),
    )
    outputs = model.apply(
        {"params": params},
        tokens,
        context=context,
        num_microbatches=cfg.mesh.stage_microbatches,
        measured=measured,
        method="hidden_and_stats",
    )
    h_BTD, stats = cast(tuple[jax.Array, dict | None], outputs)
    sums = loss.cross_entropy_sums(
        h_BTD,
        lm.output_matrix(params, cfg.model),
        targets,
        weights,
        chunk=cfg.train.loss_chunk,
    )
    return sums, stats


def train_step(
    state: state_lib.TrainState, batch: dict, cfg: config.Config
) -> tuple[state_lib.TrainState, Sums]:
    """One optimizer step of one trial on a batch [B, T].

    The loss is (sum of nats + z_loss * sum of (log Z)^2) / (sum of weights), both sums over the
    whole batch, so that accumulation in A micro-batches gives the same gradient. If the loss or
    the gradient's norm is not finite in this or an earlier step, the state is returned unchanged
    except that it is marked `diverged`. So is that of a trial that is over (`state.is_over`).

    Returns:
      The new state, and float32 scalars: the loss sums, "grad_norm" (before clipping),
      "param_norm", "learning_rate", and "diverged"; and what `depth.step_statistics` returns.
    """
    grads, sums, plan_stats = _gradients(state.params, batch, cfg)
    grads = mean_gradients(grads, sums)
    grads, grad_norm = optim.clip(grads, cfg.optim.clip_norm)
    learning_rate = learning_rate_of(state, cfg)
    optimizer = optim.make(cfg.optim)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)

    finite = jnp.isfinite(sums["nats"]) & jnp.isfinite(grad_norm)
    is_over = state_lib.is_over(state, cfg)
    diverged = state.diverged | (~finite & ~jnp.asarray(is_over))
    keeps = diverged | is_over
    stepped = dataclasses.replace(
        state,
        step=state.step + 1,
        params=lm.project(optim.apply(state.params, updates, learning_rate), cfg.model),
        opt_state=opt_state,
    )
    new_state = jax.tree.map(lambda new, old: jnp.where(keeps, old, new), stepped, state)
    metrics = {
        **sums,
        "grad_norm": grad_norm,
        "param_norm": optax.tree.norm(state.params),
        "learning_rate": learning_rate,
        "diverged": diverged,
        **plan_stats,
    }
    return dataclasses.replace(new_state, diverged=diverged), metrics


def mean_gradients(grads: Any, sums: Sums) -> Any:
    """The gradient of the mean loss from that of the sum; the weight of a batch may be 0."""
    weight = jnp.maximum(sums["weight"], 1e-6)
    return jax.tree.map(lambda g: g / weight, grads)


def learning_rate_of(state: state_lib.TrainState, cfg: config.Config) -> jax.Array:
    """The learning rate of the next step of `state`."""
    lengths = cfg.trial_steps
    factor = schedule.of_lengths(cfg.optim, lengths, state_lib.own(lengths))
    return state.peak_lr * factor(state.step)


def objective(
    params: Any, batch: dict, cfg: config.Config, measured: instruments.Instruments
) -> tuple[jax.Array, Any]:
    """The (unnormalized) loss sum, and `batch_sums_and_stats`."""
    sums, stats = batch_sums_and_stats(params, batch, cfg, measured)
    return sums["nats"] + cfg.train.z_loss * sums["log_z_squared"], (sums, stats)


def _gradients(params, batch, cfg):
    """Gradient of the (unnormalized) loss sum, and the loss sums, over A micro-batches; third,
    `depth.step_statistics`, the largest over micro-batches."""
    measured = depth.step_instruments(cfg.model)

    def gradient(batch):
        gradients = jax.grad(objective, argnums=(0, 3), has_aux=True)
        (grads, cotangents), (sums, _) = gradients(params, batch, cfg, measured)
        return (grads, sums), cotangents

    def join(total, new):
        largest = jax.tree.map(jnp.maximum, total[1], new[1])
        return _add(total[0], new[0]), largest

    (grads, sums), cotangents = over_micro_batches(gradient, batch, cfg, join)
    return grads, sums, depth.step_statistics(cotangents, cfg.model)


def _add(total, new):
    return jax.tree.map(jnp.add, total, new)


def over_micro_batches(
    function: collections.abc.Callable,
    batch: dict,
    cfg: config.Config,
    join: collections.abc.Callable = _add,
) -> Any:
    """The sum of `function` of each of the A micro-batches, a tree of arrays.

    Args:
      join: combines the result of the earlier micro-batches (at first zeros) with the next one.
    """
    parts = cfg.train.accumulation_steps
    if parts == 1:
        return function(batch)

    def add(total, micro_batch):
        return join(total, function(micro_batch)), None

    micro_batches = jax.tree.map(lambda x: sharding.split_rows(x, parts, _BATCH_AXES), batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(function, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, micro_batches)[0]


def abstract_batch(cfg: config.Config, mesh: jax.sharding.Mesh) -> dict:
    """Shapes, dtypes and shardings of a global training batch: [B, T], or [K, B, T] in K trials.

    Raises:
      UserError: a micro-batch is not a multiple of its number of shards.
    """
    trials = (cfg.num_trials,) if cfg.num_trials > 1 else ()
    parts = cfg.train.accumulation_steps
    return _abstract_batch(
        cfg,
        mesh,
        trials,
        cfg.train.batch_size,
        parts,
        f"train.batch_size / train.accumulation_steps = {cfg.train.batch_size} / {parts}",
    )


def abstract_eval_batch(cfg: config.Config, mesh: jax.sharding.Mesh, batch_size: int) -> dict:
    """Shapes, dtypes and shardings of a global evaluation batch [B, T], read by all trials."""
    return _abstract_batch(cfg, mesh, (), batch_size, 1, "evaluation batch")


def _abstract_batch(cfg, mesh, trials, batch_size, parts, name) -> dict:
    seq_len, num_stages = cfg.train.seq_len, mesh.shape[pipeline.AXIS]
    if num_stages > 1:
        count = pipeline.num_microbatches(cfg.mesh.stage_microbatches, num_stages)
        parts, name = parts * count, f"{name} / {count} microbatches of the pipeline"
    if batch_size % parts:
        raise errors.UserError(f"{name} is not a whole number of sequences: change one of them.")
    axes = (*(("trial",) if trials else ()), *_BATCH_AXES)
    place = sharding.sharding(mesh, axes, (*trials, batch_size // parts, seq_len), name)
    layers.check_activations(cfg.model, mesh, batch_size // parts, seq_len)
    return {
        key: jax.ShapeDtypeStruct(
            (*trials, batch_size, seq_len),
            jnp.float32 if key == "loss_weights" else jnp.int32,
            sharding=place,
        )
        for key in BATCH_KEYS
    }


def lower_train_step(cfg: config.Config, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """The step of all trials, lowered for `mesh`, whose devices need not exist.

    Raises:
      UserError: the sizes of the model, the batch and the mesh do not fit each other.
    """
    with jax.set_mesh(mesh):
        return jit_train_step(cfg, mesh).lower(
            state_lib.abstract(cfg, mesh), abstract_batch(cfg, mesh)
        )


def compile_train_step(
    cfg: config.Config, mesh: jax.sharding.Mesh
) -> collections.abc.Callable[[state_lib.TrainState, dict], tuple[state_lib.TrainState, Sums]]:
    """Compiles the step of all trials ahead of time; its state argument is donated."""
    options = compiler_options.options(mesh.devices.flat[0])
    return lower_train_step(cfg, mesh).compile(compiler_options=options)


def jit_train_step(cfg: config.Config, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """The jitted step, not yet lowered; every process can read its sums.

    Args:
      cfg: resolved (`planning.resolve`), as for all programs here.
    """
    check_resolved(cfg)
    step = state_lib.over_trials(lambda state, batch: train_step(state, batch, cfg), cfg.num_trials)
    places = state_lib.shardings(cfg, mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))


def compile_eval_step(
    cfg: config.Config, mesh: jax.sharding.Mesh, batch_size: int
) -> collections.abc.Callable[[dict, dict], Sums]:
    """Compiles (params, batch [B, T]) -> loss sums; several trials read one batch."""
    check_resolved(cfg)
    # There is no backward pass, so nothing is saved or recomputed.
    model = dataclasses.replace(cfg.model, recompute=config.RecomputeConfig(plan="none"))
    cfg = dataclasses.replace(cfg, model=model)
    step = state_lib.over_trials(
        lambda params, batch: batch_sums(params, batch, cfg), cfg.num_trials, in_axes=(0, None)
    )
    with jax.set_mesh(mesh):
        params = state_lib.abstract(cfg, mesh).params
        batch = abstract_eval_batch(cfg, mesh, batch_size)
        everywhere = sharding.replicated(mesh)
        lowered = jax.jit(step, out_shardings=everywhere).lower(params, batch)
    return lowered.compile(compiler_options=compiler_options.options(mesh.devices.flat[0]))


def check_resolved(cfg: config.Config) -> None:
    """With an unresolved config a program would silently use the reference kernel."""
    assert cfg.model.attention != "auto", "resolve the config first: planning/resolve.py"
