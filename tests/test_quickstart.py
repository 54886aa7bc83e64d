"""The quickstart: from nothing to samples; it goes on after a kill, and says when it is done."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from experiments import quickstart
from keel_jax.runtime import files
from keel_jax.training import logs

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = 1", True),
        ("    return x", True),
        ("def f(:", False),
        ("x = 'unclosed", False),
        ("# anything ' goes", True),
    ],
)
def test_lines_that_python_can_tokenize(line, expected):
    assert quickstart.is_tokenizable(line) == expected


def test_falling_is_about_the_last_point():
    assert quickstart.is_falling([[1, 3.0], [2, 2.5], [3, 2.4]])
    assert not quickstart.is_falling([[1, 3.0], [2, 2.3], [3, 2.4]])
    assert not quickstart.is_falling([[1, 3.0]])


@pytest.mark.slow
def test_quickstart_survives_a_kill_and_ends(tmp_path):
    output = tmp_path / "quickstart"
    command = [
        sys.executable,
        "-m",
        "experiments.quickstart",
        f"--output={output}",
        "--num_steps=30",
    ]
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    options: dict[str, Any] = dict(cwd=ROOT, env=env, text=True)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        deadline = time.monotonic() + 400
        while not list((output / "run/checkpoints").glob("25")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    status = files.read_json(output / "run/status.json")
    assert status is not None and status["state"] == "running"
    again = subprocess.run(command, capture_output=True, timeout=900, **options)
    assert again.returncode == 0, again.stderr
    rows = [row["step"] for row in logs.read(output / "run") if "tokens" in row]
    assert rows == [1, 10, 20, 30]
    result = files.read_json(output / "result.json")
    assert result is not None and result["step"] == 30
    assert 0 < result["lzma_bits_per_byte"] < result["gzip_bits_per_byte"] < 3
    assert 0 <= result["tokenizable_lines_fraction"] <= 1
    assert (output / "loss.png").stat().st_size > 10_000
    done = subprocess.run(command, capture_output=True, timeout=120, **options)
    assert done.returncode == 0 and "is done: 30 steps" in done.stdout
