"""Topologies of two streams: ResiDual and SiameseNorm.

Dimension letters: B batch, T time, D model.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from keel_jax import config
from keel_jax.model.arrays import Array
from keel_jax.model.residual import carry as carry_lib
from keel_jax.model.residual import equation, norms, topologies
from keel_jax.model.residual.carry import Carry, Parameter, Rule, SublayerContext


class ResiDual(Rule):
    """post' = LN(post + F(post)); dual' = dual + F(post); output post + LN(dual).  (2304.14802)

    Both streams start from the embedding. The paper scales the dual stream, but only in half
    precision; here it is float32.
    """

    def topology(self, model: config.ModelConfig) -> equation.Topology:
        return topologies.post_ln(model)  # the post-normed stream's outer norm

    def num_arrays(self, model: config.ModelConfig) -> int:
        return 2

    def output_parameters(self, model: config.ModelConfig) -> dict[str, Parameter]:
        return {"dual_norm": carry_lib.gain(model)}

    def init_carry(self, x_BTD: Float[Array, "B T D"], model: config.ModelConfig) -> Carry:
        return x_BTD, x_BTD

    def branch_input(self, carry: Carry, sub: SublayerContext) -> tuple[Any, Float[Array, "B T D"]]:
        return carry, sub.branch_input(carry[0])

    def update_carry(self, held: Any, f_BTD: Float[Array, "B T D"], sub: SublayerContext) -> Carry:
        post_BTD, dual_BTD = held
        summed_BTD = dual_BTD.astype(jnp.float32) + f_BTD
        return sub.residual_sum(post_BTD, f_BTD), summed_BTD.astype(dual_BTD.dtype)

    def readout(
        self, carry: Carry, params: Mapping[str, Array], model: config.ModelConfig
    ) -> Float[Array, "B T D"]:
        post_BTD, dual_BTD = carry
        normed_BTD = norms.rms_norm(dual_BTD, params["dual_norm"], model.norm_epsilon)
        return post_BTD.astype(jnp.float32) + normed_BTD


class SiameseNorm(Rule):
    """x = LN(x); z = F(LN(x + LN(y))); x' = x + z / sqrt(2l); y' = y + z.  (2602.08064)

    l is the block's number from 1, for both sub-layers, as in the authors' code; both streams start
    from the embedding. Output: LN(LN(x) + LN(y)), whose outer LN is the final norm.
    """

    def topology(self, model: config.ModelConfig) -> equation.Topology:
        # The branch's input is normed, and z / sqrt(2l) is added to the post-normed stream.
        constants = topologies.pre_ln(model)
        constants.branch_scale[:] = 1 / np.sqrt(2 * np.arange(1, model.num_blocks + 1))[:, None]
        return constants

    def num_arrays(self, model: config.ModelConfig) -> int:
        return 2

    def parameters(
        self, model: config.ModelConfig, sublayer: int, block: Array
    ) -> dict[str, Parameter]:
        return {"post_norm": carry_lib.gain(model), "pre_norm": carry_lib.gain(model)}

    def output_parameters(self, model: config.ModelConfig) -> dict[str, Parameter]:
        return {"post_norm": carry_lib.gain(model), "pre_norm": carry_lib.gain(model)}

    def init_carry(self, x_BTD: Float[Array, "B T D"], model: config.ModelConfig) -> Carry:
        return x_BTD, x_BTD

    def branch_input(self, carry: Carry, sub: SublayerContext) -> tuple[Any, Float[Array, "B T D"]]:
        post_BTD, pre_BTD = carry
        normed_BTD = sub.norm("post_norm", post_BTD)
        held = normed_BTD.astype(post_BTD.dtype), pre_BTD
        return held, sub.branch_input(normed_BTD + sub.norm("pre_norm", pre_BTD))

    def update_carry(self, held: Any, f_BTD: Float[Array, "B T D"], sub: SublayerContext) -> Carry:
        post_BTD, pre_BTD = held
        summed_BTD = pre_BTD.astype(jnp.float32) + f_BTD
        return sub.residual_sum(post_BTD, f_BTD), summed_BTD.astype(pre_BTD.dtype)

    def readout(
        self, carry: Carry, params: Mapping[str, Array], model: config.ModelConfig
    ) -> Float[Array, "B T D"]:
        post_BTD, pre_BTD = (
            norms.rms_norm(x, params[name], model.norm_epsilon)
            for x, name in zip(carry, ("post_norm", "pre_norm"), strict=True)
        )
        return post_BTD + pre_BTD
