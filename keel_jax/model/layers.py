"""The two sub-layers of a block, attention and SwiGLU, each with its residual connection.

Parameters are float32, and each is declared in one line: name, shape, logical axes, scale of the
initial values. Matrix multiplications have inputs of `model.compute_dtype`. Weights are 2-D
([D, N * H], not [D, N, H]): a trailing head axis of 64 would be padded to 128 lanes on a TPU.

Dimension letters: B batch, T time, D model, N query heads, K key/value heads, H head width, F ffn.
"""

import dataclasses
from collections.abc import Callable
from typing import cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from keel_jax import config
from keel_jax.model import attention, intervention, residual, telemetry
from keel_jax.model.arrays import Array, Leaf
from keel_jax.model.residual import ngpt
from keel_jax.parallel import sharding, tensor_parallel

# Logical axes of the stream between the branches, of a branch's input, and of the input of the
# logits; [B, T, D].
STREAM_AXES = ("batch", "stream_time", "stream")
BRANCH_AXES = ("batch", "time", "stream")
LOSS_AXES = ("batch", "loss_time", "stream")
# Of the FFN's hidden layer, [B, T, F].
FFN_AXES = ("batch", "time", "ffn")
# Names of the block's weights that are read in the compute dtype.
MATRICES = ("query", "key", "value", "out", "gate", "up", "down")


@flax.struct.dataclass
class Context:
    """What every block reads besides the stream; int32 [B, T] each, unless noted otherwise."""

    # Position within the document, for RoPE.
    positions_BT: Leaf
    # Document number; attention stays within one.
    segment_ids_BT: Leaf
    # Index among the keys, for causality.
    index_BT: Leaf
    # `attention.rope_tables` of the positions, float32 [B, T, H] each, once they are computed.
    rope_tables: tuple[Leaf, Leaf] | None = None


@flax.struct.dataclass
class Cache:
    """Keys and values of all blocks, [N, B, S, K, H], in the compute dtype."""

    key: Leaf
    value: Leaf


class Attention(nn.Module):
    """Grouped-query self-attention as one sub-layer."""

    model: config.ModelConfig

    @nn.compact
    def __call__(
        self,
        carry: residual.Carry,
        inputs: residual.BlockInputs,
        context: Context,
        cache: Cache | None,
    ) -> tuple[residual.Carry, Cache | None, dict | None]:
        """The carry after the sub-layer, the cache with this block's keys and values, telemetry.

        The last is None in a program without probes.
        """
        carry = telemetry.probe(carry, inputs, residual.ATTENTION)
        m, topology, rule = self.model, residual.topology(self.model), residual.rule(self.model)
        heads, kv_heads, scale = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim, m.init_std
        w_query = weight(self, "query", (m.d_model, heads), ("embed", "heads"), scale)
        w_key = weight(self, "key", (m.d_model, kv_heads), ("embed", "kv_heads"), scale)
        scale *= topology.init_scale
        w_value = weight(self, "value", (m.d_model, kv_heads), ("embed", "kv_heads"), scale)
        scale *= _output_scale(m)
        w_out = weight(self, "out", (heads, m.d_model), ("heads_row", "stream"), scale)
        sub = sublayer_context(self, residual.ATTENTION, inputs)

        held, h_BTD = rule.branch_input(carry, sub)
        q_BTNH, k_BTKH, v_BTKH = tensor_parallel.column_parallel(
            h_BTD, (w_query, w_key, w_value), ("heads", "kv_heads", "kv_heads"), m.head_dim
        )
        if m.qk_norm or topology.qkv_norm:
            q_BTNH = self._head_norm("query_norm", q_BTNH)
            k_BTKH = self._head_norm("key_norm", k_BTKH)
        if topology.qkv_norm:
            v_BTKH = self._head_norm("value_norm", v_BTKH)
        rope_tables = with_rope_tables(context, m).rope_tables
        assert rope_tables is not None
        q_BTNH, k_BTKH = (
            attention.rotate(q_BTNH, *rope_tables),
            attention.rotate(k_BTKH, *rope_tables),
        )
        if topology.on_sphere:
            q_BTNH, k_BTKH = self._on_sphere(q_BTNH, k_BTKH)
        # Names of what recomputation may save; see `recompute.NAMES`.
        q_BTNH, k_BTKH = checkpoint_name(q_BTNH, "query"), checkpoint_name(k_BTKH, "key")
        v_BTKH = checkpoint_name(v_BTKH, "value")

        if cache is None:
            kernel, k_BSKH, v_BSKH = m.attention, k_BTKH, v_BTKH
            key_index_BS, key_segment_ids_BS = context.index_BT, context.segment_ids_BT
        else:
            block = inputs.block
            cache = Cache(
                key=_write(cache.key, block, context.index_BT, k_BTKH),
                value=_write(cache.value, block, context.index_BT, v_BTKH),
            )
            # Few queries and many keys: only the reference supports this.
            kernel, k_BSKH, v_BSKH = "reference", cache.key[block], cache.value[block]
            key_index_BS = jnp.broadcast_to(jnp.arange(k_BSKH.shape[1]), k_BSKH.shape[:2])
            # A cache holds one document per row.
            key_segment_ids_BS = jnp.broadcast_to(context.segment_ids_BT[:, :1], k_BSKH.shape[:2])
        a_BTNH = attention.attend(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            kernel=kernel,
            query_index_BT=context.index_BT,
            key_index_BS=key_index_BS,
            query_segment_ids_BT=context.segment_ids_BT,
            key_segment_ids_BS=key_segment_ids_BS,
        )
        f_BTD = sharding.constrain(
            tensor_parallel.row_parallel(a_BTNH, w_out, "heads"), STREAM_AXES
        )
        after = _update(carry, held, f_BTD, sub)
        return after, cache, telemetry.observe(carry, f_BTD, after, sub)

    def _head_norm(self, name: str, x_BTNH: Array) -> Array:
        gain_H = norm_gain(self, name, self.model.head_dim, ("head_dim",))
        return residual.rms_norm(x_BTNH, gain_H, self.model.norm_epsilon).astype(x_BTNH.dtype)

    def _on_sphere(self, q_BTNH: Array, k_BTKH: Array) -> tuple[Array, Array]:
        """nGPT's queries and keys: of length 1, times a learned scale; scores times sqrt(H).

        Each key head has one scale, which its query heads share (in the paper there are as many
        query heads as key heads).
        """
        m = self.model
        size, group = m.num_kv_heads * m.head_dim, m.num_heads // m.num_kv_heads
        leaf = ngpt.sphere_scale(m, size, ("kv_heads",))
        scale_KH = rule_parameter(self, "qk_scale", leaf).reshape(m.num_kv_heads, m.head_dim)
        scale_KH = m.d_model**0.5 * scale_KH
        # The kernels divide scores by sqrt(H): the factor H undoes this and multiplies by sqrt(H).
        scale_NH = jnp.repeat(scale_KH, group, axis=0)
        q = m.head_dim * scale_NH[None, None] * residual.unit(q_BTNH)
        k = scale_KH[None, None] * residual.unit(k_BTKH)
        return q.astype(q_BTNH.dtype), k.astype(k_BTKH.dtype)


class Ffn(nn.Module):
    """SwiGLU, down(silu(x gate) * (x up)) (2002.05202), as one sub-layer."""

    model: config.ModelConfig

    @nn.compact
    def __call__(
        self, carry: residual.Carry, inputs: residual.BlockInputs
    ) -> tuple[residual.Carry, dict | None]:
        """The carry after the sub-layer, and telemetry, None in a program without probes."""
        carry = telemetry.probe(carry, inputs, residual.FFN)
        m, topology, rule = self.model, residual.topology(self.model), residual.rule(self.model)
        scale = m.init_std * topology.init_scale
        w_gate = weight(self, "gate", (m.d_model, m.d_ffn), ("embed", "ffn"), scale)
        w_up = weight(self, "up", (m.d_model, m.d_ffn), ("embed", "ffn"), scale)
        scale *= _output_scale(m)
        w_down = weight(self, "down", (m.d_ffn, m.d_model), ("ffn_row", "stream"), scale)
        sub = sublayer_context(self, residual.FFN, inputs)

        held, h_BTD = rule.branch_input(carry, sub)
        gate_BTF, up_BTF = tensor_parallel.column_parallel(h_BTD, (w_gate, w_up), ("ffn", "ffn"))
        gate_BTF, up_BTF = checkpoint_name(gate_BTF, "gate"), checkpoint_name(up_BTF, "up")
        # Products of unit weights and a unit stream are about 1 / sqrt(D), where silu is linear.
        f_BTF = jax.nn.silu(self._scaled("gate_scale", gate_BTF, m.d_model**0.5))
        f_BTF = sharding.constrain(f_BTF * self._scaled("up_scale", up_BTF, 1.0), FFN_AXES)
        f_BTD = sharding.constrain(tensor_parallel.row_parallel(f_BTF, w_down, "ffn"), STREAM_AXES)
        after = _update(carry, held, f_BTD, sub)
        return after, telemetry.observe(carry, f_BTD, after, sub)

    def _scaled(self, name: str, x_BTF: Array, factor: float) -> Array:
        """nGPT's learned scale of hidden units; the identity for other topologies."""
        if not residual.topology(self.model).on_sphere:
            return x_BTF
        gain_F = norm_gain(self, name, self.model.d_ffn, ("ffn",))
        gain_F = residual.along_last(factor * gain_F, x_BTF)
        return (gain_F * x_BTF.astype(jnp.float32)).astype(x_BTF.dtype)


def _output_scale(model: config.ModelConfig) -> float:
    """The initial standard deviation of a branch's last matrix over that of its others."""
    return model.num_sublayers**-0.5 if model.output_init == "over_sqrt_depth" else 1.0


def _update(
    carry: residual.Carry, held, f_BTD: Array, sub: residual.SublayerContext
) -> residual.Carry:
    """The carry after the sub-layer, by the topology's rule and the intervention."""
    change = sub.inputs.intervention
    f_BTD = intervention.on_branch(f_BTD, change, sub.sublayer)
    after = residual.rule(sub.model).update_carry(held, f_BTD, sub)
    return intervention.on_sublayer(carry, after, change, sub.sublayer)


def with_rope_tables(context: Context, model: config.ModelConfig) -> Context:
    """The context with the RoPE tables, which are computed once, before the scan over depth."""
    if context.rope_tables is not None:
        return context
    rope_tables = attention.rope_tables(context.positions_BT, model.head_dim, model.rope_theta)
    return dataclasses.replace(context, rope_tables=rope_tables)


def check_activations(
    model: config.ModelConfig,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    batch_size: int,
    seq_len: int,
) -> None:
    """Checks that `mesh` can shard the blocks' activations of a batch [B, T], with its kernel.

    Raises:
      UserError: a dimension is not a multiple of its number of shards; both are named.
    """
    attention.check_order(mesh, seq_len)
    query_heads, key_heads = (model.num_heads, model.head_dim), (model.num_kv_heads, model.head_dim)
    shapes = {
        "attention's queries [B, T, N, H]": (attention.QUERY_AXES, query_heads),
        "attention's keys [B, T, K, H]": (attention.KEY_AXES, key_heads),
        "the stream [B, T, D]": (STREAM_AXES, (model.d_model,)),
        "the loss's input [B, T, D]": (LOSS_AXES, (model.d_model,)),
    }
    for name, (axes, last) in shapes.items():
        sharding.sharding(mesh, axes, (batch_size, seq_len, *last), name)


def weight(
    module: nn.Module, name: str, shape: tuple[int, int], axes: tuple[str, str], std: float
) -> Array:
    """A float32 matrix with N(0, std^2) initial values and logical axes.

    Its gradient is constrained to the same sharding, so it is reduce-scattered block by block.
    """
    init = nn.with_logical_partitioning(nn.initializers.normal(std), axes)
    return sharding.constrain(_param(module, name, init, shape), axes)


def norm_gain(module: nn.Module, name: str, size: int, axes: tuple[str, ...] = ("norm",)) -> Array:
    """A float32 gain vector, initially 1."""
    init = nn.with_logical_partitioning(nn.initializers.ones, axes)
    return _param(module, name, init, (size,))


def _param(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> Array:
    """A float32 parameter; linen returns its value without the box that holds its axes."""
    return cast(Array, module.param(name, init, shape, jnp.float32))


def sublayer_context(
    module: "Attention | Ffn", sublayer: int, inputs: residual.BlockInputs
) -> residual.SublayerContext:
    """The context of this sub-layer for the topology's rule, with the parameters that it reads."""
    m, topology = module.model, residual.topology(module.model)
    names = [n for n in ("inner_norm", "outer_norm", "branch_norm") if topology.has(n, sublayer)]
    names += ["beta"] if topology.has_beta else []
    params = {name: norm_gain(module, name, m.d_model) for name in names}
    if topology.residual_scale is not None:
        constant = nn.initializers.constant(topology.residual_scale)
        init = nn.with_logical_partitioning(constant, ())
        params["residual_scale"] = _param(module, "residual_scale", init, ())
    own = residual.rule(m).parameters(m, sublayer, inputs.block)
    params |= {name: rule_parameter(module, name, leaf) for name, leaf in own.items()}
    return residual.SublayerContext(m, topology, sublayer, params, inputs)


def rule_parameter(module: nn.Module, name: str, leaf: residual.Parameter) -> Array:
    """A float32 parameter of the topology's rule; its gradient has the same sharding."""
    init = nn.with_logical_partitioning(lambda key: jnp.asarray(leaf.value, jnp.float32), leaf.axes)
    return sharding.constrain(cast(Array, module.param(name, init)), leaf.axes)


def _write(cache_NBSKH, block, index_BT, new_BTKH):
    """The cache with `new` in the slots `index[b, 0]` onwards of row b of this block."""

    def write_row(row_SKH, start, new_TKH):
        return jax.lax.dynamic_update_slice(row_SKH, new_TKH, (start, 0, 0))

    rows_BSKH = jax.vmap(write_row)(cache_NBSKH[block], index_BT[:, 0], new_BTKH)
    return cache_NBSKH.at[block].set(rows_BSKH)
