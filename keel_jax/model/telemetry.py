"""Statistics of each sub-layer from inside the scan over depth: a few scalars, no arrays.

In the forward pass each sub-layer returns the means that `observe` computes of its stream and its
branch; the scan stacks them to [N, 2]. In the backward pass a zero-valued probe [N, 2], scanned
along with the constants, gets the mean square of the stream's cotangent as its own cotangent
(`probe`). A program without probes contains neither.

Every statistic is a mean over all entries or tokens of the batch, so those of micro-batches and
shards of equal size can be averaged, and trials are vmapped. Squares underflow float32 below an RMS
of 1e-19 and overflow above 1e19. docs/telemetry.md has the formulas.

Dimension letters: N blocks, B batch, T time, D model.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from keel_jax.model import residual
from keel_jax.model.arrays import Array
from keel_jax.model.residual import equation

# Avoids 0 / 0 in a stream of zeros.
TINY = 1e-37


def probes(num_blocks: int) -> Array:
    """The zeros [N, 2] whose cotangent is the mean square of the stream's, per sub-layer."""
    return jnp.zeros((num_blocks, 2), jnp.float32)


def probe(stream: Any, inputs: residual.BlockInputs, sublayer: int) -> Any:
    """`stream` unchanged; with a probe in the block's inputs, measured in the backward pass.

    Args:
      stream: a tree of arrays [B, T, …].
    """
    if inputs.probe is None:
        return stream
    return _probe(stream, inputs.probe[sublayer])


@jax.custom_vjp
def _probe(stream, zero):
    del zero
    return stream


def _probe_forward(stream, zero):
    del zero
    return stream, None


def _probe_backward(_, cotangent):
    return cotangent, _mean_square(cotangent)


_probe.defvjp(_probe_forward, _probe_backward)


def observe(
    before: Any, f_BTD: Float[Array, "B T D"], after: Any, sub: residual.SublayerContext
) -> dict | None:
    """The means of one sub-layer, float32 scalars; None in a program without probes.

    Args:
      before: the stream at its input, a tree of arrays [B, T, D].
      f_BTD: the branch's output.
      after: the stream at its output.
      sub: the sub-layer.

    Returns:
      "stream_square" and "branch_square", mean squares over all entries, the branch after its norm
      and before its weight a b; "stream_branch_product", the mean over all entries of the
      stream before times the branch (of each of the stream's arrays, if there are several);
      "rotation_radians", the mean over tokens of the angle between the stream before and after;
      "position_cosine", the mean cosine between the stream before at two different positions of a
      row.
    """
    if sub.inputs.probe is None:
        return None
    before, f_BTD, after, params = jax.lax.stop_gradient((before, f_BTD, after, dict(sub.params)))
    branch_BTD = equation.branch_output(
        f_BTD, params, sub.topology, sub.sublayer, epsilon=sub.model.norm_epsilon
    )
    units = _units(before)
    return {
        "stream_square": _mean_square(before),
        "branch_square": _mean_square(branch_BTD),
        "stream_branch_product": _mean_product(before, branch_BTD),
        "rotation_radians": _angles(units, _units(after)).mean(),
        "position_cosine": _position_cosine(units),
    }


def stack(attention: dict | None, ffn: dict | None) -> dict | None:
    """Both sub-layers' statistics as vectors [2], the block's output that the scan stacks."""
    return jax.tree.map(lambda *pair: jnp.stack(pair), attention, ffn)


def branch_weight(topology: residual.Topology, params: Mapping) -> Array:
    """a b, each branch's weight in the residual sum, float32 [N, 2].

    Args: as in `effective_alpha`.
    """
    scale_N2 = jnp.asarray(topology.branch_scale)
    if topology.residual_scale is None:
        return scale_N2
    learned = [params["block"][name]["residual_scale"] for name in residual.SUBLAYERS.values()]
    return scale_N2 * jnp.stack(learned, axis=1)


def effective_alpha(topology: residual.Topology, params: Mapping) -> Array:
    """alpha_l * rms(g_out(l - 1)) / rms(g_in(l)), float32 [N, 2] (PAPER: arXiv:2601.19895, §2).

    The stream that enters sub-layer l carries the gain of the outer norm of sub-layer l - 1 (of the
    embedding's norm before the first), and the branch reads it through its inner norm's gain. A
    norm that a sub-layer does not have counts as gain 1.

    Args:
      topology: of the model; its alpha and norms.
      params: the model's; gains are [N, D].
    """
    block = params["block"]
    inner = [_gain_rms(topology, block, "inner_norm", sublayer) for sublayer in residual.SUBLAYERS]
    outer = [_gain_rms(topology, block, "outer_norm", sublayer) for sublayer in residual.SUBLAYERS]
    first = jnp.ones(())
    if topology.embedding_norm:
        first = rms(params["embedding"]["norm"], 0)
    entering = jnp.stack(
        [
            jnp.concatenate([first[None], outer[residual.FFN][:-1]]),
            outer[residual.ATTENTION],
        ],
        axis=1,
    )
    return jnp.asarray(topology.alpha) * entering / jnp.stack(inner, axis=1)


def _gain_rms(topology, block, norm: str, sublayer: int) -> Array:
    """RMS of a norm's gain in each block, 1 if a block does not have the norm; [N]."""
    has_N = np.asarray(getattr(topology, norm)[:, sublayer])
    if not has_N.any():
        return jnp.ones(len(has_N))
    return jnp.where(has_N, rms(block[residual.SUBLAYERS[sublayer]][norm], 1), 1.0)


def rms(x: Array, num_kept: int) -> Array:
    """Root mean square over all but the first `num_kept` axes, float32."""
    x = x.astype(jnp.float32)
    return jnp.sqrt(jnp.mean(x * x, axis=tuple(range(num_kept, x.ndim))))


def _mean_square(tree) -> Array:
    """Mean square over all entries of a tree of arrays, a float32 scalar."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    square = functools.reduce(jnp.add, [jnp.sum(leaf * leaf) for leaf in leaves])
    return square / sum(leaf.size for leaf in leaves)


def _mean_product(stream, branch_BTD: Array) -> Array:
    """Mean over all entries of each array of the stream times the branch, a float32 scalar."""
    branch_BTD = branch_BTD.astype(jnp.float32)
    products = [jnp.mean(leaf.astype(jnp.float32) * branch_BTD) for leaf in jax.tree.leaves(stream)]
    return jnp.stack(products).mean()


def _position_cosine(units: Sequence[Array]) -> Array:
    """Mean over rows and pairs of positions t != s of u_t . u_s, from |sum_t u_t|^2; a scalar."""
    length = units[0].shape[1]
    square_B = sum(jnp.sum(jnp.square(leaf.sum(axis=1)), axis=-1) for leaf in units)
    return jnp.mean((square_B - length) / max(1, length * (length - 1)))


def _angles(u: Sequence[Array], v: Sequence[Array]) -> Array:
    """The angle between two streams at each token, [B, T], in radians, from their `_units`.

    2 atan2(|u - v|, |u + v|) of the unit vectors is accurate at the small angles (1/alpha) of a
    deep stack, where the arc cosine in float32 resolves nothing below 3e-4.
    """

    def norm(sign):
        squares = [jnp.sum(jnp.square(a + sign * b), -1) for a, b in zip(u, v, strict=True)]
        return jnp.sqrt(sum(squares))

    return 2 * jnp.arctan2(norm(-1), norm(1))


def _units(stream) -> list[Array]:
    """The stream of each token, scaled to length 1 as one vector over all leaves."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(stream)]
    leaves = [leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves]
    square = sum(jnp.sum(leaf * leaf, axis=-1, keepdims=True) for leaf in leaves)
    return [leaf * jax.lax.rsqrt(square + TINY) for leaf in leaves]
