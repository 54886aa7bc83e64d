"""The one home of every option: its default, its meaning, its limits.

At the door a run is an `ml_collections.ConfigDict` (`default()`, edited by a config file and by
`--config.a.b=value` flags); inside it is a tree of frozen dataclasses (`from_config_dict`), checked
once. Numbers that follow from the options (sub-layers, alpha, FLOPs) are derived here and nowhere
else.

"Layer" is never used alone: N = `num_blocks` blocks hold L = 2N = `num_sublayers` sub-layers (each
one residual connection: attention or FFN), as in "Post-LayerNorm Is Back" (arXiv:2601.19895).
"""

import dataclasses
import difflib
import json
import types
import typing

import ml_collections
from ml_collections import config_dict

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
)
OPTIMIZERS = ("adamw", "lion", "adafactor", "muon")
SCHEDULES = ("cosine", "wsd", "constant", "linear_ramp")
# Topologies whose equation has an alpha that may be set.
_WITH_ALPHA = ("keel", "keel_no_inner_norm", "keel_scaled_input", "keel_scaled_inner_norm",
               "deepnorm")


def _one_of(name: str, value: str, allowed: typing.Sequence[str]):
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{name}={value!r} is not known. Did you mean {near!r}? All: {', '.join(allowed)}."
        )


def _at_least(name: str, value: int, least: int):
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}.")


def _positive(name: str, value: float):
    if not value > 0:
        raise ValueError(f"{name}={value} must be positive.")


def _fraction(name: str, value: float):
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie in [0, 1].")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The decoder: its shape, its residual topology, its precision."""

    # Residual topology, one of TOPOLOGIES (equations: keel_jax/model/residual.py).
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
    # RMSNorm on queries and keys, per head, before RoPE.
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
    # Standard deviation of every weight's normal initialiser (paper: 0.02).
    init_std: float = 0.02
    # Matrix multiplications' input dtype.
    compute_dtype: str = "bfloat16"
    # The residual stream's dtype; bf16 swallows the branch at large alpha (docs/numerics.md).
    stream_dtype: str = "float32"
    # What the backward pass recomputes: "none" or "block" (everything but each block's input).
    remat: str = "block"

    def __post_init__(self):
        _one_of("model.topology", self.topology, TOPOLOGIES)
        _one_of("model.final_norm", self.final_norm, ("auto", "on", "off"))
        _one_of("model.keel_first_block", self.keel_first_block, ("v2", "v1"))
        _one_of("model.remat", self.remat, ("none", "block"))
        for name in ("compute_dtype", "stream_dtype"):
            _one_of(f"model.{name}", getattr(self, name), ("float32", "bfloat16"))
        _at_least("model.num_blocks", self.num_blocks, 1)
        for name in ("d_model", "d_ffn", "num_heads", "num_kv_heads"):
            _at_least(f"model.{name}", getattr(self, name), 1)
        if self.vocab_size is not None:
            _at_least("model.vocab_size", self.vocab_size, 2)
        _positive("model.norm_epsilon", self.norm_epsilon)
        _positive("model.rope_theta", self.rope_theta)
        _positive("model.init_std", self.init_std)
        _fraction("model.mix_ln_post_fraction", self.mix_ln_post_fraction)
        if self.alpha is not None:
            _positive("model.alpha", self.alpha)
            if self.topology not in _WITH_ALPHA:
                raise ValueError(
                    f"model.alpha={self.alpha} has no effect on topology {self.topology!r}: "
                    f"its equation has no alpha. Unset it, or choose one of {_WITH_ALPHA}."
                )
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
        half of the keys on average. Both conventions are in use: say which.
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
    # Batches kept ready ahead of the step.
    prefetch_batches: int = 4

    def __post_init__(self):
        if self.weights and len(self.weights) != len(self.paths):
            raise ValueError(
                f"data.weights has {len(self.weights)} entries, data.path names "
                f"{len(self.paths)} directories: give one weight each, or none."
            )
        for weight in self.weights:
            _positive("data.weights", weight)
        _at_least("data.num_threads", self.num_threads, 0)
        _at_least("data.prefetch_batches", self.prefetch_batches, 1)

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
    # Gains of the norms.
    norm: float = 1.0
    # Learned residual scales (the paper's beta).
    residual: float = 1.0
    # The untied logit matrix.
    output: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"optim multiplier {field.name}={getattr(self, field.name)} < 0")


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
    # Optimiser steps of the linear rise; linear_ramp rises over the whole run instead.
    warmup_steps: int = 100
    # Learning rate at the end of the run as a fraction of the peak; read by cosine and wsd.
    final_lr_fraction: float = 0.1
    # wsd: fraction of the run, at its end, over which the rate falls.
    wsd_decay_fraction: float = 0.2
    # Learning-rate multiplier per group.
    lr_multiplier: ParamGroups = ParamGroups()
    # Weight-decay multiplier per group: the decay mask. Gains and residual scales do not decay,
    # because decay on them would change the effective alpha.
    decay_multiplier: ParamGroups = ParamGroups(norm=0.0, residual=0.0)

    def __post_init__(self):
        _one_of("optim.name", self.name, OPTIMIZERS)
        _one_of("optim.schedule", self.schedule, SCHEDULES)
        _positive("optim.peak_lr", self.peak_lr)
        _positive("optim.epsilon", self.epsilon)
        for name in ("beta1", "beta2", "final_lr_fraction", "wsd_decay_fraction"):
            _fraction(f"optim.{name}", getattr(self, name))
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                raise ValueError(f"optim.{name}=1 never forgets: it must be below 1.")
        for name in ("weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name}={getattr(self, name)} is negative.")
        _at_least("optim.warmup_steps", self.warmup_steps, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how much at a time, and what is written down on the way."""

    # Length of the run in optimiser steps; None: from num_tokens.
    num_steps: int | None = None
    # Length of the run in tokens (rounded up to steps); None: from num_steps.
    num_tokens: int | None = None
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
    # Steps between two checkpoints; 0: only at the end.
    checkpoint_every_steps: int = 0
    # Newest checkpoints that are kept.
    keep_checkpoints: int = 2
    # Work directory or checkpoint whose weights start this run, with a new optimiser.
    init_from: str = ""
    # "first:last", steps whose device trace is written for TensorBoard's profiler.
    profile_steps: str = ""

    def __post_init__(self):
        if (self.num_steps is None) == (self.num_tokens is None):
            raise ValueError(
                f"Give the length of the run once: train.num_steps={self.num_steps}, "
                f"train.num_tokens={self.num_tokens}."
            )
        for name in ("batch_size", "seq_len", "accumulation_steps", "log_every_steps"):
            _at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("loss_chunk", "eval_every_steps", "eval_num_batches",
                     "checkpoint_every_steps"):
            _at_least(f"train.{name}", getattr(self, name), 0)
        _at_least("train.keep_checkpoints", self.keep_checkpoints, 1)
        if self.z_loss < 0:
            raise ValueError(f"train.z_loss={self.z_loss} is negative.")
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"train.batch_size={self.batch_size} is not a multiple of "
                f"train.accumulation_steps={self.accumulation_steps}."
            )
        if self.num_steps is None:
            steps = -(-self.num_tokens // self.tokens_per_step)
            object.__setattr__(self, "num_steps", steps)
        else:
            object.__setattr__(self, "num_tokens", self.num_steps * self.tokens_per_step)
        _at_least("train.num_steps", self.num_steps, 1)
        self.profile_range  # noqa: B018  (parsed here so that a bad value fails at the door)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def profile_range(self) -> tuple[int, int] | None:
        """First and last step of the trace, or None."""
        if not self.profile_steps:
            return None
        first, colon, last = self.profile_steps.partition(":")
        if not (colon and first.isdigit() and last.isdigit() and int(first) <= int(last)):
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
            _positive("lanes.peak_lr", value)
        if self.peak_lr and self.seed and len(self.peak_lr) != len(self.seed):
            raise ValueError(
                f"lanes.peak_lr has {len(self.peak_lr)} entries, lanes.seed has "
                f"{len(self.seed)}: one (learning rate, seed) per lane."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; at most one size may be -1, which takes what is left."""

    # Independent lanes (see LanesConfig) spread over devices.
    lane: int = 1
    # Replicas that share nothing but gradients.
    data: int = 1
    # Replicas among which parameters and optimiser state are sharded (ZeRO-3).
    fsdp: int = -1

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"mesh sizes (lane, data, fsdp) = {sizes}: each is a positive number of devices, "
                "and at most one is -1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """What the run asks of its machine."""

    # Directory of compiled programs, so that a restart compiles nothing; "auto": the user's
    # cache directory; "": off.
    compilation_cache_dir: str = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run, complete."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig(num_steps=1000)
    lanes: LanesConfig = LanesConfig()
    mesh: MeshConfig = MeshConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    # Seed of the initial weights and of the data order.
    seed: int = 0

    def __post_init__(self):
        warmup = self.optim.warmup_steps
        if self.optim.schedule == "wsd":
            decay = round(self.optim.wsd_decay_fraction * self.train.num_steps)
            if not 1 <= decay <= self.train.num_steps - warmup:
                raise ValueError(
                    f"optim.wsd_decay_fraction={self.optim.wsd_decay_fraction} of train.num_steps="
                    f"{self.train.num_steps} is a decay of {decay} steps, after optim.warmup_steps="
                    f"{warmup}: it must be at least 1, and both must fit into the run."
                )
        if self.optim.schedule == "cosine" and warmup >= self.train.num_steps:
            raise ValueError(
                f"optim.warmup_steps={warmup} leaves nothing of train.num_steps="
                f"{self.train.num_steps} for the {self.optim.schedule} schedule; shorten the "
                "warm-up or lengthen the run."
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
            optim=dataclasses.replace(self.optim, peak_lr=peak_lr),
        )


def default() -> ml_collections.ConfigDict:
    """Every option with its default, ready to be edited by a config file and by flags.

    The length of the run is left open: set `train.num_steps` or `train.num_tokens`.
    """
    return ml_collections.ConfigDict(_door_defaults(Config))


def from_config_dict(values: typing.Mapping) -> Config:
    """Checks `values` (a ConfigDict, or the mapping of a saved run) and freezes it.

    Raises:
      ValueError: an unknown key (the nearest valid one is named), a value of the wrong type or
        outside its limits, or options that contradict each other.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return _build(Config, values, "")


def to_dict(config: Config) -> dict:
    """The config as plain nested dictionaries, as written to `config.json`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: typing.Mapping) -> Config:
    """The inverse of `to_dict`: the saved length is given both ways, and tokens follow steps."""
    values = {**values, "train": {**values["train"], "num_tokens": None}}
    return from_config_dict(values)


def differences(old: Config, new: Config) -> dict[str, tuple]:
    """Every option that differs, by its dotted name: (old value, new value)."""
    old_flat, new_flat = _flat(dataclasses.asdict(old)), _flat(dataclasses.asdict(new))
    return {
        key: (old_flat[key], new_flat[key]) for key in new_flat if old_flat[key] != new_flat[key]
    }


def _flat(tree: typing.Mapping, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _door_defaults(cls) -> dict:
    door = {}
    hints = typing.get_type_hints(cls)
    template = cls(num_steps=1) if cls is TrainConfig else cls()
    for field in dataclasses.fields(cls):
        value, kind = getattr(template, field.name), hints[field.name]
        if dataclasses.is_dataclass(kind):
            # The field's own default may differ from the class's (decay_multiplier does).
            inner = _door_defaults(kind)
            if cls is not Config:
                inner = dataclasses.asdict(value)
            door[field.name] = inner
        elif _optional(kind):
            door[field.name] = config_dict.placeholder(_optional(kind))
        else:
            door[field.name] = value
    return door


def _build(cls, values: typing.Mapping, prefix: str):
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"Unknown config key {prefix}{key}. Did you mean {prefix}{near}?")
    built = {}
    for key, value in values.items():
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            built[key] = _build(kind, value, f"{prefix}{key}.")
        else:
            built[key] = _coerce(value, kind, prefix + key)
    return cls(**built)


def _coerce(value, kind, name: str):
    """`value` as `kind`; integers pass as floats, lists as tuples, nothing else changes type."""
    if _optional(kind):
        if value is None:
            return None
        kind = _optional(kind)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise ValueError(f"{name}={value!r}: expected a tuple, as in (1, 2).")
        return tuple(_coerce(item, typing.get_args(kind)[0], name) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name}={value!r}: expected {kind.__name__}.")
    return value


def _optional(kind):
    """The T of `T | None`, else None."""
    if isinstance(kind, types.UnionType):
        return next(arg for arg in typing.get_args(kind) if arg is not type(None))
    return None
