"""The options of the mesh: the number of devices along each axis."""

import dataclasses

from keel_jax import errors
from keel_jax.config import limits
from keel_jax.config.options import Change, option

# The mesh's axes, outermost first: neighbours along the last axis are linked directly.
MESH_AXES = ("trial", "stage", "data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis: within a slice, and (`dcn_`) across slices.

    A slice is a set of devices with fast links between all of them (a TPU slice, the GPUs of a host
    or of an NVLink rack; simulated devices are one slice). An axis has (its size) x (its dcn_ size)
    devices. At most one size within a slice may be -1, which stands for the remaining devices of
    the slice; likewise at most one size across slices, which stands for the remaining slices.
    """

    # Devices over which trials (see TrialsConfig) are sharded; divides their number.
    trial: int = option(1, Change.NOTHING)
    # Pipeline stages: each holds num_blocks / stage consecutive blocks.
    stage: int = option(1, Change.NOTHING)
    # Replicas that exchange only gradients.
    data: int = option(1, Change.NOTHING)
    # Replicas among which parameters and optimizer state are sharded (ZeRO-3).
    fsdp: int = option(-1, Change.NOTHING)
    # Parts of each sequence (ring attention).
    context: int = option(1, Change.NOTHING)
    # Parts of each head group, FFN and vocabulary (Megatron); divides num_kv_heads.
    tensor: int = option(1, Change.NOTHING)
    # The same across slices: only axes with little communication should cross them.
    dcn_trial: int = option(1, Change.NOTHING)
    dcn_stage: int = option(1, Change.NOTHING)
    dcn_data: int = option(-1, Change.NOTHING)
    dcn_fsdp: int = option(1, Change.NOTHING)
    dcn_context: int = option(1, Change.NOTHING)
    dcn_tensor: int = option(1, Change.NOTHING)
    # Parts of a micro-batch that pass through the stages one after another; 0: 4 per stage, which
    # leaves a stage idle for (S - 1) / (5 S - 1) of the time.
    stage_microbatches: int = option(0, Change.NOTHING)

    def __post_init__(self):
        for sizes in (self.ici_sizes, self.dcn_sizes):
            values = list(sizes.values())
            if any(size == 0 or size < -1 for size in values) or values.count(-1) > 1:
                given = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
                raise errors.UserError(
                    f"{given}: each is a positive number of devices, and at most one is -1."
                )
        limits.at_least("mesh.stage_microbatches", self.stage_microbatches, 0)
        if self.stage_microbatches and self.stage == self.dcn_stage == 1:
            raise errors.UserError(
                f"mesh.stage_microbatches={self.stage_microbatches} has no effect with "
                "mesh.stage=1: it is read by the pipeline. Set mesh.stage, or set "
                "--config.mesh.stage_microbatches=0, its default."
            )

        for name in ("trial", "stage", "dcn_trial", "dcn_stage"):
            if getattr(self, name) == -1:
                raise errors.UserError(
                    f"mesh.{name}=-1 would leave open how trials or blocks are divided: give "
                    "the number."
                )
        trials, stages = self.trial * self.dcn_trial, self.stage * self.dcn_stage
        if trials != 1 and stages != 1:
            raise errors.UserError(
                f"mesh.trial={trials} and mesh.stage={stages} devices: either trials or blocks can "
                "be sharded over devices, not both. With mesh.trial=1 each stage computes all "
                "trials."
            )

    @property
    def ici_sizes(self) -> dict[str, int]:
        """Size within a slice, by the option's name."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def dcn_sizes(self) -> dict[str, int]:
        """Size across slices, by the option's name."""
        return {f"dcn_{axis}": getattr(self, f"dcn_{axis}") for axis in MESH_AXES}
