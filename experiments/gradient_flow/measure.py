"""Measures one model: sizes forward, gradients backward, through the branches and past them.

The objective is linear, <v, x>, with x the last sub-layer's output and v random, of RMS 1 and
without a part along x (a norm has no derivative in that direction). So every gradient that arrives
is a product of derivatives of the sub-layers, and of nothing else. The numbers come from the
model's telemetry: `cotangent_rms` of sub-layer l is the gain from there to the top.

Dimension letters: N blocks, B batch, T time, D model.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gradient_flow import theory
from keel_jax import config, errors
from keel_jax.model import instruments, intervention, lm, residual, telemetry

# Branches are brought to the size of their streams within this tolerance, in at most so many
# passes. One pass is not enough: scaling a branch changes what the branches above it read.
_UNIT_TOLERANCE, _MOST_PASSES = 0.01, 40
# These programs run a few times only, so on a CPU most of their cost is LLVM's time.
_QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

Params: TypeAlias = Any
# (params, tokens [B, T], v [B, T, D], g) -> numbers [N, 2] of each sub-layer, by name.
Flow = Callable[[Params, jax.typing.ArrayLike, jax.typing.ArrayLike, float], dict[str, jax.Array]]


def compile_flow(model: config.ModelConfig, batch_size: int, seq_len: int) -> Flow:
    """(params, tokens [B, T], v [B, T, D], g) -> numbers [N, 2] of each sub-layer.

    g multiplies the derivative of every branch: 1 is the model's own gradient, 0 the residual
    path's.
    """
    shapes = jax.eval_shape(lambda: lm.init(lm.LanguageModel(model), jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((batch_size, seq_len), jnp.int32)
    v = jax.ShapeDtypeStruct((batch_size, seq_len, model.d_model), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    flow = jax.jit(lambda params, tokens, v, g: _flow(params, tokens, v, g, model))
    return _compile(flow.lower(shapes, tokens, v, number))


def _flow(params, tokens_BT, v_BTD, through_branches, model: config.ModelConfig) -> dict:
    none = intervention.none(model.num_blocks)
    change = dataclasses.replace(none, branch_gradient=through_branches * none.branch_gradient)

    def objective(params, probes_N2):
        x_BTD, stats = lm.LanguageModel(model).apply(
            {"params": params},
            tokens_BT,
            measured=instruments.Instruments(probes=probes_N2, intervention=change),
            method="hidden_and_stats",
        )
        return jnp.sum(tangent(v_BTD, jax.lax.stop_gradient(x_BTD)) * x_BTD), stats

    probes_N2 = telemetry.probes(model.num_blocks)
    gradient = jax.grad(objective, argnums=(0, 1), has_aux=True)
    (grads, squares_N2), stats = gradient(params, probes_N2)
    weights = [grads["block"][branch][name] for branch, name in residual.LAST_MATRIX.items()]
    return {
        "stream_rms": jnp.sqrt(stats["stream_square"]),
        "branch_rms": jnp.sqrt(stats["branch_square"]),
        "cotangent_rms": jnp.sqrt(squares_N2),
        "branch_gradient_rms": jnp.stack([telemetry.rms(w, 1) for w in weights], axis=1),
        "outer_gain_rms": _outer_gains(params, model),
    }


def _outer_gains(params, model: config.ModelConfig) -> jax.Array:
    """RMS of each outer norm's gain, [N, 2]; 1 where there is none."""
    topology = residual.topology(model)
    return jnp.stack(
        [
            telemetry.rms(params["block"][branch]["outer_norm"], 1)
            if topology.has("outer_norm", sublayer)
            else jnp.ones(model.num_blocks)
            for sublayer, branch in residual.SUBLAYERS.items()
        ],
        axis=1,
    )


def tangent(v_BTD: jax.Array, x_BTD: jax.Array) -> jax.Array:
    """v without its part along x, each token's scaled to RMS 1."""
    x_BTD = residual.unit(x_BTD)
    v_BTD = v_BTD - x_BTD * jnp.sum(x_BTD * v_BTD, axis=-1, keepdims=True)
    return v_BTD.shape[-1] ** 0.5 * residual.unit(v_BTD)


def measure_flow(
    flow: Flow, params: Params, tokens_BT: np.ndarray, model: config.ModelConfig, seed: int
) -> dict[str, np.ndarray]:
    """Numbers of a model as it is, initialized or trained; float64 [L] each.

    Returns:
      "stream_rms", "branch_rms"; "gain", of the whole gradient from each sub-layer to the top;
      "path_gain", of the residual path alone; "predicted_path_gain", the path's gain as the sizes
      alone predict it (NaN for topologies of another equation); "branch_gradient_rms", of the
      weights that end a branch (out, down).
    """
    v_BTD = direction(tokens_BT.shape, model.d_model, seed)
    whole, path = (
        {name: np.asarray(x, np.float64) for name, x in flow(params, tokens_BT, v_BTD, g).items()}
        for g in (1.0, 0.0)
    )
    measured = {
        "stream_rms": whole["stream_rms"],
        "branch_rms": whole["branch_rms"],
        "gain": whole["cotangent_rms"],
        "path_gain": path["cotangent_rms"],
        "branch_gradient_rms": whole["branch_gradient_rms"],
    }
    predicted = np.full(model.num_sublayers, np.nan)
    if residual.rule(model).defers_outer_norm:  # the topology is a case of the one equation
        predicted = theory.gain(
            theory.from_sizes(
                residual.topology(model),
                whole["stream_rms"],
                whole["branch_rms"],
                whole["outer_gain_rms"],
            )
        )
    return {
        **{name: value.reshape(-1) for name, value in measured.items()},
        "predicted_path_gain": predicted,
    }


def with_unit_branches(
    flow: Flow, params: Params, tokens_BT: np.ndarray, model: config.ModelConfig, seed: int
) -> Params:
    """`params`, scaled so that branches are as large as the streams they join, as in the theory.

    Raises:
      UserError: the scaling does not converge.
    """
    v_BTD = direction(tokens_BT.shape, model.d_model, seed)
    for _ in range(_MOST_PASSES):
        numbers = flow(params, tokens_BT, v_BTD, 0.0)
        scale_N2 = numbers["stream_rms"] / numbers["branch_rms"]
        furthest = float(jnp.abs(scale_N2 - 1).max())
        if furthest < _UNIT_TOLERANCE:
            return params
        block = dict(params["block"])
        for sublayer, branch in residual.SUBLAYERS.items():
            name = residual.LAST_MATRIX[branch]
            scaled = scale_N2[:, sublayer, None, None] * block[branch][name]
            block[branch] = {**block[branch], name: scaled}
        params = {**params, "block": block}
    raise errors.UserError(
        f"{model.topology} of {model.num_sublayers} sub-layers: after {_MOST_PASSES} passes a "
        f"branch is still off its stream's size by {furthest:.1%}, more than {_UNIT_TOLERANCE:.0%}."
    )


def compile_init(model: config.ModelConfig) -> Callable[[jax.Array], Params]:
    """(key) -> initial parameters."""
    init = jax.jit(lambda key: lm.init(lm.LanguageModel(model), key))
    return _compile(init.lower(jax.random.key(0)))


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    return lowered.compile(_QUICK if jax.default_backend() == "cpu" else None)


def random_tokens(shape: tuple[int, int], vocab_size: int, seed: int) -> np.ndarray:
    """Uniform token ids, int32 [B, T]: at initialization no text is needed."""
    return np.random.default_rng(seed).integers(vocab_size, size=shape, dtype=np.int32)


def direction(shape: tuple[int, int], d_model: int, seed: int) -> np.ndarray:
    """v, float32 [B, T, D]."""
    normal = np.random.default_rng([seed, 1]).standard_normal((*shape, d_model))
    return normal.astype(np.float32)
