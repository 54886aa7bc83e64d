"""Hyper-connections, static and dynamic, and mHC: M streams that each sub-layer mixes.

Dimension letters: B batch, T time, D model, M streams, K mixing weights of a token.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from keel_jax import config
from keel_jax.model.arrays import Array
from keel_jax.model.residual import carry as carry_lib
from keel_jax.model.residual import equation, norms, topologies
from keel_jax.model.residual.carry import Carry, Parameter, Rule, SublayerContext

# Initial factor of the dynamic part (2409.19606, algorithm 2; 2512.24880).
_DYNAMIC_SCALE = 0.01
# Iterations of Sinkhorn and Knopp's normalization (2512.24880, section 4.2).
SINKHORN_STEPS = 20
# Initial logits of mHC where hyper-connections start from 1 and 0. Our choice, as the paper gives
# none. exp(-8) = 3e-4 keeps 99.9 % of each stream and still has a gradient; what a branch reads is
# normed, so only the ratio of sigmoid(1) to sigmoid(-1) matters.
_MIX_LOGIT, _READ_LOGIT = -8.0, 1.0


class _Streams(Rule):
    """M streams that start from the embedding; their sum is read out."""

    def topology(self, model: config.ModelConfig) -> equation.Topology:
        # The branches' inputs and the readout are normed.
        return topologies.pre_ln(model)

    def num_arrays(self, model: config.ModelConfig) -> int:
        return model.hyper_streams

    def init_carry(self, x_BTD: Float[Array, "B T D"], model: config.ModelConfig) -> Carry:
        return (x_BTD,) * model.hyper_streams

    def update_carry(self, held: Any, f_BTD: Float[Array, "B T D"], sub: SublayerContext) -> Carry:
        """Each mixed stream plus its weight times the branch's output, in the stream's dtype."""
        mixed, writes = held
        f_BTD = f_BTD.astype(jnp.float32)
        return tuple(
            (x_BTD + carry_lib.along_stream(weight, f_BTD) * f_BTD).astype(sub.model.stream_dtype)
            for x_BTD, weight in zip(mixed, writes, strict=True)
        )

    def readout(
        self, carry: Carry, params: Mapping[str, Array], model: config.ModelConfig
    ) -> Float[Array, "B T D"]:
        return functools.reduce(jnp.add, [x_BTD.astype(jnp.float32) for x_BTD in carry])


@dataclasses.dataclass(frozen=True)
class HyperConnections(_Streams):
    """h = sum_s r_s H_s; H'_t = sum_s A_st H_s + w_t F(LN(h)); output sum_s H_s.  (2409.19606)

    The weights of stream s, its row (r_s, A_s, w_s), are

      static + scale * tanh(RMSNorm(H_s) dynamic)

    where static is initialized to r = e_(l mod M), A = I, w = 1 (l the sub-layer's number), dynamic
    to 0, and scale to 0.01, one for r and A and one for w. At first each stream is then Pre-LN's,
    bit for bit, and the final norm removes the factor M of their sum. The norm's gain is omitted,
    as `dynamic` absorbs it; so is the paper's rescaling of the branches' output weights, to start
    as Pre-LN does. The static form has only the first term.
    """

    is_dynamic: bool

    def parameters(
        self, model: config.ModelConfig, sublayer: int, block: Array
    ) -> dict[str, Parameter]:
        m = model.hyper_streams
        read = jax.nn.one_hot((2 * block + sublayer) % m, m)
        static = jnp.concatenate([read[:, None], jnp.eye(m), jnp.ones((m, 1))], axis=1)
        leaves = {"hyper_static": Parameter((m, m + 2), ("scalar", "scalar"), static)}
        if self.is_dynamic:
            leaves["hyper_dynamic"] = carry_lib.zeros((model.d_model, m + 2), ("embed", "scalar"))
            scale = jnp.full(2, _DYNAMIC_SCALE)
            leaves["hyper_scale"] = Parameter((2,), ("scalar",), scale)
        return leaves

    def branch_input(self, carry: Carry, sub: SublayerContext) -> tuple[Any, Float[Array, "B T D"]]:
        rows = [self._row(stream, x_BTD, sub) for stream, x_BTD in enumerate(carry)]
        reads, *mixes, writes = zip(*rows, strict=True)
        mixed = tuple(carry_lib.weighted_sum(mix, carry) for mix in mixes)
        return (mixed, writes), sub.branch_input(carry_lib.weighted_sum(reads, carry))

    def _row(self, stream: int, x_BTD: Array, sub: SublayerContext) -> list[Array]:
        """r, the M weights of A and w of one stream: scalars, or [B, T] if dynamic."""
        row_K = sub.params["hyper_static"][stream]
        if not self.is_dynamic:
            return list(row_K)
        normed_BTD = norms.rms_norm(x_BTD, None, sub.model.norm_epsilon)
        moved_KBT = jnp.tanh(jnp.einsum("btd,dk->kbt", normed_BTD, sub.params["hyper_dynamic"]))
        of_reads, of_writes = sub.params["hyper_scale"]
        scales = [of_reads] * (len(row_K) - 1) + [of_writes]
        return [
            static + scale * moved_BT
            for static, scale, moved_BT in zip(row_K, scales, moved_KBT, strict=True)
        ]


class ManifoldHyperConnections(_Streams):
    """mHC: hyper-connections whose A is doubly stochastic, r in (0, 1), w in (0, 2).  (2512.24880)

    h = sum_s r_s H_s; H'_t = sum_s A_ts H_s + w_t F(LN(h)); output sum_s H_s, with

      r = sigmoid(u_r); w = 2 sigmoid(u_w); A = `sinkhorn`(u_A);
      u = scale * (RMSNorm(all H as one vector) dynamic) + bias

    dynamic is initialized to 0 and scale to 0.01, one each for r, w and A. The paper does not say
    how the biases are initialized; here w = 1, A is nearly I (diagonal 0.999) and branch l reads
    mostly stream l mod M, so that the streams start as Pre-LN's up to A's rounding, but do not
    remain identical. The norm's gain is omitted, as `dynamic` absorbs it.
    """

    def parameters(
        self, model: config.ModelConfig, sublayer: int, block: Array
    ) -> dict[str, Parameter]:
        m = model.hyper_streams
        own = 2 * jax.nn.one_hot((2 * block + sublayer) % m, m) - 1
        mix = _MIX_LOGIT * (1 - jnp.eye(m))
        bias = jnp.concatenate([_READ_LOGIT * own, jnp.zeros(m), mix.reshape(-1)])
        num_weights = m * (m + 2)
        dynamic = (m, model.d_model, num_weights)
        return {
            "mhc_bias": Parameter((num_weights,), ("scalar",), bias),
            "mhc_dynamic": carry_lib.zeros(dynamic, ("scalar", "embed", "scalar")),
            "mhc_scale": Parameter((3,), ("scalar",), jnp.full(3, _DYNAMIC_SCALE)),
        }

    def branch_input(self, carry: Carry, sub: SublayerContext) -> tuple[Any, Float[Array, "B T D"]]:
        m = len(carry)
        reads, writes, mixes = mhc_weights(carry, sub)
        mixed = tuple(
            carry_lib.weighted_sum([mixes[t, s] for s in range(m)], carry) for t in range(m)
        )
        return (mixed, writes), sub.branch_input(carry_lib.weighted_sum(reads, carry))


def mhc_weights(
    carry: tuple[Float[Array, "B T D"], ...], sub: SublayerContext
) -> tuple[Float[Array, "M B T"], Float[Array, "M B T"], Float[Array, "M M B T"]]:
    """mHC's r [M, B, T], w [M, B, T] and A [M (to), M (from), B, T] of each token."""
    m = len(carry)
    streams = [x_BTD.astype(jnp.float32) for x_BTD in carry]
    square_BT = functools.reduce(jnp.add, [jnp.mean(x * x, axis=-1) for x in streams]) / m
    dots = [
        jnp.einsum("btd,dk->kbt", x_BTD, w_DK)
        for x_BTD, w_DK in zip(streams, sub.params["mhc_dynamic"], strict=True)
    ]
    rstd_BT = jax.lax.rsqrt(square_BT + sub.model.norm_epsilon)
    dots_KBT = functools.reduce(jnp.add, dots) * rstd_BT[None]
    scale_K = sub.params["mhc_scale"][np.repeat([0, 1, 2], [m, m, m * m])]
    u_KBT = scale_K[:, None, None] * dots_KBT + sub.params["mhc_bias"][:, None, None]
    reads, writes = jax.nn.sigmoid(u_KBT[:m]), 2 * jax.nn.sigmoid(u_KBT[m : 2 * m])
    return reads, writes, sinkhorn(u_KBT[2 * m :].reshape(m, m, *u_KBT.shape[1:]))


def sinkhorn(logits_MM: Float[Array, "M M *rest"]) -> Float[Array, "M M *rest"]:
    """exp(logits) with its columns and then its rows divided by their sums, SINKHORN_STEPS times.

    Doubly stochastic in the limit (Sinkhorn and Knopp, 1967); after the last iteration the rows are
    exact. Computed with logarithms, so that no sum underflows. The iterations are recomputed in the
    backward pass, as saving them would take more memory than the streams.
    [M (rows), M (columns), …].
    """

    def step(log_MM, _):
        log_MM = log_MM - jax.nn.logsumexp(log_MM, axis=0, keepdims=True)
        return log_MM - jax.nn.logsumexp(log_MM, axis=1, keepdims=True), None

    def iterate(logits_MM):
        return jnp.exp(jax.lax.scan(step, logits_MM, length=SINKHORN_STEPS)[0])

    # Inside the scan over depth the loop itself prevents XLA from merging the two computations.
    return jax.checkpoint(iterate, prevent_cse=False)(logits_MM)
