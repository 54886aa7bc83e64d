"""config.json of LlamaForCausalLM as a model of ours: `pre_ln` with SwiGLU, RoPE and grouped keys.

Both rotate pairs (h, h + H/2) of a head by position * theta^(-2h/H) and share a key head among
consecutive query heads, so weights are taken as they are. What would compute something else is
refused by its name, and so is any entry that nothing here knows.
"""

from typing import Any

from keel_jax import config, errors

MODEL_TYPE = "llama"
_ARCHITECTURE = "LlamaForCausalLM"
# Entries that may only have these values, each of which is also the default.
_REQUIRED = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, None),
    "is_causal": (True, None),
    "add_cross_attention": (False, None),
}
_READ = {
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "max_position_embeddings",
}
# Entries that do not change what the weights compute: they are about training with dropout, about
# generating, about classifying, about files, or only split a product into parts.
_HARMLESS = {
    "_name_or_path",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_ROPE_READ = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}


def to_model(
    values: dict[str, Any], path: str, compute_dtype: str
) -> tuple[config.ModelConfig, int]:
    """(the model, positions that it knows), from the content of config.json.

    Args:
      path: of the file, for messages.
      compute_dtype: of the model.

    Raises:
      UserError: an entry is missing, unknown, or asks for another function.
    """
    architectures = values.get("architectures") or [_ARCHITECTURE]
    if architectures != [_ARCHITECTURE]:
        raise errors.UserError(
            f"{path}: architectures={architectures}; only {_ARCHITECTURE} is taken over."
        )
    for name, value in values.items():
        if name in _REQUIRED and value not in _REQUIRED[name]:
            raise errors.UserError(
                f"{path}: {name}={value!r} computes another function than keel_jax's pre_ln, for "
                f"which it must be {_REQUIRED[name][0]!r}."
            )
        if name not in _READ | _HARMLESS | _REQUIRED.keys():
            raise errors.UserError(
                f"{path}: {name}={value!r} is not known to leave the function of Llama as it is. "
                "Take it out of config.json if it does."
            )
    heads = _positive(values, "num_attention_heads", path)
    tied = values.get("tie_word_embeddings", False)
    model = config.ModelConfig(
        topology="pre_ln",
        num_blocks=_positive(values, "num_hidden_layers", path),
        d_model=_positive(values, "hidden_size", path),
        d_ffn=_positive(values, "intermediate_size", path),
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or 0,
        vocab_size=_positive(values, "vocab_size", path),
        rope_theta=_rope_theta(values, path),
        norm_epsilon=float(values.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(tied),
        compute_dtype=compute_dtype,
    )
    return model, _positive(values, "max_position_embeddings", path)


def _rope_theta(values: dict[str, Any], path: str) -> float:
    theta: Any = values.get("rope_theta")
    for name in ("rope_parameters", "rope_scaling"):
        rope = values.get(name) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        is_plain = kind == "default" and rope.get("partial_rotary_factor", 1) == 1
        if not is_plain or rope.keys() - _ROPE_READ:
            raise errors.UserError(
                f"{path}: {name}={rope} rotates by other angles than keel_jax, which has none but "
                "position * theta^(-2h/H)."
            )
        theta = rope.get("rope_theta", theta)
    return float(10_000.0 if theta is None else theta)


def _positive(values: dict[str, Any], name: str, path: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise errors.UserError(f"{path}: {name}={value!r} should be a positive integer.")
    return value
