"""Outer norms one sub-layer later: the same equations, cut at another place.

Inside the scan z = alpha x + b branch(F) travels, and each sub-layer begins with the outer norm of
the one below it. A norm's derivative needs z. Where z is what the loop carries, and so what
recomputation begins from, the FFN's last product need not be computed a third time to get it back;
and the two norms that meet there, outer and inner, read it once (`norms.norm_twice`).

The second half is the same backwards, for `reversible`.

Dimension letters: N blocks, B batch, T time, D model.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from keel_jax.model.residual import norms
from keel_jax.model.residual.equation import (
    ATTENTION,
    FFN,
    SUBLAYERS,
    BlockInputs,
    DeferredNorm,
    Topology,
    above,
)


def defer_outer_norms(
    inputs: BlockInputs, params: Mapping, topology: Topology
) -> tuple[BlockInputs, DeferredNorm | None]:
    """Leaves every outer norm to the sub-layer above.

    Args:
      inputs: of consecutive blocks, [N, …].
      params: theirs, {"attention", "ffn"}, [N, …], with the gains of the outer norms there are.

    Returns:
      The inputs with which `equation.residual_sum` leaves its norm out and
      `equation.branch_input` applies that of the sub-layer below, none in the first one; and what
      `apply_deferred_norm` applies to the last one's output.
    """
    deferred, last = {ATTENTION: None, FFN: None}, None
    for sublayer, name in SUBLAYERS.items():
        if not topology.has("outer_norm", sublayer):
            continue
        gain_ND = params[name]["outer_norm"]
        is_on_N = inputs.topology["outer_norm"][:, sublayer]
        if sublayer == FFN:
            last = DeferredNorm(gain=gain_ND[-1], is_on=is_on_N[-1])
            gain_ND, is_on_N = jnp.roll(gain_ND, 1, axis=0), jnp.roll(is_on_N, 1).at[0].set(False)
        deferred[above(sublayer)] = DeferredNorm(gain=gain_ND, is_on=is_on_N)
    return inputs.replace(deferred_norm=(deferred[ATTENTION], deferred[FFN])), last


def apply_deferred_norm(x_BTD: jax.Array, last: DeferredNorm | None, epsilon: float) -> jax.Array:
    """The stream after all blocks, from what the last one leaves and `defer_outer_norms`."""
    if last is None:
        return x_BTD
    return norms.rms_norm_if(last.is_on, x_BTD, last.gain, epsilon).astype(x_BTD.dtype)


# --- The same, backwards -------------------------------------------------------------------------


def take_gains(inputs: BlockInputs) -> tuple[tuple[jax.Array | None, ...], BlockInputs]:
    """The deferred gains, by the sub-layer that reads them; and the inputs without them."""
    gains = tuple(norm.gain if norm else None for norm in inputs.deferred_norm)
    rest = tuple(norm.replace(gain=None) if norm else None for norm in inputs.deferred_norm)
    return gains, inputs.replace(deferred_norm=rest)


def with_gain(inputs: BlockInputs, sublayer: int, gain: jax.Array | None) -> BlockInputs:
    """The inputs, of which `take_gains` left no gains, with that which `sublayer` reads."""
    if gain is None:
        return inputs
    return _with_norm(inputs, sublayer, inputs.deferred_norm[sublayer].replace(gain=gain))


def branch_alone(inputs: BlockInputs, sublayer: int) -> BlockInputs:
    """Inputs with which a sub-layer, given the stream x, leaves b branch(F(inner(x))) alone."""
    alone = _with_norm(inputs, sublayer, None)
    zero = jnp.zeros_like(inputs.topology["alpha"])
    return alone.replace(topology={**inputs.topology, "alpha": zero})


def outer_norm_below(
    z_BTD: jax.Array, inputs: BlockInputs, sublayer: int, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """x = gain r z, the outer norm that was left to `sublayer`, and r [B, T]; where there is none,
    z and ones."""
    below = inputs.deferred_norm[sublayer]
    if below is None:
        return z_BTD, jnp.ones(z_BTD.shape[:-1], jnp.float32)
    r, gain = norms.factors(below.is_on, z_BTD, below.gain, epsilon)
    return gain * (z_BTD * r), jnp.broadcast_to(r, (*z_BTD.shape[:-1], 1))[..., 0]


def undo_outer_norm_below(
    x_BTD: jax.Array, r_BT: jax.Array, inputs: BlockInputs, sublayer: int
) -> jax.Array:
    """z = x / (gain r); not finite where a gain is 0."""
    below = inputs.deferred_norm[sublayer]
    if below is None:
        return x_BTD
    return x_BTD / (jnp.where(below.is_on, below.gain, 1) * r_BT[..., None])


def _with_norm(inputs: BlockInputs, sublayer: int, norm: DeferredNorm | None) -> BlockInputs:
    norms_ = list(inputs.deferred_norm)
    norms_[sublayer] = norm
    return inputs.replace(deferred_norm=tuple(norms_))
