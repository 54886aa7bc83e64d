"""Devices by topology name: TPU slices and GPUs that need not exist, and simulated devices.

    v5e:4x4            16 chips, one slice          v4 v5p tpu7x: three sizes, as in v5p:4x4x4
    v5e:16x16 x 2      num_slices=2: 512 chips, distinguished by their `slice_index`
    h100:8             eight GPUs of one host
    h100:8x16          16 hosts of eight GPUs, each host a slice, as on a cluster
    cpu:8              eight simulated devices

The TPU compiler (libtpu) and the CUDA compiler (in JAX's plugin) then compile for them on any
machine. A tpu7x chip is two devices.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from keel_jax import config, errors
from keel_jax.parallel import gpus
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import devices as devices_lib
from keel_jax.runtime import platforms

# Sizes of a topology's name, by kind of chip.
_NUM_SIZES = {"v2": 2, "v3": 2, "v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
# The largest pod (tpu7x; Google Cloud's TPU pages).
_MAX_CHIPS = 9216
_EXAMPLES = "v5e:4x4, v5p:4x4x4, h100:8, cpu:8"
# The distributions of JAX's CUDA plugin, one a CUDA version.
_CUDA_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
# JAX presents a real v4 chip as one device, and the compiler's description has two by default.
_CHIP_CONFIG = {"v4": {"chip_config_name": "megacore"}}
# Lets libtpu start without a TPU: no metadata server is queried, and several processes may load it.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_COUNT_FLAG = re.compile(r"--xla_force_host_platform_device_count=\d+\s*")


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices that a program is compiled for; made by `parse`."""

    # As in "v5e:4x4".
    name: str
    # As in "v5e" or "h100"; "cpu" for simulated devices.
    kind: str
    # Chips along each dimension of a slice; GPUs of a host, and hosts if they are given; for a CPU,
    # the total number of devices.
    sizes: tuple[int, ...]
    # Of GPUs, the sets that NVLink joins: hosts, or racks.
    num_slices: int = 1

    @property
    def is_simulated(self) -> bool:
        """Whether the devices are a CPU's, which have no slices."""
        return self.kind == "cpu"

    @property
    def is_gpu(self) -> bool:
        return self.kind in gpus.GPUS

    @property
    def simulated_slices(self) -> int | None:
        """The number of equal parts of the devices that stand for slices; None: real slices.

        The devices of a GPU topology do not say in which slice they are.
        """
        return self.num_slices if self.is_simulated or self.is_gpu else None

    @functools.cached_property
    def devices(self) -> list[devices_lib.Device]:
        """The devices of all slices.

        Raises:
          UserError: the compiler is not installed or does not know the slice, or there are too
            few simulated devices.
        """
        if self.is_simulated:
            return self._simulated_devices()
        return self._gpu_devices() if self.is_gpu else self._tpu_devices()

    def mesh(self, options: config.MeshConfig) -> jax.sharding.Mesh:
        """A mesh over the devices; raises as `mesh.make` does."""
        return mesh_lib.make(options, self.devices, self.simulated_slices)

    def configure_jax(self) -> None:
        """Sets JAX up for `devices`; to be called before JAX starts any of its platforms."""
        os.environ.update(_ENVIRONMENT)
        jax.config.update("jax_platforms", "cpu")
        if self.is_simulated:
            # The number can be set in two ways, and JAX refuses both at once.
            os.environ["XLA_FLAGS"] = _COUNT_FLAG.sub("", os.environ.get("XLA_FLAGS", ""))
            jax.config.update("jax_num_cpu_devices", self.sizes[0])
            platforms.give_threads()
        if self.is_gpu:
            # XLA's log, on stderr: that a program is too large is said by the plan.
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

    def _simulated_devices(self) -> list[devices_lib.Device]:
        [count] = self.sizes
        available = jax.devices("cpu")
        if len(available) < count or count % self.num_slices:
            raise errors.UserError(
                f"{self.name} in {self.num_slices} slice(s): JAX has {len(available)} simulated "
                "devices, and the slices must share them equally."
            )
        return available[:count]

    def _gpu_devices(self) -> list[devices_lib.Device]:
        _check_cuda_plugin(self.name)
        num_gpus, num_hosts = (*self.sizes, 1)[:2]
        with _silent_stderr():
            described = topologies.get_topology_desc(
                self.name,
                "cuda",
                target_config=gpus.GPUS[self.kind].target_config,
                topology=f"{self.num_slices}x{num_hosts // self.num_slices}x{num_gpus}",
            )
        return list(described.devices)

    def _tpu_devices(self) -> list[devices_lib.Device]:
        if importlib.util.find_spec("libtpu") is None:
            raise errors.UserError(
                f"{self.name} needs the TPU compiler: pip install 'keel_jax[plan]'."
            )
        os.environ.update(_ENVIRONMENT)
        options: dict[str, Any] = dict(_CHIP_CONFIG.get(self.kind, {}))
        if self.num_slices > 1:
            options["num_slices"] = self.num_slices
        try:
            with _silent_stderr():
                described = topologies.get_topology_desc(self.name, "tpu", **options)
        except jax.errors.JaxRuntimeError as error:
            raise errors.UserError(
                f"The TPU compiler knows no topology {self.name!r}: "
                f"{str(error).splitlines()[0]} Examples: {_EXAMPLES}."
            ) from error
        return list(described.devices)


def parse(name: str, num_slices: int = 1) -> Topology:
    """`num_slices` slices of the topology `name`.

    Raises:
      UserError: the name is not that of a topology, or num_slices is below 1.
    """
    kind, _, text = name.partition(":")
    if kind != "cpu" and kind not in _NUM_SIZES and kind not in gpus.GPUS:
        raise errors.UserError(
            f"No topology {name!r}: the kinds are {', '.join((*_NUM_SIZES, *gpus.GPUS))} and cpu, "
            f"as in {_EXAMPLES}.{gpus.refusal(kind)}"
        )
    sizes = tuple(int(n) for n in text.split("x")) if re.fullmatch(r"\d+(x\d+)*", text) else ()
    if kind in gpus.GPUS:
        return _parse_gpus(name, kind, sizes, num_slices)
    count = _NUM_SIZES.get(kind, 1)
    if len(sizes) != count or not 0 < math.prod(sizes) <= _MAX_CHIPS:
        raise errors.UserError(
            f"No topology {name!r}: {kind} takes {count} size(s) of together at most "
            f"{_MAX_CHIPS}, as in {kind}:{'x'.join(['4'] * count)}."
        )
    if num_slices < 1:
        raise errors.UserError(f"num_slices={num_slices} must be at least 1.")
    return Topology(name, kind, sizes, num_slices)


def _parse_gpus(name: str, kind: str, sizes: tuple[int, ...], num_slices: int) -> Topology:
    if len(sizes) not in (1, 2) or not 0 < math.prod(sizes) <= _MAX_CHIPS:
        raise errors.UserError(
            f"No topology {name!r}: {kind} takes the GPUs of a host, and hosts if there are "
            f"several, of together at most {_MAX_CHIPS} GPUs, as in {kind}:4 or {kind}:4x2."
        )
    if num_slices != 1:
        raise errors.UserError(
            f"num_slices={num_slices} is for TPUs: hosts of GPUs are part of the topology's name, "
            f"as in {kind}:{sizes[0]}x{num_slices}."
        )
    return Topology(name, kind, sizes, gpus.num_domains(kind, name, sizes))


def _check_cuda_plugin(name: str) -> None:
    """Checks that JAX can load the CUDA compiler.

    Raises:
      UserError: it is not installed, or is not of the version that jaxlib is of.
    """
    jaxlib = importlib.metadata.version("jaxlib")
    for plugin in _CUDA_PLUGINS:
        if importlib.util.find_spec(plugin.replace("-", "_")) is None:
            continue
        version = importlib.metadata.version(plugin)
        if version != jaxlib:
            raise errors.UserError(
                f"{name} needs {plugin} of jaxlib's version, {jaxlib}, and {version} is installed: "
                f"pip install 'jax[{plugin.split('-')[1]}]=={jaxlib}'."
            )
        return
    raise errors.UserError(
        f"{name} needs the CUDA compiler, not a GPU: pip install 'keel_jax[plan-cuda]' (6 GB)."
    )


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discards libtpu's messages about a missing TPU, which bypass Python's stderr."""
    with tempfile.TemporaryFile() as sink:
        original = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)
