"""What the scan over depth carries, topology by topology: one array, or several streams.

A topology is a `Rule`, which defines how the embedding enters the carry, what a branch reads from
it, how the branch's output is added, and what is read out for the logits. `Rule` itself carries one
array and follows the equation of `equation`; its subclasses carry more, or follow another equation.
All run in the same scan, with the same attention and FFN.

Every leaf of a carry is an array [B, T, D] in `model.stream_dtype`: several streams are a tuple,
not an axis, which a TPU would pad from 4 to 8. Rules compute in float32.

Dimension letters: B batch, T time, D model, M streams.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from keel_jax import config
from keel_jax.model.arrays import Array
from keel_jax.model.residual import equation, norms, topologies

# An array [B, T, D], or a nested tuple of such arrays.
Carry = Any


class Parameter(NamedTuple):
    """One learned array of a sub-layer, or of the output."""

    shape: tuple[int, ...]
    # Logical axes.
    axes: tuple[str, ...]
    # The initial value, float32 and of that shape.
    value: jax.typing.ArrayLike


@dataclasses.dataclass(frozen=True)
class SublayerContext:
    """One sub-layer of one block, with the parameters and inputs that a rule uses."""

    model: config.ModelConfig
    topology: equation.Topology
    # `equation.ATTENTION` or `equation.FFN`.
    sublayer: int
    # This sub-layer's gains and the rule's own `parameters`, by name.
    params: Mapping[str, Array]
    # This block's.
    inputs: equation.BlockInputs

    def stream_and_branch_input(
        self, x_BTD: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        """`equation.branch_input` of one array: the stream in its dtype, and the branch's input in
        the compute dtype."""
        return equation.branch_input(
            x_BTD,
            self.params,
            self.inputs,
            self.topology,
            self.sublayer,
            epsilon=self.model.norm_epsilon,
            dtype=jnp.dtype(self.model.compute_dtype),
        )

    def branch_input(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The branch's input from one array, in the compute dtype."""
        return self.stream_and_branch_input(x_BTD)[1]

    def residual_sum(
        self, x_BTD: Float[Array, "B T D"], f_BTD: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        """`equation.residual_sum` of one array, in its dtype."""
        return equation.residual_sum(
            x_BTD,
            f_BTD,
            self.params,
            self.inputs,
            self.topology,
            self.sublayer,
            epsilon=self.model.norm_epsilon,
        )

    def norm(self, name: str, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """RMSNorm with the gain `name`, float32."""
        return norms.rms_norm(x_BTD, self.params[name], self.model.norm_epsilon)


class Rule:
    """One array and the one equation: every topology in `topologies`."""

    def topology(self, model: config.ModelConfig) -> equation.Topology:
        """Which norms and scales the sub-layers have."""
        return topologies.EQUATIONS[model.topology](model)

    def num_arrays(self, model: config.ModelConfig) -> int:
        """Number of arrays [B, T, D] in the carry, which a block saves for the backward pass."""
        del model
        return 1

    def parameters(
        self, model: config.ModelConfig, sublayer: int, block: Array
    ) -> dict[str, Parameter]:
        """The sub-layer's parameters besides `equation`'s gains; `block` is the block's number."""
        del model, sublayer, block
        return {}

    def output_parameters(self, model: config.ModelConfig) -> dict[str, Parameter]:
        """The parameters of `readout`."""
        del model
        return {}

    def init_carry(self, x_BTD: Float[Array, "B T D"], model: config.ModelConfig) -> Carry:
        """The carry before block 0, from the embedding."""
        del model
        return x_BTD

    def branch_input(self, carry: Carry, sub: SublayerContext) -> tuple[Any, Float[Array, "B T D"]]:
        """The `held` argument of `update_carry`, and the branch's input in the compute dtype."""
        return sub.stream_and_branch_input(carry)

    def update_carry(self, held: Any, f_BTD: Float[Array, "B T D"], sub: SublayerContext) -> Carry:
        """The carry after the sub-layer, from `held` of `branch_input` and the branch's output."""
        return sub.residual_sum(held, f_BTD)

    def readout(
        self, carry: Carry, params: Mapping[str, Array], model: config.ModelConfig
    ) -> Float[Array, "B T D"]:
        """The input of the final norm, or of the logits, from the carry after the last block."""
        del params, model
        return carry

    @property
    def defers_outer_norm(self) -> bool:
        """Whether z, the sum before the outer norm, is passed between blocks (`deferred`)."""
        return type(self) is Rule


def zeros(shape: tuple[int, ...], axes: tuple[str, ...]) -> Parameter:
    """A parameter that is initialized to 0."""
    return Parameter(shape, axes, jnp.zeros(shape))


def gain(model: config.ModelConfig) -> Parameter:
    """The gain of a norm over the model dimension, initialized to 1."""
    return Parameter((model.d_model,), ("norm",), jnp.ones(model.d_model))


def weighted_sum(
    weights: Iterable[Array], streams: Iterable[Float[Array, "B T D"]]
) -> Float[Array, "B T D"]:
    """The float32 sum of weight x stream; each weight is a scalar or [B, T]."""
    terms = [
        along_stream(weight, x_BTD) * x_BTD.astype(jnp.float32)
        for weight, x_BTD in zip(weights, streams, strict=True)
    ]
    return functools.reduce(jnp.add, terms)


def along_stream(weight: Array, x_BTD: Float[Array, "B T D"]) -> Array:
    """Reshapes a weight, a scalar or [B, T], to a stream's rank."""
    return jax.lax.broadcast_to_rank(weight[..., None], x_BTD.ndim)
