"""The definition of every option: its default, its meaning, its limits.

A run's raw config is an `ml_collections.ConfigDict` (`default()`, edited by a config file and by
`--config.a.b=value` flags). `from_config_dict` checks it once and freezes it into a tree of
dataclasses. Each class checks its own limits, `effects.READERS` finds options that nothing would
read, and `run.Config` checks sections against each other. Numbers that follow from the options
(sub-layers, FLOPs, decay steps) are derived here and nowhere else.

"Layer" is never used alone: N = `num_blocks` blocks hold L = 2N = `num_sublayers` sub-layers (each
one residual connection: attention or FFN), as in "Post-LayerNorm Is Back" (arXiv:2601.19895).
"""

from keel_jax.config.data import DataConfig, join_paths
from keel_jax.config.mesh import MESH_AXES, MeshConfig
from keel_jax.config.model import ATTENTION_KERNELS, ModelConfig, RecomputeConfig
from keel_jax.config.optim import OPTIMIZERS, SCHEDULES, DecayGroups, OptimConfig, ParamGroups
from keel_jax.config.run import (
    Config,
    default,
    differences,
    from_config_dict,
    from_dict,
    model_options,
    results_options,
    to_dict,
)
from keel_jax.config.tasks import TasksConfig
from keel_jax.config.topologies import TOPOLOGIES
from keel_jax.config.train import RuntimeConfig, TelemetryConfig, TrainConfig, TrialsConfig

__all__ = [
    "ATTENTION_KERNELS",
    "MESH_AXES",
    "OPTIMIZERS",
    "SCHEDULES",
    "TOPOLOGIES",
    "Config",
    "DataConfig",
    "DecayGroups",
    "TrialsConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "ParamGroups",
    "RecomputeConfig",
    "RuntimeConfig",
    "TasksConfig",
    "TelemetryConfig",
    "TrainConfig",
    "default",
    "differences",
    "from_config_dict",
    "from_dict",
    "join_paths",
    "model_options",
    "results_options",
    "to_dict",
]
