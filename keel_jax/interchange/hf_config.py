"""config.json of an exported folder: what the PyTorch file reads, and what an import does.

The section "keel_jax" has the model's own options, from which an import makes a config again. All
else follows from them, and is what `torch_files/modeling_keel.py` documents.
"""

import dataclasses
from typing import Any

import numpy as np

import keel_jax
from keel_jax import config, errors
from keel_jax.config import options, topologies
from keel_jax.model import lm, residual

MODEL_TYPE = "keel"
SECTION = "keel_jax"
MODELING_FILE = "modeling_keel.py"
# Constants of `residual.Topology`, [N, 2], in the PyTorch file's terms.
_CONSTANTS = (
    "alpha",
    "branch_scale",
    "input_scale",
    "inner_norm",
    "outer_norm",
    "branch_norm",
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an exported folder came from; recorded for its reader and for an import."""

    # Optimizer steps taken, and the tokens of them.
    step: int
    tokens: int
    # Positions that it knows.
    seq_len: int
    data_fingerprint: str
    tokenizer_fingerprint: str


def check_supported(model: config.ModelConfig) -> None:
    """Checks that the PyTorch file computes this model's function.

    Raises:
      UserError: it does not; what it supports is named.
    """
    if not topologies.row(model.topology).is_single_stream:
        names = ", ".join(topologies.names(lambda row: row.is_single_stream))
        raise errors.UserError(
            f"model.topology={model.topology!r} carries several streams or has an equation of its "
            f"own, which the PyTorch file lacks. It supports {names}."
        )
    if model.stream_dtype != "float32":
        raise errors.UserError(
            f"model.stream_dtype={model.stream_dtype!r}: the PyTorch file keeps the stream in "
            "float32, which is another function wherever this rounding matters "
            "(docs/numerics.md)."
        )


def of_model(model: config.ModelConfig, origin: Origin, eos_id: int, dtype: str) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      UserError: the PyTorch file does not compute this model.
    """
    check_supported(model)
    topology = residual.topology(model)
    section = {
        "version": keel_jax.__version__,
        "model": _options(model),
        **dataclasses.asdict(origin),
    }
    module = MODELING_FILE.removesuffix(".py")
    return {
        "architectures": ["KeelForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.KeelConfig",
            "AutoModel": f"{module}.KeelModel",
            "AutoModelForCausalLM": f"{module}.KeelForCausalLM",
        },
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        **_function(model, topology),
        "initializer_range": model.init_std,
        "max_position_embeddings": origin.seq_len,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "use_cache": True,
        SECTION: section,
    }


def _function(model: config.ModelConfig, topology: residual.Topology) -> dict[str, Any]:
    """What decides the function that the weights compute."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ffn,
        "num_hidden_layers": model.num_blocks,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "rope_theta": model.rope_theta,
        "rms_norm_eps": model.norm_epsilon,
        "qk_norm": model.qk_norm or topology.qkv_norm,
        "value_norm": topology.qkv_norm,
        "tie_word_embeddings": model.tie_embeddings,
        "embedding_norm": topology.embedding_norm,
        "final_norm": lm.has_final_norm(model),
        "has_beta": topology.has_beta,
        "residual_scale": topology.residual_scale,
        "branch_cap": topology.branch_cap,
        "residual": {name: _rows(getattr(topology, name)) for name in _CONSTANTS},
    }


def to_model(values: dict[str, Any], path: str) -> tuple[config.ModelConfig, Origin]:
    """The model of an exported folder, from the content of its config.json.

    Args:
      path: of the file, for messages.

    Raises:
      UserError: it is not that of an exported folder, or contradicts itself.
    """
    section = values.get(SECTION)
    if not isinstance(section, dict) or not isinstance(section.get("model"), dict):
        raise errors.UserError(
            f'{path} has no section "{SECTION}", which keel_jax.export writes: without it, there '
            "is no way back."
        )
    try:
        model = config.from_dict({"model": section["model"]}).model
        names = [field.name for field in dataclasses.fields(Origin)]
        origin = Origin(**{name: section[name] for name in names})
    except KeyError as error:
        raise errors.UserError(f'{path}: "{SECTION}" lacks {error}.') from error
    except errors.UserError as error:
        raise errors.UserError(f'{path}: "{SECTION}": {error}') from error
    check_supported(model)
    for name, ours in _function(model, residual.topology(model)).items():
        if values.get(name) != ours:
            raise errors.UserError(
                f'{path} contradicts itself: {name} is {values.get(name)!r}, and by "{SECTION}" '
                f"it would be {ours!r}. One of the two was changed."
            )
    return model, origin


def _options(model: config.ModelConfig) -> dict[str, Any]:
    """The model's options, without those that change nothing but speed and memory."""
    fields = options.fields(config.ModelConfig)
    return {
        name: getattr(model, name)
        for name, field in fields.items()
        if "." not in name and options.change_of(field) is not options.Change.NOTHING
    }


def _rows(constants_N2: np.ndarray) -> list[list]:
    """Runs of equal blocks: [number of blocks, value of attention, value of the FFN]."""
    rows: list[list] = []
    for values in constants_N2.tolist():
        if rows and rows[-1][1:] == values:
            rows[-1][0] += 1
        else:
            rows.append([1, *values])
    return rows
