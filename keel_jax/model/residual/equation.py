"""The one equation of every single-stream topology, whose constants select the topology.

    x' = outer( alpha * x  +  a * b * branch( F( beta * s * inner(x) ) ) )

F is attention or the FFN; inner, outer and branch are RMSNorms that a topology may or may not have
(branch may also be a bound on the RMS); alpha, b, s are fixed scalars per sub-layer, beta a learned
vector, a a learned scalar. The constants are arrays [N, 2] (block, sub-layer: 0 attention, 1 FFN)
that the scan over depth reads along with the weights. So an exception for block 0 or a split in the
middle of the stack is data: all N blocks run one program. `topologies` has the constants of each
topology.

The stream x is kept in `model.stream_dtype`, float32 by default. Each sub-layer moves Keel's
stream by about F / alpha, which bf16 rounds away beyond a few hundred sub-layers.

Dimension letters: N blocks, B batch, T time, D model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from keel_jax.model import intervention as intervention_lib
from keel_jax.model.arrays import Array, Leaf
from keel_jax.model.residual import norms

ATTENTION, FFN = 0, 1
# The sub-layers of a block, by the names of their modules and parameters.
SUBLAYERS = {ATTENTION: "attention", FFN: "ffn"}
# The matrix of each that leads the branch back to the stream.
LAST_MATRIX = {"attention": "out", "ffn": "down"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """The constants of one topology at one depth, and the parameters that it needs.

    Arrays are [N, 2]: float32 (alpha, branch_scale b, input_scale s) or bool (norms on or off).
    """

    alpha: np.ndarray
    branch_scale: np.ndarray
    input_scale: np.ndarray
    inner_norm: np.ndarray
    outer_norm: np.ndarray
    branch_norm: np.ndarray
    # A learned vector beta scales the branch's input, in every block.
    has_beta: bool = False
    # Initial value of a learned scalar a that scales the branch's output, in every sub-layer; None:
    # there is none.
    residual_scale: float | None = None
    # The RMS above which a token's branch output is scaled down to it; None: there is none.
    branch_cap: float | None = None
    # RMSNorm on each head of queries, keys and values.
    qkv_norm: bool = False
    # nGPT: weights, stream, queries and keys have length 1 along the model or head dimension.
    on_sphere: bool = False
    # The last block's output is not normed, so the logits need a norm.
    final_norm: bool = False
    # RMSNorm on the embedding.
    embedding_norm: bool = False
    # Initializer's multiplier on value, out, gate, up and down (not on query and key).
    init_scale: float = 1.0

    def constants(self) -> dict[str, Array]:
        """The constants that the scan over depth reads, each [N, 2]."""
        names = ("alpha", "branch_scale", "input_scale", "inner_norm", "outer_norm")
        return {name: jnp.asarray(getattr(self, name)) for name in names}

    def has(self, norm: str, sublayer: int) -> bool:
        """Whether any block has this norm ("inner_norm", …), so that its gains must exist."""
        return bool(getattr(self, norm)[:, sublayer].any())


def uniform(
    num_blocks: int,
    *,
    alpha: float = 1.0,
    b: float = 1.0,
    s: float = 1.0,
    inner: bool = False,
    outer: bool = False,
    branch: bool = False,
    **more: Any,
) -> Topology:
    """The same constants in every sub-layer; `more` has the other fields."""

    def everywhere(value, dtype):
        return np.full((num_blocks, 2), value, dtype)

    return Topology(
        alpha=everywhere(alpha, np.float32),
        branch_scale=everywhere(b, np.float32),
        input_scale=everywhere(s, np.float32),
        inner_norm=everywhere(inner, bool),
        outer_norm=everywhere(outer, bool),
        branch_norm=everywhere(branch, bool),
        **more,
    )


@flax.struct.dataclass
class DeferredNorm:
    """An outer norm that is deferred to the next sub-layer (`deferred`); [N, …] if stacked."""

    # float32 [D]; None while `reversible` passes it separately.
    gain: Leaf | None
    # bool []: whether the block has this norm.
    is_on: Leaf


@flax.struct.dataclass
class BlockInputs:
    """A block's own inputs besides its parameters; [N, …] outside the scan over depth."""

    # `Topology.constants()`, [2] each.
    topology: Mapping[str, Leaf]
    # int32 []: the block's number, from 0.
    block: Leaf
    # Indexed by the sub-layer that applies it: the outer norm of the one below; None: not deferred.
    deferred_norm: tuple[DeferredNorm | None, DeferredNorm | None] = (None, None)
    # float32 [2]: zeros that measure the stream's cotangents (`telemetry.probe`).
    probe: Leaf | None = None
    # What an experiment changes in the sub-layers.
    intervention: intervention_lib.Intervention | None = None


def branch_input(
    x_BTD: Float[Array, "*B D"],
    gains: Mapping[str, Array],
    inputs: BlockInputs,
    topology: Topology,
    sublayer: int,
    *,
    epsilon: float,
    dtype: jnp.dtype,
) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
    """The stream x, and beta * s * inner(x), the input of the branch F; computed in float32.

    Args:
      x_BTD: the stream, or z if the outer norm of the sub-layer below was deferred.
      gains: this sub-layer's parameters, each [D]: "inner_norm" and "beta" if they exist.
      inputs: this block's.
      topology: that of the whole depth; a norm that all blocks share needs no select.
      sublayer: ATTENTION or FFN.

    Returns:
      x [B, T, D] in x_BTD's dtype, the branch's input in `dtype`.
    """
    stream_dtype, x_BTD = x_BTD.dtype, x_BTD.astype(jnp.float32)
    below = inputs.deferred_norm[sublayer]
    if below is None:
        h_BTD = _norm_where(x_BTD, gains, "inner_norm", inputs, topology, sublayer, epsilon)
    else:
        assert below.gain is not None, "`deferred.with_gain` first"
        if topology.inner_norm[:, sublayer].all():
            inner_gain = gains["inner_norm"]
            x_BTD, h_BTD = norms.norm_twice(x_BTD, below.gain, below.is_on, inner_gain, epsilon)  # pyright: ignore[reportGeneralTypeIssues]: a custom_vjp's result is an object to it
        else:
            x_BTD = norms.rms_norm_if(below.is_on, x_BTD, below.gain, epsilon)
            h_BTD = _norm_where(x_BTD, gains, "inner_norm", inputs, topology, sublayer, epsilon)
    if (topology.input_scale != 1).any():
        h_BTD = inputs.topology["input_scale"][sublayer] * h_BTD
    if topology.has_beta:
        h_BTD = norms.along_last(gains["beta"], h_BTD) * h_BTD
    return x_BTD.astype(stream_dtype), h_BTD.astype(dtype)


def residual_sum(
    x_BTD: Float[Array, "*B D"],
    f_BTD: Float[Array, "*B D"],
    gains: Mapping[str, Array],
    inputs: BlockInputs,
    topology: Topology,
    sublayer: int,
    *,
    epsilon: float,
) -> Float[Array, "*B D"]:
    """outer( alpha * x + a * b * branch(f) ), computed in float32, returned in the stream's dtype.

    The outer norm is omitted if it is deferred to the sub-layer above.

    Arguments as in `branch_input`; `f_BTD` is the branch's output and `gains` may hold
    "branch_norm", "residual_scale" (a, a scalar) and "outer_norm".
    """
    f32_BTD = branch_output(f_BTD, gains, topology, sublayer, epsilon=epsilon)
    if (topology.branch_scale != 1).any():
        f32_BTD = inputs.topology["branch_scale"][sublayer] * f32_BTD
    if topology.residual_scale is not None:
        f32_BTD = gains["residual_scale"] * f32_BTD
    z_BTD = x_BTD.astype(jnp.float32)
    if (topology.alpha != 1).any():
        z_BTD = inputs.topology["alpha"][sublayer] * z_BTD
    z_BTD = z_BTD + f32_BTD
    if inputs.deferred_norm[above(sublayer)] is None:
        z_BTD = _norm_where(z_BTD, gains, "outer_norm", inputs, topology, sublayer, epsilon)
    return z_BTD.astype(x_BTD.dtype)


def branch_output(
    f_BTD: Float[Array, "*B D"],
    gains: Mapping[str, Array],
    topology: Topology,
    sublayer: int,
    *,
    epsilon: float,
) -> Float[Array, "*B D"]:
    """branch(f) in float32; arguments as in `residual_sum`."""
    f32_BTD = f_BTD.astype(jnp.float32)
    if topology.has("branch_norm", sublayer):
        f32_BTD = norms.rms_norm(f32_BTD, gains["branch_norm"], epsilon)
    if topology.branch_cap is not None:
        f32_BTD = norms.capped(f32_BTD, topology.branch_cap)
    return f32_BTD


def above(sublayer: int) -> int:
    """The sub-layer after `sublayer`: the block's FFN, or the next block's attention."""
    return FFN if sublayer == ATTENTION else ATTENTION


def _norm_where(x, gains, norm, inputs: BlockInputs, topology: Topology, sublayer, epsilon):
    """Applies the norm in the blocks that have it: none, all, or those of the constants."""
    has_N = getattr(topology, norm)[:, sublayer]
    if not has_N.any():
        return x
    if has_N.all():
        return norms.rms_norm(x, gains[norm], epsilon)
    return norms.rms_norm_if(inputs.topology[norm][sublayer], x, gains[norm], epsilon)
