"""Outer norms that are applied one sub-layer later: the same equations, divided differently.

Inside the scan z = alpha x + b branch(F) is carried, and each sub-layer begins with the outer norm
of the one below it. A norm's derivative needs z. As z is the loop's carry, from which recomputation
starts, the FFN's last product need not be computed a third time to recover it; and the outer and
inner norm that follow each other read z only once (`norms.norm_twice`).

The second half of the module is the inverse, for `reversible`.

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
    """Defers every outer norm to the sub-layer above.

    Args:
      inputs: of consecutive blocks, [N, …].
      params: of the same blocks, {"attention", "ffn"}, [N, …], with the gains of the outer norms.

    Returns:
      The inputs with which `equation.residual_sum` omits its norm and `equation.branch_input`
      applies that of the sub-layer below (none in the first one); and the norm that
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
    """The stream after all blocks: applies the last outer norm of `defer_outer_norms`."""
    if last is None:
        return stream
    assert last.gain is not None, last
    return norms.rms_norm_if(last.is_on, stream, last.gain, epsilon).astype(stream.dtype)


# --- The inverse ---------------------------------------------------------------------------------


def take_gains(inputs: BlockInputs) -> tuple[tuple[Array | None, ...], BlockInputs]:
    """The deferred gains, by the sub-layer that reads them; and the inputs without them."""
    gains = tuple(norm.gain if norm else None for norm in inputs.deferred_norm)
    for sublayer, norm in enumerate(inputs.deferred_norm):
        if norm is not None:
            inputs = _with_norm(inputs, sublayer, dataclasses.replace(norm, gain=None))
    return gains, inputs


def with_gain(inputs: BlockInputs, sublayer: int, gain: Array | None) -> BlockInputs:
    """The inputs after `take_gains`, with the gain that `sublayer` reads put back."""
    norm = inputs.deferred_norm[sublayer]
    if norm is None:
        return inputs
    return _with_norm(inputs, sublayer, dataclasses.replace(norm, gain=gain))


def branch_alone(inputs: BlockInputs, sublayer: int) -> BlockInputs:
    """Inputs with which a sub-layer maps the stream x to b branch(F(inner(x))) alone."""
    alone = _with_norm(inputs, sublayer, None)
    zero = jnp.zeros_like(inputs.topology["alpha"])
    return dataclasses.replace(alone, topology={**inputs.topology, "alpha": zero})


def outer_norm_below(
    z_BTD: Float[Array, "B T D"], inputs: BlockInputs, sublayer: int, epsilon: float
) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
    """x = gain r z, the outer norm that was deferred to `sublayer`, and r [B, T]; z and ones if
    there is none."""
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
