"""What the platforms call a slice of TPUs: `v5e:4x4` is `v5litepod-16` to gcloud, and so on.

Sources: accelerator types count TensorCores up to v5p and chips from v5e and v6e on
(cloud.google.com/tpu/docs/supported-tpu-configurations); software versions,
cloud.google.com/tpu/docs/runtimes; node labels and chips a machine,
cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus. tpu7x is available through GKE only
(cloud.google.com/tpu/docs/queued-resources).
"""

import dataclasses
import difflib
import math
import re

from keel_jax import errors


@dataclasses.dataclass(frozen=True)
class Generation:
    """Names of one TPU generation.

    Attributes:
      gcloud_prefix: of the accelerator type; None if gcloud cannot create this generation.
      counts_per_chip: 2 if the accelerator type counts TensorCores, 1 if it counts chips.
      software: the runtime version of a TPU VM; None if `gcloud_prefix` is.
      gke_label: value of the node label cloud.google.com/gke-tpu-accelerator.
      num_dimensions: of the topology.
      max_chips: of one slice.
    """

    gcloud_prefix: str | None
    counts_per_chip: int
    software: str | None
    gke_label: str
    num_dimensions: int
    max_chips: int


GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", 3, 4096),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 2, 256),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 3, 6144),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 2, 256),
    "tpu7x": Generation(None, 2, None, "tpu7x", 3, 9216),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: a generation and the shape of its chips."""

    name: str
    generation: Generation
    shape: tuple[int, ...]

    @property
    def topology(self) -> str:
        """The shape as the platforms write it, as in 4x4."""
        return "x".join(map(str, self.shape))

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def accelerator_type(self) -> str:
        """gcloud's name of it, as in v5litepod-16.

        Raises:
          UserError: gcloud cannot create this generation, or creates another shape of this size.
        """
        prefix = self.generation.gcloud_prefix
        if prefix is None:
            raise errors.UserError(
                f"{self.name} is available through GKE only: python -m launch.gke."
            )
        default_shape = _default_shape(self.num_chips, self.generation.num_dimensions)
        if self.shape != default_shape:
            shape = "x".join(map(str, default_shape))
            raise errors.UserError(
                f"An accelerator type of {self.num_chips} chips has the shape {shape}, not "
                f"{self.topology}: give --topology={self.name.split(':')[0]}:{shape}, or use GKE."
            )
        return f"{prefix}-{self.num_chips * self.generation.counts_per_chip}"

    def num_machines(self, chips_per_machine: int) -> int:
        """How many machines of `chips_per_machine` chips the slice consists of.

        Raises:
          UserError: they do not divide its chips.
        """
        if self.num_chips % chips_per_machine:
            raise errors.UserError(
                f"{self.name} has {self.num_chips} chips, which is not divisible by "
                f"{chips_per_machine} chips a machine: give another --chips_per_machine."
            )
        return self.num_chips // chips_per_machine


def _default_shape(num_chips: int, num_dimensions: int) -> tuple[int, ...]:
    """The shape that an accelerator type of this size means: factors of two, the last the largest.

    2x2x1 is the exception: one machine, whose shortest side comes last.
    """
    shape = [1] * num_dimensions
    while math.prod(shape) < num_chips:
        # The last of the smallest sides grows, which keeps the shape as cubic as possible.
        smallest = max(i for i in range(num_dimensions) if shape[i] == min(shape))
        shape[smallest] *= 2
    if num_dimensions == 3 and num_chips == 4:
        return (2, 2, 1)
    return tuple(shape)


def parse(name: str) -> Slice:
    """The slice that a name such as v5e:4x4 describes, as for `python -m keel_jax.plan --topology`.

    Raises:
      UserError: there is no such generation, or it does not have this shape.
    """
    generation_name, _, topology = name.partition(":")
    if generation_name not in GENERATIONS:
        near = difflib.get_close_matches(generation_name, GENERATIONS, n=1, cutoff=0)
        raise errors.UserError(
            f"Unknown TPU generation {generation_name!r} in {name!r}: did you mean {near[0]!r}? "
            f"There are {', '.join(GENERATIONS)}."
        )
    generation = GENERATIONS[generation_name]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology):
        raise errors.UserError(f"{name!r} has no shape: write it like v5e:4x4 or v5p:4x4x4.")
    shape = tuple(map(int, topology.split("x")))
    if len(shape) != generation.num_dimensions:
        raise errors.UserError(
            f"{name!r} has {len(shape)} dimensions, but {generation_name} has "
            f"{generation.num_dimensions}."
        )
    if math.prod(shape) > generation.max_chips:
        raise errors.UserError(
            f"{name!r} has {math.prod(shape)} chips, but a slice of {generation_name} has at most "
            f"{generation.max_chips}: take several slices, --num_slices."
        )
    return Slice(name, generation, shape)
