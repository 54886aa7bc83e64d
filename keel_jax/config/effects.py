"""Options that have no effect: a table of the conditions under which an option is read."""

import typing

from keel_jax import errors
from keel_jax.config import data, topologies


class Reader(typing.NamedTuple):
    """One option, and another option that decides whether the first has an effect."""

    option: str
    # The option that decides, and for which of its values `option` is read.
    decider: str
    reads: typing.Callable[[typing.Any], bool]
    # For the message: what reads it.
    by: str
    # A switch under which it is read whatever the decider's value.
    switch: str | None = None


def _choices(option: str, decider: str, *values: str) -> Reader:
    return Reader(option, decider, values.__contains__, f"{decider} {', '.join(values)}")


def _unless_unit_rows(option: str) -> Reader:
    return Reader(
        option,
        "model.topology",
        lambda topology: not topologies.row(topology).has_unit_rows,
        "every other topology; here the rows of matrices have unit length",
    )


def _of_residual_params(option: str) -> Reader:
    names = topologies.names(lambda row: bool(row.residual_params))
    switch = "model.learned_branch"
    by = f"model.topology {', '.join(names)}, and by any with {switch}=True"
    return Reader(option, "model.topology", names.__contains__, by, switch)


# Not included: optim.warmup_steps with linear_ramp, which is a warm-up as long as the run and
# ignores the option, as the option's comment says. Config files set warmup_steps for the other
# schedules, and changing only the schedule must not be an error. Also not included: optim.peak_lr
# and seed with trials. They are the values of a run without trials, and trials.* override them.
READERS = (
    *(
        _choices(f"model.{option}", "model.topology", *topologies.readers(option))
        for option in topologies.OPTIONS
    ),
    Reader(
        "model.qk_norm",
        "model.topology",
        lambda topology: not topologies.row(topology).has_own_qk_norm,
        "every other topology; here queries and keys are always normed",
    ),
    _unless_unit_rows("model.output_init"),
    _unless_unit_rows("model.embedding_std"),
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
    _choices("model.recompute.fixed_point_iterations", "model.recompute.plan", "reversible"),
    _choices("model.recompute.error_bound", "model.recompute.plan", "reversible"),
    _choices("optim.beta1", "optim.name", "adamw", "lion", "muon"),
    _choices("optim.beta2", "optim.name", "adamw", "lion", "muon"),
    _choices("optim.epsilon", "optim.name", "adamw", "adafactor", "muon"),
    _choices("optim.final_lr_fraction", "optim.schedule", "cosine", "wsd"),
    _choices("optim.wsd_decay_fraction", "optim.schedule", "wsd"),
    _of_residual_params("optim.lr_multiplier.residual"),
    _of_residual_params("optim.decay_multiplier.residual"),
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
        lambda path: len(data.split_paths(path)) > 1,
        "a mixture of several directories",
    ),
    *(
        Reader(f"tasks.{option}", "tasks.names", bool, "a run with tasks.names")
        for option in ("data", "every_steps", "limit", "batch_size")
    ),
    Reader("train.init_partially", "train.init_from", bool, "a run with train.init_from"),
    Reader("train.keep_best", "train.eval_every_steps", bool, "a run with validations"),
    Reader(
        "train.early_stopping_validations",
        "train.eval_every_steps",
        bool,
        "a run with validations",
    ),
    Reader(
        "data.prefetch_batches",
        "data.num_threads",
        lambda threads: threads > 0,
        "the threads that read ahead",
    ),
)


def without_effect(config: typing.Any, default: typing.Any) -> typing.Any:
    """Raises UserError if an option that nothing reads is not at its default.

    Args:
      config: the run, a tree of dataclasses.
      default: (dotted name) -> the option's default.
    """
    for option, decider, reads, by, switch in READERS:
        if switch and _get(config, switch):
            continue
        value, decides, reset = _get(config, option), _get(config, decider), default(option)
        if value != reset and not reads(decides):
            flag = "leave it unset" if reset is None else f"set --config.{option}={_flag(reset)}"
            raise errors.UserError(
                f"{option}={value!r} has no effect with {decider}={decides!r}: it is read by {by}. "
                f"Change {decider}, or {flag}, its default."
            )


def is_read(option: str, decider: str, value: typing.Any) -> bool:
    """Whether `option` is read when `decider` has this value."""
    return all(r.reads(value) for r in READERS if (r.option, r.decider) == (option, decider))


def _get(tree, name: str):
    for part in name.split("."):
        tree = getattr(tree, part)
    return tree


def _flag(value) -> str:
    return f'"{value}"' if isinstance(value, tuple) else str(value)
