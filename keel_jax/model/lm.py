"""The language model: embedding, depth, logits; initializing, naming and counting its parameters.

Dimension letters: B batch, T time, D model, V vocabulary.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float, Int

from keel_jax import config
from keel_jax.model import attention, depth, instruments, layers, residual
from keel_jax.model.arrays import Array
from keel_jax.model.residual import ngpt
from keel_jax.parallel import lookup, sharding

# A tree of arrays, or of their stand-ins such as shapes: nested dictionaries by name.
Params = dict[str, Any]
# The logical axes of a matrix's model dimension, D.
_MODEL_AXES = ("embed", "table_embed", "stream")


class LanguageModel(nn.Module):
    """A decoder-only language model with the residual topology `model.topology`.

    Parameters: `embedding/table` [V, D], `block/attention/…`, `block/ffn/…` [N, …],
    `output/matrix` [D, V] unless tied, and `output/norm`, `embedding/norm` and what `residual` adds
    to `output` if the topology has them.
    """

    model: config.ModelConfig

    def setup(self) -> None:
        self.embedding = Embedding(self.model)
        self.depth = depth.Depth(self.model)
        nn.share_scope(self, self.depth)  # blocks at params/block, without a level for Depth
        self.output = Output(self.model)

    def __call__(
        self, tokens_BT: Int[ArrayLike, "B T"], segment_ids_BT: Int[ArrayLike, "B T"] | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of every next token, float32 [B, T, V]."""
        h_BTD = self.hidden(tokens_BT, segment_ids_BT)
        return logits(h_BTD, self._output_matrix())

    def hidden(
        self,
        tokens_BT: Int[ArrayLike, "B T"],
        segment_ids_BT: Int[ArrayLike, "B T"] | None = None,
        num_microbatches: int = 0,
        context: layers.Context | None = None,
    ) -> Float[Array, "B T D"]:
        """The input of the logits, in the compute dtype [B, T, D].

        Args:
          tokens_BT: int32 token ids.
          segment_ids_BT: int32 document numbers; attention and positions stay within one.
            None: one document per row.
          num_microbatches: see `pipeline.num_microbatches`; read on a mesh with stages.
          context: used instead of segment_ids_BT for tokens that are not in order.
        """
        return self.hidden_and_stats(tokens_BT, segment_ids_BT, num_microbatches, context)[0]

    def hidden_and_stats(
        self,
        tokens_BT: Int[ArrayLike, "B T"],
        segment_ids_BT: Int[ArrayLike, "B T"] | None = None,
        num_microbatches: int = 0,
        context: layers.Context | None = None,
        measured: instruments.Instruments = instruments.NONE,
    ) -> tuple[Float[Array, "B T D"], dict | None]:
        """`hidden`, and the blocks' telemetry if there are probes (keel_jax/model/telemetry.py)."""
        tokens_BT = jnp.asarray(tokens_BT)
        if context is None:
            segments = jnp.zeros_like(tokens_BT) if segment_ids_BT is None else segment_ids_BT
            context = ordered_context(jnp.asarray(segments))
        h_BTD, _, stats = self.depth(
            self.embedding(tokens_BT),
            context,
            num_microbatches=num_microbatches,
            measured=measured,
        )
        return self.output(h_BTD), stats

    def decode(
        self,
        tokens_BT: Int[ArrayLike, "B T"],
        start_B: Int[ArrayLike, " B"],
        cache: layers.Cache,
        last_B: Int[ArrayLike, " B"] | None = None,
    ) -> tuple[Float[Array, "B T_or_1 V"], layers.Cache]:
        """Logits [B, T, V] of tokens at positions start_B onwards, and the cache.

        Row b's slots before start_B[b] must have been written by earlier calls.

        Args:
          last_B: if given, only the logits of token last_B[b] of row b are computed: [B, 1, V].
        """
        tokens_BT = jnp.asarray(tokens_BT)
        index_BT = jnp.asarray(start_B)[:, None] + jnp.arange(tokens_BT.shape[1])[None]
        context = layers.Context(
            positions_BT=index_BT, segment_ids_BT=jnp.zeros_like(tokens_BT), index_BT=index_BT
        )
        h_BTD, written, _ = self.depth(self.embedding(tokens_BT), context, cache)
        assert written is not None
        h_BTD = self.output(h_BTD)
        if last_B is not None:
            h_BTD = jnp.take_along_axis(h_BTD, jnp.asarray(last_B)[:, None, None], axis=1)
        return logits(h_BTD, self._output_matrix()), written

    def _output_matrix(self) -> Float[Array, "D V"]:
        """The logits' weights; available once the embedding and the output have been called."""
        return output_matrix(nn.unbox(self.variables["params"]), self.model)


class Embedding(nn.Module):
    """The token table; looks up rows in the stream's dtype and makes the topology's carry."""

    model: config.ModelConfig

    def setup(self) -> None:
        m = self.model
        std = m.init_std if m.embedding_std is None else m.embedding_std
        self.table = layers.weight(
            self, "table", (m.vocab_size, m.d_model), ("vocab", "table_embed"), std
        )
        if residual.topology(m).embedding_norm:
            self.norm = layers.norm_gain(self, "norm", m.d_model)

    def __call__(self, tokens_BT: Int[Array, "B T"]) -> residual.Carry:
        if self.is_initializing() or not sharding.has_several_devices():
            x_BTD = self.table[tokens_BT]
        else:
            x_BTD = lookup.lookup_rows(self.table, tokens_BT)
        if residual.topology(self.model).embedding_norm:
            x_BTD = residual.rms_norm(x_BTD, self.norm, self.model.norm_epsilon)
        x_BTD = sharding.constrain(x_BTD.astype(self.model.stream_dtype), layers.STREAM_AXES)
        return residual.rule(self.model).init_carry(x_BTD, self.model)


class Output(nn.Module):
    """Reads out the carry and applies the final norm, if any; has the untied logit matrix."""

    model: config.ModelConfig

    def setup(self) -> None:
        m = self.model
        leaves = residual.rule(m).output_parameters(m)
        self.rule_params = {
            name: layers.rule_parameter(self, name, leaf) for name, leaf in leaves.items()
        }
        if has_final_norm(m):
            self.norm = layers.norm_gain(self, "norm", m.d_model)
        if residual.topology(m).on_sphere:
            leaf = ngpt.sphere_scale(m, m.vocab_size, ("vocab",))
            self.logit_scale = layers.rule_parameter(self, "logit_scale", leaf)
        if not m.tie_embeddings:
            self.matrix = layers.weight(
                self, "matrix", (m.d_model, m.vocab_size), ("table_embed", "vocab"), m.init_std
            )

    def __call__(self, carry: residual.Carry) -> Float[Array, "B T D"]:
        x_BTD = residual.rule(self.model).readout(carry, self.rule_params, self.model)
        if has_final_norm(self.model):
            x_BTD = residual.rms_norm(x_BTD, self.norm, self.model.norm_epsilon)
        return sharding.constrain(x_BTD.astype(self.model.compute_dtype), layers.LOSS_AXES)


def ordered_context(segment_ids_BT: Int[Array, "B T"]) -> layers.Context:
    """The context of tokens that are in order, each in its document."""
    # A position depends on all tokens before it, so these few integers are gathered once.
    segment_ids_BT = sharding.constrain(segment_ids_BT, ("batch", "scalar"))
    return layers.Context(
        positions_BT=attention.positions_in_document(segment_ids_BT),
        segment_ids_BT=segment_ids_BT,
        index_BT=jnp.broadcast_to(jnp.arange(segment_ids_BT.shape[1]), segment_ids_BT.shape),
    )


def logits(h: Float[Array, "*B D"], w_DV: Float[Array, "D V"]) -> Float[Array, "*B V"]:
    """h @ w with inputs in h's dtype and float32 sums and results; [..., V]."""
    return jnp.matmul(h, w_DV.astype(h.dtype), preferred_element_type=jnp.float32)


def output_matrix(params: Params, model: config.ModelConfig) -> Float[Array, "D V"]:
    """The logits' weights, float32: the table's transpose if tied; scaled for nGPT."""
    tied = model.tie_embeddings
    matrix_DV = params["embedding"]["table"].T if tied else params["output"]["matrix"]
    if not residual.topology(model).on_sphere:
        return matrix_DV
    scale_V = matrix_DV.shape[0] ** 0.5 * params["output"]["logit_scale"]
    return matrix_DV * scale_V[None]


def has_final_norm(model: config.ModelConfig) -> bool:
    """Whether the logits read a normed stream."""
    if model.final_norm == "auto":
        return residual.topology(model).final_norm
    return model.final_norm == "on"


def init(model: LanguageModel, key: Array) -> Params:
    """Initial parameters, a plain tree of float32 arrays; a pure function of `key`."""
    return project(nn.unbox(_init_boxed(model, key)), model.model)


def project(params: Params, model: config.ModelConfig) -> Params:
    """Projects `params` onto what the topology allows; the identity for all topologies but nGPT.

    nGPT's matrices (2410.01131) have length 1 along the model dimension: rows of the embedding,
    columns of `query` and the like, rows of `out` and `down`.
    """
    if not residual.topology(model).on_sphere:
        return params

    def project_leaf(leaf, axes):
        model_dims = [dim for dim, axis in enumerate(axes) if axis in _MODEL_AXES]
        if not model_dims:
            return leaf
        [dim] = model_dims
        return jnp.moveaxis(residual.unit(jnp.moveaxis(leaf, dim, -1)), -1, dim)

    return jax.tree.map(project_leaf, params, logical_axes(LanguageModel(model)))


def logical_axes(model: LanguageModel) -> Params:
    """A tree like the parameters whose leaves are tuples of logical axis names."""
    return jax.tree.map(
        lambda box: tuple(box.names),
        _boxed_shapes(_for_shapes(model.model)),
        is_leaf=lambda x: isinstance(x, nn.Partitioned),
    )


def shapes(model: config.ModelConfig) -> Params:
    """Shapes and dtypes of the tree that `init` makes."""
    return nn.unbox(_boxed_shapes(_for_shapes(model)))


def empty_cache(model: config.ModelConfig, batch_size: int, length: int) -> layers.Cache:
    """A cache for `length` tokens in each of `batch_size` rows, in the compute dtype."""
    shape = (model.num_blocks, batch_size, length, model.num_kv_heads, model.head_dim)
    zeros = jnp.zeros(shape, model.compute_dtype)
    return layers.Cache(key=zeros, value=zeros)


@functools.cache
def count_params(model: config.ModelConfig) -> int:
    """The number of parameters in the topology's equation.

    A norm that only some blocks have is stored for all N; the gains that nothing reads (Keel's
    block 0: one vector) are not counted.
    """
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(model)))
    topology = residual.topology(model)
    unused = 0
    for norm in ("inner_norm", "outer_norm"):
        for sublayer in (residual.ATTENTION, residual.FFN):
            if topology.has(norm, sublayer):
                unused += int((~getattr(topology, norm)[:, sublayer]).sum()) * model.d_model
    return stored - unused


def _for_shapes(model: config.ModelConfig) -> config.ModelConfig:
    """The model without the options that change no parameter."""
    return dataclasses.replace(model, attention="reference", recompute=config.RecomputeConfig())


@functools.cache  # a start asks for them a dozen times, and each answer is a trace of the model
def _boxed_shapes(model: config.ModelConfig):
    return jax.eval_shape(lambda: _init_boxed(LanguageModel(model), jax.random.key(0)))


def _init_boxed(model: LanguageModel, key: Array):
    # With one token, only the reference works: kernels over several devices could not shard it.
    model = LanguageModel(dataclasses.replace(model.model, attention="reference"))
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, tokens_BT)["params"]
