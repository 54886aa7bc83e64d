"""Slurm jobs: the script does what it says, and a job that is followed does not stay behind."""

import signal
import subprocess

import pytest


def test_submitting(world):
    done = world.launch("slurm", "--partition=gpu", "--sbatch_flag=--qos=long")
    assert done.returncode == 0, done.stderr
    assert "Job 77" in done.stderr and world.calls("sacct") == []
    assert "--topology=cpu:2" in (world.directory / "planned").read_text()
    head = (world.directory / "run/job.sh").read_text().split("set -e")[0]
    for flag in (
        "--nodes=1",
        "--ntasks-per-node=2",
        "--gpus-per-node=2",
        "--partition=gpu",
        "--qos=long",
        "--requeue",
        "--signal=B:TERM@300",
    ):
        assert f"#SBATCH {flag}\n" in head


def _job(world, **env) -> subprocess.Popen:
    """Runs the job's script, as Slurm would on the first node."""
    done = world.launch("slurm")
    assert done.returncode == 0, done.stderr
    (world.directory / "run/logs").mkdir(exist_ok=True)
    return subprocess.Popen(
        ["bash", str(world.directory / "run/job.sh")],
        cwd=world.directory,
        env={**world.env, "STANDIN_WORKERS": "2", "SLURM_JOB_ID": "77", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("scripts", "code", "starts"),
    [
        (["0", "0"], 0, 1),
        pytest.param(["76 0", "137 0"], 0, 2, marks=pytest.mark.slow),
        # srun itself would say 134, and hide the cause.
        (["134", "1"], 1, None),
        (["3", "3"], 3, 1),
    ],
)
def test_the_job_supervises_and_judges(world, scripts, code, starts):
    for task, script in enumerate(scripts):
        (world.workdir / str(task)).write_text(script)
    process = _job(world, MAX_RETRIES="1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    if starts:
        assert world.starts() == {"0": starts, "1": starts}
    assert world.calls("scontrol") == []


@pytest.mark.parametrize(("restarts", "requeues"), [("0", 1), ("100", 0)])
def test_before_its_time_is_up_it_saves_and_puts_itself_back(world, restarts, requeues):
    for task in "01":
        (world.workdir / task).write_text("sleep")
    process = _job(world, SLURM_RESTART_COUNT=restarts)
    world.wait_for(lambda: len(list(world.workdir.glob("*.ready"))) == 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert world.calls("scontrol") == ["scontrol requeue 77"] * requeues


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["PENDING|0:0", "RUNNING|0:0", "COMPLETED|0:0"], 0),
        (["", "RUNNING|0:0", "FAILED|3:0"], 3),
        (["CANCELLED by 1000|0:15"], 143),
        pytest.param(["NODE_FAIL|0:0"], 1, marks=pytest.mark.slow),
    ],
)
def test_following(world, states, code):
    world.tell("sacct", states)
    done = world.launch("slurm", "--follow", "--poll_seconds=0.1")
    assert (done.returncode, world.resources()) == (code, {}), done.stderr


def test_a_job_that_stays_in_the_queue_is_cancelled(world):
    world.tell("sacct", ["PENDING|0:0"])
    done = world.launch("slurm", "--follow", "--poll_seconds=0.1", "--wait_minutes=0.005")
    assert (done.returncode, world.resources()) == (1, {}) and "still PENDING" in done.stderr


def test_ctrl_c_cancels(world):
    world.tell("sacct", ["RUNNING|0:0"])
    process = world.start("slurm", "--follow", "--poll_seconds=0.1")
    world.wait_for(lambda: world.calls("sacct"))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (130, {}), stderr


def test_a_refused_job(world):
    world.tell("faults", [dict(match="sbatch", code=1, stderr="Invalid partition name")])
    done = world.launch("slurm")
    assert done.returncode == 1 and "Invalid partition" in done.stderr
    assert world.launch("slurm", "--workdir=relative").returncode == 1
