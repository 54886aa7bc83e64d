"""Every single-stream residual topology, side by side: one rule, and constants that select.

    x' = outer( alpha * x  +  a * b * branch( F( beta * s * inner(x) ) ) )

F is attention or the FFN; inner, outer and branch are RMSNorms that a topology has or has not;
alpha, b, s are fixed numbers per sub-layer, beta a learned vector, a a learned number. The
constants are arrays [N, 2] (block, sub-layer: 0 attention, 1 FFN) that the scan over depth reads
beside the weights. So an exception for block 0 or a split in the middle of the stack is data: all N
blocks run one program.

The stream x is kept in `model.stream_dtype`, float32 by default. Each sub-layer moves Keel's
stream by about F / alpha, and bf16 rounds that away from a few hundred sub-layers on.

Inside the scan z = alpha x + b branch(F) travels, and each sub-layer begins with the outer norm of
the one below it (`put_off`, `read`): the same equations, cut at another place. A norm's derivative
needs z. Where z is what the loop carries, and so what recomputation begins from, the FFN's last
product need not be computed a third time to get it back; and the two norms that meet there, outer
and inner, read it once.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from keel_jax import config

ATTENTION, FFN = 0, 1
# Keys of a block's constants, by the sub-layer that reads them: {"gain", "is_on"}, the outer norm
# that the sub-layer below has left to it.
_BELOW = ("outer_norm_below_attention", "outer_norm_below_ffn")
# Far below the square of any vector met, so that `unit` divides by its length alone.
_LEAST_SQUARE = 1e-24


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
    # A learned number a, initially 0, scales the branch's output, in every sub-layer.
    has_residual_scale: bool = False
    # RMSNorm on each head of queries, keys and values.
    qkv_norm: bool = False
    # nGPT: weights, stream, queries and keys have length 1 along the model or head dimension.
    on_sphere: bool = False
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


def read(
    x_BTD: jax.Array,
    gains: Mapping[str, jax.Array],
    constants: Mapping[str, jax.Array],
    always: Topology,
    sublayer: int,
    *,
    epsilon: float,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    """The stream x, and beta * s * inner(x), what the branch F reads; computed in float32.

    Args:
      x_BTD: the stream, or z, if the constants hold the outer norm below (`put_off`).
      gains: this sub-layer's parameters, each [D]: "inner_norm", "beta" where they exist.
      constants: this block's row of `Topology.constants()`, each [2].
      always: the topology; a norm that all blocks share costs no selection.
      sublayer: ATTENTION or FFN.

    Returns:
      x [B, T, D] in x_BTD's dtype, the branch's input in `dtype`.
    """
    stream_dtype, x_BTD = x_BTD.dtype, x_BTD.astype(jnp.float32)
    below = constants.get(_BELOW[sublayer])
    if below is not None and always.inner_norm[:, sublayer].all():
        x_BTD, h_BTD = norm_twice(
            x_BTD, below["gain"], below["is_on"], gains["inner_norm"], epsilon
        )
    else:
        if below is not None:
            x_BTD = _norm_if(below["is_on"], x_BTD, below["gain"], epsilon)
        h_BTD = _norm_where(x_BTD, gains, "inner_norm", constants, always, sublayer, epsilon)
    if (always.input_scale != 1).any():
        h_BTD = constants["input_scale"][sublayer] * h_BTD
    if always.has_beta:
        h_BTD = gains["beta"] * h_BTD
    return x_BTD.astype(stream_dtype), h_BTD.astype(dtype)


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
    """outer( alpha * x + a * b * branch(f) ), computed in float32, returned in the stream's dtype.

    Without the outer norm, if the constants leave it to the sub-layer above (`put_off`).

    Arguments as in `read`; `f_BTD` is the branch's output and `gains` may hold "branch_norm",
    "residual_scale" (a, a number) and "outer_norm".
    """
    f32_BTD = branch_output(f_BTD, gains, always, sublayer, epsilon=epsilon)
    if (always.branch_scale != 1).any():
        f32_BTD = constants["branch_scale"][sublayer] * f32_BTD
    if always.has_residual_scale:
        f32_BTD = gains["residual_scale"] * f32_BTD
    z_BTD = x_BTD.astype(jnp.float32)
    if (always.alpha != 1).any():
        z_BTD = constants["alpha"][sublayer] * z_BTD
    z_BTD = z_BTD + f32_BTD
    if _BELOW[_above(sublayer)] not in constants:
        z_BTD = _norm_where(z_BTD, gains, "outer_norm", constants, always, sublayer, epsilon)
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


# --- Outer norms, one sub-layer later ------------------------------------------------------------


def put_off(
    constants: Mapping[str, jax.Array], gains: Mapping[int, jax.Array]
) -> tuple[dict, Mapping[str, jax.Array] | None]:
    """Leaves every outer norm to the sub-layer above.

    Args:
      constants: of consecutive blocks, [N, …].
      gains: of the outer norms that the topology has, by sub-layer, [N, D].

    Returns:
      The constants with which `join` leaves its norm out and `read` applies that of the sub-layer
      below, none in the first one; and what `settle` applies to the last one's output.
    """
    moved, last = dict(constants), None
    for sublayer, gain_ND in gains.items():
        is_on_N = constants["outer_norm"][:, sublayer]
        if sublayer == FFN:
            last = {"gain": gain_ND[-1], "is_on": is_on_N[-1]}
            gain_ND, is_on_N = jnp.roll(gain_ND, 1, axis=0), jnp.roll(is_on_N, 1).at[0].set(False)
        moved[_BELOW[_above(sublayer)]] = {"gain": gain_ND, "is_on": is_on_N}
    return moved, last


def settle(x_BTD: jax.Array, last: Mapping[str, jax.Array] | None, epsilon: float) -> jax.Array:
    """The stream after all blocks, from what the last one leaves and `put_off`."""
    if last is None:
        return x_BTD
    return _norm_if(last["is_on"], x_BTD, last["gain"], epsilon).astype(x_BTD.dtype)


def _above(sublayer: int) -> int:
    """The sub-layer that reads what `sublayer` leaves: the block's FFN, the next attention."""
    return FFN if sublayer == ATTENTION else ATTENTION


# --- The same, backwards (`reversible`) ----------------------------------------------------------


def take_gains(constants: Mapping) -> tuple[dict[int, jax.Array | None], dict]:
    """The gains among the constants of `put_off`, by the sub-layer that reads them; the rest."""
    gains, rest = {}, dict(constants)
    for sublayer, key in enumerate(_BELOW):
        gains[sublayer] = constants[key]["gain"] if key in constants else None
        if key in constants:
            rest[key] = {"is_on": constants[key]["is_on"]}
    return gains, rest


def with_gain(constants: Mapping, sublayer: int, gain: jax.Array | None) -> Mapping:
    """The constants, of which `take_gains` left no gains, with that which `sublayer` reads."""
    if gain is None:
        return constants
    key = _BELOW[sublayer]
    return {**constants, key: {**constants[key], "gain": gain}}


def branch_alone(constants: Mapping, sublayer: int) -> dict:
    """Constants with which a sub-layer, given the stream x, leaves b branch(F(inner(x))) alone."""
    alone = {key: value for key, value in constants.items() if key != _BELOW[sublayer]}
    return alone | {"alpha": jnp.zeros_like(constants["alpha"])}


def outer_below(
    z_BTD: jax.Array, constants: Mapping, sublayer: int, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """x = gain r z, the outer norm that was left to `sublayer`, and r [B, T]; where there is none,
    z and ones."""
    below = constants.get(_BELOW[sublayer])
    if below is None:
        return z_BTD, jnp.ones(z_BTD.shape[:-1], jnp.float32)
    r, gain = _factors(below["is_on"], z_BTD, below["gain"], epsilon)
    return gain * (z_BTD * r), jnp.broadcast_to(r, (*z_BTD.shape[:-1], 1))[..., 0]


def undo_outer_below(
    x_BTD: jax.Array, r_BT: jax.Array, constants: Mapping, sublayer: int
) -> jax.Array:
    """z = x / (gain r); not finite where a gain is 0."""
    below = constants.get(_BELOW[sublayer])
    if below is None:
        return x_BTD
    return x_BTD / (jnp.where(below["is_on"], below["gain"], 1) * r_BT[..., None])


# --- The norms -----------------------------------------------------------------------------------


def rms_norm(x: jax.Array, gain: jax.Array, epsilon: float) -> jax.Array:
    """gain * x / sqrt(mean(x^2) + epsilon) over the last axis, in float32 (arXiv:1910.07467)."""
    x = x.astype(jnp.float32)
    return gain * (x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon))


def unit(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, in float32; 0 stays 0."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _LEAST_SQUARE)


def _norm_where(x, gains, norm, constants, always, sublayer, epsilon):
    """The norm in the blocks that have it: none, all, or those that the constants name."""
    here = getattr(always, norm)[:, sublayer]
    if not here.any():
        return x
    if here.all():
        return rms_norm(x, gains[norm], epsilon)
    return _norm_if(constants[norm][sublayer], x, gains[norm], epsilon)


def _norm_if(is_on: jax.Array, x: jax.Array, gain: jax.Array, epsilon: float) -> jax.Array:
    """rms_norm(x) if the scalar says so, else x: its factors are chosen, not the arrays."""
    x = x.astype(jnp.float32)
    rstd, gain = _factors(is_on, x, gain, epsilon)
    return gain * (x * rstd)


def _factors(is_on, x, gain, epsilon) -> tuple[jax.Array, jax.Array]:
    """(1 / sqrt(mean(x^2) + epsilon), gain) of a norm that is on, ones of one that is off."""
    rstd = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return jnp.where(is_on, rstd, 1), jnp.where(is_on, gain, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def norm_twice(
    z: jax.Array, outer_gain: jax.Array, is_on: jax.Array, inner_gain: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """x = outer(z) and inner(x), two RMSNorms over the last axis whose sums are of z alone.

        r = 1 / sqrt(mean(z^2) + epsilon)                       x = outer_gain (r z)
        q = 1 / sqrt(r^2 mean((outer_gain z)^2) + epsilon)      h = inner_gain (q x)

    Both sums are taken in one pass over z, so h is not a pass later than x. So it is backwards:
    with dx, dh the cotangents and e = inner_gain dh,

        dx' = dx + q (e - q^2 x mean(x e)),    dz = r (outer_gain dx' - r z mean(x dx'))

    where mean(x dx') = mean(x dx) + epsilon q^2 (q mean(x e)), as q^2 mean(x^2) is
    1 - epsilon q^2. No gain divides anything, so each may be 0.

    Args:
      z: float32 [..., D].
      outer_gain, inner_gain: [D].
      is_on: bool, a scalar; without it x = z.
    """
    return _norm_twice_forward(z, outer_gain, is_on, inner_gain, epsilon)[0]


def _norm_twice_forward(z, outer_gain, is_on, inner_gain, epsilon):
    r, gain = _factors(is_on, z, outer_gain, epsilon)
    q = jax.lax.rsqrt(r * r * jnp.mean((gain * z) ** 2, axis=-1, keepdims=True) + epsilon)
    x = gain * (z * r)
    return (x, inner_gain * (x * q)), (z, r, gain, q, is_on, inner_gain)


def _norm_twice_backward(epsilon, saved, cotangents):
    (z, r, gain, q, is_on, inner_gain), (dx, dh) = saved, cotangents
    u = z * r
    x, e = gain * u, inner_gain * dh
    mean_xe = q * jnp.mean(x * e, axis=-1, keepdims=True)
    mean_xdx = jnp.mean(x * dx, axis=-1, keepdims=True) + epsilon * q * q * mean_xe
    # Both sums first, then everything that needs them: else a TPU's compiler takes the second one
    # with the gain's gradient, and reads the arrays once more.
    mean_xe, mean_xdx = jax.lax.optimization_barrier((mean_xe, mean_xdx))
    d = dx + q * (e - x * q * mean_xe)
    dz = r * (gain * d - u * jnp.where(is_on, mean_xdx, 0))
    rows = tuple(range(z.ndim - 1))
    outer_gradient = jnp.where(is_on, jnp.sum(u * d, axis=rows), 0)
    return dz, outer_gradient, None, jnp.sum(x * q * dh, axis=rows)


norm_twice.defvjp(_norm_twice_forward, _norm_twice_backward)


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


def _rezero(model):
    """x' = x + a F(x), a learned number for each sub-layer, 0 at first.  (2003.04887)

    The authors' Transformer shares one a between the two sub-layers of a block; the equation does
    not, and neither does this. It has no norm anywhere, the final one included.
    """
    return _uniform(model.num_blocks, has_residual_scale=True)


# Which norms and scales the sub-layers have where the equation is another one, or more than one
# array is carried: see `streams`.


def _resi_dual(model):
    """ResiDual: the post-normed stream's outer norm."""
    return _uniform(model.num_blocks, outer=True)


def _ngpt(model):
    """nGPT: the branch reads the stream as it is."""
    return _uniform(model.num_blocks, on_sphere=True)


def _siamese_norm(model):
    """SiameseNorm: what the branch reads is normed, and z / sqrt(2l) joins the post-normed stream.

    l is the block's number from 1.
    """
    siamese = _pre_ln(model)
    siamese.branch_scale[:] = 1 / np.sqrt(2 * np.arange(1, model.num_blocks + 1))[:, None]
    return siamese


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
    "rezero": _rezero,
    "resi_dual": _resi_dual,
    "siamese_norm": _siamese_norm,
    # What their branches read is normed, and so is what leaves them: Pre-LN's constants.
    "static_hyper_connections": _pre_ln,
    "hyper_connections": _pre_ln,
    "mhc": _pre_ln,
    "attention_residuals": _pre_ln,
    "ngpt": _ngpt,
}
