"""What all launchers share: dry runs, --help, documented commands, and the order of imports."""

import argparse
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from launch import options
from tests.launch import conftest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("module", conftest.LAUNCHERS)
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


@pytest.mark.parametrize("text", ["inf", "nan", "-inf", "0"])
def test_a_time_is_a_positive_finite_number(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text} is not a positive, finite"):
        options.positive_float(text)
    assert options.positive_float("0.5") == 0.5


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
    world.configure("jobset", [{}])
    script = world.launch(module, "--dry-run", *flags).stdout
    # `describe` fails before the creation and after the deletion, which must not end the script.
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


@pytest.mark.parametrize("module", [*conftest.LAUNCHERS, "group"])
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


@pytest.mark.parametrize("module", conftest.LAUNCHERS)
def test_what_does_not_fit_is_not_started(world, module):
    world.configure("plan", 4)
    done = world.launch(module)
    assert (done.returncode, world.resources(), world.starts()) == (4, {}, {}), done.stderr
    assert "a table of HBM" in done.stdout
    assert world.calls("sbatch") + world.calls("workload create") == []


def test_the_package_does_not_import_the_launchers():
    for directory in ("keel_jax", "experiments"):
        for path in (ROOT / directory).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"^\s*(from|import) launch\b", text, re.MULTILINE), path


def test_documented_commands_exist():
    text = (ROOT / "docs/launch.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^python -m launch\.\w+.*$", text, re.MULTILINE)
    assert {line.split()[2] for line in commands} == {
        f"launch.{name}" for name in conftest.LAUNCHERS
    }
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
