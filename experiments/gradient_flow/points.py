"""What is measured: topologies, depths and sizes of each preset."""

import dataclasses
import math

from keel_jax import config

# Controls of alpha = L: weights of the stream that are too small at some depth (arXiv:2601.19895,
# §3).
_ALPHAS = {
    "keel, alpha = sqrt(L)": lambda num_sublayers: math.sqrt(num_sublayers),
    "keel, alpha = 10": lambda num_sublayers: 10.0,
}
# Models whose path's gain has a closed form in L; they are measured over depth.
OVER_DEPTH = ("keel", *_ALPHAS, "deepnorm", "post_ln", "pre_ln")
NAMES = (*config.TOPOLOGIES, *_ALPHAS)
# Post-LN's path gain is 2^-N, and telemetry's squares leave float32 below an RMS of 1e-19.
_POST_LN_MOST_BLOCKS = 56


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """The sizes of one preset."""

    d_model: int
    num_heads: int
    num_kv_heads: int
    # Tokens: sequences and their length.
    batch_size: int
    seq_len: int
    vocab_size: int
    # N at which every topology is measured.
    num_blocks: int
    # N at which those of OVER_DEPTH are measured.
    depths: tuple[int, ...]
    num_seeds: int
    compute_dtype: str = "float32"


PRESETS = {
    # For the tests.
    "tiny": Preset(
        d_model=16,
        num_heads=2,
        num_kv_heads=1,
        batch_size=1,
        seq_len=8,
        vocab_size=32,
        num_blocks=4,
        depths=(2, 4),
        num_seeds=2,
    ),
    "micro": Preset(
        d_model=64,
        num_heads=4,
        num_kv_heads=2,
        batch_size=2,
        seq_len=32,
        vocab_size=256,
        num_blocks=32,
        depths=(8, 16, 32, 256, 512),
        num_seeds=3,
    ),
    "small": Preset(
        d_model=1024,
        num_heads=16,
        num_kv_heads=8,
        batch_size=2,
        seq_len=256,
        vocab_size=32768,
        num_blocks=32,
        depths=(32, 64, 256),
        num_seeds=3,
    ),
    "paper": Preset(
        d_model=1024,
        num_heads=16,
        num_kv_heads=8,
        batch_size=4,
        seq_len=2048,
        vocab_size=32768,
        num_blocks=256,
        depths=(32, 64, 256, 512),
        num_seeds=3,
        compute_dtype="bfloat16",
    ),
}


def model(name: str, num_blocks: int, preset: Preset) -> config.ModelConfig:
    """The model of one point.

    `init_std` is the paper's 0.02 at width 1024, carried over to this width, so that a matrix has
    the gain that it has there, 0.02 sqrt(1024) = 0.64, and branches their size relative to the
    stream. There is no final norm, so that the cotangent of the last sub-layer's output is known.
    """
    alpha = _ALPHAS.get(name)
    return config.ModelConfig(
        topology="keel" if alpha else name,
        alpha=alpha(2 * num_blocks) if alpha else None,
        num_blocks=num_blocks,
        d_model=preset.d_model,
        d_ffn=3 * preset.d_model,
        num_heads=preset.num_heads,
        num_kv_heads=preset.num_kv_heads,
        vocab_size=preset.vocab_size,
        init_std=0.02 * math.sqrt(1024 / preset.d_model),
        final_norm="off",
        compute_dtype=preset.compute_dtype,
        recompute=config.RecomputeConfig(plan="block"),
    )


def cases(preset: Preset) -> list[tuple[str, int]]:
    """(name, N) of every model, no pair twice."""
    over_depth = [
        (name, n)
        for name in OVER_DEPTH
        for n in preset.depths
        if name != "post_ln" or n <= _POST_LN_MOST_BLOCKS
    ]
    at_one = [(name, preset.num_blocks) for name in NAMES]
    return list(dict.fromkeys(over_depth + at_one))
