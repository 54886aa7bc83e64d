"""What the scan over depth carries, topology by topology: one array, or several streams.

A topology is a `Rule`: how the embedding enters the carry, what a branch reads from it, how the
branch's output joins it, and what leaves it for the logits. `Rule` itself carries one array and
follows the one equation of `residual`; those below it carry more, or follow another equation. All
run under the same scan, with the same attention and FFN: which norms and scales a sub-layer has
stands in `residual.topology`, for these topologies as for the others.

Every leaf of a carry is an array [B, T, D] in `model.stream_dtype`: several streams are a tuple,
not an axis, which a TPU would pad from 4 to 8. What a rule computes it computes in float32.

Dimension letters: B batch, T time, D model, M streams, K mixing weights of a token.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from keel_jax import config
from keel_jax.model import residual

# An array [B, T, D], or a tuple of such and of tuples.
Carry = Any

# Initial factor of the dynamic part of hyper-connections (2409.19606, algorithm 2; 2512.24880).
_DYNAMIC_SCALE = 0.01
# Iterations of Sinkhorn and Knopp's normalisation (2512.24880, section 4.2).
SINKHORN_STEPS = 20
# Initial logits of mHC where hyper-connections begin with 1 and 0. Ours: the paper gives none.
# exp(-8) = 3e-4 leaves each stream 99.9 % of itself and yet a gradient; what a branch reads is
# normed, so only the ratio of sigmoid(1) to sigmoid(-1) counts.
_MIX_LOGIT, _READ_LOGIT = -8.0, 1.0


class Parameter(NamedTuple):
    """One learned array of a sub-layer, or of the output."""

    shape: tuple[int, ...]
    # Logical axes.
    axes: tuple[str, ...]
    # The initial value, float32 and of that shape.
    value: jax.typing.ArrayLike


@dataclasses.dataclass(frozen=True)
class At:
    """Where a rule stands: one sub-layer of one block, with its parameters and constants."""

    model: config.ModelConfig
    # `residual.ATTENTION` or `residual.FFN`.
    sublayer: int
    # This sub-layer's gains and the rule's own `parameters`, by name.
    params: Mapping[str, jax.Array]
    # This block's row of `depth.constants`.
    constants: Mapping[str, jax.Array]

    def read(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`residual.read` of one array: the stream, and what the branch reads, in its dtype."""
        return residual.read(
            x_BTD,
            self.params,
            self.constants,
            residual.topology(self.model),
            self.sublayer,
            epsilon=self.model.norm_epsilon,
            dtype=jnp.dtype(self.model.compute_dtype),
        )

    def branch_input(self, x_BTD: jax.Array) -> jax.Array:
        """What the branch reads of one array, in the compute dtype."""
        return self.read(x_BTD)[1]

    def join(self, x_BTD: jax.Array, f_BTD: jax.Array) -> jax.Array:
        """`residual.join` of one array, in its dtype."""
        return residual.join(
            x_BTD,
            f_BTD,
            self.params,
            self.constants,
            residual.topology(self.model),
            self.sublayer,
            epsilon=self.model.norm_epsilon,
        )

    def norm(self, name: str, x_BTD: jax.Array) -> jax.Array:
        """RMSNorm with the gain `name`, float32."""
        return residual.rms_norm(x_BTD, self.params[name], self.model.norm_epsilon)


class Rule:
    """One array and the one equation: every topology that `residual` writes down."""

    # Whether a block whose branches give 0 leaves what others read as it was, outer norms aside.
    is_kept_by_zero = True

    def num_arrays(self, model: config.ModelConfig) -> int:
        """Arrays [B, T, D] in the carry: what a block keeps for the backward pass, in streams."""
        del model
        return 1

    def parameters(
        self, model: config.ModelConfig, sublayer: int, block: jax.typing.ArrayLike
    ) -> dict[str, Parameter]:
        """What a sub-layer learns beside the gains of `residual`; `block` is the block's number."""
        del model, sublayer, block
        return {}

    def output_parameters(self, model: config.ModelConfig) -> dict[str, Parameter]:
        """What `leave` reads."""
        del model
        return {}

    def enter(self, x_BTD: jax.Array, model: config.ModelConfig) -> Carry:
        """The carry before block 0, from the embedding."""
        del model
        return x_BTD

    def read(self, carry: Carry, at: At) -> tuple[Any, jax.Array]:
        """What `join` takes, and what the branch reads, in the compute dtype."""
        return at.read(carry)

    def join(self, held: Any, f_BTD: jax.Array, at: At) -> Carry:
        """The carry after the sub-layer, from what `read` held and the branch's output."""
        return at.join(held, f_BTD)

    def leave(
        self, carry: Carry, params: Mapping[str, jax.Array], model: config.ModelConfig
    ) -> jax.Array:
        """What the final norm, or the logits, read of the carry after the last block."""
        del params, model
        return carry

    @property
    def puts_norms_off(self) -> bool:
        """Whether the carry is z, the sum before the outer norm, between blocks (`put_off`)."""
        return type(self) is Rule

    def put_off(
        self, constants: Mapping[str, jax.Array], params: Mapping, model: config.ModelConfig
    ) -> tuple[Mapping[str, jax.Array], Mapping[str, jax.Array] | None]:
        """`residual.put_off` for consecutive blocks; for the one equation only, else nothing.

        Args:
          constants: of the blocks, [N, …].
          params: their parameters, [N, …].
        """
        if not self.puts_norms_off:
            return constants, None
        here = residual.topology(model)
        gains = {
            sublayer: params[name]["outer_norm"]
            for sublayer, name in ((residual.ATTENTION, "attention"), (residual.FFN, "ffn"))
            if here.has("outer_norm", sublayer)
        }
        return residual.put_off(constants, gains)

    def settle(self, carry: Carry, last, model: config.ModelConfig) -> Carry:
        """The carry after consecutive blocks, from what the last one leaves and `put_off`."""
        return carry if last is None else residual.settle(carry, last, model.norm_epsilon)


class ResiDual(Rule):
    """post' = LN(post + F(post)); dual' = dual + F(post); output post + LN(dual).  (2304.14802)

    Both streams begin with the embedding. The paper scales the dual stream in half precision only;
    here it is float32.
    """

    def num_arrays(self, model):
        return 2

    def output_parameters(self, model):
        return {"dual_norm": _gain(model)}

    def enter(self, x_BTD, model):
        return x_BTD, x_BTD

    def read(self, carry, at):
        return carry, at.branch_input(carry[0])

    def join(self, held, f_BTD, at):
        post_BTD, dual_BTD = held
        summed_BTD = dual_BTD.astype(jnp.float32) + f_BTD
        return at.join(post_BTD, f_BTD), summed_BTD.astype(dual_BTD.dtype)

    def leave(self, carry, params, model):
        post_BTD, dual_BTD = carry
        normed_BTD = residual.rms_norm(dual_BTD, params["dual_norm"], model.norm_epsilon)
        return post_BTD.astype(jnp.float32) + normed_BTD


class SiameseNorm(Rule):
    """x = LN(x); z = F(LN(x + LN(y))); x' = x + z / sqrt(2l); y' = y + z.  (2602.08064)

    l is the block's number from 1, for both sub-layers, as in the authors' code; both streams begin
    with the embedding. Output: LN(LN(x) + LN(y)), whose outer LN is the final norm.
    """

    is_kept_by_zero = False

    def num_arrays(self, model):
        return 2

    def parameters(self, model, sublayer, block):
        return {"post_norm": _gain(model), "pre_norm": _gain(model)}

    def output_parameters(self, model):
        return {"post_norm": _gain(model), "pre_norm": _gain(model)}

    def enter(self, x_BTD, model):
        return x_BTD, x_BTD

    def read(self, carry, at):
        post_BTD, pre_BTD = carry
        normed_BTD = at.norm("post_norm", post_BTD)
        held = normed_BTD.astype(post_BTD.dtype), pre_BTD
        return held, at.branch_input(normed_BTD + at.norm("pre_norm", pre_BTD))

    def join(self, held, f_BTD, at):
        post_BTD, pre_BTD = held
        summed_BTD = pre_BTD.astype(jnp.float32) + f_BTD
        return at.join(post_BTD, f_BTD), summed_BTD.astype(pre_BTD.dtype)

    def leave(self, carry, params, model):
        post_BTD, pre_BTD = (
            residual.rms_norm(x, params[name], model.norm_epsilon)
            for x, name in zip(carry, ("post_norm", "pre_norm"), strict=True)
        )
        return post_BTD + pre_BTD


@dataclasses.dataclass(frozen=True)
class HyperConnections(Rule):
    """h = sum_s r_s H_s; H'_t = sum_s A_st H_s + w_t F(LN(h)); output sum_s H_s.  (2409.19606)

    All M streams begin with the embedding. The weights of stream s, its row (r_s, A_s, w_s), are

      static + scale * tanh(RMSNorm(H_s) dynamic)

    with static at first r = e_(l mod M), A = I, w = 1 (l the sub-layer's number), dynamic 0, and
    scale 0.01, one for r and A and one for w: each stream is then Pre-LN's, bit for bit, and the
    final norm takes the factor M from their sum. The norm's gain is left out, as `dynamic` absorbs
    it; so is the paper's rescaling of the branches' output weights, to begin as Pre-LN does. The
    static form has the first term only.
    """

    is_kept_by_zero = False

    is_dynamic: bool

    def num_arrays(self, model):
        return model.hyper_streams

    def parameters(self, model, sublayer, block):
        m = model.hyper_streams
        read = jax.nn.one_hot((2 * block + sublayer) % m, m)
        static = jnp.concatenate([read[:, None], jnp.eye(m), jnp.ones((m, 1))], axis=1)
        found = {"hyper_static": Parameter((m, m + 2), ("scalar", "scalar"), static)}
        if self.is_dynamic:
            found["hyper_dynamic"] = _zeros((model.d_model, m + 2), ("embed", "scalar"))
            found["hyper_scale"] = Parameter((2,), ("scalar",), jnp.full(2, _DYNAMIC_SCALE))
        return found

    def enter(self, x_BTD, model):
        return (x_BTD,) * model.hyper_streams

    def read(self, carry, at):
        rows = [self._row(stream, x_BTD, at) for stream, x_BTD in enumerate(carry)]
        reads, *mixes, writes = zip(*rows, strict=True)
        mixed = tuple(_weighted(mix, carry) for mix in mixes)
        return (mixed, writes), at.branch_input(_weighted(reads, carry))

    def join(self, held, f_BTD, at):
        return _write(*held, f_BTD, at)

    def leave(self, carry, params, model):
        return sum(x_BTD.astype(jnp.float32) for x_BTD in carry)

    def _row(self, stream: int, x_BTD: jax.Array, at: At) -> list[jax.Array]:
        """r, the M weights of A and w of one stream: scalars, or [B, T] where dynamic."""
        row_K = at.params["hyper_static"][stream]
        if not self.is_dynamic:
            return list(row_K)
        normed_BTD = residual.rms_norm(x_BTD, 1.0, at.model.norm_epsilon)
        moved_KBT = jnp.tanh(jnp.einsum("btd,dk->kbt", normed_BTD, at.params["hyper_dynamic"]))
        of_reads, of_writes = at.params["hyper_scale"]
        scales = [of_reads] * (len(row_K) - 1) + [of_writes]
        return [
            static + scale * moved_BT
            for static, scale, moved_BT in zip(row_K, scales, moved_KBT, strict=True)
        ]


class ManifoldHyperConnections(Rule):
    """mHC: hyper-connections whose A is doubly stochastic, r in (0, 1), w in (0, 2).  (2512.24880)

    h = sum_s r_s H_s; H'_t = sum_s A_ts H_s + w_t F(LN(h)); output sum_s H_s, with

      r = sigmoid(u_r); w = 2 sigmoid(u_w); A = `sinkhorn`(u_A);
      u = scale * (RMSNorm(all H as one vector) dynamic) + bias

    dynamic is 0 at first and scale 0.01, one each for r, w and A. The paper does not say how the
    biases begin; here w = 1, A is nearly I (diagonal 0.999) and branch l reads most of stream
    l mod M, so that the streams begin as Pre-LN's up to A's rounding, and yet do not stay alike.
    The norm's gain is left out, as `dynamic` absorbs it.
    """

    is_kept_by_zero = False

    def num_arrays(self, model):
        return model.hyper_streams

    def parameters(self, model, sublayer, block):
        m = model.hyper_streams
        own = 2 * jax.nn.one_hot((2 * block + sublayer) % m, m) - 1
        mix = _MIX_LOGIT * (1 - jnp.eye(m))
        bias = jnp.concatenate([_READ_LOGIT * own, jnp.zeros(m), mix.reshape(-1)])
        num_weights = m * (m + 2)
        return {
            "mhc_bias": Parameter((num_weights,), ("scalar",), bias),
            "mhc_dynamic": _zeros((m, model.d_model, num_weights), ("scalar", "embed", "scalar")),
            "mhc_scale": Parameter((3,), ("scalar",), jnp.full(3, _DYNAMIC_SCALE)),
        }

    def enter(self, x_BTD, model):
        return (x_BTD,) * model.hyper_streams

    def read(self, carry, at):
        m = len(carry)
        reads, writes, mixes = mhc_weights(carry, at)
        mixed = tuple(_weighted([mixes[t, s] for s in range(m)], carry) for t in range(m))
        return (mixed, writes), at.branch_input(_weighted(reads, carry))

    def join(self, held, f_BTD, at):
        return _write(*held, f_BTD, at)

    def leave(self, carry, params, model):
        return sum(x_BTD.astype(jnp.float32) for x_BTD in carry)


class AttentionResiduals(Rule):
    """h = sum_i softmax_i(q . RMSNorm(v_i)) v_i; the branch is F(LN(h)).  (2603.15031, block form)

    The N blocks stand in groups of equal size (the last may be smaller), which the paper calls
    blocks; v_i are the embedding, the sum of the branches' outputs of each finished group, and that
    of the current group, once it has one. q is learned for each sub-layer, 0 at first, so that the
    weights begin equal. The logits read such an h too, over all of them. The norm's gain is left
    out, as q absorbs it.

    The carry is a memory of fixed size, filled as the scan goes: one array for the embedding and
    for each group but the last, and the current group's sum. Depth stays homogeneous, and each
    block keeps that many arrays for the backward pass.
    """

    is_kept_by_zero = False

    def num_arrays(self, model):
        return _num_groups(model) + 1

    def parameters(self, model, sublayer, block):
        return {"depth_query": _zeros((model.d_model,), ("norm",))}

    def output_parameters(self, model):
        return {"depth_query": _zeros((model.d_model,), ("norm",))}

    def enter(self, x_BTD, model):
        # The embedding is what came before the first group: block 0 files it like a group's sum.
        return (jnp.zeros_like(x_BTD),) * _num_groups(model), x_BTD

    def read(self, carry, at):
        memory, sum_BTD = carry
        block, size = at.constants["block"], _group_size(at.model)
        group, is_first = block // size, block % size == 0
        is_empty = is_first & (at.sublayer == residual.ATTENTION)
        memory = tuple(
            jnp.where(is_empty & (group == slot), sum_BTD, x_BTD)
            for slot, x_BTD in enumerate(memory)
        )
        sum_BTD = jnp.where(is_empty, 0, sum_BTD)
        there = [slot <= group for slot in range(len(memory))] + [~is_empty]
        h_BTD = _attend((*memory, sum_BTD), there, at.params["depth_query"], at.model)
        return (memory, sum_BTD), at.branch_input(h_BTD)

    def join(self, held, f_BTD, at):
        memory, sum_BTD = held
        return memory, at.join(sum_BTD, f_BTD)

    def leave(self, carry, params, model):
        memory, sum_BTD = carry
        there = [True] * (len(memory) + 1)
        return _attend((*memory, sum_BTD), there, params["depth_query"], model)


class NGpt(Rule):
    """h' = unit(h + |a| * (unit(F(h)) - h)), unit(x) = x / |x| along D.  (2410.01131)

    a is learned for each of the D dimensions; it begins at a_0 = `model.ngpt_rate` and is kept as
    a / (a_0 sqrt(D)), so that an optimiser moves it as far as it moves a weight. The rest of nGPT
    is in `layers` (unit queries and keys with a learned scale, learned scales in the FFN), in
    `lm.output_matrix` (one on each logit) and in `lm.project` (matrices of unit rows, at first and
    after each optimiser step).

    Recommended with it, not enforced: no weight decay, no warm-up. Decay along a row of length 1 is
    undone by the projection, so that it only rescales the learning rate.
    """

    is_kept_by_zero = False

    def parameters(self, model, sublayer, block):
        return {"step_size": sphere_scale(model, model.d_model, ("norm",))}

    def join(self, held, f_BTD, at):
        h_BTD = held.astype(jnp.float32)
        rate_D = jnp.abs(at.params["step_size"]) * at.model.ngpt_rate * at.model.d_model**0.5
        moved_BTD = h_BTD + rate_D * (residual.unit(f_BTD) - h_BTD)
        return residual.unit(moved_BTD).astype(held.dtype)


def sphere_scale(model: config.ModelConfig, size: int, axes: tuple[str, ...]) -> Parameter:
    """A learned scale of nGPT that begins at 1 and is kept divided by sqrt(D) (2410.01131, 2.5)."""
    return Parameter((size,), axes, jnp.full(size, model.d_model**-0.5))


def mhc_weights(carry, at: At) -> tuple[jax.Array, jax.Array, jax.Array]:
    """mHC's r [M, B, T], w [M, B, T] and A [M (to), M (from), B, T] of each token."""
    m = len(carry)
    streams = [x_BTD.astype(jnp.float32) for x_BTD in carry]
    square_BT = sum(jnp.mean(x * x, axis=-1) for x in streams) / m
    dots_KBT = sum(
        jnp.einsum("btd,dk->kbt", x_BTD, w_DK)
        for x_BTD, w_DK in zip(streams, at.params["mhc_dynamic"], strict=True)
    ) * jax.lax.rsqrt(square_BT + at.model.norm_epsilon)
    scale_K = at.params["mhc_scale"][np.repeat([0, 1, 2], [m, m, m * m])]
    u_KBT = scale_K[:, None, None] * dots_KBT + at.params["mhc_bias"][:, None, None]
    reads, writes = jax.nn.sigmoid(u_KBT[:m]), 2 * jax.nn.sigmoid(u_KBT[m : 2 * m])
    return reads, writes, sinkhorn(u_KBT[2 * m :].reshape(m, m, *u_KBT.shape[1:]))


def sinkhorn(logits_MM: jax.Array) -> jax.Array:
    """exp(logits) with its columns and then its rows divided by their sums, SINKHORN_STEPS times.

    Doubly stochastic in the limit (Sinkhorn and Knopp, 1967); as it stops, rows are exact. By
    logarithms, so that no sum underflows. The iterations are repeated in the backward pass, as all
    of them kept would outweigh the streams. [M (rows), M (columns), …].
    """

    def step(log_MM, _):
        log_MM = log_MM - jax.nn.logsumexp(log_MM, axis=0, keepdims=True)
        return log_MM - jax.nn.logsumexp(log_MM, axis=1, keepdims=True), None

    def iterate(logits_MM):
        return jnp.exp(jax.lax.scan(step, logits_MM, length=SINKHORN_STEPS)[0])

    # Inside the scan over depth the loop itself keeps XLA from merging the two computations.
    return jax.checkpoint(iterate, prevent_cse=False)(logits_MM)


def rule(model: config.ModelConfig) -> Rule:
    """The rule of `model.topology`."""
    return _RULES.get(model.topology, Rule())


_RULES = {
    "resi_dual": ResiDual(),
    "siamese_norm": SiameseNorm(),
    "static_hyper_connections": HyperConnections(is_dynamic=False),
    "hyper_connections": HyperConnections(is_dynamic=True),
    "mhc": ManifoldHyperConnections(),
    "attention_residuals": AttentionResiduals(),
    "ngpt": NGpt(),
}


def _zeros(shape, axes) -> Parameter:
    return Parameter(shape, axes, jnp.zeros(shape))


def _gain(model: config.ModelConfig) -> Parameter:
    return Parameter((model.d_model,), ("norm",), jnp.ones(model.d_model))


def _weighted(weights, streams) -> jax.Array:
    """The float32 sum of weight x stream; weights are scalars or [B, T]."""
    return sum(
        weight[..., None] * x_BTD.astype(jnp.float32)
        for weight, x_BTD in zip(weights, streams, strict=True)
    )


def _write(mixed, writes, f_BTD, at: At) -> tuple[jax.Array, ...]:
    """Each mixed stream plus its weight times the branch's output, in the stream's dtype."""
    f_BTD = f_BTD.astype(jnp.float32)
    return tuple(
        (x_BTD + weight[..., None] * f_BTD).astype(at.model.stream_dtype)
        for x_BTD, weight in zip(mixed, writes, strict=True)
    )


def _attend(sources, there, query_D: jax.Array, model: config.ModelConfig) -> jax.Array:
    """softmax over the sources that are there of query . RMSNorm(source), times them; float32."""

    def score(x_BTD, is_there):
        key_BTD = residual.rms_norm(x_BTD, 1.0, model.norm_epsilon)
        return jnp.where(is_there, jnp.einsum("btd,d->bt", key_BTD, query_D), -jnp.inf)

    scores = jnp.stack([score(*pair) for pair in zip(sources, there, strict=True)])
    return _weighted(jax.nn.softmax(scores, axis=0), sources)


def _group_size(model: config.ModelConfig) -> int:
    return -(-model.num_blocks // model.attn_res_groups)


def _num_groups(model: config.ModelConfig) -> int:
    """Groups that hold a block: fewer than asked for where they do not come out even."""
    return -(-model.num_blocks // _group_size(model))
