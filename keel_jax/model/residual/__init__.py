"""Residual connections: `x' = outer(alpha x + b branch(F(s inner(x))))`, and other rules.

`equation` is the one rule, `topologies` has every published case of it, as the papers write it.
Topologies of several streams, or of another rule, have a module each; `registry` finds them all.
"""

from keel_jax.model.residual.carry import Carry, Parameter, Rule, SublayerContext
from keel_jax.model.residual.equation import (
    ATTENTION,
    FFN,
    LAST_MATRIX,
    SUBLAYERS,
    BlockInputs,
    Topology,
)
from keel_jax.model.residual.norms import along_last, rms_norm, unit
from keel_jax.model.residual.registry import rule, topology

__all__ = [
    "ATTENTION",
    "FFN",
    "LAST_MATRIX",
    "SUBLAYERS",
    "BlockInputs",
    "Carry",
    "Parameter",
    "Rule",
    "SublayerContext",
    "Topology",
    "along_last",
    "rms_norm",
    "rule",
    "topology",
    "unit",
]
