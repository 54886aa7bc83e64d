"""Attention residuals: each branch reads a softmax-weighted sum of earlier sub-layers' outputs.

Dimension letters: B batch, T time, D model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from keel_jax import config
from keel_jax.model.arrays import Array
from keel_jax.model.residual import carry as carry_lib
from keel_jax.model.residual import equation, norms, topologies
from keel_jax.model.residual.carry import Carry, Parameter, Rule, SublayerContext


class AttentionResiduals(Rule):
    """h = sum_i softmax_i(q . RMSNorm(v_i)) v_i; the branch is F(LN(h)).  (2603.15031, block form)

    The N blocks form groups of equal size (the last may be smaller), which the paper calls
    blocks; v_i are the embedding, the sum of the branches' outputs of each finished group, and that
    of the current group, once it has one. q is learned for each sub-layer and initialized to 0, so
    the weights are equal at first. The logits read such an h over all v_i. The norm's gain is
    omitted, as q absorbs it.

    The carry is a memory of fixed size that is filled during the scan: one array for the embedding
    and for each group but the last, and the current group's sum. All blocks thus have the same
    shapes, and each saves that many arrays for the backward pass.
    """

    def topology(self, model: config.ModelConfig) -> equation.Topology:
        return topologies.pre_ln(model)

    def num_arrays(self, model: config.ModelConfig) -> int:
        return _num_groups(model) + 1

    def parameters(
        self, model: config.ModelConfig, sublayer: int, block: Array
    ) -> dict[str, Parameter]:
        return {"depth_query": carry_lib.zeros((model.d_model,), ("norm",))}

    def output_parameters(self, model: config.ModelConfig) -> dict[str, Parameter]:
        return {"depth_query": carry_lib.zeros((model.d_model,), ("norm",))}

    def init_carry(self, x_BTD: Float[Array, "B T D"], model: config.ModelConfig) -> Carry:
        # Block 0 stores the embedding in the memory in the same way as a group's sum.
        return (jnp.zeros_like(x_BTD),) * _num_groups(model), x_BTD

    def branch_input(self, carry: Carry, sub: SublayerContext) -> tuple[Any, Float[Array, "B T D"]]:
        memory, sum_BTD = carry
        block, size = sub.inputs.block, _group_size(sub.model)
        group, is_first = block // size, block % size == 0
        is_empty = is_first & (sub.sublayer == equation.ATTENTION)
        memory = tuple(
            jnp.where(is_empty & (group == slot), sum_BTD, x_BTD)
            for slot, x_BTD in enumerate(memory)
        )
        sum_BTD = jnp.where(is_empty, 0, sum_BTD)
        is_filled = [slot <= group for slot in range(len(memory))] + [~is_empty]
        h_BTD = _attend((*memory, sum_BTD), is_filled, sub.params["depth_query"], sub.model)
        return (memory, sum_BTD), sub.branch_input(h_BTD)

    def update_carry(self, held: Any, f_BTD: Float[Array, "B T D"], sub: SublayerContext) -> Carry:
        memory, sum_BTD = held
        return memory, sub.residual_sum(sum_BTD, f_BTD)

    def readout(
        self, carry: Carry, params: Mapping[str, Array], model: config.ModelConfig
    ) -> Float[Array, "B T D"]:
        memory, sum_BTD = carry
        is_filled = [True] * (len(memory) + 1)
        return _attend((*memory, sum_BTD), is_filled, params["depth_query"], model)


def _attend(
    sources: Sequence[Array], is_filled: Sequence, query_D: Array, model: config.ModelConfig
) -> Array:
    """The sum of the filled sources weighted by softmax(query . RMSNorm(source)); float32."""

    def score(x_BTD, is_filled):
        key_BTD = norms.rms_norm(x_BTD, None, model.norm_epsilon)
        return jnp.where(is_filled, jnp.einsum("btd,d->bt", key_BTD, query_D), -jnp.inf)

    scores = jnp.stack([score(*pair) for pair in zip(sources, is_filled, strict=True)])
    return carry_lib.weighted_sum(jax.nn.softmax(scores, axis=0), sources)


def _group_size(model: config.ModelConfig) -> int:
    return -(-model.num_blocks // model.attn_res_groups)


def _num_groups(model: config.ModelConfig) -> int:
    """Groups that have a block: may be fewer than asked for if the division is uneven."""
    return -(-model.num_blocks // _group_size(model))
