"""The entry point: its JSON, its exit codes, and what it refuses."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from keel_jax.runtime import exit_codes

ROOT = pathlib.Path(__file__).parents[1]


def run(*flags, timeout=300):
    env = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    return subprocess.run(
        [sys.executable, "-m", "keel_jax.plan", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
    )


TINY = (
    "--config=experiments/configs/tiny.py",
    "--config.model.vocab_size=256",
    "--config.train.seq_len=32",
    "--config.model.num_blocks=2",
)


def is_plan(value):
    hbm = value["hbm_bytes"]
    assert {"limit", "arguments", "temporaries", "total"} <= set(hbm)
    assert value["flops"]["executed"] >= 0.8 * value["flops"]["model"] > 0
    for c in value["collectives"]:
        assert {"kind", "axis", "count", "bytes", "network"} <= set(c)
    assert value["compile_seconds"] > 0
    assert {"mesh", "segments", "recompute"} <= set(value["plan"])
    assert value["plan"]["recompute"]["expected_temporaries_bytes"] > 0


def test_a_plan_of_simulated_devices(tmp_path):
    done = run(*TINY, "--topology=cpu:4", f"--json={tmp_path / 'plan.json'}")
    assert done.returncode == exit_codes.DONE, done.stderr
    value = json.loads((tmp_path / "plan.json").read_text())
    is_plan(value)
    assert value["fits"] and value["plan"]["mesh"] == {"fsdp": 4}
    assert value["estimate"] is None and value["hbm_bytes"]["limit"] is None
    assert "Traceback" not in done.stderr and "fsdp 4" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topology=v9:2x2", *TINY), "No topology 'v9:2x2'"),
        (("--topology=cpu:4", "--config=experiments/configs/tiny.py"), "--config.model.vocab_size"),
        (("--topology=cpu:4", *TINY, "--config.mesh.fsdp=3"), "mesh.fsdp=3"),
        (("--topology=cpu:3", *TINY), "is not a multiple of the 3"),
    ],
)
def test_what_is_refused(flags, message):
    done = run(*flags)
    assert done.returncode == exit_codes.ERROR
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_plan_of_a_tpu_and_one_that_is_too_large(tmp_path):
    """One compiler run each: a small step, and one whose state alone exceeds a v5e."""
    for name, flags, code in (
        ("fits", TINY, exit_codes.DONE),
        # 2 blocks of FFNs so wide that 4 chips cannot hold their parameters.
        ("not", (*TINY, "--config.model.d_ffn=60000000"), exit_codes.DOES_NOT_FIT),
    ):
        done = run(*flags, "--topology=v5e:2x2", f"--json={tmp_path / name}")
        assert done.returncode == code, done.stderr
        assert done.stderr.strip() in ("", "compiling for v5e:2x2")
    value = json.loads((tmp_path / "fits").read_text())
    is_plan(value)
    assert 0 < value["estimate"]["mfu"] < 1 and value["hbm_bytes"]["limit"] == 15.75 * 2**30
    assert not value["flops"]["unknown_loops"]
    value = json.loads((tmp_path / "not").read_text())
    hbm = value["hbm_bytes"]
    assert not value["fits"] and hbm["missing"] == hbm["total"] - hbm["limit"] > 0
    assert hbm["arguments"] + hbm["temporaries"] == hbm["total"]
    assert "devices" in value["advice"] and "does not fit" in done.stdout
