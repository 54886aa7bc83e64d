"""Keel's sub-layers, divided into the parts that `reversible` needs to invert them.

Dimension letters: N blocks, B batch, T time, D model.
"""

from collections.abc import Mapping

from keel_jax import config
from keel_jax.model import layers, residual, reversible
from keel_jax.model.arrays import Array
from keel_jax.model.residual import deferred
from keel_jax.parallel import sharding


def sublayers(model: config.ModelConfig) -> tuple[reversible.Sublayer, ...]:
    """Attention and FFN of a block whose outer norms are deferred."""
    return tuple(_sublayer(model, sublayer) for sublayer in residual.SUBLAYERS)


def rows(
    params: Mapping, inputs: residual.BlockInputs
) -> tuple[tuple[dict, ...], residual.BlockInputs]:
    """(learned, inputs) of consecutive blocks, as `reversible.scan` reads them.

    Args:
      params: of the blocks, {"attention", "ffn"}, [N, …].
      inputs: the blocks' inputs from `deferred.defer_outer_norms`, which contain the outer norms'
        learned gains.
    """
    gains, rest = deferred.take_gains(inputs)
    learned = tuple(
        {"params": params[name], "gain": gains[sublayer]}
        for sublayer, name in residual.SUBLAYERS.items()
    )
    return learned, rest


def _sublayer(model: config.ModelConfig, sublayer: int) -> reversible.Sublayer:
    epsilon = model.norm_epsilon
    module = layers.Attention if sublayer == residual.ATTENTION else layers.Ffn

    def run(z_BTD, params, inputs, context):
        more = (context, None) if sublayer == residual.ATTENTION else ()
        z_BTD = sharding.constrain(z_BTD, layers.STREAM_AXES)
        after = module(model, parent=None).apply({"params": params}, z_BTD, inputs, *more)
        return sharding.constrain(after[0], layers.STREAM_AXES)

    def whole(z_BTD, learned, inputs, context):
        inputs = deferred.with_gain(inputs, sublayer, learned["gain"])
        return run(z_BTD, learned["params"], inputs, context)

    def norm(z_BTD, gain, inputs):
        inputs = deferred.with_gain(inputs, sublayer, gain)
        return deferred.outer_norm_below(z_BTD, inputs, sublayer, epsilon)

    def undo(x_BTD, r_BT, gain, inputs):
        inputs = deferred.with_gain(inputs, sublayer, gain)
        return deferred.undo_outer_norm_below(x_BTD, r_BT, inputs, sublayer)

    def branch(x_BTD, params, inputs, context):
        return run(x_BTD, params, deferred.branch_alone(inputs, sublayer), context)

    def alpha(inputs: residual.BlockInputs) -> Array:
        return inputs.topology["alpha"][sublayer]

    return reversible.Sublayer(whole, norm, undo, branch, alpha)
