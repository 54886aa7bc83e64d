"""The versions and devices of a run, and what differs between the supported versions of JAX."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax._src import clusters
from jax._src import distributed as jax_distributed

import keel_jax

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "sentencepiece",
    "numpy",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
)


def describe() -> dict:
    """Versions, devices and the source's commit, for the work directory and for results."""
    return {
        "packages": packages(),
        "devices": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "host_cpus": os.cpu_count(),
        },
        "commit": commit(),
    }


def packages() -> dict[str, str]:
    """Versions of Python, of this project and of the packages that matter to a run."""
    versions = {"keel_jax": keel_jax.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


class Processes(NamedTuple):
    """The processes of one program, and which of them this is."""

    # HOST:PORT of process 0, the coordinator.
    address: str
    num_processes: int
    process_id: int
    # Indices of this process's devices on its machine; None: all of them.
    local_device_ids: Sequence[int] | None = None


def detect_processes(timeout_seconds: int) -> Processes | None:
    """The processes according to a TPU, Slurm, MPI or Kubernetes environment, as JAX detects them.

    JAX has no public function for this: `jax.distributed.initialize` does it, but does not tell in
    advance whether it would find anything.

    Returns:
      None outside such an environment.
    """
    address, num_processes, process_id, local_device_ids = (
        clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, timeout_seconds
        )
    )
    if num_processes is None:
        return None
    assert address is not None and process_id is not None, (address, process_id)
    return Processes(address, num_processes, process_id, local_device_ids)


def coordination_client() -> Any:
    """The client of the coordination service of `jax.distributed`; None in a single process.

    JAX has no public access to the service's key-value store and barriers.
    """
    return jax_distributed.global_state.client


def commit() -> str | None:
    """The commit of the source tree, "-dirty" if it was changed; None outside a git checkout."""
    here = pathlib.Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    print(", ".join(f"{package} {version}" for package, version in packages().items()))
