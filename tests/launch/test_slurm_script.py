"""The batch script does what it says: supervises, combines exit codes, goes back into the queue."""

import signal
import subprocess

import pytest


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
        # srun's own exit code would be 134, which hides the cause.
        (["134", "1"], 1, None),
        (["3", "3"], 3, 1),
    ],
)
def test_the_job_supervises_and_combines_exit_codes(world, scripts, code, starts):
    for task, script in enumerate(scripts):
        (world.workdir / str(task)).write_text(script)
    process = _job(world, MAX_RETRIES="1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    if starts:
        assert world.starts() == {"0": starts, "1": starts}
    assert world.calls("scontrol") == []


@pytest.mark.parametrize(("restarts", "requeues"), [("0", 1), ("100", 0)])
def test_before_its_time_is_up_it_saves_and_goes_back_into_the_queue(world, restarts, requeues):
    for task in "01":
        (world.workdir / task).write_text("sleep")
    process = _job(world, SLURM_RESTART_COUNT=restarts)
    world.wait_for(lambda: len(list(world.workdir.glob("*.ready"))) == 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert world.calls("scontrol") == ["scontrol requeue 77"] * requeues
