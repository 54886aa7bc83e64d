"""Limits of single options, and the table of where an option is read at all; see `config`."""

import difflib
import typing


def one_of(name: str, value: str, allowed: typing.Sequence[str]):
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{name}={value!r} is not known. Did you mean {near!r}? All: {', '.join(allowed)}."
        )


def at_least(name: str, value: int, least: int):
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}.")


def positive(name: str, value: float):
    if not value > 0:
        raise ValueError(f"{name}={value} must be positive.")


def not_negative(name: str, value: float):
    if not value >= 0:
        raise ValueError(f"{name}={value} must not be negative.")


def fraction(name: str, value: float):
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie in [0, 1].")


def seed(name: str, value: int):
    # A key's seed is a uint32.
    if not 0 <= value < 2**32:
        raise ValueError(f"{name}={value} must lie in [0, 2^32).")


# --- Where an option is read ---------------------------------------------------------------------


class Reader(typing.NamedTuple):
    """One option, and the setting of another one on which it depends whether it has an effect."""

    option: str
    # The option that decides, and for which of its values `option` is read.
    decider: str
    reads: typing.Callable[[typing.Any], bool]
    # For the message: who reads it.
    by: str


def _choices(option: str, decider: str, *values: str) -> Reader:
    return Reader(option, decider, values.__contains__, f"{decider} {', '.join(values)}")


KEEL = ("keel", "keel_no_inner_norm", "keel_scaled_input", "keel_scaled_inner_norm")
HYPER = ("static_hyper_connections", "hyper_connections", "mhc")
# With parameters of the group `residual`.
WITH_RESIDUAL_PARAMS = (
    "keel_scaled_input",
    "keel_scaled_inner_norm",
    "rezero",
    *HYPER,
    "attention_residuals",
    "ngpt",
)
# These norm queries and keys whatever qk_norm says.
WITH_OWN_QK_NORM = ("hybridnorm", "hybridnorm_star", "ngpt")

# Not here: optim.warmup_steps under linear_ramp. The ramp is a warm-up as long as the run, so it
# ignores the option, as the option's comment says; config files set it for the other schedules,
# and the protocol is to be one flag away from them. Nor optim.peak_lr and seed beside lanes: they
# are the values of a run without lanes, which lanes.* override.
READERS = (
    _choices("model.alpha", "model.topology", *KEEL, "deepnorm"),
    _choices("model.keel_first_block", "model.topology", *KEEL),
    _choices("model.mix_ln_post_fraction", "model.topology", "mix_ln"),
    _choices("model.hyper_streams", "model.topology", *HYPER),
    _choices("model.attn_res_groups", "model.topology", "attention_residuals"),
    _choices("model.ngpt_rate", "model.topology", "ngpt"),
    Reader(
        "model.qk_norm",
        "model.topology",
        lambda topology: topology not in WITH_OWN_QK_NORM,
        "every other topology; here queries and keys are always normed",
    ),
    _choices("model.recompute.segment_blocks", "model.recompute.plan", "segments"),
    _choices("model.recompute.save", "model.recompute.plan", "block", "segments"),
    _choices("model.recompute.offload", "model.recompute.plan", "block", "segments"),
    Reader(
        "model.recompute.offload_saved",
        "model.recompute.offload",
        bool,
        "model.recompute.offload=True",
    ),
    _choices("model.recompute.anchor_blocks", "model.recompute.plan", "reversible"),
    _choices("model.recompute.evaluations", "model.recompute.plan", "reversible"),
    _choices("model.recompute.error_bound", "model.recompute.plan", "reversible"),
    _choices("optim.beta1", "optim.name", "adamw", "lion", "muon"),
    _choices("optim.beta2", "optim.name", "adamw", "lion", "muon"),
    _choices("optim.epsilon", "optim.name", "adamw", "adafactor", "muon"),
    _choices("optim.final_lr_fraction", "optim.schedule", "cosine", "wsd"),
    _choices("optim.wsd_decay_fraction", "optim.schedule", "wsd"),
    _choices("optim.lr_multiplier.residual", "model.topology", *WITH_RESIDUAL_PARAMS),
    _choices("optim.decay_multiplier.residual", "model.topology", *WITH_RESIDUAL_PARAMS),
    Reader(
        "optim.lr_multiplier.output",
        "model.tie_embeddings",
        lambda tied: not tied,
        "the untied logit matrix; tied ones go by the multiplier `embedding`",
    ),
    Reader(
        "optim.decay_multiplier.output",
        "model.tie_embeddings",
        lambda tied: not tied,
        "the untied logit matrix; tied ones go by the multiplier `embedding`",
    ),
    Reader(
        "data.weights",
        "data.path",
        lambda path: sum(map(bool, path.split(","))) > 1,
        "a mixture of several directories",
    ),
    Reader(
        "data.prefetch_batches",
        "data.num_threads",
        lambda threads: threads > 0,
        "the threads that read ahead",
    ),
)


def without_effect(config, default):
    """Raises ValueError if an option is not at its default where nothing reads it.

    Args:
      config: the run, a tree of dataclasses.
      default: (dotted name) -> the option's default.
    """
    for option, decider, reads, by in READERS:
        value, decides, reset = _get(config, option), _get(config, decider), default(option)
        if value != reset and not reads(decides):
            flag = "leave it unset" if reset is None else f"set --config.{option}={_flag(reset)}"
            raise ValueError(
                f"{option}={value!r} has no effect with {decider}={decides!r}: it is read by {by}. "
                f"Change {decider}, or {flag}, its default."
            )


def reversible(config):
    """Raises ValueError where blocks cannot be run backwards; `config` is the run."""
    model, mesh = config.model, config.mesh
    stages = mesh.stage * mesh.dcn_stage
    checks = (
        (
            model.topology not in KEEL,
            f"model.topology={model.topology!r} ({', '.join(KEEL)} have an alpha that contracts)",
        ),
        (
            model.stream_dtype != "float32",
            f"model.stream_dtype={model.stream_dtype!r} (only float32 tells a stream from its "
            "branch)",
        ),
        (stages > 1, f"{stages} stages of the mesh (1)"),
        (
            config.num_lanes > 1,
            f"{config.num_lanes} lanes (1: of several each would pay for the others' fall-backs)",
        ),
        (
            model.recompute.anchor_blocks > model.num_blocks,
            f"model.recompute.anchor_blocks={model.recompute.anchor_blocks} for model.num_blocks="
            f"{model.num_blocks} (at most as many)",
        ),
    )
    for is_wrong, told in checks:
        if is_wrong:
            raise ValueError(
                f"model.recompute.plan='reversible' cannot have {told}: change it, or take "
                "model.recompute.plan=segments, which keeps as little."
            )


def is_read(option: str, decider: str, value) -> bool:
    """Whether `option` is read where `decider` has this value."""
    return all(r.reads(value) for r in READERS if (r.option, r.decider) == (option, decider))


def _get(tree, name: str):
    for part in name.split("."):
        tree = getattr(tree, part)
    return tree


def _flag(value) -> str:
    return f'"{value}"' if isinstance(value, tuple) else str(value)
