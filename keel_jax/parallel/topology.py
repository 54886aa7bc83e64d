"""Devices of a machine that is not there: TPU slices by name, and a CPU's simulated devices.

    v5e:4x4            16 chips, one slice          v4 v5p tpu7x: three sizes, as in v5p:4x4x4
    v5e:16x16 x 2      num_slices=2: 512 chips, whose `slice_index` tells them apart
    cpu:8              eight simulated devices

The TPU compiler (libtpu) then compiles for them on any machine. A tpu7x chip is two devices.
"""

import contextlib
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental import topologies

from keel_jax import errors
from keel_jax.runtime import platforms

# Sizes of a topology's name, by kind of chip.
_DIMENSIONS = {"v2": 2, "v3": 2, "v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
# The largest pod (tpu7x; Google Cloud's TPU pages).
_MOST_CHIPS = 9216
_EXAMPLES = "v5e:4x4, v5p:4x4x4, cpu:8"
# A v4 chip is one device to JAX where it is, and two in the compiler's description by default.
_CHIP_CONFIG = {"v4": {"chip_config_name": "megacore"}}
# What lets libtpu start where no TPU is: it asks no metadata server, and several processes may.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_COUNT_FLAG = re.compile(r"--xla_force_host_platform_device_count=\d+\s*")


def prepare(name: str) -> None:
    """Sets JAX up for `devices(name)`; to be called before any device of JAX's is used.

    Raises:
      UserError: the name is not one of a topology.
    """
    kind, sizes = _parse(name)
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    if kind == "cpu":
        # Two ways to say how many: JAX refuses both at once.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = _COUNT_FLAG.sub("", flags)
        jax.config.update("jax_num_cpu_devices", sizes[0])
        platforms.give_threads()


def devices(name: str, num_slices: int = 1) -> list[jax.Device]:
    """The devices of topology `name`, of `num_slices` such slices.

    Raises:
      UserError: no such topology, or libtpu is not installed, or too few simulated devices.
    """
    kind, sizes = _parse(name)
    if num_slices < 1:
        raise errors.UserError(f"num_slices={num_slices} must be at least 1.")
    if kind == "cpu":
        there = jax.devices("cpu")
        if len(there) < sizes[0] or sizes[0] % num_slices:
            raise errors.UserError(
                f"{name} in {num_slices} slice(s): {len(there)} simulated devices are there, and "
                "the slices share them equally."
            )
        return there[: sizes[0]]
    if importlib.util.find_spec("libtpu") is None:
        raise errors.UserError(f"{name} needs the TPU compiler: pip install 'keel_jax[plan]'.")
    os.environ.update(_ENVIRONMENT)
    options = dict(_CHIP_CONFIG.get(kind, {}))
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        with _quiet():
            described = topologies.get_topology_desc(name, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise errors.UserError(
            f"The TPU compiler knows no topology {name!r}: "
            f"{str(error).splitlines()[0]} Examples: {_EXAMPLES}."
        ) from error
    return list(described.devices)


def _parse(name: str) -> tuple[str, tuple[int, ...]]:
    kind, _, text = name.partition(":")
    if kind != "cpu" and kind not in _DIMENSIONS:
        raise errors.UserError(
            f"No topology {name!r}: the kinds are {', '.join(_DIMENSIONS)} and cpu, as in "
            f"{_EXAMPLES}."
        )
    wanted = _DIMENSIONS.get(kind, 1)
    sizes = tuple(int(n) for n in text.split("x")) if re.fullmatch(r"\d+(x\d+)*", text) else ()
    if len(sizes) != wanted or not 0 < math.prod(sizes) <= _MOST_CHIPS:
        raise errors.UserError(
            f"No topology {name!r}: {kind} takes {wanted} size(s) of together at most "
            f"{_MOST_CHIPS}, as in {kind}:{'x'.join(['4'] * wanted)}."
        )
    return kind, sizes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps libtpu's complaints that no TPU is here from stderr: it writes below Python."""
    with tempfile.TemporaryFile() as sink:
        kept = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
