"""The options of the optimizer: its groups and its schedule."""

import dataclasses

from keel_jax import errors
from keel_jax.config import limits
from keel_jax.config.options import Change, option

OPTIMIZERS = ("adamw", "lion", "adafactor", "muon")
SCHEDULES = ("cosine", "wsd", "constant", "linear_ramp")
# The square root of float32's smallest normal number, 1.1e-19. Squares of gradients below it are 0,
# and where v = 0 Adam's update is m / epsilon: bounded only while epsilon is above it.
_LEAST_EPSILON = 2.0**-63


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamGroups:
    """One multiplier for each kind of parameter."""

    # The token embedding (and the logit matrix if tied).
    embedding: float = option(1.0, Change.RESULTS)
    # Attention's matrices.
    attention: float = option(1.0, Change.RESULTS)
    # The FFN's matrices.
    ffn: float = option(1.0, Change.RESULTS)
    # Gains of the norms, and the scales that nGPT has instead.
    norm: float = option(1.0, Change.RESULTS)
    # What the residual connections learn: scales (the paper's beta), hyper-connections' weights,
    # attention residuals' queries, nGPT's step sizes.
    residual: float = option(1.0, Change.RESULTS)
    # The untied logit matrix.
    output: float = option(1.0, Change.RESULTS)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            limits.not_negative(f"optim multiplier {field.name}", getattr(self, field.name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecayGroups(ParamGroups):
    """Weight-decay multipliers: gains and residual scales do not decay.

    Decay on them would change the effective alpha.
    """

    norm: float = option(0.0, Change.RESULTS)
    residual: float = option(0.0, Change.RESULTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its schedule and its groups."""

    # One of OPTIMIZERS.
    name: str = option("adamw", Change.RUN)
    # The schedule's maximum. It is part of the train state: changing it recompiles nothing.
    peak_lr: float = option(3e-3, Change.RESULTS)
    # First- and second-moment decay (paper: 0.9, 0.95); Adafactor reads neither.
    beta1: float = option(0.9, Change.RESULTS)
    beta2: float = option(0.95, Change.RESULTS)
    # Adam's epsilon (Adafactor squares it, Muon adds it to its norm, Lion reads none). Keel's
    # branch gradients scale as 1/alpha, so it must be far below them.
    epsilon: float = option(1e-15, Change.RESULTS)
    # Decoupled weight decay, times the learning rate, times decay_multiplier (paper: 0.01).
    weight_decay: float = option(0.01, Change.RESULTS)
    # Global gradient norm above which gradients are scaled down (paper: 1.0); 0: no clipping.
    clip_norm: float = option(1.0, Change.RESULTS)
    # One of SCHEDULES; each rises linearly to 1 over warmup_steps.
    schedule: str = option("cosine", Change.RESULTS)
    # Optimizer steps of the linear rise; linear_ramp ignores this and rises over the whole run.
    warmup_steps: int = option(100, Change.RESULTS)
    # Learning rate at the end of the run as a fraction of the peak; read by cosine and wsd.
    final_lr_fraction: float = option(0.1, Change.RESULTS)
    # wsd: fraction of the run, at its end, over which the rate falls.
    wsd_decay_fraction: float = option(0.2, Change.RESULTS)
    # Learning-rate multiplier per group.
    lr_multiplier: ParamGroups = ParamGroups()
    # Weight-decay multiplier per group: the decay mask.
    decay_multiplier: DecayGroups = DecayGroups()

    def __post_init__(self):
        limits.one_of("optim.name", self.name, OPTIMIZERS)
        limits.one_of("optim.schedule", self.schedule, SCHEDULES)
        limits.positive("optim.peak_lr", self.peak_lr)
        limits.positive("optim.epsilon", self.epsilon)
        for name in ("beta1", "beta2", "final_lr_fraction", "wsd_decay_fraction"):
            limits.fraction(f"optim.{name}", getattr(self, name))
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                raise errors.UserError(f"optim.{name}=1 never forgets: it must be below 1.")
        for name in ("weight_decay", "clip_norm"):
            limits.not_negative(f"optim.{name}", getattr(self, name))
        limits.at_least("optim.warmup_steps", self.warmup_steps, 0)
        if self.name != "lion" and self.epsilon < _LEAST_EPSILON:
            raise errors.UserError(
                f"optim.epsilon={self.epsilon} is below {_LEAST_EPSILON:.1e}: the squares of "
                "gradients of this size are 0 in float32, and updates would be divided by it alone."
            )

    def decay_steps(self, num_steps: int) -> int:
        """Steps of a run of `num_steps` over which the rate falls."""
        if self.schedule == "cosine":
            return num_steps - self.warmup_steps
        if self.schedule == "wsd":
            return round(self.wsd_decay_fraction * num_steps)
        return 0
