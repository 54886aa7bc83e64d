"""From a config that says "auto" to one that says what this mesh will run.

    cfg = resolve.resolve(cfg, mesh)     # the attention kernel and the plan of recomputation
    resolve.predict(cfg, mesh)           # what that plan is expected to take

What belongs to the run and not to its machine (the vocabulary, where the data lie) has been filled
in before, by `training.inputs.complete`. config.json holds that config, not the resolved one, so
that a run may go on, or be evaluated, on other devices.
"""

import jax

from keel_jax import config
from keel_jax.model import attention
from keel_jax.planning import chips, cost_model, recompute_choice
from keel_jax.runtime import devices, distributed
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib


def resolve(cfg: config.Config, mesh: jax.sharding.Mesh) -> config.Config:
    """`cfg` with nothing left to "auto"; the same on every process.

    Args:
      mesh: its devices may be absent.

    Raises:
      UserError: these devices do not have the attention kernel that was asked for, or sizes of the
        model, the batch and the mesh do not fit each other.
    """
    cfg = attention.resolve(cfg, mesh)
    if cfg.model.recompute.plan != "auto":
        return cfg
    device = _device(mesh)
    # The lead's memory decides: hosts of one slice may report a little more or less.
    [mebibytes] = distributed.from_lead((chips.memory_bytes(device) or 0) >> 20)
    chosen = recompute_choice.choose(
        cfg, mesh.shape, state_shards(cfg, mesh), chips.find_chip(device), mebibytes << 20 or None
    )
    return recompute_choice.with_plan(cfg, chosen.recompute)


def predict(cfg: config.Config, mesh: jax.sharding.Mesh) -> recompute_choice.Prediction:
    """What the plan of a resolved `cfg` is expected to take, by the cost model."""
    chip = chips.find_chip(_device(mesh))
    return recompute_choice.predict(cfg, mesh.shape, state_shards(cfg, mesh), chip)


def state_shards(cfg: config.Config, mesh: jax.sharding.Mesh) -> cost_model.Shards:
    """What one device of `mesh` holds when a step begins: its part of the state and the batch."""
    return cost_model.measure_shards(
        state_lib.abstract(cfg, mesh), step_lib.abstract_batch(cfg, mesh)
    )


def _device(mesh: jax.sharding.Mesh) -> devices.Device:
    """A device whose memory can be asked for: one of this process's, unless all are absent."""
    local = [device for device in mesh.devices.flat if device in jax.local_devices()]
    return local[0] if local else mesh.devices.flat[0]
