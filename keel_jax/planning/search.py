"""Searches meshes, micro-batches and plans of recomputation for the step that is best compiled.

The cost model ranks all of them; the most promising are compiled, and the Pareto front is kept.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import jax

from keel_jax import config
from keel_jax.model import attention, recompute
from keel_jax.parallel import topology
from keel_jax.planning import chips, compile_step, cost_model, recompute_choice, report
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib

# Axes whose sizes within a slice are tried; `trial` belongs to the experiment.
_AXES = ("stage", "data", "context", "tensor", "fsdp")
_MAX_MICROBATCHES = 64
# The cost model is some tenths off: plans up to this much over the limit are compiled. A guess.
_SLACK = 1.25
# Bytes a second of a ring where the chip is not known: any rate ranks the plans.
_ANY_RATE = 1e11


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a plan would take, by the cost model: bytes of one device, and relative time."""

    bytes: float
    seconds: float


class Compiled(Protocol):
    """What the Pareto front needs to know of a report."""

    @property
    def fits(self) -> bool: ...

    @property
    def cost(self) -> float: ...

    @property
    def total_bytes(self) -> int: ...


_Report = TypeVar("_Report", bound=Compiled)


def search(
    cfg: config.Config,
    target: topology.Topology,
    limit: int,
    show_progress: Callable[[str], None],
) -> list[report.Report]:
    """Compiles the most promising plans, at most `limit`; the Pareto front, fastest first.

    Raises:
      UserError: an unknown chip, or no vocabulary.
    """
    compile_step.check_vocab_size(cfg)
    chip = chips.require_chip(target.devices[0])
    chosen = most_promising(_predict_costs(cfg, target, chip), chip, limit)
    reports = []
    for index, candidate in enumerate(chosen):
        flags = " ".join(overrides(cfg, candidate))
        show_progress(f"plan {index + 1} of {len(chosen)}: {flags}")
        reports.append(compile_step.plan_step(candidate, target))
    return pareto_front(reports)


def _predict_costs(
    cfg: config.Config, target: topology.Topology, chip: chips.Chip | None
) -> list[tuple[config.Config, Cost]]:
    """Every plan that the devices can have, with its cost."""
    states, costs = {}, []  # the abstract state by mesh
    for candidate in candidate_meshes(cfg, len(target.devices), target.num_slices):
        try:
            mesh = target.mesh(candidate.mesh)
            candidate = attention.resolve(candidate, mesh)
            batch = step_lib.abstract_batch(candidate, mesh)
            if candidate.mesh not in states:
                states[candidate.mesh] = state_lib.abstract(candidate, mesh)
            shards = cost_model.measure_shards(states[candidate.mesh], batch)
            for plan in recompute_choice.candidate_plans(candidate, mesh.shape, chip):
                planned = recompute_choice.with_plan(candidate, plan)
                costs.append((planned, predict_cost(planned, mesh, chip, shards)))
        except ValueError:
            continue  # sizes, or a kernel, that this mesh cannot have
    return costs


def candidate_meshes(
    cfg: config.Config, num_devices: int, num_slices: int
) -> Iterator[config.Config]:
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
            if parts > _MAX_MICROBATCHES or rows // parts % (axes["data"] * axes["fsdp"]):
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


def predict_cost(
    cfg: config.Config,
    mesh: jax.sharding.Mesh,
    chip: chips.Chip | None,
    shards: cost_model.Shards,
) -> Cost:
    """The cost model's memory and time, the latter with weights gathered and activations sent.

    How often each is sent is a guess that ignores what is hidden: it ranks plans of one search.
    """
    sizes = dict(mesh.shape)
    ring = chip.ring_bytes_per_second if chip else _ANY_RATE
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
    costs: Sequence[tuple[config.Config, Cost]], chip: chips.Chip | None, limit: int
) -> list[config.Config]:
    """At most `limit` plans: the cost model's Pareto front first, then the fastest others.

    Those far over the chip's memory are left out, unless all are: then the smallest.
    """
    room = chip.usable_hbm_bytes * _SLACK if chip else math.inf
    fitting = [pair for pair in costs if pair[1].bytes <= room]
    if not fitting:
        ordered = sorted(costs, key=lambda pair: pair[1].bytes)
        return [cfg for cfg, _ in ordered[:limit]]
    ordered = sorted(fitting, key=lambda pair: (pair[1].seconds, pair[1].bytes))
    smallest, front, others = math.inf, [], []
    for pair in ordered:
        (front if pair[1].bytes < smallest else others).append(pair)
        smallest = min(smallest, pair[1].bytes)
    return [cfg for cfg, _ in (front + others)[:limit]]


def pareto_front(reports: Sequence[_Report]) -> list[_Report]:
    """The plans that no other one beats in both cost and memory: those that fit, fastest first.

    If none fits, the one that misses by least.
    """
    fitting = [r for r in reports if r.fits]
    if not fitting:
        return sorted(reports, key=lambda r: r.total_bytes)[:1]
    front: list[_Report] = []
    smallest = math.inf
    for r in sorted(fitting, key=lambda r: (r.cost, r.total_bytes)):
        if r.total_bytes < smallest:
            front.append(r)
            smallest = r.total_bytes
    return front


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
