"""A small project and a world of stand-ins for the launchers' tests (standins/program.py)."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
LAUNCHERS = ("tpu_vm", "queued_resource", "gke", "xpk", "slurm", "local")
# The two kinds of Cloud TPU machine differ in their gcloud commands only.
KINDS = pytest.mark.parametrize(
    "module", ["tpu_vm", pytest.param("queued_resource", marks=pytest.mark.slow)]
)
# gcloud's nouns.
KIND_OF = {"tpu_vm": "tpu-vm", "queued_resource": "queued-resources"}

PROGRAMS = ("gcloud", "kubectl", "xpk", "sbatch", "sacct", "squeue", "scancel", "scontrol", "srun")
# What a worker has. `python3.X -m venv` makes an environment whose python is the real one and whose
# pip only checks its input; it fails if the directory STANDIN has a file `no-pip`.
TOOLS = {
    "hostname": 'echo "${KEEL_TEST_HOST:-here}"',
    PYTHON: f'''
        [ "$1" = -c ] && exit
        mkdir -p "$3/bin"
        cp "$STANDIN/bin/pip" "$3/bin/pip"
        ln -s {sys.executable} "$3/bin/python"''',
    "pip": """
        [ "$1" = install ] || exit 0
        echo "pip $*" >>"$STANDIN/pip"
        [ ! -e "$STANDIN/no-pip" ] || { echo "No matching distribution found" >&2; exit 1; }
        [ -s constraints.txt ] && [ -e source/keel_jax/train.py ]""",
}

# The driver's stand-in. It ends as WORKDIR/PROCESS says, one word a start, the last for ever: an
# exit code, `sleep`, `child` (has a child, and sleeps), or `ignore_sigterm` (and sleeps).
_TRAIN = """
import os, pathlib, signal, sys, time
flags = dict(arg.lstrip("-").partition("=")[::2] for arg in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
process = flags.get("process_id") or os.environ.get("SLURM_PROCID") or os.environ["KEEL_TEST_HOST"]
assert pathlib.Path(flags["config"]).exists(), flags["config"]
with open(workdir / "starts", "a") as starts:
    starts.write(process + "\\n")
number = (workdir / "starts").read_text().split().count(process)
script = workdir / process
words = script.read_text().split() if script.exists() else ["0"]
word = words[min(number, len(words)) - 1]
print("process", process, "start", number, "does", word, flush=True)
def save(*_):
    # As in the driver, SIGTERM that comes again is no second request: a whole Slurm step gets one,
    # and its supervisors pass theirs on.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
if word == "child":
    (workdir / "child").write_text(str(os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600")))
if word == "ignore_sigterm":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if word in ("sleep", "child", "ignore_sigterm"):
    (workdir / f"{process}.ready").touch()
    time.sleep(600)
if int(word) > 128:
    os.kill(os.getpid(), int(word) - 128)
sys.exit(int(word))
"""
# The plan's stand-in: exits with the code in the file `plan` of the directory STANDIN.
_PLAN = """
import os, pathlib, sys
path = pathlib.Path(os.environ["STANDIN"])
(path / "planned").write_text(" ".join(sys.argv[1:]))
print("a table of HBM")
sys.exit(int((path / "plan").read_text()) if (path / "plan").exists() else 0)
"""


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> pathlib.Path:
    """A commit with the launchers, and stand-ins for the driver and the plan."""
    directory = tmp_path_factory.mktemp("project")
    shutil.copytree(
        ROOT / "launch", directory / "launch", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in (
        "keel_jax/__init__.py",
        "keel_jax/errors.py",
        "keel_jax/runtime/__init__.py",
        "keel_jax/runtime/exit_codes.py",
        "experiments/configs/tiny.py",
    ):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    (directory / "keel_jax/train.py").write_text(_TRAIN)
    (directory / "keel_jax/plan.py").write_text(_PLAN)
    (directory / ".gitignore").write_text("__pycache__/\nruns/\n")
    git(directory, "init", "-q")
    git(directory, "add", "-A")
    git(directory, "commit", "-qm", "all")
    return directory


def git(directory, *words) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    return subprocess.run(
        ["git", "-C", str(directory), *identity, *words], check=True, capture_output=True, text=True
    ).stdout


class World:
    """Stand-ins on PATH, the commands that they got, and what they have created."""

    def __init__(self, directory: pathlib.Path, project: pathlib.Path):
        self.directory, self.project = directory, project
        self.workdir = directory / "workdir"
        self.workdir.mkdir()
        (directory / "hosts").mkdir()
        (directory / "gone").mkdir()
        (directory / "constraints.txt").write_text("numpy==2.0\n")
        bin_ = directory / "bin"
        bin_.mkdir()
        for name in PROGRAMS:
            # -S -E: the stand-ins need no packages.
            (bin_ / name).write_text(
                f"#!{sys.executable} -SE\nimport sys\n"
                f"sys.path.insert(0, {str(ROOT / 'tests/launch')!r})\n"
                f"from standins import program\nsys.exit(program.main({name!r}))\n"
            )
        for name, script in TOOLS.items():
            (bin_ / name).write_text(f"#!/bin/sh\n{script}\n")
        for path in bin_.iterdir():
            path.chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{bin_}:/usr/bin:/bin",
            "STANDIN": str(directory),
            "PAUSE_SECONDS": "0",
            "SHIP_SECONDS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def configure(self, name: str, value):
        """Writes a file that the stand-ins read: faults, states, jobset, pods, sacct, plan."""
        path = self.directory / (name if name == "plan" else f"{name}.json")
        path.write_text(json.dumps(value))

    def command(self, module: str, *flags: str) -> list[str]:
        """A launcher with the flags that it always needs; of a repeated flag the last counts."""
        required = {
            "tpu_vm": ["--topology=v5e:2x4", "--zone=z"],
            "queued_resource": ["--topology=v5e:2x4", "--zone=z"],
            "gke": ["--topology=v5e:2x4"],
            "xpk": ["--topology=v5e:2x4", "--zone=z", "--cluster=c", "--project=p"],
            "slurm": ["--nodes=1", "--gpus_per_node=2", "--time=1:00:00"],
            "local": ["--num_processes=2"],
        }[module]
        if module != "local":
            required += [
                f"--constraints={self.directory / 'constraints.txt'}",
                "--name=demo",
                f"--run_dir={self.directory / 'run'}",
            ]
        if module in ("tpu_vm", "queued_resource", "gke", "xpk"):
            required += ["--poll_seconds=0.2"]
        return [
            sys.executable,
            "-m",
            f"launch.{module}",
            "--config=experiments/configs/tiny.py",
            f"--workdir={self.workdir}",
            *required,
            *flags,
        ]

    def launch(self, module: str, *flags: str, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(module, *flags),
            cwd=self.project,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, module: str, *flags: str, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(module, *flags),
            cwd=self.project,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(self, word: str = "") -> list[str]:
        """Command lines that the stand-ins got, those with `word` in them."""
        path = self.directory / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in (" ".join(json.loads(text)) for text in lines) if word in line]

    def resources(self) -> dict:
        """What was created and not deleted."""
        path = self.directory / "resources.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def starts(self) -> dict[str, int]:
        """How often each process of the run was started."""
        path = self.workdir / "starts"
        words = path.read_text().split() if path.exists() else []
        return {word: words.count(word) for word in sorted(set(words))}

    def wait_for(self, condition, seconds: float = 90.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.calls()[-5:]
            time.sleep(0.02)


@pytest.fixture
def world(tmp_path, project):
    world = World(tmp_path, project)
    yield world
    # Runs that the test left on its workers, on purpose or because it failed.
    for pid in world.directory.glob("hosts/*/keel/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
