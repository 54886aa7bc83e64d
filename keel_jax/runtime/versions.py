"""What a run ran on, and what differs between the versions of JAX that we support."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax

import keel_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece",
             "numpy", "libtpu")


def describe() -> dict:
    """Versions, devices and the source's commit, for the work directory and for results."""
    found = {"keel_jax": keel_jax.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "packages": found,
        "devices": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "host_cpus": os.cpu_count(),
        },
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the source tree, "-dirty" if it was changed; None outside a git checkout."""
    here = pathlib.Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
