"""Which of JAX's platforms a verb tries, where nobody has said."""

import glob
import importlib.util
import pathlib

import jax

# Google's PCI vendor number, and the devices by which a TPU VM shows its chips.
_TPU_VENDOR = "0x1ae0"
_TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
_GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")


def choose() -> None:
    """Leaves TPUs untried on a machine that has libtpu (for `plan`) and no TPU.

    JAX would start libtpu there, which writes pages to stderr before it gives up. A machine with
    TPUs, one with a GPU plugin, and one where JAX_PLATFORMS is set are left as they are.
    """
    is_told = bool(jax.config.jax_platforms)
    has_gpu_plugin = any(importlib.util.find_spec(name) for name in _GPU_PLUGINS)
    if importlib.util.find_spec("libtpu") and not (is_told or has_gpu_plugin or _has_tpu()):
        jax.config.update("jax_platforms", "cpu")


def _has_tpu() -> bool:
    vendors = pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(map(glob.glob, _TPU_DEVICES)) or any(
        path.read_text().strip() == _TPU_VENDOR for path in vendors
    )
