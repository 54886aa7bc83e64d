"""The options of the training loop: length, batch, and what is written during the run."""

import dataclasses
import typing

from keel_jax import errors
from keel_jax.config import limits
from keel_jax.config.options import Change, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The length of the run, its batches, and what is written during it."""

    # Length of the run in optimizer steps; 0: from num_tokens.
    num_steps: int = option(0, Change.RESULTS)
    # Length of the run in tokens, rounded up to steps; 0: from num_steps.
    num_tokens: int = option(0, Change.RESULTS)
    # Length of the run in passes over the windows of data.path, rounded up to steps; 0: from
    # num_steps or num_tokens.
    num_epochs: float = option(0.0, Change.RESULTS)
    # Sequences per optimizer step, over all devices.
    batch_size: int = option(16, Change.RUN)
    # T, tokens per sequence.
    seq_len: int = option(1024, Change.RUN)
    # Micro-batches per optimizer step, run one after another; divides batch_size.
    accumulation_steps: int = option(1, Change.NOTHING)
    # Sequence positions whose logits are in memory at a time; 0: all of them.
    loss_chunk: int = option(256, Change.NOTHING)
    # Weight of mean(log Z ^ 2), which keeps logits from drifting; 0: off.
    z_loss: float = option(0.0, Change.RESULTS)
    # Steps between two lines in metrics.jsonl.
    log_every_steps: int = option(10, Change.RESULTS)
    # Steps between two validations; 0: only at the end.
    eval_every_steps: int = option(0, Change.RESULTS)
    # Batches per validation during the run; 0: the whole split.
    eval_num_batches: int = option(0, Change.RESULTS)
    # Steps between two checkpoints; 0: only at the end and on a stop request.
    checkpoint_every_steps: int = option(1000, Change.NOTHING)
    # Minutes after which the next logged step also writes one; 0: only by steps.
    checkpoint_every_minutes: float = option(0.0, Change.NOTHING)
    # Steps between two that are computed twice and compared bit for bit, and after which replicas
    # are compared, to find silent corruption; 0: never. The device then holds the state twice
    # (docs/goodput.md).
    check_every_steps: int = option(0, Change.NOTHING)
    # Number of newest checkpoints that are kept.
    keep_checkpoints: int = option(2, Change.NOTHING)
    # Of checkpoints whose step is a multiple of this, all are kept; 0: none beyond the newest.
    keep_every_steps: int = option(0, Change.NOTHING)
    # Number of checkpoints with the lowest validation losses that are kept too; each validation
    # then writes one; of several trials the lowest loss of any counts. 0: none beyond the newest.
    keep_best: int = option(0, Change.NOTHING)
    # Validations in a row without a new lowest loss after which a run, or a trial of it, ends; 0:
    # it never ends early.
    early_stopping_validations: int = option(0, Change.RESULTS)
    # What of a checkpoint is compared with its manifest before the run continues from it:
    # "contents" (every byte is read) or "sizes" (of all files).
    verify_checkpoints: str = option("contents", Change.NOTHING)
    # Work directory or checkpoint whose weights start this run, with a new optimizer.
    init_from: str = option("", Change.RUN)
    # Whether init_from may hold another model: of its weights those that fit are taken, all others
    # keep their random values and are named.
    init_partially: bool = option(False, Change.RUN)
    # When the run continues from the checkpoint of this step, its optimizer begins anew; 0: never.
    reset_optimizer_at_step: int = option(0, Change.RESULTS)
    # "first:last", the steps, counted from 1, that are traced for TensorBoard's profiler.
    profile_steps: str = option("", Change.NOTHING)

    def __post_init__(self):
        for name in ("batch_size", "seq_len", "accumulation_steps", "log_every_steps"):
            limits.at_least(f"train.{name}", getattr(self, name), 1)
        for name in (
            "loss_chunk",
            "eval_every_steps",
            "eval_num_batches",
            "checkpoint_every_steps",
            "keep_every_steps",
            "keep_best",
            "early_stopping_validations",
            "check_every_steps",
            "reset_optimizer_at_step",
        ):
            limits.at_least(f"train.{name}", getattr(self, name), 0)
        limits.not_negative("train.checkpoint_every_minutes", self.checkpoint_every_minutes)
        limits.at_least("train.keep_checkpoints", self.keep_checkpoints, 1)
        limits.one_of("train.verify_checkpoints", self.verify_checkpoints, ("contents", "sizes"))
        limits.not_negative("train.z_loss", self.z_loss)
        limits.not_negative("train.num_epochs", self.num_epochs)
        if self.batch_size % self.accumulation_steps:
            raise errors.UserError(
                f"train.batch_size={self.batch_size} is not a multiple of "
                f"train.accumulation_steps={self.accumulation_steps}."
            )
        self._resolve_length()
        first, last = self.profile_range or (1, 1)
        if self.num_steps and not 1 <= first <= last <= self.num_steps:
            raise errors.UserError(
                f"train.profile_steps={self.profile_steps!r} must be first:last with 1 <= first <= "
                f"last <= train.num_steps={self.num_steps}."
            )

    def _resolve_length(self):
        """Sets both numbers; a length in epochs is resolved where the data are known."""
        steps, tokens = self.num_steps, self.num_tokens
        limits.at_least("train.num_steps", steps, 0)
        limits.at_least("train.num_tokens", tokens, 0)
        if not (steps or tokens):
            if self.num_epochs:
                return
            raise errors.UserError(
                "The run has no length: set train.num_steps or train.num_tokens (0: from the "
                "other one), or train.num_epochs."
            )
        if steps and tokens and tokens != steps * self.tokens_per_step:
            raise errors.UserError(
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
            raise errors.UserError(
                f"train.profile_steps={self.profile_steps!r}: write it as first:last, as in 10:12."
            )
        return int(first), int(last)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialsConfig:
    """Several runs in one compiled program, in parallel: one (peak_lr, seed, length) each.

    With all empty there is one trial, (optim.peak_lr, seed). Each list has one entry per trial; an
    empty one repeats the run's own value. A trial that is shorter than the run ends there with its
    own schedule, and from then on its state does not change.
    """

    LISTS: typing.ClassVar = ("peak_lr", "seed", "num_steps", "num_epochs")

    # Peak learning rate of each trial.
    peak_lr: tuple[float, ...] = option((), Change.RUN)
    # Seed of each trial (initial weights and data order).
    seed: tuple[int, ...] = option((), Change.RUN)
    # Length of each trial in optimizer steps; the longest is that of the run.
    num_steps: tuple[int, ...] = option((), Change.RUN)
    # Length of each trial in epochs; the longest is train.num_epochs.
    num_epochs: tuple[float, ...] = option((), Change.RUN)

    def __post_init__(self):
        for value in self.num_steps:
            limits.at_least("trials.num_steps", value, 1)
        for value in self.num_epochs:
            limits.positive("trials.num_epochs", value)
        for value in self.peak_lr:
            limits.positive("trials.peak_lr", value)
        for value in self.seed:
            limits.seed("trials.seed", value)
        given = {name: getattr(self, name) for name in self.LISTS if getattr(self, name)}
        names = list(given)
        for name in names[1:]:
            if len(given[name]) != len(given[names[0]]):
                raise errors.UserError(
                    f"trials.{names[0]} has {len(given[names[0]])} entries, trials.{name} has "
                    f"{len(given[name])}: one of each per trial."
                )

    @property
    def count(self) -> int:
        """How many trials the lists describe; 0: they are empty."""
        return max(len(getattr(self, name)) for name in self.LISTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """The statistics that are recorded of every sub-layer (docs/telemetry.md)."""

    # Steps between two records, each of which costs one more forward and backward pass; the first,
    # the last and a diverging step are recorded too. 0: off, and divergences are not explained.
    every_steps: int = option(100, Change.RESULTS)

    def __post_init__(self):
        limits.at_least("telemetry.every_steps", self.every_steps, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The compilation cache and the time limits."""

    # Directory of compiled programs, so that a restart compiles nothing; "auto": the user's
    # cache directory; "": off.
    compilation_cache_dir: str = option("auto", Change.NOTHING)
    # Longest time without progress of a step, a validation batch or the loader before the run
    # counts as hung and ends with exit code 76; 0: no limit.
    step_timeout_seconds: float = option(1800.0, Change.NOTHING)
    # The same for compiling, restoring and initializing, and waiting for a checkpoint.
    pause_timeout_seconds: float = option(3600.0, Change.NOTHING)

    def __post_init__(self):
        for name in ("step_timeout_seconds", "pause_timeout_seconds"):
            limits.not_negative(f"runtime.{name}", getattr(self, name))
