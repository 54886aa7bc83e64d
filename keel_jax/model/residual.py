"""Every single-stream residual topology, side by side: one rule, and constants that select.

    x' = outer( alpha * x  +  b * branch( F( beta * s * inner(x) ) ) )

F is attention or the FFN; inner, outer and branch are RMSNorms that a topology has or has not;
alpha, b, s are fixed numbers per sub-layer, beta a learned vector. The constants are arrays
[N, 2] (block, sub-layer: 0 attention, 1 FFN) that the scan over depth reads beside the weights.
So an exception for block 0 or a split in the middle of the stack is data: all N blocks run one
program.

The stream x is kept in `model.stream_dtype`, float32 by default. Each sub-layer moves Keel's
stream by about F / alpha, and bf16 rounds that away from a few hundred sub-layers on.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from keel_jax import config

ATTENTION, FFN = 0, 1


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
    # RMSNorm on each head of queries, keys and values.
    qkv_norm: bool = False
    # The stream leaves the last block un-normed, so the logits need a norm.
    final_norm: bool = False
    # RMSNorm on the embedding.
    embedding_norm: bool = False
    # Initialiser's multiplier on value, out, gate, up and down (not on query and key).
    init_scale: float = 1.0

    def constants(self) -> dict[str, jax.Array]:
        """What the scan over depth reads, each [N, 2]."""
        names = ("alpha", "branch_scale", "input_scale", "inner_norm", "outer_norm")
        return {name: jnp.asarray(getattr(self, name)) for name in names}

    def has(self, norm: str, sublayer: int) -> bool:
        """Whether any block has this norm ("inner_norm", …), so that its gains must exist."""
        return bool(getattr(self, norm)[:, sublayer].any())


def topology(model: config.ModelConfig) -> Topology:
    """The constants of `model.topology` for `model.num_blocks` blocks."""
    return _TOPOLOGIES[model.topology](model)


# --- The rule ------------------------------------------------------------------------------------


def branch_input(
    x_BTD: jax.Array,
    gains: Mapping[str, jax.Array],
    constants: Mapping[str, jax.Array],
    always: Topology,
    sublayer: int,
    *,
    epsilon: float,
    dtype: jnp.dtype,
) -> jax.Array:
    """beta * s * inner(x): what the branch F reads, computed in float32, returned in `dtype`.

    Args:
      x_BTD: the stream.
      gains: this sub-layer's parameters, each [D]: "inner_norm", "beta" where they exist.
      constants: this block's row of `Topology.constants()`, each [2].
      always: the topology; a norm that all blocks share costs no selection.
      sublayer: ATTENTION or FFN.
    """
    h_BTD = x_BTD.astype(jnp.float32)
    h_BTD = _norm_where(
        h_BTD, gains, "inner_norm", constants, always, sublayer, epsilon
    )
    if (always.input_scale != 1).any():
        h_BTD = constants["input_scale"][sublayer] * h_BTD
    if always.has_beta:
        h_BTD = gains["beta"] * h_BTD
    return h_BTD.astype(dtype)


def join(
    x_BTD: jax.Array,
    f_BTD: jax.Array,
    gains: Mapping[str, jax.Array],
    constants: Mapping[str, jax.Array],
    always: Topology,
    sublayer: int,
    *,
    epsilon: float,
) -> jax.Array:
    """outer( alpha * x + b * branch(f) ), computed in float32, returned in the stream's dtype.

    Arguments as in `branch_input`; `f_BTD` is the branch's output and `gains` may hold
    "branch_norm" and "outer_norm".
    """
    f32_BTD = branch_output(f_BTD, gains, always, sublayer, epsilon=epsilon)
    if (always.branch_scale != 1).any():
        f32_BTD = constants["branch_scale"][sublayer] * f32_BTD
    z_BTD = x_BTD.astype(jnp.float32)
    if (always.alpha != 1).any():
        z_BTD = constants["alpha"][sublayer] * z_BTD
    z_BTD = _norm_where(
        z_BTD + f32_BTD, gains, "outer_norm", constants, always, sublayer, epsilon
    )
    return z_BTD.astype(x_BTD.dtype)


def branch_output(
    f_BTD: jax.Array,
    gains: Mapping[str, jax.Array],
    always: Topology,
    sublayer: int,
    *,
    epsilon: float,
) -> jax.Array:
    """branch(f) in float32; arguments as in `join`."""
    f32_BTD = f_BTD.astype(jnp.float32)
    if always.has("branch_norm", sublayer):
        f32_BTD = rms_norm(f32_BTD, gains["branch_norm"], epsilon)
    return f32_BTD


def rms_norm(x: jax.Array, gain: jax.Array, epsilon: float) -> jax.Array:
    """gain * x / sqrt(mean(x^2) + epsilon) over the last axis, in float32 (arXiv:1910.07467)."""
    x = x.astype(jnp.float32)
    return gain * (x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon))


def _norm_where(x, gains, norm, constants, always, sublayer, epsilon):
    """The norm in the blocks that have it: none, all, or those that the constants name."""
    here = getattr(always, norm)[:, sublayer]
    if not here.any():
        return x
    normed = rms_norm(x, gains[norm], epsilon)
    return normed if here.all() else jnp.where(constants[norm][sublayer], normed, x)


# --- The topologies ------------------------------------------------------------------------------
# Each docstring is the published equation of a sub-layer; L = 2N sub-layers in N blocks.


def _uniform(n: int, *, alpha=1.0, b=1.0, s=1.0, inner=False, outer=False, branch=False, **more):
    """The same constants in every sub-layer."""
    full = lambda value, dtype: np.full((n, 2), value, dtype)  # noqa: E731
    return Topology(
        alpha=full(alpha, np.float32),
        branch_scale=full(b, np.float32),
        input_scale=full(s, np.float32),
        inner_norm=full(inner, bool),
        outer_norm=full(outer, bool),
        branch_norm=full(branch, bool),
        **more,
    )


def _keel_like(model: config.ModelConfig, **rule) -> Topology:
    """alpha = L from block 1 on; block 0 has alpha = 1 and (v2) only its FFN's outer norm.

    "Post-LayerNorm Is Back" (2601.19895), v2; in v1 block 0 has no outer norm at all.
    """
    alpha = model.num_sublayers if model.alpha is None else model.alpha
    keel = _uniform(model.num_blocks, alpha=alpha, outer=True, **rule)
    keel.alpha[0] = 1
    keel.outer_norm[0] = (False, model.keel_first_block == "v2")
    return keel


def _keel(model):
    """x' = LN(alpha x + F(LN(x)))."""
    return _keel_like(model, inner=True)


def _keel_no_inner_norm(model):
    """x' = LN(alpha x + F(x)): the paper's first attempt."""
    return _keel_like(model)


def _keel_scaled_input(model):
    """x' = LN(alpha x + F(beta * x)), beta learned: the paper's second attempt."""
    return _keel_like(model, has_beta=True)


def _keel_scaled_inner_norm(model):
    """x' = LN(alpha x + F(beta * LN(x))), beta learned: the paper's third attempt."""
    return _keel_like(model, inner=True, has_beta=True)


def _pre_ln(model):
    """x' = x + F(LN(x)); a final norm."""
    return _uniform(model.num_blocks, inner=True, final_norm=True)


def _post_ln(model):
    """x' = LN(x + F(x))."""
    return _uniform(model.num_blocks, outer=True)


def _deepnorm(model):
    """x' = LN(alpha x + F(x)), alpha = (2N)^(1/4), init of v, out and FFN x (8N)^(-1/4).

    DeepNet (2203.00555), decoder-only column; query and key keep their init.
    """
    n = model.num_blocks
    alpha = (2 * n) ** 0.25 if model.alpha is None else model.alpha
    return _uniform(n, alpha=alpha, outer=True, init_scale=(8 * n) ** -0.25)


def _hybridnorm(model):
    """y = x + Attn_QKV(x), QKV-norm inside; x' = LN(y) + FFN(LN(y)).  (2503.04598)

    LN(y) is both the stream and the FFN's input: the attention sub-layer ends in an outer norm.
    """
    hybrid = _uniform(model.num_blocks, qkv_norm=True, final_norm=True)
    hybrid.outer_norm[:, ATTENTION] = True
    return hybrid


def _hybridnorm_star(model):
    """HybridNorm, but block 0 is y = x + Attn_QKV(LN(x)); x' = y + FFN(LN(y))."""
    hybrid = _hybridnorm(model)
    hybrid.outer_norm[0] = False
    hybrid.inner_norm[0] = True
    return hybrid


def _mix_ln(model):
    """The first floor(aN) blocks x' = LN(x + F(x)), the rest x' = x + F(LN(x)).  (2412.13795)"""
    mix = _pre_ln(model)
    num_post = math.floor(model.mix_ln_post_fraction * model.num_blocks)
    mix.inner_norm[:num_post] = False
    mix.outer_norm[:num_post] = True
    return mix


def _sandwich(model):
    """x' = x + LN(F(LN(x))); a final norm.  (CogView, 2105.13290)"""
    return _uniform(model.num_blocks, inner=True, branch=True, final_norm=True)


def _peri_ln(model):
    """Sandwich with a norm on the embedding as well.  (2502.02732)"""
    return dataclasses.replace(_sandwich(model), embedding_norm=True)


def _layernorm_scaling(model):
    """x' = x + F(LN(x) / sqrt(l)), l the block's number from 1, twice a block.  (2502.05795)"""
    scaled = _pre_ln(model)
    scaled.input_scale[:] = 1 / np.sqrt(np.arange(1, model.num_blocks + 1))[:, None]
    return scaled


def _olmo2(model):
    """x' = x + LN(F(x)): OLMo 2's reordered norm (2501.00656); a final norm."""
    return _uniform(model.num_blocks, branch=True, final_norm=True)


def _complete_p(model):
    """x' = x + F(LN(x)) / L: CompleteP's branch multiplier (2505.01618).

    Its depth rule for AdamW leaves the learning rate alone and scales epsilon with 1/L; the
    default epsilon is far below either.
    """
    return _uniform(model.num_blocks, b=1 / model.num_sublayers, inner=True, final_norm=True)


_TOPOLOGIES = {
    "keel": _keel,
    "keel_no_inner_norm": _keel_no_inner_norm,
    "keel_scaled_input": _keel_scaled_input,
    "keel_scaled_inner_norm": _keel_scaled_inner_norm,
    "pre_ln": _pre_ln,
    "post_ln": _post_ln,
    "deepnorm": _deepnorm,
    "hybridnorm": _hybridnorm,
    "hybridnorm_star": _hybridnorm_star,
    "mix_ln": _mix_ln,
    "sandwich": _sandwich,
    "peri_ln": _peri_ln,
    "layernorm_scaling": _layernorm_scaling,
    "olmo2": _olmo2,
    "complete_p": _complete_p,
}
