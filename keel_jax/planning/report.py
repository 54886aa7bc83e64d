"""What is known of one step on one topology: what was measured of it, and what follows from that.

`compile_step` makes reports; `report_json` and `report_text` write them down.
"""

import dataclasses

from keel_jax import config
from keel_jax.model import recompute
from keel_jax.parallel import gpus, pipeline
from keel_jax.parallel import topology as topology_lib
from keel_jax.planning import (
    chips,
    cost_model,
    cycles,
    estimate,
    flops,
    memory,
    recompute_choice,
    traffic,
)

# Of a GPU's memory, what JAX's allocator can be given beside CUDA's own: NVIDIA's advice
# (docs.nvidia.com/jax-toolbox, "Tips for High-Performance LLMs with JAX and XLA").
_LARGEST_FRACTION = 0.9


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """What was read in the program that the compiler made; bytes and FLOPs are one device's."""

    memory: memory.Memory
    # `memory_analysis()`'s temporaries, to compare with others' tables.
    reported_temporaries: int
    executed: flops.ExecutedFlops
    collectives: tuple[traffic.Collective, ...]
    # Loops whose trips are not known: counted as one.
    unknown_loops: int
    # None on a CPU.
    estimate: estimate.Estimate | None
    # Where the compiler says that cycles go; empty where it does not say.
    cycle_parts: tuple[cycles.Part, ...]


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What the compiler said where the step exceeds the chip's memory; bytes are one device's."""

    needed_bytes: int
    available_bytes: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of one step on one topology; bytes and FLOPs are one device's."""

    # Resolved.
    cfg: config.Config
    topology: topology_lib.Topology
    num_devices: int
    # Axes with several devices.
    mesh: dict[str, int]
    # None for a CPU: no limit of memory, and no time, is known.
    chip: chips.Chip | None
    shards: cost_model.Shards
    # The plan of recomputation, what it was expected to take, and whether "auto" was asked for.
    prediction: recompute_choice.Prediction
    is_chosen: bool
    outcome: CompiledProgram | Refusal
    compile_seconds: float

    @property
    def is_refused(self) -> bool:
        """Whether the compiler made no program, as it would need more memory than the chip has."""
        return isinstance(self.outcome, Refusal)

    @property
    def compiled(self) -> CompiledProgram:
        """What was read in the program, of a step that is not refused."""
        assert isinstance(self.outcome, CompiledProgram), "the compiler refused this step"
        return self.outcome

    @property
    def total_bytes(self) -> int:
        """The memory that the step needs."""
        if isinstance(self.outcome, Refusal):
            return self.outcome.needed_bytes
        return self.outcome.memory.total

    @property
    def limit_bytes(self) -> float | None:
        """The memory that a program may have; None: no limit is known (a CPU)."""
        if self.chip:
            return self.chip.usable_hbm_bytes
        return self.outcome.available_bytes if isinstance(self.outcome, Refusal) else None

    @property
    def device_bytes(self) -> int | None:
        """All of a GPU's memory, of which `limit_bytes` is a part; None: it is no GPU."""
        return gpus.GPUS[self.topology.kind].memory_bytes if self.topology.is_gpu else None

    @property
    def fits(self) -> bool:
        within = self.limit_bytes is None or self.total_bytes <= self.limit_bytes
        return within and not self.is_refused

    @property
    def missing_bytes(self) -> float:
        """What the step needs beyond the limit."""
        return max(0, self.total_bytes - (self.limit_bytes or self.total_bytes))

    @property
    def model_flops(self) -> float:
        """Of one step on one device, causal attention counted at half."""
        tokens = self.cfg.train.tokens_per_step * self.cfg.num_trials
        per_token = self.cfg.model.flops_per_token(self.cfg.train.seq_len)
        return tokens * per_token / self.num_devices

    @property
    def tokens_per_second(self) -> float:
        """By the estimate, of all trials and devices."""
        tokens = self.cfg.train.tokens_per_step * self.cfg.num_trials
        return tokens / self._step_seconds

    @property
    def mfu(self) -> float:
        """By the estimate: model FLOPs a second over the chip's peak."""
        assert self.chip, "a CPU has no known peak"
        return self.model_flops / self._step_seconds / self.chip.flops_per_second

    @property
    def band_seconds(self) -> tuple[float, float] | None:
        """Between what a step takes on GPUs, where less is known of what hides what; else None."""
        if not self.topology.is_gpu or not self.compiled.estimate:
            return None
        return self.compiled.estimate.band_seconds

    @property
    def _step_seconds(self) -> float:
        assert self.compiled.estimate, "a CPU's step has no estimate"
        return self.compiled.estimate.step_seconds

    @property
    def stages(self) -> int:
        return self.mesh.get(pipeline.AXIS, 1)

    @property
    def stage_microbatches(self) -> int:
        return pipeline.num_microbatches(self.cfg.mesh.stage_microbatches, self.stages)

    @property
    def bubble_fraction(self) -> float:
        return pipeline.bubble_fraction(self.stages, self.stage_microbatches)

    @property
    def blocks(self) -> int:
        """Blocks of one device."""
        return self.cfg.model.num_blocks // self.stages

    @property
    def loop_trips(self) -> tuple[int, ...]:
        """Trips of the loops over a device's blocks, outermost first."""
        return recompute.kept_carries(
            recompute.segment_sizes(self.cfg.model.recompute, self.blocks), self.blocks
        )

    @property
    def host_seconds(self) -> float | None:
        """Seconds that the link to the host is busy, to it and back; None: not known, or unused.

        What other work hides of them is not known either.
        """
        if self.is_refused or not self.chip:
            return None
        host_bytes = 2 * self.compiled.memory.host * self.cfg.train.accumulation_steps
        return host_bytes / self.chip.host_bytes_per_second

    @property
    def cost(self) -> float:
        """What a search minimizes: estimated seconds; on a CPU, bytes sent."""
        if self.is_refused:
            return float("inf")
        if self.compiled.estimate:
            return self.compiled.estimate.step_seconds
        return sum(c.bytes for c in self.compiled.collectives)

    @property
    def advice(self) -> str | None:
        """What may make the step fit, if it does not."""
        if self.fits:
            return None
        assert self.limit_bytes is not None, "without a limit every step fits"
        if self.device_bytes and self.total_bytes <= _LARGEST_FRACTION * self.device_bytes:
            return (
                f"XLA_CLIENT_MEM_FRACTION={_LARGEST_FRACTION} lets JAX have so much of the GPU's "
                "memory, for the plan as for the run"
            )
        sizes = {axis: self.mesh.get(axis, 1) for axis in config.MESH_AXES}
        return cost_model.advise(self.cfg, sizes, self.shards, self.total_bytes, self.limit_bytes)
