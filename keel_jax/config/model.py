"""The options of the decoder: its shape, topology, precision and recomputation."""

import dataclasses

from keel_jax import errors
from keel_jax.config import limits, topologies
from keel_jax.config.options import Change, option

ATTENTION_KERNELS = ("auto", "reference", "splash", "cudnn", "ring")
RECOMPUTE_PLANS = ("auto", "none", "block", "segments", "reversible")
RECOMPUTE_SAVES = ("carry", "attention", "mlp", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """What is saved for the backward pass; the rest is recomputed (docs/recompute.md)."""

    # One of RECOMPUTE_PLANS. "auto": the plan with the fewest FLOPs that fits the chip's memory;
    # "none": everything is saved; "block": each block's input; "segments": each segment's input,
    # and each block's input of the segment being differentiated; "reversible" (experimental):
    # inputs of stretches, from which blocks are inverted (docs/reversible.md).
    plan: str = option("auto", Change.NOTHING)
    # Blocks per segment, then per segment within it, and so on: (32,) or (64, 8). A 0 is chosen
    # from the depth; (0, 0) is three nested loops.
    segment_blocks: tuple[int, ...] = option((0,), Change.NOTHING)
    # What is saved of a block (in segments: of the blocks of the segment being differentiated):
    # "carry": its input; "attention": also queries, keys, values and attention's output; "mlp":
    # also gate and up; "all": everything.
    save: str = option("carry", Change.NOTHING)
    # What is saved until the backward pass (inputs of segments or, in the plan "block", of blocks)
    # is kept in the host's memory.
    offload: bool = option(False, Change.NOTHING)
    # With offload, in the plan "block": what `save` names besides the input is kept there too.
    offload_saved: bool = option(False, Change.NOTHING)
    # Reversible: blocks of a stretch; only the input of its lowest block is saved.
    anchor_blocks: int = option(8, Change.NOTHING)
    # Reversible: evaluations of each branch in the backward pass; the last is the one that is
    # differentiated.
    fixed_point_iterations: int = option(1, Change.NOTHING)
    # Reversible: relative error of the reconstructed stream above which a stretch is recomputed
    # exactly from its anchor; 0: always.
    error_bound: float = option(1e-2, Change.NOTHING)

    def __post_init__(self):
        limits.one_of("model.recompute.plan", self.plan, RECOMPUTE_PLANS)
        limits.one_of("model.recompute.save", self.save, RECOMPUTE_SAVES)
        if not self.segment_blocks:
            raise errors.UserError(
                "model.recompute.segment_blocks=() names no segment: (0,) is one level, chosen "
                "from the depth; without segments, set model.recompute.plan=block."
            )
        for size in self.segment_blocks:
            limits.at_least("model.recompute.segment_blocks", size, 0)
        if self.anchor_blocks < 2:
            raise errors.UserError(
                f"model.recompute.anchor_blocks={self.anchor_blocks} leaves no block to be "
                "inverted: it must be at least 2. To save every block's input, set "
                "model.recompute.plan=block."
            )
        limits.at_least("model.recompute.fixed_point_iterations", self.fixed_point_iterations, 1)
        limits.not_negative("model.recompute.error_bound", self.error_bound)
        keeps_more = self.plan == "block" and self.save != "carry"
        if self.offload and self.offload_saved and not keeps_more:
            raise errors.UserError(
                f"model.recompute.offload_saved has no effect with plan={self.plan!r} and "
                f"save={self.save!r}: it applies to what plan=block and save=attention or mlp "
                "save besides each block's input."
            )
        given = [size for size in self.segment_blocks if size]
        if any(inner >= outer for outer, inner in zip(given, given[1:], strict=False)):
            raise errors.UserError(
                f"model.recompute.segment_blocks={self.segment_blocks}: the segments within a "
                "segment must have fewer blocks, so each number must be below the one before."
            )
        if self.plan == "block" and self.save == "all":
            raise errors.UserError(
                "model.recompute.save='all' saves everything, so model.recompute.plan='block' "
                "has no effect: set plan=none, or save less."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The decoder: its shape, its residual topology, its precision."""

    # Residual topology, one of topologies.TOPOLOGIES (equations: docs/topologies.md).
    topology: str = option("keel", Change.MODEL)
    # N, the number of blocks; the paper's "layers" are sub-layers, L = 2N.
    num_blocks: int = option(32, Change.MODEL)
    # D, width of the residual stream.
    d_model: int = option(1024, Change.MODEL)
    # F, hidden width of the SwiGLU.
    d_ffn: int = option(3072, Change.MODEL)
    # Query heads.
    num_heads: int = option(16, Change.MODEL)
    # Key/value heads (grouped-query attention); divides num_heads.
    num_kv_heads: int = option(8, Change.MODEL)
    # H, width of one head; 0: d_model / num_heads.
    head_dim: int = option(0, Change.MODEL)
    # V; 0: the tokenizer's. A larger one pads the table, a smaller one is refused.
    vocab_size: int = option(0, Change.MODEL)
    # RoPE's base.
    rope_theta: float = option(10_000.0, Change.MODEL)
    # RMSNorm's epsilon (paper: 1e-5).
    norm_epsilon: float = option(1e-5, Change.MODEL)
    # RMSNorm on queries and keys, per head, before RoPE (hybridnorm and its star have it always;
    # ngpt has its own).
    qk_norm: bool = option(False, Change.MODEL)
    # Logits use the embedding table.
    tie_embeddings: bool = option(False, Change.MODEL)
    # Norm before the logits: "auto" (as the topology needs it), "on", "off".
    final_norm: str = option("auto", Change.MODEL)
    # Weight of the stream in the residual sum; None: the topology's own (Keel: L = 2N).
    alpha: float | None = option(None, Change.MODEL)
    # CompleteP: weight of the branch in the residual sum; None: its own, 1/L.
    branch_scale: float | None = option(None, Change.MODEL)
    # A learned scalar per sub-layer, initially 1, multiplies the branch's weight, as Fixup's
    # (arXiv:1901.09321): a control of experiments/branch_weight.
    learned_branch: bool = option(False, Change.MODEL)
    # Capped Keel: the RMS to which a token's branch output is scaled down where it is above.
    branch_cap: float = option(1.0, Change.MODEL)
    # Keel's block 0: "v2" (outer norm after its FFN) or "v1" (no outer norm), as in the paper.
    keel_first_block: str = option("v2", Change.MODEL)
    # Mix-LN: fraction of the blocks, from the first, that are Post-LN.
    mix_ln_post_fraction: float = option(0.25, Change.MODEL)
    # Hyper-connections: number of parallel streams (paper: 4).
    hyper_streams: int = option(4, Change.MODEL)
    # Attention residuals: the maximum number of groups of consecutive blocks over whose sums each
    # sub-layer attends; the paper calls them blocks and finds about 8 enough.
    attn_res_groups: int = option(8, Change.MODEL)
    # nGPT: the initial rate at which each sub-layer moves the stream towards its branch (paper:
    # 0.05, of the order of 1 / blocks).
    ngpt_rate: float = option(0.05, Change.MODEL)
    # Standard deviation of every weight's normal initializer (paper: 0.02); nGPT rescales them.
    init_std: float = option(0.02, Change.RUN)
    # Of the embedding table; None: init_std. At 1 the stream begins with an RMS of 1.
    embedding_std: float | None = option(None, Change.RUN)
    # Of the last matrix of each branch: "same", or "over_sqrt_depth", init_std / sqrt(2N), as GPT-2
    # has it: the 2N branches of a Pre-LN model then add up to the variance of one.
    output_init: str = option("same", Change.RUN)
    # Matrix multiplications' input dtype.
    compute_dtype: str = option("bfloat16", Change.RUN)
    # The residual stream's dtype; bf16 rounds away the branch at large alpha (docs/numerics.md).
    stream_dtype: str = option("float32", Change.RUN)
    # Attention's kernel, one of ATTENTION_KERNELS: the same function, up to rounding. "auto": the
    # ring where mesh.context splits sequences, else splash on TPUs, cudnn on GPUs where it can
    # compute this model, and the reference, which holds all scores, elsewhere (docs/attention.md).
    attention: str = option("auto", Change.NOTHING)
    # What the backward pass recomputes.
    recompute: RecomputeConfig = RecomputeConfig()

    def __post_init__(self):
        limits.one_of("model.topology", self.topology, topologies.TOPOLOGIES)
        limits.one_of("model.final_norm", self.final_norm, ("auto", "on", "off"))
        limits.one_of("model.output_init", self.output_init, ("same", "over_sqrt_depth"))
        limits.one_of("model.keel_first_block", self.keel_first_block, ("v2", "v1"))
        limits.one_of("model.attention", self.attention, ATTENTION_KERNELS)
        for name in ("compute_dtype", "stream_dtype"):
            limits.one_of(f"model.{name}", getattr(self, name), ("float32", "bfloat16"))
        limits.at_least("model.num_blocks", self.num_blocks, 1)
        for name in (
            "d_model",
            "d_ffn",
            "num_heads",
            "num_kv_heads",
            "hyper_streams",
            "attn_res_groups",
        ):
            limits.at_least(f"model.{name}", getattr(self, name), 1)
        if self.vocab_size:
            limits.at_least("model.vocab_size", self.vocab_size, 2)
        limits.positive("model.norm_epsilon", self.norm_epsilon)
        limits.positive("model.rope_theta", self.rope_theta)
        limits.positive("model.init_std", self.init_std)
        limits.positive("model.branch_cap", self.branch_cap)
        limits.positive("model.ngpt_rate", self.ngpt_rate)
        limits.fraction("model.mix_ln_post_fraction", self.mix_ln_post_fraction)
        for name in ("alpha", "branch_scale", "embedding_std"):
            if (value := getattr(self, name)) is not None:
                limits.positive(f"model.{name}", value)
        if self.num_heads % self.num_kv_heads:
            raise errors.UserError(
                f"model.num_heads={self.num_heads} is not a multiple of "
                f"model.num_kv_heads={self.num_kv_heads}: each key/value head serves an equal "
                "group of query heads."
            )
        limits.at_least("model.head_dim", self.head_dim, 0)
        if not self.head_dim:
            if self.d_model % self.num_heads:
                raise errors.UserError(
                    f"model.d_model={self.d_model} is not a multiple of "
                    f"model.num_heads={self.num_heads}; set model.head_dim yourself."
                )
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        if self.head_dim % 2:
            raise errors.UserError(
                f"model.head_dim={self.head_dim} is odd; RoPE rotates pairs, so it must be even."
            )

    @property
    def num_sublayers(self) -> int:
        """L = 2N, the paper's count of "layers"."""
        return 2 * self.num_blocks

    @property
    def num_matmul_params(self) -> int:
        """Weights that take part in a matrix multiplication for every token (logits included)."""
        d, heads = self.d_model, (2 * self.num_heads + 2 * self.num_kv_heads)
        per_block = d * heads * self.head_dim + 3 * d * self.d_ffn
        return self.num_blocks * per_block + d * self.vocab_size

    def flops_per_token(self, seq_len: int, *, causal: bool = True) -> float:
        """Model FLOPs of one training token, forward and backward, without recomputation.

        6 FLOPs per weight, and 12 N S (heads x head_dim) for scores and weighted values against S
        keys (the PaLM paper's appendix B); `causal` halves the attention part, as each query sees
        half of the keys on average. Both conventions are in use: state which one. What a topology
        of several streams adds (mixing, its small products) is not counted, nor are norms.
        """
        keys = seq_len / 2 if causal else seq_len
        attention = 12 * self.num_blocks * self.num_heads * self.head_dim * keys
        return 6.0 * self.num_matmul_params + attention
