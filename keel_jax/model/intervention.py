"""What an experiment changes in the sub-layers: scaled branches, cut gradients, skipped sub-layers.

An `Intervention` consists of arrays [N, 2] that the scan over depth reads along with the topology's
constants. They are data: one compiled program can remove any set of sub-layers. A program without
an intervention is unchanged.

In sub-layer l, x' = outer(alpha x + F(inner(x))) becomes

    x' = outer(alpha x + s_l F(inner(x)))      s = `branch_scale`, and the derivative of F times g
    x' = x                                     where `is_skipped`

Dimension letters: N blocks, B batch, T time, D model.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float

from keel_jax.model.arrays import Array, Leaf


@flax.struct.dataclass
class Intervention:
    """Per sub-layer (0 attention, 1 FFN), [N, 2]; inside the scan, for one block, [2]."""

    # float32 s: the factor of the branch's output in the residual sum; 0 removes the branch, but
    # not the norms around it.
    branch_scale: Leaf
    # float32 g: the factor of the branch's derivative in the backward pass; 0: gradients only flow
    # through the residual path.
    branch_gradient: Leaf
    # bool: the sub-layer is the identity, its outer norm included.
    is_skipped: Leaf


def none(num_blocks: int) -> Intervention:
    """The intervention that changes nothing."""
    ones_N2 = jnp.ones((num_blocks, 2), jnp.float32)
    return Intervention(
        branch_scale=ones_N2, branch_gradient=ones_N2, is_skipped=jnp.zeros((num_blocks, 2), bool)
    )


def on_branch(
    f_BTD: Float[Array, "B T D"], change: Intervention | None, sublayer: int
) -> Float[Array, "B T D"]:
    """The branch's output in the residual sum: s F, whose derivative is g s F'."""
    if change is None:
        return f_BTD
    scale, gradient = change.branch_scale[sublayer], change.branch_gradient[sublayer]
    f32_BTD = scale * f_BTD.astype(jnp.float32)
    # Not a sum of two parts: with g = 1 the result is f, bit by bit.
    return _with_gradient(f32_BTD, gradient).astype(f_BTD.dtype)


def on_sublayer(before: Any, after: Any, change: Intervention | None, sublayer: int) -> Any:
    """The carry after a sub-layer, a tree of [B, T, D]: `after`, or `before` if skipped."""
    if change is None:
        return after
    is_skipped = change.is_skipped[sublayer]
    return jax.tree.map(lambda old, new: jnp.where(is_skipped, old, new), before, after)


@jax.custom_vjp
def _with_gradient(f_BTD: Array, gradient: Array) -> Array:
    """`f`, whose cotangent is multiplied by `gradient`."""
    del gradient
    return f_BTD


_with_gradient.defvjp(
    lambda f_BTD, gradient: (f_BTD, gradient),
    lambda gradient, cotangent: (gradient * cotangent, jnp.zeros_like(gradient)),
)
