"""Keel and the other single-stream residual topologies of keel_jax, for transformers.

Load the folder that holds this file with

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

A model is N blocks, each of two sub-layers, F = attention and F = SwiGLU. Every sub-layer is

    x' = outer( alpha x  +  a b branch( F( beta s inner(x) ) ) )

inner, outer and branch are RMSNorms that a sub-layer has or has not; alpha, b, s are constants of
each sub-layer in config.json ("residual"); beta (a vector) and a (a scalar) are learned, and most
topologies have neither. Keel ("Post-LayerNorm Is Back", arXiv:2601.19895) has an inner and an outer
norm, and alpha is the number of sub-layers.

The stream x is float32 whatever the weights' dtype: a sub-layer of Keel moves it by about
F / alpha, which bfloat16 rounds away. Norms, rotary angles and logits are float32, too.

Letters: B batch, T queries, S keys, D model, N query heads, K key/value heads, H head width.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

ATTENTION, FFN = 0, 1
# Newer versions of transformers call the cache "cache", older ones "past_key_values".
_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
# Far below the square of any vector in use.
_LEAST_SQUARE = 1e-24


class KeelConfig(PretrainedConfig):
    """The shape of a model, and the constants of its sub-layers."""

    model_type = "keel"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    def __init__(
        self,
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=32,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=2048,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        qk_norm=False,
        value_norm=False,
        embedding_norm=False,
        final_norm=False,
        has_beta=False,
        residual_scale=None,
        branch_cap=None,
        residual=None,
        use_cache=True,
        **kwargs,
    ):
        """Blocks are called hidden layers here, as in the rest of transformers.

        Args:
          qk_norm, value_norm: RMSNorm of each head of queries and keys, and of values.
          embedding_norm, final_norm: RMSNorm after the embedding, and before the logits.
          has_beta: whether sub-layers have the learned vector beta.
          residual_scale: the initial value of the learned scalar a; None: there is none.
          branch_cap: RMS above which a token's branch output is scaled down to it; None: never.
          residual: by the name of a constant ("alpha", "branch_scale", "input_scale") or of a norm
            ("inner_norm", "outer_norm", "branch_norm"), rows [number of blocks, value of their
            attention, value of their FFN], from the first block on. None: Keel's.
        """
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.qk_norm = qk_norm
        self.value_norm = value_norm
        self.embedding_norm = embedding_norm
        self.final_norm = final_norm
        self.has_beta = has_beta
        self.residual_scale = residual_scale
        self.branch_cap = branch_cap
        self.residual = residual or _keel(num_hidden_layers)
        self.use_cache = use_cache
        super().__init__(**kwargs)

    def constant(self, name, block, sublayer):
        """Of one sub-layer: a number, or whether it has the norm."""
        for num_blocks, *values in self.residual[name]:
            if block < num_blocks:
                return values[sublayer]
            block -= num_blocks
        raise ValueError(f"config.json: residual[{name!r}] has fewer blocks than the model.")

    def has(self, norm, sublayer):
        """Whether any block has this norm: then all store its gain."""
        return any(row[1 + sublayer] for row in self.residual[norm])


def _keel(num_blocks):
    everywhere, length = [[num_blocks, True, True]], 2 * num_blocks
    return {
        "alpha": [[1, 1.0, 1.0], [num_blocks - 1, length, length]],
        "branch_scale": [[num_blocks, 1.0, 1.0]],
        "input_scale": [[num_blocks, 1.0, 1.0]],
        "inner_norm": everywhere,
        "outer_norm": [[1, False, True], [num_blocks - 1, True, True]],
        "branch_norm": [[num_blocks, False, False]],
    }


def rms_norm(x, gain, epsilon):
    """gain x / sqrt(mean(x^2) + epsilon) over the last axis, in float32."""
    x = x.float()
    return gain.float() * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon))


def rotate(x, cos, sin):
    """Rotary position embedding of pairs (h, h + H/2), in float32; x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class SubLayer(nn.Module):
    """What a residual connection does around its branch: the equation at the top."""

    def __init__(self, config, block, sublayer):
        super().__init__()
        self.epsilon, self.branch_cap = config.rms_norm_eps, config.branch_cap
        self.alpha = config.constant("alpha", block, sublayer)
        self.branch_scale = config.constant("branch_scale", block, sublayer)
        self.input_scale = config.constant("input_scale", block, sublayer)
        self.norms = set()
        for name in ("inner_norm", "outer_norm", "branch_norm"):
            gain = None
            if config.has(name, sublayer):
                # A gain of a block without the norm is kept, and neither read nor trained.
                is_on = bool(config.constant(name, block, sublayer))
                gain = nn.Parameter(torch.ones(config.hidden_size), requires_grad=is_on)
                self.norms |= {name} if is_on else set()
            self.register_parameter(name, gain)
        beta = nn.Parameter(torch.ones(config.hidden_size)) if config.has_beta else None
        self.register_parameter("beta", beta)
        scale = config.residual_scale
        scale = None if scale is None else nn.Parameter(torch.tensor(float(scale)))
        self.register_parameter("residual_scale", scale)

    def branch_input(self, x, dtype):
        """beta s inner(x), in the weights' dtype."""
        h = self._norm("inner_norm", x) * self.input_scale
        if self.beta is not None:
            h = self.beta.float() * h
        return h.to(dtype)

    def update(self, x, f):
        """outer(alpha x + a b branch(f)), float32."""
        f = self._norm("branch_norm", f.float())
        if self.branch_cap is not None:
            square = f.square().mean(-1, keepdim=True)
            f = f * (self.branch_cap * torch.rsqrt(square + _LEAST_SQUARE)).clamp(max=1)
        f = f * self.branch_scale
        if self.residual_scale is not None:
            f = self.residual_scale.float() * f
        return self._norm("outer_norm", self.alpha * x + f)

    def _norm(self, name, x):
        return rms_norm(x, getattr(self, name), self.epsilon) if name in self.norms else x


class Attention(SubLayer):
    """Causal grouped-query attention as one sub-layer."""

    def __init__(self, config, block):
        super().__init__(config, block, ATTENTION)
        self.block, self.head_dim = block, config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.is_grouped = queries != keys
        self.query = nn.Linear(config.hidden_size, queries, bias=False)
        self.key = nn.Linear(config.hidden_size, keys, bias=False)
        self.value = nn.Linear(config.hidden_size, keys, bias=False)
        self.out = nn.Linear(queries, config.hidden_size, bias=False)
        has = {"query_norm": config.qk_norm, "key_norm": config.qk_norm}
        for name, is_there in {**has, "value_norm": config.value_norm}.items():
            gain = nn.Parameter(torch.ones(config.head_dim)) if is_there else None
            self.register_parameter(name, gain)

    def forward(self, x, cos, sin, mask, cache):
        h = self.branch_input(x, self.query.weight.dtype)
        q = rotate(self._heads(self.query(h), self.query_norm), cos, sin)
        k = rotate(self._heads(self.key(h), self.key_norm), cos, sin)
        v = self._heads(self.value(h), self.value_norm)
        if cache is not None:
            k, v = cache.update(k, v, self.block)
        if mask is not None:  # slots of a static cache that are not written yet are not visible
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]))
        is_causal = mask is None and q.shape[2] > 1
        a = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=self.is_grouped
        )
        return self.update(x, self.out(a.transpose(1, 2).flatten(2)))

    def _heads(self, x, gain):
        """[B, T, heads x H] as [B, heads, T, H], normed if there is a gain."""
        x = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return x if gain is None else rms_norm(x, gain, self.epsilon).to(x.dtype)


class SwiGlu(SubLayer):
    """down(silu(gate x) * (up x)) as one sub-layer."""

    def __init__(self, config, block):
        super().__init__(config, block, FFN)
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        h = self.branch_input(x, self.gate.weight.dtype)
        return self.update(x, self.down(F.silu(self.gate(h)) * self.up(h)))


class KeelBlock(GradientCheckpointingLayer):
    """Attention, then the FFN."""

    def __init__(self, config, block):
        super().__init__()
        self.attention = Attention(config, block)
        self.ffn = SwiGlu(config, block)

    def forward(self, x, cos, sin, mask, cache=None):
        return self.ffn(self.attention(x, cos, sin, mask, cache))


class KeelPreTrainedModel(PreTrainedModel):
    config_class = KeelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["KeelBlock"]
    _supports_sdpa = True

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (SubLayer, KeelModel)):
            for name, parameter in module.named_parameters(recurse=False):
                value = self.config.residual_scale if name == "residual_scale" else 1.0
                nn.init.constant_(parameter, value)


class KeelModel(KeelPreTrainedModel):
    """The blocks: from tokens to the input of the logits."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(KeelBlock(config, n) for n in range(config.num_hidden_layers))
        gains = {"embed_norm": config.embedding_norm, "norm": config.final_norm}
        for name, is_there in gains.items():
            gain = nn.Parameter(torch.ones(config.hidden_size)) if is_there else None
            self.register_parameter(name, gain)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
        output_hidden_states=False,
        **kwargs,
    ):
        """One document per row, padded on either side; the last hidden state is float32."""
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x = x.float()
        if self.embed_norm is not None:
            x = rms_norm(x, self.embed_norm, self.config.rms_norm_eps)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.training and self.gradient_checkpointing and torch.is_grad_enabled():
            use_cache, cache = False, None
        if use_cache and cache is None:
            cache = DynamicCache()
        past = int(cache.get_seq_length()) if cache is not None else 0
        if position_ids is None:
            position_ids = past + torch.arange(x.shape[1], device=x.device)[None]
        cos, sin = self._rotary_tables(position_ids)
        mask = _visible(attention_mask, past, x, cache)

        hidden_states = [x]
        for block in self.layers:
            x = block(x, cos, sin, mask, cache=cache)
            hidden_states += [x] if output_hidden_states else []
        if self.norm is not None:
            x = rms_norm(x, self.norm, self.config.rms_norm_eps)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            **{_CACHE: cache},
        )

    def _rotary_tables(self, position_ids):
        """cos and sin of position x theta^(-2h/H), float32 [B, 1, T, H]."""
        half = self.config.head_dim // 2
        exponent = torch.arange(half, device=position_ids.device, dtype=torch.float32) / half
        angle = position_ids[:, None, :, None].float() * self.config.rope_theta**-exponent
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos(), angle.sin()


def _visible(attention_mask, past, x, cache):
    """Which keys a query sees, bool [B, 1, T, past + T]; None: those up to itself, or all of them.

    A mask [B, 1, T, S] is used as it is, bool, or to be added and 0 where a key is visible; in one
    of [B, past + T], 0 is a padding token.
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    num_queries = x.shape[1]
    is_padded = attention_mask is not None and not bool(attention_mask.all())
    grows = cache is None or isinstance(cache, DynamicCache)
    if not is_padded and grows and (past == 0 or num_queries == 1):
        return None
    keys = torch.arange(past + num_queries, device=x.device)
    queries = keys[past:, None]
    visible = (keys <= queries)[None, None]
    if is_padded:  # a padding token sees itself, as a softmax over nothing is not a number
        visible = visible & (attention_mask.bool()[:, None, None] | (keys == queries))
    return visible


class KeelForCausalLM(KeelPreTrainedModel, GenerationMixin):
    """The language model: logits of every next token, float32."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = KeelModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """As `KeelModel.forward`; with labels [B, T] also the mean loss in nats per token.

        `logits_to_keep`: of how many of the last tokens to compute logits (0: of all), or which.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        is_number = isinstance(logits_to_keep, int)
        x = out.last_hidden_state[:, slice(-logits_to_keep, None) if is_number else logits_to_keep]
        # Rounded to the weights' dtype as every input of a matrix; products and sums are float32.
        x = x.to(self.lm_head.weight.dtype).float()
        logits = F.linear(x, self.lm_head.weight.float())
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
            **{_CACHE: getattr(out, _CACHE)},
        )
