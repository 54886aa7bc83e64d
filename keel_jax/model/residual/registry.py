"""Finds each topology's rule by name; those with several streams or another equation are listed."""

from keel_jax import config
from keel_jax.model.residual import (
    attention_residuals,
    carry,
    equation,
    hyper_connections,
    ngpt,
    two_streams,
)

_RULES = {
    "resi_dual": two_streams.ResiDual(),
    "siamese_norm": two_streams.SiameseNorm(),
    "static_hyper_connections": hyper_connections.HyperConnections(is_dynamic=False),
    "hyper_connections": hyper_connections.HyperConnections(is_dynamic=True),
    "mhc": hyper_connections.ManifoldHyperConnections(),
    "attention_residuals": attention_residuals.AttentionResiduals(),
    "ngpt": ngpt.NGpt(),
}
_SINGLE_STREAM = carry.Rule()


def rule(model: config.ModelConfig) -> carry.Rule:
    """The rule by which `model.topology` carries its streams."""
    return _RULES.get(model.topology, _SINGLE_STREAM)


def topology(model: config.ModelConfig) -> equation.Topology:
    """The constants of `model.topology` for `model.num_blocks` blocks."""
    return rule(model).topology(model)
