"""The train state: its contents, its sharded initialization, and its trials.

In a run of several trials (config.TrialsConfig) every leaf has a leading trial axis [K, …]; in a
run of one trial there is no such axis. `over_trials` is the only function that depends on this.
"""

import collections.abc
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from keel_jax import config
from keel_jax.model import depth, lm
from keel_jax.parallel import sharding
from keel_jax.training import optim

# What the axis of the vmap over trials is called inside it.
_TRIALS = "trials"


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes; each leaf [K, …] if there are K > 1 trials."""

    # int32 []: optimizer steps taken. The data position follows from it.
    step: jax.Array
    # float32 []: the schedule's peak. Data, not code: any value runs the same program. 0 marks a
    # trial that was stopped early (`is_over`).
    peak_lr: jax.Array
    # bool []: the loss or a gradient was not finite; from then on the state does not change.
    diverged: jax.Array
    # float32 tree, as `lm.init` makes it.
    params: Any
    # The optimizer's state: float32 moments and int32 counts.
    opt_state: Any


def over_trials(
    function: collections.abc.Callable, num_trials: int, **vmap_options: Any
) -> collections.abc.Callable:
    """`function` of one trial as a function of all trials: itself, or its vmap over `trial`."""
    if num_trials == 1:
        return function
    return jax.vmap(function, axis_name=_TRIALS, spmd_axis_name="trial", **vmap_options)


def own(values: collections.abc.Sequence[int]) -> int | jax.Array:
    """Of one value per trial the trial's own, in a function that `over_trials` maps.

    Equal values are a constant, so that trials of equal lengths run the same program as ever.
    """
    if len(set(values)) == 1:
        return values[0]
    return jnp.asarray(values)[jax.lax.axis_index(_TRIALS)]


def is_over(state: TrainState, cfg: config.Config) -> jax.Array | bool:
    """Whether a trial has ended before the run, so that its state no longer changes.

    It has taken the steps of its own length, or was stopped early.
    """
    if len(set(cfg.trial_steps)) == 1 and not cfg.train.early_stopping_validations:
        return False
    return (state.step >= own(cfg.trial_steps)) | (state.peak_lr == 0)


def initializer(cfg: config.Config) -> collections.abc.Callable[[], TrainState]:
    """A traceable function that makes the initial state of all trials."""
    model = lm.LanguageModel(cfg.model)
    optimizer = optim.make(cfg.optim)

    def make_trial(peak_lr, seed):
        return _begin(optimizer, peak_lr, lm.init(model, jax.random.key(seed)))

    def make():
        rates, seeds = zip(*cfg.trial_settings, strict=True)
        rates, seeds = jnp.asarray(rates, jnp.float32), jnp.asarray(seeds, jnp.uint32)
        if cfg.num_trials == 1:
            rates, seeds = rates[0], seeds[0]
        return over_trials(make_trial, cfg.num_trials)(rates, seeds)

    return make


def _begin(optimizer: optax.GradientTransformation, peak_lr: jax.Array, params: Any) -> TrainState:
    """The state of a trial before its first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        peak_lr=peak_lr,
        diverged=jnp.zeros((), bool),
        params=params,
        opt_state=optimizer.init(params),
    )


def shapes(cfg: config.Config) -> TrainState:
    """Shapes and dtypes of what `initializer` makes, without a trace of the model."""
    trials = (cfg.num_trials,) if cfg.num_trials > 1 else ()
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*trials, *leaf.shape), leaf.dtype), lm.shapes(cfg.model)
    )
    peak_lr = jax.ShapeDtypeStruct(trials, jnp.float32)
    begin = functools.partial(_begin, optim.make(cfg.optim))
    return jax.eval_shape(over_trials(begin, cfg.num_trials), peak_lr, params)


def shardings(cfg: config.Config, mesh: jax.sharding.Mesh) -> TrainState:
    """The sharding of the state: a NamedSharding in the place of each array.

    Optimizer moments are sharded as their parameters; counts and factored moments are replicated.

    Raises:
      UserError: a dimension is not a multiple of its number of shards.
    """
    depth.check_stages(cfg.model, mesh)
    leaves = shapes(cfg)
    trial = ("trial",) if cfg.num_trials > 1 else ()

    def place(path, leaf, axes):
        return sharding.sharding(mesh, trial + axes, leaf.shape, jax.tree_util.keystr(path))

    def everywhere(leaf):
        # Replicated, except over trials.
        return sharding.sharding(mesh, trial + ("scalar",) * (leaf.ndim - len(trial)), leaf.shape)

    params = jax.tree_util.tree_map_with_path(
        place, leaves.params, lm.logical_axes(lm.LanguageModel(cfg.model))
    )
    opt_state = optim.match_params(leaves.opt_state, leaves.params, params, everywhere)
    rest = jax.tree.map(everywhere, dataclasses.replace(leaves, params=None, opt_state=None))
    return dataclasses.replace(rest, params=params, opt_state=opt_state)


def create(cfg: config.Config, mesh: jax.sharding.Mesh) -> TrainState:
    """The initial state, initialized sharded: no leaf is ever whole on one device."""
    with jax.set_mesh(mesh):
        return jax.jit(initializer(cfg), out_shardings=shardings(cfg, mesh))()


def with_new_optimizer(
    cfg: config.Config, mesh: jax.sharding.Mesh, state: TrainState
) -> TrainState:
    """The state with the optimizer's state of a run that begins with its parameters."""
    initialize = over_trials(optim.make(cfg.optim).init, cfg.num_trials)
    with jax.set_mesh(mesh):
        places = shardings(cfg, mesh).opt_state
        opt_state = jax.jit(initialize, out_shardings=places)(state.params)
    return dataclasses.replace(state, opt_state=opt_state)


def abstract(cfg: config.Config, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, with nothing computed."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes(cfg),
        shardings(cfg, mesh),
    )


def trial_of(tree: Any, trial: int, num_trials: int) -> Any:
    """One trial's part of a state, or of anything stacked like it."""
    return tree if num_trials == 1 else jax.tree.map(lambda leaf: leaf[trial], tree)
