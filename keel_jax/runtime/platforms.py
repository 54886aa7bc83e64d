"""Which of JAX's platforms a command tries by default, and its number of threads."""

import glob
import importlib.util
import os
import pathlib

import jax

# Google's PCI vendor number, and the device files of a TPU VM's chips.
_TPU_VENDOR = "0x1ae0"
_TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
_GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
_SIMULATED = "--xla_force_host_platform_device_count="
# Devices times the collectives in which one of them may wait at a time, with a margin: on 8 devices
# with stages, fsdp and tensor 8 threads hang, 64 do not (tests/training/test_step.py).
_NUM_THREADS = "64"


def choose() -> None:
    """Keeps JAX from trying TPUs on a machine that has libtpu (for `plan`) but no TPU.

    JAX would start libtpu there, which writes pages to stderr before it gives up. Nothing is
    changed on machines with TPUs, with a GPU plugin, or with JAX_PLATFORMS set.
    """
    is_chosen = bool(jax.config.jax_platforms)  # pyright: ignore[reportAttributeAccessIssue]: JAX defines it at run time
    has_gpu_plugin = any(importlib.util.find_spec(name) for name in _GPU_PLUGINS)
    if importlib.util.find_spec("libtpu") and not (is_chosen or has_gpu_plugin or _has_tpu()):
        jax.config.update("jax_platforms", "cpu")
    give_threads()


def give_threads() -> None:
    """Gives simulated devices more threads than there are devices; call before using any device.

    A simulated device that waits in a collective occupies a thread of a shared pool, one for each
    collective that it has reached. Devices reach independent collectives in different orders, so a
    pool with one thread per device, the default, can be exhausted by devices that wait for each
    other.
    """
    # The flag with any number: a process with one device may wait for those of other processes.
    num_devices = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]: JAX defines it at run time
    if num_devices > 1 or _SIMULATED in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("PJRT_NPROC", _NUM_THREADS)


def _has_tpu() -> bool:
    vendors = pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(map(glob.glob, _TPU_DEVICES)) or any(
        path.read_text().strip() == _TPU_VENDOR for path in vendors
    )
