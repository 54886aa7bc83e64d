"""A result's file: refused before the work if it cannot be written, and never lost."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from keel_jax.runtime import files, result_file

ROOT = pathlib.Path(__file__).parents[2]


def test_a_missing_directory_is_made(tmp_path):
    path = tmp_path / "new" / "result.json"
    result_file.check("--json", path)
    assert list(path.parent.iterdir()) == []
    result_file.write_json(path, {"loss": 1.5})
    assert json.loads(path.read_text()) == {"loss": 1.5}


def test_no_file_is_no_file():
    result_file.check("--json", None)
    result_file.check("--json", "")
    result_file.write_json("", {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/b/result.json", "neither .*/a/b nor .*/a exists: create them, or give another file"),
        ("directory", "is a directory: give the name of a file in it"),
        ("file/result.json", "Cannot write to .*/file: .*exists"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(name, message, tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"--json={tmp_path / name}.*{message}"):
        result_file.check("--json", tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_result_that_cannot_be_written_is_printed(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        result_file.write_json(tmp_path / "result.json", {"loss": 1.5})
    assert json.loads(capsys.readouterr().out) == {"loss": 1.5}


@pytest.mark.parametrize(
    "command",
    [
        "keel_jax.evaluate --workdir=nowhere",
        "keel_jax.generate --workdir=nowhere",
        "keel_jax.grow --workdir=nowhere --output=new --num_blocks=4",
        "keel_jax.prepare --input=embedded --output=new",
        "keel_jax.plan --config=experiments/configs/tiny.py --topology=cpu:8",
        "experiments.benchmarks.compile",
        "experiments.benchmarks.data",
        "experiments.benchmarks.step",
        "experiments.benchmarks.step_profile --config=experiments/configs/tiny.py",
        "experiments.benchmarks.telemetry",
        "experiments.benchmarks.reversible --data=nowhere --workdir=nowhere",
        "experiments.benchmarks.attention",
    ],
)
def test_every_command_checks_it_first(command, tmp_path):
    """Before it looks at its other arguments, hence before any work."""
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), f"--json={tmp_path}/a/b/result.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ,
    )
    assert done.returncode == 1 and not done.stdout, done.stderr
    assert done.stderr.startswith(f"error: --json={tmp_path}/a/b/result.json: neither ")
    assert "Nothing has been done yet." in done.stderr and not (ROOT / "new").exists()
