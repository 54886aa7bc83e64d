"""A machine with libtpu and no TPU: JAX says nothing of it; others are left as they are."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from keel_jax.runtime import platforms

ROOT = pathlib.Path(__file__).parents[2]


def test_no_noise_without_tpus():
    env = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    script = (
        "from keel_jax.runtime import platforms\nimport jax\nplatforms.choose()\n"
        "print(jax.devices()[0].platform)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("cpu\n", "")


@pytest.mark.parametrize(
    ("told", "has_tpu", "expected"),
    [(None, False, "cpu"), (None, True, None), ("tpu,cpu", False, "tpu,cpu")],
)
def test_what_is_there_or_told_is_left(told, has_tpu, expected, monkeypatch):
    chosen = []
    monkeypatch.setattr(platforms, "_has_tpu", lambda: has_tpu)
    monkeypatch.setattr(platforms, "_GPU_PLUGINS", ())
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", told)
    try:
        platforms.choose()
        chosen.append(jax.config.jax_platforms)
    finally:
        jax.config.update("jax_platforms", before)
    assert chosen == [expected]


@pytest.mark.parametrize(
    ("flags", "own", "expected"),
    [
        ("--xla_force_host_platform_device_count=8", None, "64"),
        ("--xla_force_host_platform_device_count=8", "5", "5"),
        ("", None, None),
    ],
)
def test_simulated_devices_get_threads(flags, own, expected, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.delenv("PJRT_NPROC")
    if own:
        monkeypatch.setenv("PJRT_NPROC", own)
    platforms.give_threads()
    assert os.environ.get("PJRT_NPROC") == expected
    monkeypatch.setenv("PJRT_NPROC", "64")
