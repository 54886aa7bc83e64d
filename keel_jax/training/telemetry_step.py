"""The program that computes a step's statistics for every sub-layer, without changing anything.

It recomputes the step's gradients from the same state and the same batch, and returns a few numbers
for each of the N blocks; the train step itself is the same program with telemetry and without. (A
single program for both would save the second pass in recorded steps, but recorded steps would then
round differently, so telemetry would change the run.) As a diverging step leaves its state
unchanged, this program can explain it afterwards.

Dimension letters: N blocks, K trials, B batch, T time.
"""

import collections.abc

import jax
import jax.numpy as jnp
import optax

from keel_jax import config
from keel_jax.model import instruments, residual, telemetry
from keel_jax.parallel import pipeline, sharding
from keel_jax.runtime import compiler_options
from keel_jax.training import optim
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib


def statistics(state: state_lib.TrainState, batch: dict, cfg: config.Config) -> dict:
    """The statistics of the step of `state` on `batch` [B, T]; of one trial.

    Returns:
      float32 arrays by name: [N, 2] per sub-layer (0 attention, 1 FFN), or [N] per block;
      docs/telemetry.md has the formulas. There is one "gradient_rms/…", "update_rms/…" and
      "param_rms/…" for each leaf of the block's parameters, as in "param_rms/attention/query".
    """

    def gradient(batch):
        measured = instruments.Instruments(probes=telemetry.probes(cfg.model.num_blocks))
        gradients = jax.grad(step_lib.objective, argnums=(0, 3), has_aux=True)
        (grads, cotangents), (sums, stats) = gradients(state.params, batch, cfg, measured)
        return grads, sums, stats | {"cotangent_square": cotangents.probes}

    grads, sums, stats = step_lib.over_micro_batches(gradient, batch, cfg)
    stats = jax.tree.map(lambda x: x / cfg.train.accumulation_steps, stats)
    grads = step_lib.mean_gradients(grads, sums)
    return {
        **_sublayers(stats, cfg.model, state.params),
        **_per_leaf("gradient_rms", grads),
        **_per_leaf("param_rms", state.params),
        **_optimizer(state, grads, cfg),
    }


def compile_statistics(
    cfg: config.Config, mesh: jax.sharding.Mesh
) -> collections.abc.Callable[[state_lib.TrainState, dict], dict]:
    """Compiles `statistics` for all trials, [K, …] if several; every process can read them."""
    with jax.set_mesh(mesh):
        lowered = jit_statistics(cfg, mesh).lower(
            state_lib.abstract(cfg, mesh), step_lib.abstract_batch(cfg, mesh)
        )
    return lowered.compile(compiler_options=compiler_options.options(mesh.devices.flat[0]))


def jit_statistics(cfg: config.Config, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """The jitted program, not yet lowered. It does not donate the state."""
    step_lib.check_resolved(cfg)
    compute = state_lib.over_trials(
        lambda state, batch: statistics(state, batch, cfg), cfg.num_trials
    )
    return jax.jit(compute, out_shardings=sharding.replicated(mesh))


def _sublayers(stats, model: config.ModelConfig, params) -> dict:
    """The [N, 2] statistics, from the means of the scan and its probes."""
    topology = residual.topology(model)
    stream_N2, branch_N2 = (jnp.sqrt(stats[f"{name}_square"]) for name in ("stream", "branch"))
    weight_N2 = telemetry.branch_weight(topology, params) / jnp.asarray(topology.alpha)
    return {
        "stream_rms": stream_N2,
        "branch_rms": branch_N2,
        "branch_ratio": jnp.abs(weight_N2) * branch_N2 / stream_N2,
        # 0 without a branch, as at a residual scale of 0.
        "branch_cosine": jnp.sign(weight_N2)
        * stats["stream_branch_product"]
        / jnp.maximum(stream_N2 * branch_N2, telemetry.TINY),
        "rotation_radians": stats["rotation_radians"],
        "position_cosine": stats["position_cosine"],
        "cotangent_rms": jnp.sqrt(stats["cotangent_square"]),
        "effective_alpha": telemetry.effective_alpha(topology, params),
    }


def _per_leaf(name: str, tree) -> dict:
    """The RMS of each leaf [N, …] of the blocks, by its path: [N]."""
    return {
        f"{name}/{'/'.join(entry.key for entry in path)}": telemetry.rms(leaf, 1)
        for path, leaf in jax.tree.leaves_with_path(tree["block"])
    }


def _optimizer(state: state_lib.TrainState, grads, cfg: config.Config) -> dict:
    """Statistics of the optimizer's updates, computed for a few blocks at a time.

    The train step overwrites its donated state. Here nothing may be overwritten, and all updates
    and moments at once would take memory that the step does not need. So a loop processes one block
    of each pipeline stage at a time (all our optimizers treat each block as if it were alone).
    """
    factor = optim.clip_factor(optax.tree.norm(grads), cfg.optim.clip_norm)
    learning_rate = step_lib.learning_rate_of(state, cfg)
    num_stages = sharding.mesh_sizes()[pipeline.AXIS]

    def of_blocks(arrays):
        grads, opt_state, params = arrays
        grads = jax.tree.map(lambda g: g * factor, grads)
        updates, opt_state = optim.make(cfg.optim).update(grads, opt_state, params)
        added = jax.tree.map(lambda update: learning_rate * update, updates)
        return {**_per_leaf("update_rms", added), **_adam(opt_state, cfg.optim)}

    def is_like_params(node):
        return isinstance(node, dict) and set(node) == set(state.params)

    def one_of_each_stage(node, index):
        """Selects one block per stage from trees like the parameters'; scalars are unchanged."""
        if not is_like_params(node):
            return node

        def take(leaf):
            leaf = leaf.reshape(num_stages, -1, *leaf.shape[1:])
            return jax.lax.dynamic_index_in_dim(leaf, index, axis=1, keepdims=False)

        return {"block": jax.tree.map(take, node["block"])}

    def some(_, index):
        arrays = (grads, state.opt_state, state.params)
        return None, of_blocks(
            jax.tree.map(
                lambda node: one_of_each_stage(node, index), arrays, is_leaf=is_like_params
            )
        )

    _, of_stages = jax.lax.scan(some, None, jnp.arange(cfg.model.num_blocks // num_stages))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1), of_stages)


def _adam(opt_state, options: config.OptimConfig) -> dict:
    """The fraction of sqrt(v_hat) below epsilon in each block, of what Adam updates; [N]."""
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(node)]
    below, size = 0.0, 0
    for state in states:
        correction = 1 - options.beta2**state.count
        for leaf in jax.tree.leaves(state.nu["block"]):
            is_below = jnp.sqrt(leaf / correction) < options.epsilon
            below += is_below.reshape(len(leaf), -1).sum(axis=1, dtype=jnp.float32)
            size += leaf.size // len(leaf)
    return {"adam_below_epsilon": below / size} if size else {}
