"""nGPT: a stream of length 1 that each sub-layer moves on the unit sphere."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from keel_jax import config
from keel_jax.model.arrays import Array
from keel_jax.model.residual import equation, norms
from keel_jax.model.residual.carry import Carry, Parameter, Rule, SublayerContext


class NGpt(Rule):
    """h' = unit(h + |a| * (unit(F(h)) - h)), unit(x) = x / |x| along D.  (2410.01131)

    a is learned for each of the D dimensions; it is initialized to a_0 = `model.ngpt_rate` and
    stored as a / (a_0 sqrt(D)), so that an optimizer moves it as far as it moves a weight. The rest
    of nGPT is in `layers` (unit queries and keys with a learned scale, learned scales in the FFN),
    in `lm.output_matrix` (one scale per logit) and in `lm.project` (matrices of unit rows, at
    initialization and after each optimizer step).

    Training without weight decay and without warm-up is recommended, but not enforced. Decay along
    a row of length 1 is undone by the projection, so it only rescales the learning rate.
    """

    def topology(self, model: config.ModelConfig) -> equation.Topology:
        return equation.uniform(model.num_blocks, on_sphere=True)  # no norm, no scale

    def parameters(
        self, model: config.ModelConfig, sublayer: int, block: Array
    ) -> dict[str, Parameter]:
        return {"step_size": sphere_scale(model, model.d_model, ("norm",))}

    def update_carry(self, held: Any, f_BTD: Float[Array, "B T D"], sub: SublayerContext) -> Carry:
        h_BTD = held.astype(jnp.float32)
        rate_D = jnp.abs(sub.params["step_size"]) * sub.model.ngpt_rate * sub.model.d_model**0.5
        rate = norms.along_last(rate_D, h_BTD)
        moved_BTD = h_BTD + rate * (norms.unit(f_BTD) - h_BTD)
        return norms.unit(moved_BTD).astype(held.dtype)


def sphere_scale(model: config.ModelConfig, size: int, axes: tuple[str, ...]) -> Parameter:
    """A learned scale of nGPT, initially 1 and stored divided by sqrt(D) (2410.01131, 2.5)."""
    return Parameter((size,), axes, jnp.full(size, model.d_model**-0.5))
