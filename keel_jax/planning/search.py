"""Which plans are worth compiling, and which of the compiled ones are worth having."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import jax

from keel_jax import config
from keel_jax.model import recompute
from keel_jax.planning import chips, cost_model, recompute_choice, report

# Axes whose sizes within a slice are tried; `trial` belongs to the experiment.
_AXES = ("stage", "data", "context", "tensor", "fsdp")
_MOST_MICROBATCHES = 64
# The closed form is a guess: plans up to this much over the limit are worth a look.
_SLACK = 1.25


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a plan would take, by the cost model: bytes of one device, and relative time."""

    bytes: float
    seconds: float


def candidates(cfg: config.Config, num_devices: int, num_slices: int) -> Iterator[config.Config]:
    """`cfg` on every mesh of the devices and with every count of micro-batches that is valid.

    Slices are data-parallel replicas, as gradients alone should cross DCN. Sizes that the model's
    dimensions cannot take are left in: the mesh and the table of rules refuse them.
    """
    inside = num_devices // num_slices // cfg.mesh.trial
    for sizes in itertools.product(_divisors(inside), repeat=len(_AXES) - 1):
        rest, remainder = divmod(inside, math.prod(sizes))
        if remainder or not rest:
            continue
        axes = dict(zip(_AXES, (*sizes, rest), strict=True))
        if cfg.model.num_blocks % axes["stage"] or cfg.model.num_kv_heads % axes["tensor"]:
            continue
        rows = cfg.train.batch_size // num_slices
        for parts in _divisors(rows):
            per_step = rows // parts
            if parts > _MOST_MICROBATCHES or per_step % (axes["data"] * axes["fsdp"]):
                continue
            try:
                yield dataclasses.replace(
                    cfg,
                    mesh=dataclasses.replace(
                        cfg.mesh,
                        **axes,
                        dcn_data=num_slices,
                        stage_microbatches=cfg.mesh.stage_microbatches if axes["stage"] > 1 else 0,
                    ),
                    train=dataclasses.replace(cfg.train, accumulation_steps=parts),
                )
            except ValueError:
                continue  # options that exclude each other


def cost(
    cfg: config.Config,
    mesh: jax.sharding.Mesh,
    chip: chips.Chip | None,
    shards: cost_model.Shards,
) -> Cost:
    """Closed forms of memory, and of time: FLOPs, weights gathered, activations exchanged."""
    sizes = dict(mesh.shape)
    # Any chip ranks plans alike enough where the real one is not known.
    ring = 2 * chip.ici_bytes_per_second_per_link if chip else 1e11
    train, model, stages = cfg.train, cfg.model, sizes["stage"]
    prediction = recompute_choice.predict(cfg, sizes, shards, chip)
    gathers = sizes["fsdp"] > 1
    # bf16, once in each pass over the blocks, and the gradients' reduction; once a micro-batch.
    blocks = model.num_blocks // stages
    passes = 3 + len(recompute.segment_sizes(model.recompute, blocks))
    weights = passes * shards.parameters / 2 * (sizes["fsdp"] - 1) * train.accumulation_steps
    replicas = 2 * shards.parameters * (sizes["data"] > 1)
    tokens = train.tokens_per_step / mesh.size * sizes["tensor"] * stages
    per_axis = (sizes["tensor"] > 1) * 8 + (sizes["context"] > 1) * 4
    streams = per_axis * tokens * model.d_model * 2 * model.num_blocks / stages
    seconds = prediction.seconds + (gathers * weights + replicas + streams) / ring
    return Cost(prediction.total_bytes, seconds)


def most_promising(
    costs: list[tuple[config.Config, Cost]], chip: chips.Chip | None, limit: int
) -> list[config.Config]:
    """At most `limit` plans: the closed forms' Pareto front first, then the fastest others.

    Those far over the chip's memory are left out, unless all are: then the smallest.
    """
    room = chip.usable_hbm_bytes * _SLACK if chip else math.inf
    fitting = [pair for pair in costs if pair[1].bytes <= room]
    if not fitting:
        ordered = sorted(costs, key=lambda pair: pair[1].bytes)
        return [cfg for cfg, _ in ordered[:limit]]
    ordered = sorted(fitting, key=lambda pair: (pair[1].seconds, pair[1].bytes))
    best, front, others = math.inf, [], []
    for pair in ordered:
        (front if pair[1].bytes < best else others).append(pair)
        best = min(best, pair[1].bytes)
    return [cfg for cfg, _ in (front + others)[:limit]]


def front(reports: list[report.Report]) -> list[report.Report]:
    """The plans that no other one beats in both cost and memory: those that fit, fastest first.

    If none fits, the one that misses by least.
    """
    fitting = [r for r in reports if r.fits]
    if not fitting:
        return sorted(reports, key=lambda r: r.total_bytes)[:1]
    kept, best = [], math.inf
    for r in sorted(fitting, key=lambda r: (r.cost, r.total_bytes)):
        if r.total_bytes < best:
            kept.append(r)
            best = r.total_bytes
    return kept


def overrides(cfg: config.Config, planned: config.Config) -> list[str]:
    """Flags that turn `cfg` into `planned`."""
    return [
        f"--config.{name}={new}"
        for name, (old, new) in config.differences(cfg, planned).items()
        # The kernel follows from the mesh.
        if (name, old) != ("model.attention", "auto")
    ]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
