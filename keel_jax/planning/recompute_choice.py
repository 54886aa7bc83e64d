"""Which plan of recomputation a step gets, where `model.recompute.plan` is "auto"."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from keel_jax import config
from keel_jax.model import recompute
from keel_jax.planning import chips, cost_model

# What a plan may take of the memory, as the cost model is some tenths off for temporaries. A guess.
_MARGIN = 0.9
# The part of a chip's peak that multiplications reach: it says how much time there is to hide
# transfers behind. A guess.
_REACHED = 0.6
# FLOPs a second where the chip is not known: any rate ranks the plans.
_ANY_RATE = 1e14
_SAVES = ("all", "mlp", "attention", "carry")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A plan, and what the cost model says of it; bytes and FLOPs are one device's."""

    recompute: config.RecomputeConfig
    temporaries: cost_model.Temporaries
    # State and batch, and temporaries; of a run that checks steps, the state twice.
    total_bytes: int
    executed_flops: float
    # Seconds by the chip's peak, of moving what is kept, and of transfers to the host that nothing
    # hides; relative on a chip that the table does not know.
    seconds: float

    def to_json(self, *, is_chosen: bool) -> dict[str, Any]:
        """The plan, and what it was expected to take; `is_chosen`: "auto" was asked for."""
        return {
            **dataclasses.asdict(self.recompute),
            "is_chosen": is_chosen,
            "expected_temporaries_bytes": self.temporaries.total,
            "expected_host_bytes": self.temporaries.host,
            "expected_executed_flops": self.executed_flops,
        }


def candidate_plans(
    cfg: config.Config, sizes: Mapping[str, int], chip: chips.Chip | None
) -> Iterator[config.RecomputeConfig]:
    """The plans worth considering at this depth: that of `cfg` alone unless it says "auto"."""
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
    yielded = set()
    for level, save, offload in itertools.product(levels, _SAVES, offloads):
        plan = config.RecomputeConfig(
            plan="segments", segment_blocks=level, save=save, offload=offload
        )
        chosen = recompute.segment_sizes(plan, blocks)
        if chosen and (chosen, save, offload) not in yielded:
            yielded.add((chosen, save, offload))
            yield dataclasses.replace(plan, segment_blocks=chosen)


def predict(
    cfg: config.Config,
    sizes: Mapping[str, int],
    shards: cost_model.Shards,
    chip: chips.Chip | None,
) -> Prediction:
    """What the plan of a resolved `cfg` would take, by the cost model."""
    temporaries = cost_model.predict_temporaries(cfg, sizes, shards.parameters)
    flops = cost_model.predict_flops(cfg, sizes)
    seconds = flops / (chip.flops_per_second if chip else _ANY_RATE)
    if chip:
        seconds += cost_model.kept_traffic(cfg, sizes) / chip.hbm_bytes_per_second
    if chip and temporaries.host:
        one_way = temporaries.host * cfg.train.accumulation_steps / chip.host_bytes_per_second
        # To the host in the forward pass, a third of the time at most; back in the other two.
        room = seconds / _REACHED
        seconds += max(0.0, one_way - room / 3) + max(0.0, one_way - room * 2 / 3)
    # Of a step that is computed twice, the first result is kept (training/repeatability.py).
    copy = shards.parameters + shards.optimizer if cfg.train.check_every_steps else 0
    total = shards.total + copy + temporaries.total
    return Prediction(cfg.model.recompute, temporaries, total, flops, seconds)


def choose(
    cfg: config.Config,
    sizes: Mapping[str, int],
    shards: cost_model.Shards,
    chip: chips.Chip | None,
    memory_bytes: int | None,
) -> Prediction:
    """The fastest plan that fits, and what it is expected to take; if none does, the smallest.

    Among equally fast ones the one that needs least of the host, then the smallest. A pure function
    of its arguments, so that every process chooses the same.

    Args:
      cfg: with its attention kernel resolved.
      sizes: of the mesh's axes.
      memory_bytes: of one device; None: not known (a CPU), and the plan is "block".
    """
    plans = list(candidate_plans(cfg, sizes, chip))
    if memory_bytes is None:
        plans = [config.RecomputeConfig(plan="block")]
    predictions = [predict(with_plan(cfg, plan), sizes, shards, chip) for plan in plans]
    fitting = [p for p in predictions if p.total_bytes <= _MARGIN * (memory_bytes or math.inf)]
    if fitting:
        return min(fitting, key=lambda p: (p.seconds, p.temporaries.host, p.total_bytes))
    return min(predictions, key=lambda p: p.total_bytes)


def with_plan(cfg: config.Config, plan: config.RecomputeConfig) -> config.Config:
    """`cfg` with this plan of recomputation."""
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, recompute=plan))


def describe(prediction: Prediction, cfg: config.Config, *, is_chosen: bool) -> str:
    """The plan in one line, and what it is expected to take; `is_chosen`: "auto" was asked for."""
    num_blocks = cfg.model.num_blocks // (cfg.mesh.stage * cfg.mesh.dcn_stage)
    return (
        f"{recompute.describe(prediction.recompute, num_blocks)}"
        f"{' (chosen)' if is_chosen else ''}: about "
        f"{prediction.temporaries.total / 2**30:.2f} GiB of temporaries, "
        f"{prediction.executed_flops:.3g} FLOPs a step on each device"
    )
