"""The pinned source, dry runs, shell scripts, and the order of imports."""

import importlib.metadata
import pathlib
import re
import shlex
import subprocess
import sys
import tarfile

import pytest

from launch import constraints
from tests.launch import conftest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHERS = ["tpu_vm", "queued_resource", "gke", "xpk", "slurm", "local"]


@pytest.fixture
def dirty(world, tmp_path):
    """A project of one's own with a change, an untracked file, and the world in it."""
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "-q", str(world.project), str(copy)], check=True)
    with open(copy / "keel_jax/__init__.py", "a") as file:
        file.write("CHANGED = True\n")
    (copy / "untracked.py").write_text("")
    world.project = copy
    return world


def test_a_dirty_tree_is_refused(dirty):
    done = dirty.launch("tpu_vm")
    assert done.returncode == 1 and dirty.calls() == []
    assert "keel_jax/__init__.py" in done.stderr and "untracked.py" in done.stderr
    done = dirty.launch("slurm", "--allow_dirty")
    assert done.returncode == 0, done.stderr
    with tarfile.open(dirty.directory / "run/bundle/source.tar.gz") as archive:
        assert b"CHANGED" in archive.extractfile("keel_jax/__init__.py").read()
        assert "untracked.py" not in archive.getnames()
    # It is on no branch, and the tree is as it was.
    assert conftest.git(dirty.project, "log", "--oneline").count("\n") == 1
    assert "M keel_jax/__init__.py" in conftest.git(dirty.project, "status", "--porcelain")


def test_a_config_that_the_commit_lacks_is_refused(world):
    done = world.launch("tpu_vm", "--config=experiments/configs/mine.py")
    assert done.returncode == 1 and "has no file experiments/configs/mine.py" in done.stderr
    assert world.calls() == []


def test_the_constraints_are_this_environment(tmp_path):
    found = dict(line.split("==") for line in constraints.lines())
    assert found["jax"] == importlib.metadata.version("jax")
    assert "keel-jax" not in found and "keel_jax" not in found
    assert not [version for version in found.values() if "+" in version]


# --- Dry runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", LAUNCHERS)
def test_a_dry_run_runs_nothing(world, module):
    done = world.launch(module, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert world.calls() == [] and not (world.directory / "planned").exists()
    assert not (world.directory / "run").exists()
    assert done.stderr == ""
    assert "keel_jax.plan" in done.stdout and "keel_jax.train" in done.stdout
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
    without = world.launch(module, "--dry-run", "--no-plan").stdout
    assert "keel_jax.plan" not in without


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("tpu_vm", ["--spot", "--project=p", "--create_flag=--reserved", "--logs=gs://b/l"]),
        pytest.param(
            "queued_resource",
            ["--num_slices=2", "--connect_flag=--internal-ip"],
            marks=pytest.mark.slow,
        ),
        ("gke", ["--num_slices=2", "--context=c", "--namespace=n"]),
        ("xpk", ["--spot"]),
        ("slurm", ["--follow"]),
    ],
)
def test_what_a_dry_run_prints_can_be_pasted(world, module, flags):
    """The stand-ins refuse unknown flags; what is created is deleted again by the same script."""
    world.tell("jobset", [{}])
    script = world.launch(module, "--dry-run", *flags).stdout
    # The first look finds nothing, and says so by its exit code: no `set -e` before it.
    lines = script.splitlines()
    first = next((i for i, line in enumerate(lines) if " describe " in line), None)
    if first is not None:
        lines[first] += " || true"
        lines[-1] = f"! {lines[-1]}"
    done = subprocess.run(
        ["bash", "-e"],
        input="\n".join(lines),
        cwd=world.project,
        env=world.env,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert len(world.calls()) >= 4 and world.resources() == {}


@pytest.mark.parametrize("module", [*LAUNCHERS, "group"])
def test_help_is_quick_and_needs_no_jax(module):
    code = (
        f"import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('launch.{module}', run_name='__main__')\n"
        f"except SystemExit: print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("False\n"), done.stderr
    assert "--num_processes" in done.stdout or "--dry_run" in done.stdout


# --- Shell ---------------------------------------------------------------------------------------


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


def test_scripts_explain_themselves():
    for name in ("worker.sh", "supervise.sh"):
        done = subprocess.run(
            ["bash", str(ROOT / "launch" / name), "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0 and name in done.stdout


# --- The source ----------------------------------------------------------------------------------


def test_the_package_does_not_import_the_launchers():
    for directory in ("keel_jax", "experiments"):
        for path in (ROOT / directory).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"^\s*(from|import) launch\b", text, re.MULTILINE), path


def test_documented_commands_exist():
    text = (ROOT / "docs/launch.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^python -m launch\.\w+.*$", text, re.MULTILINE)
    assert {line.split()[2] for line in commands} == {f"launch.{name}" for name in LAUNCHERS}
    for line in commands:
        words = shlex.split(line)
        done = subprocess.run(
            [sys.executable, *words[1:], "--dry-run", "--no-plan"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (line, done.stderr)
