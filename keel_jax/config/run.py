"""One run: all its options, checked against each other, and their conversion to and from JSON."""

import dataclasses
import json
import math
import typing

import ml_collections

from keel_jax import errors
from keel_jax.config import effects, limits, mapping, options, renamed, topologies
from keel_jax.config.data import DataConfig
from keel_jax.config.mesh import MeshConfig
from keel_jax.config.model import ModelConfig
from keel_jax.config.optim import OptimConfig
from keel_jax.config.options import Change, option
from keel_jax.config.tasks import TasksConfig
from keel_jax.config.train import RuntimeConfig, TelemetryConfig, TrainConfig, TrialsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run, complete."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig(num_steps=1000)
    trials: TrialsConfig = TrialsConfig()
    mesh: MeshConfig = MeshConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    tasks: TasksConfig = TasksConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    # Seed of the initial weights and of the data order.
    seed: int = option(0, Change.RUN)

    def __post_init__(self):
        limits.seed("seed", self.seed)
        effects.without_effect(self, _default_value)
        self._check_segments()
        if self.model.recompute.plan == "reversible":
            self._check_reversible()
        self._check_schedule()
        self._check_lengths()
        trials, devices = self.num_trials, self.mesh.trial * self.mesh.dcn_trial
        if devices != 1 and (trials == 1 or trials % devices):
            raise errors.UserError(
                f"mesh.trial={devices} devices do not divide {trials} trial(s), so some would "
                "repeat the work of others: set mesh.trial=1, or give trials.peak_lr or "
                "trials.seed a multiple of that many entries."
            )

    def _check_segments(self):
        """A segment must be smaller than a stage's number of blocks."""
        largest = max(self.model.recompute.segment_blocks)
        num_stages = self.mesh.stage * self.mesh.dcn_stage
        blocks = self.model.num_blocks // num_stages
        if largest >= blocks and self.model.recompute.plan == "segments" and largest:
            a_stage = f" / {num_stages} stages = {blocks}" if num_stages > 1 else ""
            raise errors.UserError(
                f"model.recompute.segment_blocks={self.model.recompute.segment_blocks} does not "
                f"divide model.num_blocks={self.model.num_blocks}{a_stage} at all: a segment of "
                f"{largest} blocks has all of them. Use fewer, or (0,), which fits any depth."
            )

    def _check_reversible(self):
        """Whether blocks can be inverted."""
        model, mesh = self.model, self.mesh
        stages = mesh.stage * mesh.dcn_stage
        families = ", ".join(topologies.names(lambda row: row.is_reversible))
        checks = (
            (
                not topologies.row(model.topology).is_reversible,
                f"model.topology={model.topology!r} ({families} have an alpha that contracts)",
            ),
            (
                model.stream_dtype != "float32",
                f"model.stream_dtype={model.stream_dtype!r} (only float32 resolves a stream and "
                "its branch)",
            ),
            (stages > 1, f"{stages} stages of the mesh (1)"),
            (
                self.num_trials > 1,
                f"{self.num_trials} trials (1: each would pay for the others' fall-backs)",
            ),
            (
                model.recompute.anchor_blocks > model.num_blocks,
                f"model.recompute.anchor_blocks={model.recompute.anchor_blocks} for "
                f"model.num_blocks={model.num_blocks} (at most as many)",
            ),
        )
        for is_wrong, message in checks:
            if is_wrong:
                raise errors.UserError(
                    f"model.recompute.plan='reversible' cannot have {message}: change it, or use "
                    "model.recompute.plan=segments, which saves as little."
                )

    def _check_lengths(self):
        """The longest trial is as long as the run."""
        for name, whole in (
            ("num_steps", self.train.num_steps),
            ("num_epochs", self.train.num_epochs),
        ):
            lengths = getattr(self.trials, name)
            if lengths and (whole or name == "num_epochs") and max(lengths) != whole:
                raise errors.UserError(
                    f"The longest trial of trials.{name}={lengths} is not train.{name}={whole}, "
                    f"the length of the run: set train.{name}={max(lengths)}."
                )

    def _check_schedule(self):
        """Warm-up and decay must fit into the run, and into its shortest trial."""
        optim, num_steps = self.optim, min(self.trial_steps)
        if not num_steps:  # of so many epochs: checked where the data are known
            return
        decay = optim.decay_steps(num_steps)
        if optim.schedule in ("cosine", "wsd") and not 0 < decay <= num_steps - optim.warmup_steps:
            length = "train.num_steps"
            if self.trials.num_steps:
                length = "the shortest of trials.num_steps"
            fraction = f"optim.wsd_decay_fraction={optim.wsd_decay_fraction} ({decay} steps)"
            raise errors.UserError(
                f"The {optim.schedule} schedule has no room for its decay, at least 1 step after "
                f"the warm-up: optim.warmup_steps={optim.warmup_steps}, {length}="
                f"{num_steps}{f', {fraction}' if optim.schedule == 'wsd' else ''}. Change one of "
                "them."
            )

    @property
    def trial_settings(self) -> tuple[tuple[float, int], ...]:
        """(peak_lr, seed) of every trial, at least one."""
        count = max(1, self.trials.count)
        rates = self.trials.peak_lr or (self.optim.peak_lr,) * count
        seeds = self.trials.seed or (self.seed,) * count
        return tuple(zip(rates, seeds, strict=True))

    @property
    def trial_steps(self) -> tuple[int, ...]:
        """The length of every trial in steps; 0 if they are in epochs and not resolved yet."""
        return self.trials.num_steps or (self.train.num_steps,) * self.num_trials

    def in_steps(self, steps_per_epoch: float) -> "Config":
        """The config with lengths in epochs as steps, rounded up; without such lengths, itself."""
        if not self.train.num_epochs:
            return self

        def steps(num_epochs: float) -> int:
            # A product that is whole but for float64's rounding is whole.
            return math.ceil(num_epochs * steps_per_epoch - 1e-9)

        train = dataclasses.replace(
            self.train, num_steps=steps(self.train.num_epochs), num_tokens=0
        )
        trial_steps = tuple(map(steps, self.trials.num_epochs)) or self.trials.num_steps
        trials = dataclasses.replace(self.trials, num_steps=trial_steps)
        return dataclasses.replace(self, train=train, trials=trials)

    @property
    def num_trials(self) -> int:
        return len(self.trial_settings)

    def for_trial(self, trial: int) -> "Config":
        """The single run that trial `trial` is."""
        peak_lr, seed = self.trial_settings[trial]
        train = self.train
        if (num_steps := self.trial_steps[trial]) != train.num_steps:
            train = dataclasses.replace(train, num_steps=num_steps, num_tokens=0)
        if self.trials.num_epochs:
            train = dataclasses.replace(train, num_epochs=self.trials.num_epochs[trial])
        return dataclasses.replace(
            self,
            seed=seed,
            train=train,
            trials=TrialsConfig(),
            mesh=dataclasses.replace(self.mesh, trial=1, dcn_trial=1),
            optim=dataclasses.replace(self.optim, peak_lr=peak_lr),
        )


def default() -> ml_collections.ConfigDict:
    """Every option with its default, ready to be edited by a config file and by flags.

    The length of the run is left open: set `train.num_steps` or `train.num_tokens`.
    """
    return ml_collections.ConfigDict(mapping.defaults(Config))


def from_config_dict(values: typing.Mapping) -> Config:
    """Checks `values` (a ConfigDict, or the mapping of a saved run) and freezes it.

    Raises:
      UserError: an unknown key (the nearest valid one is named), a value of the wrong type or
        outside its limits, or options that contradict each other or have no effect.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    mapping.require_mapping(values, "The config")
    for old, new in renamed.names_in(values).items():
        raise errors.UserError(f"{old} is called {new} now: rename it.")
    return mapping.build(Config, values)


def to_dict(config: Config) -> dict:
    """The config as plain nested dictionaries, as written to `config.json`."""
    return _as_json(dataclasses.asdict(config))


def from_dict(values: typing.Mapping) -> Config:
    """The inverse of `to_dict`; renamed options are accepted under their old names, too."""
    mapping.require_mapping(values, "The config")
    return from_config_dict(renamed.translate(values))


def differences(old: Config, new: Config) -> dict[str, tuple]:
    """Every option that differs, by its dotted name: (old value, new value)."""
    old_flat = mapping.flat(dataclasses.asdict(old))
    new_flat = mapping.flat(dataclasses.asdict(new))
    return {
        key: (old_flat[key], new_flat[key]) for key in new_flat if old_flat[key] != new_flat[key]
    }


def results_options(config: Config) -> dict[str, object]:
    """The options that decide a run's results and are not at their baseline, by name.

    Two runs with equal options and equal data have equal results, up to rounding. Data are
    identified by their fingerprint, not by data.path.
    """
    values = mapping.flat(to_dict(config))
    return {
        name: values[name]
        for name, field in options.fields(Config).items()
        if options.change_of(field) is not options.Change.NOTHING
        and values[name] != _as_json(field.metadata["baseline"])
    }


def model_options(config: Config) -> dict[str, object]:
    """The options that decide what function the parameters are of and are not at their baseline."""
    fields = options.fields(Config)
    return {
        name: value
        for name, value in results_options(config).items()
        if options.change_of(fields[name]) is options.Change.MODEL
    }


def _as_json(value):
    return json.loads(json.dumps(value))


def _default_value(name: str):
    """An option's default, by its dotted name; not from `Config()`, whose checks call this."""
    section, *parts = name.split(".")
    [value] = [field.default for field in dataclasses.fields(Config) if field.name == section]
    for part in parts:
        value = getattr(value, part)
    return value
