"""Slurm jobs: submitted as the options say, and a job that is followed does not stay behind."""

import signal

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


def test_a_job_is_planned_for_the_gpus_that_are_named(world):
    assert world.launch("slurm", "--gpu=h100").returncode == 0
    assert "--topology=h100:2x1" in (world.directory / "planned").read_text()


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
    world.configure("sacct", states)
    done = world.launch("slurm", "--follow", "--poll_seconds=0.1")
    assert (done.returncode, world.resources()) == (code, {}), done.stderr


def test_a_job_that_stays_in_the_queue_is_cancelled(world):
    world.configure("sacct", ["PENDING|0:0"])
    done = world.launch("slurm", "--follow", "--poll_seconds=0.1", "--wait_minutes=0.005")
    assert (done.returncode, world.resources()) == (1, {}) and "still PENDING" in done.stderr


def test_ctrl_c_cancels(world):
    world.configure("sacct", ["RUNNING|0:0"])
    process = world.start("slurm", "--follow", "--poll_seconds=0.1")
    world.wait_for(lambda: world.calls("sacct"))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (130, {}), stderr


def test_a_refused_job(world):
    world.configure("faults", [dict(match="sbatch", code=1, stderr="Invalid partition name")])
    done = world.launch("slurm")
    assert done.returncode == 1 and "Invalid partition" in done.stderr
    assert world.launch("slurm", "--workdir=relative").returncode == 1
