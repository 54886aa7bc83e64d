"""Accelerators by JAX's name of the device, one entry per device that JAX sees.

Sources, by column, unless a line says otherwise:
  peak bf16 FLOP/s, HBM bandwidth, ICI: Google Cloud's TPU pages (one a version,
    cloud.google.com/tpu/docs) and the JAX scaling book (jax-ml.github.io/scaling-book/tpus); GCP
    rounds ICI up to 50 and 100 GB/s a link and direction, the book's 45 and 90 are used.
  usable HBM: what the TPU compiler says it has; measured: libtpu 0.0.42, a program too large.
  DCN: scaling book: 6.25 GB/s a v5p or v5e chip, 3.125 a v4 chip and 12.5 a v6e chip;
    tpu7x: as v6e a chip, a guess.
  Host link: about 16 GB/s a chip and direction, v6e 32; what such links reach, no vendor's number;
    tpu7x: as v6e a chip, a guess.
  NVIDIA: data sheets of the SXM parts, without sparsity; their links are not in the plan.
"""

import dataclasses
import difflib

import jax

from keel_jax import errors
from keel_jax.runtime import devices

_GB = 1e9
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX sees it; a chip of two devices is halved."""

    # bf16 with float32 accumulation, dense.
    flops_per_second: float
    # What the compiler lets a program have.
    usable_hbm_bytes: float
    hbm_bytes_per_second: float
    # Bytes a second that a link to a neighbour sends in one direction.
    ici_bytes_per_second_per_link: float
    dcn_bytes_per_second: float
    # Of the link between the device's memory and its host's, in one direction.
    host_bytes_per_second: float


def _tpu(
    tflops: float,
    usable_gib: float,
    hbm_gbs: float,
    link_gbs: float,
    dcn_gbs: float,
    host_gbs: float,
) -> Chip:
    return Chip(
        tflops * 1e12,
        usable_gib * _GIB,
        hbm_gbs * _GB,
        link_gbs * _GB,
        dcn_gbs * _GB,
        host_gbs * _GB,
    )


_V4 = _tpu(275, 30.75, 1200, 45, 3.125, 16)
_V5E = _tpu(197, 15.75, 819, 45, 6.25, 16)
_V5P = _tpu(459, 95.74, 2765, 90, 6.25, 16)
_V6E = _tpu(918, 31.25, 1638, 90, 12.5, 32)
# Two devices a chip: 2307 TFLOP/s, 192 GiB, 7380 GB/s, and its links and network between them.
_TPU7X = _tpu(1153.5, 94.75, 3690, 45, 6.25, 16)
# JAX's own name where a TPU is, and the one of the compiler's description.
_CHIPS = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _TPU7X,
}
# Peak only: JAX sees two devices on a v2 (46 TFLOP/s) or v3 (123) chip. NVIDIA as above.
_PEAKS = {
    "TPU v2": 23e12,
    "TPU v3": 61.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops_per_second(device: devices.Device) -> float | None:
    """The device's bf16 peak; None if the table does not know it: no guess, and no MFU."""
    chip = _CHIPS.get(device.device_kind)
    return chip.flops_per_second if chip else _PEAKS.get(device.device_kind)


def total_peak_flops_per_second() -> float | None:
    """The bf16 peak of all devices of the program together; None if it is not known."""
    peak = peak_flops_per_second(jax.devices()[0])
    return peak and peak * jax.device_count()


def find_chip(device: devices.Device) -> Chip | None:
    """The table's entry for the device; None: it has none."""
    return _CHIPS.get(device.device_kind)


def memory_bytes(device: devices.Device) -> int | None:
    """What a program may have of the device's memory, by the table or else by the device itself.

    None on a CPU, whose memory is not the limit of a plan, and where the device does not say.
    """
    if chip := find_chip(device):
        return round(chip.usable_hbm_bytes)
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats.get("bytes_limit") if stats else None


def require_chip(device: devices.Device) -> Chip | None:
    """The table's entry for the device; None for a CPU, for which nothing is estimated.

    Raises:
      UserError: the table does not have the accelerator, or only its peak; nothing is guessed.
    """
    if device.device_kind not in _CHIPS:
        if device.platform == "cpu":
            return None
        near = difflib.get_close_matches(device.device_kind, _CHIPS, n=1, cutoff=0.0)[0]
        raise errors.UserError(
            f"The chip table (keel_jax/planning/chips.py) has no {device.device_kind!r}; the "
            f"nearest it has is {near!r}. Add its numbers with their sources; nothing is guessed."
        )
    return _CHIPS[device.device_kind]
