"""Every single-stream topology: its published equation, and its constants.

Each docstring is the equation of a sub-layer; F is attention or the FFN, LN an RMSNorm with a gain,
L = 2N sub-layers in N blocks. A function's name is the topology's name in `config.TOPOLOGIES`.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from keel_jax import config
from keel_jax.model.residual.equation import ATTENTION, Topology, uniform

EQUATIONS: dict[str, Callable[[config.ModelConfig], Topology]] = {}


def _equation(function):
    """Registers a topology under its function's name."""
    EQUATIONS[function.__name__] = function
    return function


@_equation
def keel(model: config.ModelConfig) -> Topology:
    """x' = LN(alpha x + F(LN(x)))."""
    return _keel_like(model, inner=True, residual_scale=_learned(model))


@_equation
def keel_no_inner_norm(model: config.ModelConfig) -> Topology:
    """x' = LN(alpha x + F(x)): the paper's first attempt."""
    return _keel_like(model)


@_equation
def keel_scaled_input(model: config.ModelConfig) -> Topology:
    """x' = LN(alpha x + F(beta * x)), beta learned: the paper's second attempt."""
    return _keel_like(model, has_beta=True)


@_equation
def keel_scaled_inner_norm(model: config.ModelConfig) -> Topology:
    """x' = LN(alpha x + F(beta * LN(x))), beta learned: the paper's third attempt."""
    return _keel_like(model, inner=True, has_beta=True)


@_equation
def keel_capped(model: config.ModelConfig) -> Topology:
    """x' = LN(alpha x + F(LN(x)) min(1, c / rms(F(LN(x))))), c = 1: this project's own.

    With alpha = L and a stream of unit RMS, branches in the stream's direction leave at least
    exp(-c) of what comes along the residual path above block 0 (docs/topologies.md).
    """
    return _keel_like(model, inner=True, branch_cap=model.branch_cap)


def _keel_like(model: config.ModelConfig, **rule) -> Topology:
    """alpha = L from block 1 on; block 0 has alpha = 1 and (v2) only its FFN's outer norm.

    "Post-LayerNorm Is Back" (2601.19895), v2; in v1 block 0 has no outer norm at all.
    """
    alpha = model.num_sublayers if model.alpha is None else model.alpha
    constants = uniform(model.num_blocks, alpha=alpha, outer=True, **rule)
    constants.alpha[0] = 1
    constants.outer_norm[0] = (False, model.keel_first_block == "v2")
    return constants


@_equation
def pre_ln(model: config.ModelConfig) -> Topology:
    """x' = x + F(LN(x)); a final norm."""
    return uniform(model.num_blocks, inner=True, final_norm=True)


@_equation
def post_ln(model: config.ModelConfig) -> Topology:
    """x' = LN(x + F(x))."""
    return uniform(model.num_blocks, outer=True)


@_equation
def deepnorm(model: config.ModelConfig) -> Topology:
    """x' = LN(alpha x + F(x)), alpha = (2N)^(1/4), init of v, out and FFN x (8N)^(-1/4).

    DeepNet (2203.00555), decoder-only column; query and key keep their init.
    """
    n = model.num_blocks
    alpha = (2 * n) ** 0.25 if model.alpha is None else model.alpha
    return uniform(n, alpha=alpha, outer=True, init_scale=(8 * n) ** -0.25)


@_equation
def hybridnorm(model: config.ModelConfig) -> Topology:
    """y = x + Attn_QKV(x), QKV-norm inside; x' = LN(y) + FFN(LN(y)).  (2503.04598)

    LN(y) is both the stream and the FFN's input: the attention sub-layer has an outer norm.
    """
    constants = uniform(model.num_blocks, qkv_norm=True, final_norm=True)
    constants.outer_norm[:, ATTENTION] = True
    return constants


@_equation
def hybridnorm_star(model: config.ModelConfig) -> Topology:
    """HybridNorm, but block 0 is y = x + Attn_QKV(LN(x)); x' = y + FFN(LN(y))."""
    constants = hybridnorm(model)
    constants.outer_norm[0] = False
    constants.inner_norm[0] = True
    return constants


@_equation
def mix_ln(model: config.ModelConfig) -> Topology:
    """The first floor(aN) blocks x' = LN(x + F(x)), the rest x' = x + F(LN(x)).  (2412.13795)"""
    constants = pre_ln(model)
    num_post = math.floor(model.mix_ln_post_fraction * model.num_blocks)
    constants.inner_norm[:num_post] = False
    constants.outer_norm[:num_post] = True
    return constants


@_equation
def sandwich(model: config.ModelConfig) -> Topology:
    """x' = x + LN(F(LN(x))); a final norm.  (CogView, 2105.13290)"""
    return uniform(model.num_blocks, inner=True, branch=True, final_norm=True)


@_equation
def peri_ln(model: config.ModelConfig) -> Topology:
    """Sandwich with a norm on the embedding as well.  (2502.02732)"""
    return dataclasses.replace(sandwich(model), embedding_norm=True)


@_equation
def layernorm_scaling(model: config.ModelConfig) -> Topology:
    """x' = x + F(LN(x) / sqrt(l)), l the block's number from 1, for both. (2502.05795)"""
    constants = pre_ln(model)
    constants.input_scale[:] = 1 / np.sqrt(np.arange(1, model.num_blocks + 1))[:, None]
    return constants


@_equation
def olmo2(model: config.ModelConfig) -> Topology:
    """x' = x + LN(F(x)): OLMo 2's reordered norm (2501.00656); a final norm."""
    return uniform(model.num_blocks, branch=True, final_norm=True)


@_equation
def complete_p(model: config.ModelConfig) -> Topology:
    """x' = x + b F(LN(x)), b = 1/L: CompleteP's branch multiplier (2505.01618).

    Its depth rule for AdamW does not change the learning rate and scales epsilon with 1/L; the
    default epsilon is far below either.
    """
    b = 1 / model.num_sublayers if model.branch_scale is None else model.branch_scale
    return uniform(
        model.num_blocks, b=b, inner=True, final_norm=True, residual_scale=_learned(model)
    )


def _learned(model: config.ModelConfig) -> float | None:
    """The initial value of the learned factor of each branch's weight; None: the weight is fixed.

    It is the weight over its initial value, and not the weight, so that an optimizer whose steps
    have the size of the learning rate moves a weight of 1/L and one of 1 at the same pace.
    """
    return 1.0 if model.learned_branch else None


@_equation
def rezero(model: config.ModelConfig) -> Topology:
    """x' = x + a F(x), a a learned scalar per sub-layer, initialized to 0.  (2003.04887)

    The authors' Transformer shares one a between the two sub-layers of a block; the equation does
    not, and neither does this code. There are no norms, not even a final one.
    """
    return uniform(model.num_blocks, residual_scale=0.0)
