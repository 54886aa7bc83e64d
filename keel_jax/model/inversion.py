"""Keel's sub-layers in the parts that `reversible` runs backwards.

Dimension letters: N blocks, B batch, T time, D model.
"""

from collections.abc import Mapping

import jax

from keel_jax import config
from keel_jax.model import layers, residual, reversible
from keel_jax.parallel import sharding

_NAMES = {residual.ATTENTION: "attention", residual.FFN: "ffn"}


def sublayers(model: config.ModelConfig) -> tuple[reversible.Sublayer, ...]:
    """Attention and FFN of a block whose norms are put off."""
    return tuple(_sublayer(model, sublayer) for sublayer in _NAMES)


def rows(params: Mapping, constants: Mapping) -> tuple[tuple[dict, ...], Mapping]:
    """(learned, constants) of consecutive blocks, as `reversible.scan` reads them.

    Args:
      params: of the blocks, {"attention", "ffn"}, [N, …].
      constants: theirs, of `residual.put_off`: the outer norms' gains, which are learned, are in
        them.
    """
    gains, rest = residual.take_gains(constants)
    learned = tuple({"params": params[_NAMES[s]], "gain": gains[s]} for s in _NAMES)
    return learned, rest


def _sublayer(model: config.ModelConfig, sublayer: int) -> reversible.Sublayer:
    epsilon = model.norm_epsilon
    module = layers.Attention if sublayer == residual.ATTENTION else layers.Ffn

    def run(z_BTD, params, constants, context):
        more = (context, None) if sublayer == residual.ATTENTION else ()
        z_BTD = sharding.constrain(z_BTD, layers.STREAM_AXES)
        after = module(model, parent=None).apply({"params": params}, z_BTD, constants, *more)
        return sharding.constrain(after[0], layers.STREAM_AXES)

    def whole(z_BTD, learned, constants, context):
        constants = residual.with_gain(constants, sublayer, learned["gain"])
        return run(z_BTD, learned["params"], constants, context)

    def norm(z_BTD, gain, constants):
        constants = residual.with_gain(constants, sublayer, gain)
        return residual.outer_below(z_BTD, constants, sublayer, epsilon)

    def undo(x_BTD, r_BT, gain, constants):
        constants = residual.with_gain(constants, sublayer, gain)
        return residual.undo_outer_below(x_BTD, r_BT, constants, sublayer)

    def branch(x_BTD, params, constants, context):
        return run(x_BTD, params, residual.branch_alone(constants, sublayer), context)

    def alpha(constants) -> jax.Array:
        return constants["alpha"][sublayer]

    return reversible.Sublayer(whole, norm, undo, branch, alpha)
