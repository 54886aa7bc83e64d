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
  GPUs: NVIDIA's data sheets of the SXM parts (A100, H100, H200, HGX B200, GB200 NVL72) and of L4:
    peak bf16 without sparsity, which is half of what the newer sheets print; NVLink in one
    direction, half of the sheets' sum of both (L4 has none: PCIe 4.0 x16). Memory and its bandwidth
    are those of parallel/gpus.py.
  GPUs' network: what NVIDIA's own systems give each GPU: DGX A100 200 Gbit/s, DGX H100, H200, B200
    and GB200 NVL72 400 Gbit/s. Clouds differ, and L4's is a guess (100 Gbit/s for a host of eight,
    Google Cloud's g2-standard-96).
  GPUs' host link: PCIe 4.0 x16 (A100, L4), 5.0 x16, and GB200's NVLink-C2C, shared by two GPUs; at
    80 %, a guess.
  Usable memory of a GPU: the part of it that JAX's allocator takes (`memory_fraction`).
"""

import dataclasses
import difflib
import os

import jax

from keel_jax import errors
from keel_jax.parallel import gpus
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
    # Bytes a second that a device of a ring sends: by both directions of one of a TPU's links, by
    # all links of a GPU.
    ring_bytes_per_second: float
    dcn_bytes_per_second: float
    # Of the link between the device's memory and its host's, in one direction.
    host_bytes_per_second: float
    # What the links of a slice are called, and the network between slices.
    link: str = "ici"
    network: str = "dcn"


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
        2 * link_gbs * _GB,
        dcn_gbs * _GB,
        host_gbs * _GB,
    )


def _gpu(
    kind: str, tflops: float, link_gbs: float, network_gbs: float, host_gbs: float
) -> tuple[str, Chip]:
    """JAX's name of the GPU, and its entry, whose usable memory is all of it."""
    gpu = gpus.GPUS[kind]
    chip = Chip(
        tflops * 1e12,
        gpu.memory_bytes,
        gpu.memory_bytes_per_second,
        link_gbs * _GB,
        network_gbs * _GB,
        0.8 * host_gbs * _GB,
        link="pcie" if kind == "l4" else "nvlink",
        network="network",
    )
    return gpu.device_kind, chip


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
_GPUS = dict(
    (
        _gpu("a100", 312, 300, 25, 32),
        _gpu("a100-40gb", 312, 300, 25, 32),
        _gpu("h100", 989, 450, 50, 64),
        _gpu("h200", 989, 450, 50, 64),
        _gpu("b200", 2250, 900, 50, 64),
        _gpu("gb200", 2500, 900, 50, 225),
        _gpu("l4", 121, 32, 1.5, 32),
    )
)
# Peak only: JAX sees two devices on a v2 (46 TFLOP/s) or v3 (123) chip.
_PEAKS = {"TPU v2": 23e12, "TPU v3": 61.5e12}
# JAX's own, of 0.10 and older (docs.jax.dev, "GPU memory allocation"); later versions let the pool
# grow beyond it where there is room.
_DEFAULT_FRACTION = 0.75
_FRACTION_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def memory_fraction() -> float:
    """The part of a GPU's memory that JAX's allocator takes: by the environment, or its default.

    Raises:
      UserError: the environment says no number in (0, 1].
    """
    for name in _FRACTION_VARIABLES:
        text = os.environ.get(name)
        if not text:
            continue
        try:
            fraction = float(text)
        except ValueError:
            fraction = 0.0
        if not 0 < fraction <= 1:
            raise errors.UserError(f"{name}={text!r} must be a number above 0 and at most 1.")
        return fraction
    return _DEFAULT_FRACTION


def peak_flops_per_second(device: devices.Device) -> float | None:
    """The device's bf16 peak; None if the table does not know it: no guess, and no MFU."""
    chip = find_chip(device)
    return chip.flops_per_second if chip else _PEAKS.get(device.device_kind)


def total_peak_flops_per_second() -> float | None:
    """The bf16 peak of all devices of the program together; None if it is not known."""
    peak = peak_flops_per_second(jax.devices()[0])
    return peak and peak * jax.device_count()


def find_chip(device: devices.Device) -> Chip | None:
    """The table's entry for the device; None: it has none."""
    if chip := _GPUS.get(device.device_kind):
        usable = chip.usable_hbm_bytes * memory_fraction()
        return dataclasses.replace(chip, usable_hbm_bytes=usable)
    return _CHIPS.get(device.device_kind)


def memory_bytes(device: devices.Device) -> int | None:
    """What a program may have of the device's memory, by the table or else by the device itself.

    A GPU that is there is asked first: its allocator may have been given another part of it. None
    on a CPU, whose memory is not the limit of a plan, and where the device does not say.
    """
    chip = find_chip(device)
    is_present = device.platform == "gpu" and device in jax.local_devices()
    if chip and not is_present:
        return round(chip.usable_hbm_bytes)
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats.get("bytes_limit") if stats else None


def require_chip(device: devices.Device) -> Chip | None:
    """The table's entry for the device; None for a CPU, for which nothing is estimated.

    Raises:
      UserError: the table does not have the accelerator, or only its peak; nothing is guessed.
    """
    chip = find_chip(device)
    if chip or device.platform == "cpu":
        return chip
    names = (*_CHIPS, *_GPUS)
    near = difflib.get_close_matches(device.device_kind, names, n=1, cutoff=0.0)[0]
    raise errors.UserError(
        f"The chip table (keel_jax/planning/chips.py) has no {device.device_kind!r}; the "
        f"nearest it has is {near!r}. Add its numbers with their sources; nothing is guessed."
    )
