"""Which plan of recomputation a step gets, where `model.recompute.plan` is "auto"."""

import dataclasses
import itertools
from collections.abc import Iterator

from keel_jax import config
from keel_jax.model import recompute
from keel_jax.planning import chips, closed_form

# What a plan may take of the memory, by a closed form that is some tenths off for temporaries.
_MARGIN = 0.9
# Multiplications reach about this part of a chip's peak: how much time there is to hide transfers
# behind. A guess.
_REACHED = 0.6
_SAVES = ("all", "products", "attention", "carry")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A plan, and what the closed forms say of it; bytes and FLOPs are one device's."""

    recompute: config.RecomputeConfig
    temporaries: closed_form.Temporaries
    # State and batch, and temporaries.
    total_bytes: int
    executed_flops: float
    # Seconds by the chip's peak, of moving what is kept, and of transfers to the host that nothing
    # hides; relative on a chip that the table does not know.
    seconds: float
    # Whether "auto" was asked for.
    is_chosen: bool = False

    def to_json(self) -> dict:
        """The plan, and what it was expected to take."""
        return {
            **dataclasses.asdict(self.recompute),
            "is_chosen": self.is_chosen,
            "expected_temporaries_bytes": self.temporaries.total,
            "expected_host_bytes": self.temporaries.host,
            "expected_executed_flops": self.executed_flops,
        }


def candidates(cfg: config.Config, sizes: dict[str, int], chip: chips.Chip | None) -> Iterator:
    """The plans worth a look at this depth: those of `cfg` itself unless it says "auto"."""
    if cfg.model.recompute.plan != "auto":
        yield cfg.model.recompute
        return
    blocks = cfg.model.num_blocks // sizes["stage"]
    offloads = (False, True) if chip else (False,)
    yield config.RecomputeConfig(plan="none")
    for save, offload in itertools.product(_SAVES[1:], offloads):
        yield config.RecomputeConfig(plan="block", save=save, offload=offload)
    powers = [2**n for n in range(1, blocks.bit_length()) if 2**n < blocks]
    levels = [(size,) for size in powers] + [(0,), (0, 0), (0, 0, 0)]
    seen = set()
    for level, save, offload in itertools.product(levels, _SAVES, offloads):
        asked = config.RecomputeConfig(
            plan="segments", segment_blocks=level, save=save, offload=offload
        )
        chosen = recompute.segment_sizes(asked, blocks)
        if chosen and (chosen, save, offload) not in seen:
            seen.add((chosen, save, offload))
            yield dataclasses.replace(asked, segment_blocks=chosen)


def outlook(
    cfg: config.Config,
    sizes: dict[str, int],
    shards: closed_form.Shards,
    kernel: str,
    chip: chips.Chip | None,
) -> Choice:
    """What the plan that `cfg` has would take."""
    temporaries = closed_form.temporaries(cfg, sizes, shards.parameters, kernel)
    flops = closed_form.executed_flops(cfg, sizes, kernel)
    # Any rate ranks plans where the real one is not known.
    seconds = flops / (chip.flops_per_second if chip else 1e14)
    if chip:
        seconds += closed_form.kept_traffic(cfg, sizes, kernel) / chip.hbm_bytes_per_second
    if chip and temporaries.host:
        one_way = temporaries.host * cfg.train.accumulation_steps / chip.host_bytes_per_second
        # To the host in the forward pass, a third of the time at most; back in the other two.
        room = seconds / _REACHED
        seconds += max(0.0, one_way - room / 3) + max(0.0, one_way - room * 2 / 3)
    return Choice(
        cfg.model.recompute, temporaries, shards.total + temporaries.total, flops, seconds
    )


def choose(
    cfg: config.Config,
    sizes: dict[str, int],
    shards: closed_form.Shards,
    kernel: str,
    chip: chips.Chip | None,
    memory_bytes: int | None,
) -> Choice:
    """The plan of `cfg`; for "auto" the fastest that fits; if none does, the smallest.

    Of equally fast ones the one that needs less of the host, then the smallest. A pure function of
    its arguments: every process finds the same.

    Args:
      sizes: of the mesh's axes.
      kernel: of attention.
      memory_bytes: of one device; None, not known (a CPU): "auto" is "block".
    """
    if cfg.model.recompute.plan != "auto":
        return outlook(cfg, sizes, shards, kernel, chip)
    options = list(candidates(cfg, sizes, chip))
    if memory_bytes is None:
        options = [config.RecomputeConfig(plan="block")]
    found = [outlook(with_plan(cfg, option), sizes, shards, kernel, chip) for option in options]
    fitting = [c for c in found if c.total_bytes <= _MARGIN * (memory_bytes or float("inf"))]
    if fitting:
        best = min(fitting, key=lambda c: (c.seconds, c.temporaries.host, c.total_bytes))
    else:
        best = min(found, key=lambda c: c.total_bytes)
    return dataclasses.replace(best, is_chosen=True)


def with_plan(cfg: config.Config, plan: config.RecomputeConfig) -> config.Config:
    """`cfg` with this plan of recomputation."""
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, recompute=plan))


def describe(choice: Choice, num_blocks: int) -> str:
    """The plan in a few words, and what it is expected to take.

    Args:
      num_blocks: of one stage.
    """
    plan = choice.recompute
    sizes = recompute.segment_sizes(plan, num_blocks)
    told = plan.plan
    if sizes:
        told += f" of {' of '.join(map(str, sizes))} blocks"
    if plan.plan == "reversible":
        told += (
            f" (experimental), anchors every {plan.anchor_blocks} blocks, {plan.evaluations} "
            f"evaluation(s), bound {plan.error_bound:g}"
        )
    elif plan.plan != "none":
        told += f", save {plan.save}" + (", offloaded" if plan.offload else "")
    return (
        f"{told}{' (chosen)' if choice.is_chosen else ''}: about "
        f"{choice.temporaries.total / 2**30:.2f} GiB of temporaries, {choice.executed_flops:.3g} "
        "FLOPs a step on each device"
    )
