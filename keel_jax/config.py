"""The one home of every option: its default, its meaning, its limits.

At the door a run is an `ml_collections.ConfigDict` (`default()`, edited by a config file and by
`--config.a.b=value` flags); inside it is a tree of frozen dataclasses (`from_config_dict`), checked
once: limits in each class, an option that nothing would read in `config_checks.READERS`. Numbers
that follow from the options (sub-layers, FLOPs, steps of decay) are derived here and nowhere else.

"Layer" is never used alone: N = `num_blocks` blocks hold L = 2N = `num_sublayers` sub-layers (each
one residual connection: attention or FFN), as in "Post-LayerNorm Is Back" (arXiv:2601.19895).
"""

import dataclasses
import json
import typing

import ml_collections

from keel_jax import config_checks, config_door

TOPOLOGIES = (
    "keel",
    "keel_no_inner_norm",
    "keel_scaled_input",
    "keel_scaled_inner_norm",
    "pre_ln",
    "post_ln",
    "deepnorm",
    "hybridnorm",
    "hybridnorm_star",
    "mix_ln",
    "sandwich",
    "peri_ln",
    "layernorm_scaling",
    "olmo2",
    "complete_p",
    "rezero",
    "resi_dual",
    "siamese_norm",
    "static_hyper_connections",
    "hyper_connections",
    "mhc",
    "attention_residuals",
    "ngpt",
)
ATTENTION_KERNELS = ("auto", "reference", "splash", "cudnn", "ring")
RECOMPUTE_PLANS = ("auto", "none", "block", "segments", "reversible")
RECOMPUTE_SAVES = ("carry", "attention", "products", "all")
OPTIMIZERS = ("adamw", "lion", "adafactor", "muon")
SCHEDULES = ("cosine", "wsd", "constant", "linear_ramp")
# The square root of float32's smallest normal number, 1.1e-19: squares of anything below are 0.
_LEAST_EPSILON = 2.0**-63


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """What the backward pass finds; the rest it computes again (docs/recompute.md)."""

    # One of RECOMPUTE_PLANS. "auto": what executes least and fits the chip's memory; "none": all is
    # kept; "block": each block's input; "segments": each segment's input, and of the segment at
    # work each block's; "reversible" (experimental): inputs of stretches, from which blocks are run
    # backwards (docs/reversible.md).
    plan: str = "auto"
    # Blocks of a segment, then of a segment within it, and so on: (32,) or (64, 8). A 0 is chosen
    # by the depth; (0, 0) is three loops.
    segment_blocks: tuple[int, ...] = (0,)
    # What is kept of a block (in segments: of those of the segment at work): "carry", its input;
    # "attention", queries, keys, values and attention's output as well; "products", gate and up as
    # well; "all".
    save: str = "carry"
    # What is kept throughout (inputs of segments or, in the plan "block", of blocks) waits in the
    # host's memory.
    offload: bool = False
    # With it, in the plan "block": what `save` names beside the input waits there, too.
    offload_saved: bool = False
    # Reversible: blocks of a stretch, the input of whose lowest is kept.
    anchor_blocks: int = 8
    # Reversible: times that each branch is computed on the way back; the last is the one that the
    # derivative needs.
    evaluations: int = 1
    # Reversible: relative error of the reconstructed stream from which on a stretch is computed
    # again from its anchor, exactly; 0: always.
    error_bound: float = 1e-2

    def __post_init__(self):
        config_checks.one_of("model.recompute.plan", self.plan, RECOMPUTE_PLANS)
        config_checks.one_of("model.recompute.save", self.save, RECOMPUTE_SAVES)
        if not self.segment_blocks:
            raise ValueError(
                "model.recompute.segment_blocks=() names no segment: (0,) is one level, chosen by "
                "the depth; without segments, set model.recompute.plan=block."
            )
        for size in self.segment_blocks:
            config_checks.at_least("model.recompute.segment_blocks", size, 0)
        if self.anchor_blocks < 2:
            raise ValueError(
                f"model.recompute.anchor_blocks={self.anchor_blocks} leaves no block to be run "
                "backwards: it must be at least 2; that which keeps every block's input is "
                "model.recompute.plan=block."
            )
        config_checks.at_least("model.recompute.evaluations", self.evaluations, 1)
        config_checks.not_negative("model.recompute.error_bound", self.error_bound)
        keeps_more = self.plan == "block" and self.save != "carry"
        if self.offload and self.offload_saved and not keeps_more:
            raise ValueError(
                f"model.recompute.offload_saved has no effect with plan={self.plan!r} and "
                f"save={self.save!r}: it is for what plan=block and save=attention or products "
                "keep beside each block's input."
            )
        given = [size for size in self.segment_blocks if size]
        if any(inner >= outer for outer, inner in zip(given, given[1:], strict=False)):
            raise ValueError(
                f"model.recompute.segment_blocks={self.segment_blocks}: the segments within a "
                "segment have fewer blocks than it, so each number must be below the one before."
            )
        if self.plan == "block" and self.save == "all":
            raise ValueError(
                "model.recompute.save='all' keeps everything, so that model.recompute.plan='block' "
                "has no effect: say plan=none, or save less."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The decoder: its shape, its residual topology, its precision."""

    # Residual topology, one of TOPOLOGIES (equations: docs/topologies.md).
    topology: str = "keel"
    # N, blocks; the paper's "layers" are sub-layers, L = 2N.
    num_blocks: int = 32
    # D, width of the residual stream.
    d_model: int = 1024
    # F, hidden width of the SwiGLU.
    d_ffn: int = 3072
    # Query heads.
    num_heads: int = 16
    # Key/value heads (grouped-query attention); divides num_heads.
    num_kv_heads: int = 8
    # H, width of one head; None: d_model / num_heads.
    head_dim: int | None = None
    # V; None: the tokenizer's. A larger one pads the table, a smaller one is refused.
    vocab_size: int | None = None
    # RoPE's base.
    rope_theta: float = 10_000.0
    # RMSNorm's epsilon (paper: 1e-5).
    norm_epsilon: float = 1e-5
    # RMSNorm on queries and keys, per head, before RoPE (hybridnorm and its star have it always;
    # ngpt has its own).
    qk_norm: bool = False
    # Logits use the embedding table.
    tie_embeddings: bool = False
    # Norm before the logits: "auto" (as the topology needs it), "on", "off".
    final_norm: str = "auto"
    # Weight of the stream in the residual sum; None: the topology's own (Keel: L = 2N).
    alpha: float | None = None
    # Keel's block 0: "v2" (outer norm after its FFN) or "v1" (no outer norm), as in the paper.
    keel_first_block: str = "v2"
    # Mix-LN: fraction of the blocks, from the first, that are Post-LN.
    mix_ln_post_fraction: float = 0.25
    # Hyper-connections: streams side by side (paper: 4).
    hyper_streams: int = 4
    # Attention residuals: groups of consecutive blocks over whose sums depth attends, at most; the
    # paper calls them blocks and finds about 8 enough.
    attn_res_groups: int = 8
    # nGPT: how far each sub-layer first moves the stream towards its branch (paper: 0.05, of the
    # order of 1 / blocks).
    ngpt_rate: float = 0.05
    # Standard deviation of every weight's normal initialiser (paper: 0.02); nGPT rescales them.
    init_std: float = 0.02
    # Matrix multiplications' input dtype.
    compute_dtype: str = "bfloat16"
    # The residual stream's dtype; bf16 swallows the branch at large alpha (docs/numerics.md).
    stream_dtype: str = "float32"
    # Attention's kernel, one of ATTENTION_KERNELS: the same function, up to rounding. "auto": the
    # ring where mesh.context splits sequences, else splash on TPUs, cudnn on GPUs where it can
    # compute this model, and the reference, which holds all scores, elsewhere (docs/attention.md).
    attention: str = "auto"
    # What the backward pass computes again.
    recompute: RecomputeConfig = RecomputeConfig()

    def __post_init__(self):
        config_checks.one_of("model.topology", self.topology, TOPOLOGIES)
        config_checks.one_of("model.final_norm", self.final_norm, ("auto", "on", "off"))
        config_checks.one_of("model.keel_first_block", self.keel_first_block, ("v2", "v1"))
        config_checks.one_of("model.attention", self.attention, ATTENTION_KERNELS)
        for name in ("compute_dtype", "stream_dtype"):
            config_checks.one_of(f"model.{name}", getattr(self, name), ("float32", "bfloat16"))
        config_checks.at_least("model.num_blocks", self.num_blocks, 1)
        for name in (
            "d_model",
            "d_ffn",
            "num_heads",
            "num_kv_heads",
            "hyper_streams",
            "attn_res_groups",
        ):
            config_checks.at_least(f"model.{name}", getattr(self, name), 1)
        if self.vocab_size is not None:
            config_checks.at_least("model.vocab_size", self.vocab_size, 2)
        config_checks.positive("model.norm_epsilon", self.norm_epsilon)
        config_checks.positive("model.rope_theta", self.rope_theta)
        config_checks.positive("model.init_std", self.init_std)
        config_checks.positive("model.ngpt_rate", self.ngpt_rate)
        config_checks.fraction("model.mix_ln_post_fraction", self.mix_ln_post_fraction)
        if self.alpha is not None:
            config_checks.positive("model.alpha", self.alpha)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} is not a multiple of "
                f"model.num_kv_heads={self.num_kv_heads}: each key/value head serves an equal "
                "group of query heads."
            )
        if self.head_dim is None:
            if self.d_model % self.num_heads:
                raise ValueError(
                    f"model.d_model={self.d_model} is not a multiple of "
                    f"model.num_heads={self.num_heads}; set model.head_dim yourself."
                )
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        if self.head_dim % 2:
            raise ValueError(
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
        return self.num_blocks * per_block + d * (self.vocab_size or 0)

    def flops_per_token(self, seq_len: int, *, causal: bool = True) -> float:
        """Model FLOPs of one training token, forward and backward, recomputation left out.

        6 FLOPs a weight, and 12 N S (heads x head_dim) for scores and weighted values against S
        keys (the PaLM paper's appendix B); `causal` halves the attention part, as each query sees
        half of the keys on average. Both conventions are in use: say which. What a topology of
        several streams adds (mixing, its small products) is left out, as norms are.
        """
        keys = seq_len / 2 if causal else seq_len
        attention = 12 * self.num_blocks * self.num_heads * self.head_dim * keys
        return 6.0 * self.num_matmul_params + attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which token shards are read, and how."""

    # Directory written by `python -m keel_jax.prepare`; several, comma-separated, are mixed.
    path: str = ""
    # Share of each directory in `path`; empty: in proportion to their tokens.
    weights: tuple[float, ...] = ()
    # Attention stays within a document, and positions restart at its beginning.
    mask_documents: bool = True
    # Threads that read ahead.
    num_threads: int = 2
    # Batches kept ready ahead of the step; needs threads.
    prefetch_batches: int = 4
    # Token shards are read once and compared with their sha256 before training.
    verify_checksums: bool = True

    def __post_init__(self):
        if self.weights and len(self.weights) != len(self.paths):
            raise ValueError(
                f"data.weights has {len(self.weights)} entries, data.path names "
                f"{len(self.paths)} directories: give one weight each, or none."
            )
        for weight in self.weights:
            config_checks.positive("data.weights", weight)
        config_checks.at_least("data.num_threads", self.num_threads, 0)
        config_checks.at_least("data.prefetch_batches", self.prefetch_batches, 1)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.path.split(",") if part.strip())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamGroups:
    """One multiplier for each kind of parameter."""

    # The token embedding (and the logits where tied).
    embedding: float = 1.0
    # Attention's matrices.
    attention: float = 1.0
    # The FFN's matrices.
    ffn: float = 1.0
    # Gains of the norms, and nGPT's scales in their place.
    norm: float = 1.0
    # What the residual connections learn: scales (the paper's beta), hyper-connections' weights,
    # attention residuals' queries, nGPT's step sizes.
    residual: float = 1.0
    # The untied logit matrix.
    output: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            config_checks.not_negative(f"optim multiplier {field.name}", getattr(self, field.name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecayGroups(ParamGroups):
    """Weight-decay multipliers: gains and residual scales do not decay.

    Decay on them would change the effective alpha.
    """

    norm: float = 0.0
    residual: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, its schedule and its groups."""

    # One of OPTIMIZERS.
    name: str = "adamw"
    # The schedule's maximum. It lives in the train state: changing it recompiles nothing.
    peak_lr: float = 3e-3
    # First- and second-moment decay (paper: 0.9, 0.95); Adafactor reads neither.
    beta1: float = 0.9
    beta2: float = 0.95
    # Adam's epsilon (Adafactor squares it, Muon adds it to its norm, Lion reads none). Keel's
    # branch gradients scale as 1/alpha, so it must be far below them.
    epsilon: float = 1e-15
    # Decoupled weight decay, times the learning rate, times decay_multiplier (paper: 0.01).
    weight_decay: float = 0.01
    # Global gradient norm above which gradients are scaled down (paper: 1.0); 0: no clipping.
    clip_norm: float = 1.0
    # One of SCHEDULES; each rises linearly to 1 over warmup_steps.
    schedule: str = "cosine"
    # Optimiser steps of the linear rise; linear_ramp rises over the whole run, whatever this says.
    warmup_steps: int = 100
    # Learning rate at the end of the run as a fraction of the peak; read by cosine and wsd.
    final_lr_fraction: float = 0.1
    # wsd: fraction of the run, at its end, over which the rate falls.
    wsd_decay_fraction: float = 0.2
    # Learning-rate multiplier per group.
    lr_multiplier: ParamGroups = ParamGroups()
    # Weight-decay multiplier per group: the decay mask.
    decay_multiplier: DecayGroups = DecayGroups()

    def __post_init__(self):
        config_checks.one_of("optim.name", self.name, OPTIMIZERS)
        config_checks.one_of("optim.schedule", self.schedule, SCHEDULES)
        config_checks.positive("optim.peak_lr", self.peak_lr)
        config_checks.positive("optim.epsilon", self.epsilon)
        for name in ("beta1", "beta2", "final_lr_fraction", "wsd_decay_fraction"):
            config_checks.fraction(f"optim.{name}", getattr(self, name))
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                raise ValueError(f"optim.{name}=1 never forgets: it must be below 1.")
        for name in ("weight_decay", "clip_norm"):
            config_checks.not_negative(f"optim.{name}", getattr(self, name))
        config_checks.at_least("optim.warmup_steps", self.warmup_steps, 0)
        if self.name != "lion" and self.epsilon < _LEAST_EPSILON:
            raise ValueError(
                f"optim.epsilon={self.epsilon} is below {_LEAST_EPSILON:.1e}: the squares of "
                "gradients of its size are 0 in float32, and updates would be divided by it alone."
            )

    def decay_steps(self, num_steps: int) -> int:
        """Steps of a run of `num_steps` over which the rate falls."""
        if self.schedule == "cosine":
            return num_steps - self.warmup_steps
        if self.schedule == "wsd":
            return round(self.wsd_decay_fraction * num_steps)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how much at a time, and what is written down on the way."""

    # Length of the run in optimiser steps; 0: from num_tokens.
    num_steps: int | None = 0
    # Length of the run in tokens, rounded up to steps; 0: from num_steps.
    num_tokens: int | None = 0
    # Sequences an optimiser step, over all devices.
    batch_size: int = 16
    # T, tokens a sequence.
    seq_len: int = 1024
    # Micro-batches an optimiser step, run one after another; divides batch_size.
    accumulation_steps: int = 1
    # Sequence positions whose logits are held at a time; 0: all of them.
    loss_chunk: int = 256
    # Weight of mean(log Z ^ 2), which keeps logits from drifting; 0: off.
    z_loss: float = 0.0
    # Steps between two lines in metrics.jsonl.
    log_every_steps: int = 10
    # Steps between two validations; 0: only at the end.
    eval_every_steps: int = 0
    # Batches a validation within the run; 0: the whole split.
    eval_num_batches: int = 0
    # Steps between two checkpoints; 0: only at the end and on a stop request.
    checkpoint_every_steps: int = 1000
    # Newest checkpoints that are kept.
    keep_checkpoints: int = 2
    # Work directory or checkpoint whose weights start this run, with a new optimiser.
    init_from: str = ""
    # "first:last", steps from 1 on whose device trace is written for TensorBoard's profiler.
    profile_steps: str = ""

    def __post_init__(self):
        for name in ("batch_size", "seq_len", "accumulation_steps", "log_every_steps"):
            config_checks.at_least(f"train.{name}", getattr(self, name), 1)
        for name in (
            "loss_chunk",
            "eval_every_steps",
            "eval_num_batches",
            "checkpoint_every_steps",
        ):
            config_checks.at_least(f"train.{name}", getattr(self, name), 0)
        config_checks.at_least("train.keep_checkpoints", self.keep_checkpoints, 1)
        config_checks.not_negative("train.z_loss", self.z_loss)
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"train.batch_size={self.batch_size} is not a multiple of "
                f"train.accumulation_steps={self.accumulation_steps}."
            )
        self._resolve_length()
        first, last = self.profile_range or (1, 1)
        if not 1 <= first <= last <= self.num_steps:
            raise ValueError(
                f"train.profile_steps={self.profile_steps!r} must be first:last with 1 <= first <= "
                f"last <= train.num_steps={self.num_steps}."
            )

    def _resolve_length(self):
        """Sets both numbers; a None counts as 0."""
        steps, tokens = self.num_steps or 0, self.num_tokens or 0
        config_checks.at_least("train.num_steps", steps, 0)
        config_checks.at_least("train.num_tokens", tokens, 0)
        if not (steps or tokens):
            raise ValueError(
                "The run has no length: set train.num_steps or train.num_tokens (0: from the "
                "other one)."
            )
        if steps and tokens and tokens != steps * self.tokens_per_step:
            raise ValueError(
                f"Give the length of the run once: train.num_steps={steps} steps of "
                f'{self.tokens_per_step} tokens are not train.num_tokens={tokens}. 0 means "from '
                f'the other one": --config.train.num_steps=0 --config.train.num_tokens={tokens}, '
                f"or --config.train.num_tokens=0 --config.train.num_steps={steps}."
            )
        steps = steps or -(-tokens // self.tokens_per_step)
        object.__setattr__(self, "num_steps", steps)
        object.__setattr__(self, "num_tokens", steps * self.tokens_per_step)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def profile_range(self) -> tuple[int, int] | None:
        """First and last step of the trace, or None."""
        if not self.profile_steps:
            return None
        first, colon, last = self.profile_steps.partition(":")
        if not (colon and first.isdecimal() and last.isdecimal()):
            raise ValueError(
                f"train.profile_steps={self.profile_steps!r}: write it as first:last, as in 10:12."
            )
        return int(first), int(last)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanesConfig:
    """Several runs in one compiled program, side by side: one (peak_lr, seed) each.

    With both empty there is one lane, (optim.peak_lr, seed). Each list has one entry per lane; an
    empty one repeats the run's own value.
    """

    # Peak learning rate of each lane.
    peak_lr: tuple[float, ...] = ()
    # Seed of each lane (initial weights and data order).
    seed: tuple[int, ...] = ()

    def __post_init__(self):
        for value in self.peak_lr:
            config_checks.positive("lanes.peak_lr", value)
        for value in self.seed:
            config_checks.seed("lanes.seed", value)
        if self.peak_lr and self.seed and len(self.peak_lr) != len(self.seed):
            raise ValueError(
                f"lanes.peak_lr has {len(self.peak_lr)} entries, lanes.seed has "
                f"{len(self.seed)}: one (learning rate, seed) per lane."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """What is recorded of every sub-layer (docs/telemetry.md)."""

    # Steps between two records, each of which costs one more forward and backward pass; the first,
    # the last and a diverging step are recorded too. 0: off, divergences are not explained either.
    every_steps: int = 100

    def __post_init__(self):
        config_checks.at_least("telemetry.every_steps", self.every_steps, 0)


# The mesh's axes, outermost first: neighbours along the last are neighbours on the chip's links.
MESH_AXES = ("lane", "stage", "data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis: within a slice, and (`dcn_`) across slices.

    A slice is a set of devices with fast links between all of them (a TPU slice; anything else
    is one slice). An axis has (its size) x (its dcn_ size) devices. Of the sizes within a slice at
    most one may be -1, which takes what is left of the slice's devices; of those across slices
    likewise, which takes what is left of the slices.
    """

    # Devices over which lanes (see LanesConfig) are spread; divides their number.
    lane: int = 1
    # Pipeline stages: each holds num_blocks / stage consecutive blocks.
    stage: int = 1
    # Replicas that share nothing but gradients.
    data: int = 1
    # Replicas among which parameters and optimiser state are sharded (ZeRO-3).
    fsdp: int = -1
    # Parts of each sequence (ring attention).
    context: int = 1
    # Parts of each head group, FFN and vocabulary (Megatron); divides num_kv_heads.
    tensor: int = 1
    # The same across slices: only what rarely talks should cross them.
    dcn_lane: int = 1
    dcn_stage: int = 1
    dcn_data: int = -1
    dcn_fsdp: int = 1
    dcn_context: int = 1
    dcn_tensor: int = 1
    # Parts of a micro-batch that follow each other through the stages; 0: 4 a stage, which leaves
    # a stage idle for (S - 1) / (5 S - 1) of the time.
    stage_microbatches: int = 0

    def __post_init__(self):
        for sizes in (self.ici_sizes, self.dcn_sizes):
            values = list(sizes.values())
            if any(size == 0 or size < -1 for size in values) or values.count(-1) > 1:
                told = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
                raise ValueError(
                    f"{told}: each is a positive number of devices, and at most one is -1."
                )
        config_checks.at_least("mesh.stage_microbatches", self.stage_microbatches, 0)
        if self.stage_microbatches and self.stage == self.dcn_stage == 1:
            raise ValueError(
                f"mesh.stage_microbatches={self.stage_microbatches} has no effect with "
                "mesh.stage=1: it is read by the pipeline. Set mesh.stage, or set "
                "--config.mesh.stage_microbatches=0, its default."
            )

        for name in ("lane", "stage", "dcn_lane", "dcn_stage"):
            if getattr(self, name) == -1:
                raise ValueError(
                    f"mesh.{name}=-1 would leave open what lanes or blocks are divided by: give "
                    "the number."
                )
        lanes, stages = self.lane * self.dcn_lane, self.stage * self.dcn_stage
        if lanes != 1 and stages != 1:
            raise ValueError(
                f"mesh.lane={lanes} and mesh.stage={stages} devices: lanes are spread over devices "
                "or the depth is, not both. With mesh.lane=1 each stage computes all lanes."
            )

    @property
    def ici_sizes(self) -> dict[str, int]:
        """Size within a slice, by the option's name."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def dcn_sizes(self) -> dict[str, int]:
        """Size across slices, by the option's name."""
        return {f"dcn_{axis}": getattr(self, f"dcn_{axis}") for axis in MESH_AXES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """What the run asks of its machine."""

    # Directory of compiled programs, so that a restart compiles nothing; "auto": the user's
    # cache directory; "": off.
    compilation_cache_dir: str = "auto"
    # Longest silence of a step, a validation batch or the loader before the run counts as hung
    # and ends with exit code 76; 0: no limit.
    step_timeout_seconds: float = 1800.0
    # The same for compiling, restoring and initialising, and waiting for a checkpoint.
    pause_timeout_seconds: float = 3600.0

    def __post_init__(self):
        for name in ("step_timeout_seconds", "pause_timeout_seconds"):
            config_checks.not_negative(f"runtime.{name}", getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run, complete."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig(num_steps=1000)
    lanes: LanesConfig = LanesConfig()
    mesh: MeshConfig = MeshConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    # Seed of the initial weights and of the data order.
    seed: int = 0

    def __post_init__(self):
        config_checks.seed("seed", self.seed)
        config_checks.without_effect(self, _default_value)
        self._check_segments()
        if self.model.recompute.plan == "reversible":
            config_checks.reversible(self)
        self._check_schedule()
        lanes, devices = self.num_lanes, self.mesh.lane * self.mesh.dcn_lane
        if devices != 1 and (lanes == 1 or lanes % devices):
            raise ValueError(
                f"mesh.lane={devices} devices do not divide {lanes} lane(s), so that some would "
                "repeat others' work: set mesh.lane=1, or give lanes.peak_lr or lanes.seed a "
                "multiple of it as entries."
            )

    def _check_segments(self):
        """A segment is a part of a stage's blocks."""
        largest = max(self.model.recompute.segment_blocks)
        num_stages = self.mesh.stage * self.mesh.dcn_stage
        blocks = self.model.num_blocks // num_stages
        if largest >= blocks and self.model.recompute.plan == "segments" and largest:
            a_stage = f" / {num_stages} stages = {blocks}" if num_stages > 1 else ""
            raise ValueError(
                f"model.recompute.segment_blocks={self.model.recompute.segment_blocks} does not "
                f"divide model.num_blocks={self.model.num_blocks}{a_stage} at all: a segment of "
                f"{largest} blocks is all there are. Take fewer, or (0,), which fits any depth."
            )

    def _check_schedule(self):
        """Warm-up and decay must fit into the run."""
        optim, num_steps = self.optim, self.train.num_steps
        decay = optim.decay_steps(num_steps)
        if optim.schedule in ("cosine", "wsd") and not 0 < decay <= num_steps - optim.warmup_steps:
            fraction = f"optim.wsd_decay_fraction={optim.wsd_decay_fraction} ({decay} steps)"
            raise ValueError(
                f"The {optim.schedule} schedule has no room for its decay, at least 1 step after "
                f"the warm-up: optim.warmup_steps={optim.warmup_steps}, train.num_steps="
                f"{num_steps}{f', {fraction}' if optim.schedule == 'wsd' else ''}. Change one of "
                "them."
            )

    @property
    def lane_settings(self) -> tuple[tuple[float, int], ...]:
        """(peak_lr, seed) of every lane, at least one."""
        count = max(1, len(self.lanes.peak_lr), len(self.lanes.seed))
        rates = self.lanes.peak_lr or (self.optim.peak_lr,) * count
        seeds = self.lanes.seed or (self.seed,) * count
        return tuple(zip(rates, seeds, strict=True))

    @property
    def num_lanes(self) -> int:
        return len(self.lane_settings)

    def for_lane(self, lane: int) -> "Config":
        """The single run that lane `lane` is."""
        peak_lr, seed = self.lane_settings[lane]
        return dataclasses.replace(
            self,
            seed=seed,
            lanes=LanesConfig(),
            mesh=dataclasses.replace(self.mesh, lane=1, dcn_lane=1),
            optim=dataclasses.replace(self.optim, peak_lr=peak_lr),
        )


def default() -> ml_collections.ConfigDict:
    """Every option with its default, ready to be edited by a config file and by flags.

    The length of the run is left open: set `train.num_steps` or `train.num_tokens`.
    """
    values = config_door.defaults(Config())
    values["train"] |= dict(num_steps=0, num_tokens=0)
    return ml_collections.ConfigDict(values)


def from_config_dict(values: typing.Mapping) -> Config:
    """Checks `values` (a ConfigDict, or the mapping of a saved run) and freezes it.

    Raises:
      ValueError: an unknown key (the nearest valid one is named), a value of the wrong type or
        outside its limits, or options that contradict each other or have no effect.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return config_door.build(Config, values)


def to_dict(config: Config) -> dict:
    """The config as plain nested dictionaries, as written to `config.json`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: typing.Mapping) -> Config:
    """The inverse of `to_dict`."""
    return from_config_dict(values)


def differences(old: Config, new: Config) -> dict[str, tuple]:
    """Every option that differs, by its dotted name: (old value, new value)."""
    old_flat = config_door.flat(dataclasses.asdict(old))
    new_flat = config_door.flat(dataclasses.asdict(new))
    return {
        key: (old_flat[key], new_flat[key]) for key in new_flat if old_flat[key] != new_flat[key]
    }


def _default_value(name: str):
    """An option's default, by its dotted name; no `Config()`, whose checks ask for it."""
    section, *parts = name.split(".")
    [value] = [field.default for field in dataclasses.fields(Config) if field.name == section]
    for part in parts:
        value = getattr(value, part)
    return value
