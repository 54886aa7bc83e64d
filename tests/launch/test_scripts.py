"""The shell scripts are clean and explain themselves."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def _shellcheck(*paths):
    binary = pathlib.Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([binary, *paths], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_shell_scripts_are_clean(world):
    assert world.launch("slurm", "--dry-run").returncode == 0
    job = world.directory / "job.sh"
    text = world.launch("slurm", "--dry-run").stdout
    job.write_text(re.search(r"job.sh <<'END'\n(.*?)\nEND\n", text, re.DOTALL)[1] + "\n")
    scripts = [
        path
        for path in ROOT.rglob("*.sh")
        if not any(part.startswith(".venv") for part in path.parts)
    ]
    assert len(scripts) >= 3
    assert _shellcheck(*scripts, ROOT / ".ci/run", job) == ""


def test_shellcheck_bites(tmp_path):
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/bin/bash\nrm -rf $1/*\n")
    assert "SC2086" in _shellcheck(bad)


@pytest.mark.parametrize(
    "directory", [ROOT / "launch", pathlib.Path("launch")], ids=["absolute", "relative"]
)
@pytest.mark.parametrize("name", ["worker.sh", "supervise.sh"])
def test_scripts_explain_themselves(directory, name):
    done = subprocess.run(
        ["bash", str(directory / name), "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and name in done.stdout
