"""Outer norms one sub-layer later: the same equations, cut at another place.

Inside the scan z = alpha x + b branch(F) travels, and each sub-layer begins with the outer norm of
the one below it. A norm's derivative needs z. Where z is what the loop carries, and so what
recomputation begins from, the FFN's last product need not be computed a third time to get it back;
and the two norms that meet there, outer and inner, read it once (`norms.norm_twice`).

The second half is the same backwards, for `reversible`.

Dimension letters: N blocks, B batch, T time, D model.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Float

from keel_jax.model.arrays import Array
from keel_jax.model.residual import norms
from keel_jax.model.residual.carry import Carry
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
    deferred: dict[int, DeferredNorm | None] = {ATTENTION: None, FFN: None}
    last = None
    for sublayer, name in SUBLAYERS.items():
        if not topology.has("outer_norm", sublayer):
            continue
        gain_ND = params[name]["outer_norm"]
        is_on_N = inputs.topology["outer_norm"][:, sublayer]
        if sublayer == FFN:
            last = DeferredNorm(gain=gain_ND[-1], is_on=is_on_N[-1])
            gain_ND, is_on_N = jnp.roll(gain_ND, 1, axis=0), jnp.roll(is_on_N, 1).at[0].set(False)
        deferred[above(sublayer)] = DeferredNorm(gain=gain_ND, is_on=is_on_N)
    return dataclasses.replace(inputs, deferred_norm=(deferred[ATTENTION], deferred[FFN])), last


def apply_deferred_norm(stream: Carry, last: DeferredNorm | None, epsilon: float) -> Carry:
    """The stream after all blocks, from what the last one leaves and `defer_outer_norms`."""
    if last is None:
        return stream
    assert last.gain is not None, last
    return norms.rms_norm_if(last.is_on, stream, last.gain, epsilon).astype(stream.dtype)


# --- The same, backwards -------------------------------------------------------------------------


def take_gains(inputs: BlockInputs) -> tuple[tuple[Array | None, ...], BlockInputs]:
    """The deferred gains, by the sub-layer that reads them; and the inputs without them."""
    gains = tuple(norm.gain if norm else None for norm in inputs.deferred_norm)
    for sublayer, norm in enumerate(inputs.deferred_norm):
        if norm is not None:
            inputs = _with_norm(inputs, sublayer, dataclasses.replace(norm, gain=None))
    return gains, inputs


def with_gain(inputs: BlockInputs, sublayer: int, gain: Array | None) -> BlockInputs:
    """The inputs, of which `take_gains` left no gains, with that which `sublayer` reads."""
    norm = inputs.deferred_norm[sublayer]
    if norm is None:
        return inputs
    return _with_norm(inputs, sublayer, dataclasses.replace(norm, gain=gain))


def branch_alone(inputs: BlockInputs, sublayer: int) -> BlockInputs:
    """Inputs with which a sub-layer, given the stream x, leaves b branch(F(inner(x))) alone."""
    alone = _with_norm(inputs, sublayer, None)
    zero = jnp.zeros_like(inputs.topology["alpha"])
    return dataclasses.replace(alone, topology={**inputs.topology, "alpha": zero})


def outer_norm_below(
    z_BTD: Float[Array, "B T D"], inputs: BlockInputs, sublayer: int, epsilon: float
) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
    """x = gain r z, the outer norm that was left to `sublayer`, and r [B, T]; where there is none,
    z and ones."""
    below = inputs.deferred_norm[sublayer]
    if below is None:
        return z_BTD, jnp.ones(z_BTD.shape[:-1], jnp.float32)
    assert below.gain is not None, "`with_gain` first"
    r_BT1, gain_D = norms.factors(below.is_on, z_BTD, below.gain, epsilon)
    x_BTD = norms.along_last(gain_D, z_BTD) * (z_BTD * r_BT1)
    return x_BTD, jnp.broadcast_to(r_BT1, (*z_BTD.shape[:-1], 1))[..., 0]


def undo_outer_norm_below(
    x_BTD: Float[Array, "B T D"], r_BT: Float[Array, "B T"], inputs: BlockInputs, sublayer: int
) -> Float[Array, "B T D"]:
    """z = x / (gain r); not finite where a gain is 0."""
    below = inputs.deferred_norm[sublayer]
    if below is None:
        return x_BTD
    assert below.gain is not None, "`with_gain` first"
    gain_D = jnp.where(below.is_on, below.gain, 1)
    return x_BTD / (norms.along_last(gain_D, x_BTD) * r_BT[..., None])


def _with_norm(inputs: BlockInputs, sublayer: int, norm: DeferredNorm | None) -> BlockInputs:
    below_attention, below_ffn = inputs.deferred_norm
    if sublayer == ATTENTION:
        return dataclasses.replace(inputs, deferred_norm=(norm, below_ffn))
    return dataclasses.replace(inputs, deferred_norm=(below_attention, norm))
