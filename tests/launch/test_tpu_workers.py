"""The workers of a Cloud TPU machine: their exit codes, restarts, the end of all, their logs."""

import signal

import pytest


def test_a_copy_that_fails_once_is_tried_again(world):
    world.configure("faults", [dict(match=" scp ", code=255)])
    done = world.launch("tpu_vm")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr


@pytest.mark.parametrize(
    ("codes", "exit_code", "starts"),
    [
        ({"demo-w-0": "3", "demo-w-1": "3"}, 3, 1),
        ({"demo-w-0": "76 0", "demo-w-1": "75 0"}, 0, 2),
        pytest.param(
            {"demo-w-0": "134 76 0", "demo-w-1": "139 137 0"}, 0, 3, marks=pytest.mark.slow
        ),
    ],
)
def test_exit_codes(world, codes, exit_code, starts):
    for host, script in codes.items():
        (world.workdir / host).write_text(script)
    done = world.launch("tpu_vm", STANDIN_WORKERS="2")
    assert done.returncode == exit_code, done.stderr
    assert world.starts() == dict.fromkeys(codes, starts)
    assert world.resources() == {}


def test_an_error_of_one_worker_ends_all(world):
    (world.workdir / "demo-w-0").write_text("sleep")
    (world.workdir / "demo-w-1").write_text("1")
    done = world.launch("tpu_vm", "--grace_seconds=0.3", STANDIN_WORKERS="2")
    assert done.returncode == 1, done.stderr
    assert "1 of 2 workers have ended" in done.stderr
    assert world.starts() == {"demo-w-0": 1, "demo-w-1": 1}
    assert world.resources() == {}


@pytest.mark.slow
def test_workers_that_have_given_up_are_not_started_for_ever(world):
    (world.workdir / "demo-w-0").write_text("137")
    done = world.launch("tpu_vm", "--max_restarts=1", MAX_RETRIES="0")
    assert (done.returncode, world.resources()) == (137, {}), done.stderr
    assert world.starts() == {"demo-w-0": 2}


def test_workers_that_have_given_up_start_again_together(world):
    (world.workdir / "demo-w-0").write_text("76 76 0")
    (world.workdir / "demo-w-1").write_text("137 137 0")
    done = world.launch("tpu_vm", MAX_RETRIES="1", STANDIN_WORKERS="2")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    assert world.starts() == {"demo-w-0": 3, "demo-w-1": 3}


def test_ctrl_c_while_it_runs_saves_and_deletes(world):
    for host in ("demo-w-0", "demo-w-1"):
        (world.workdir / host).write_text("sleep")
    process = world.start("tpu_vm", "--grace_seconds=10", STANDIN_WORKERS="2")
    world.wait_for(lambda: len(list(world.workdir.glob("*.ready"))) == 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (130, {}), stderr
    log = (world.directory / "run/logs/demo.log").read_text()
    assert log.count("asked to stop; the command ended with 75") == 2


def test_logs_to_a_bucket(world):
    (world.workdir / "demo-w-0").write_text("sleep")
    process = world.start(
        "tpu_vm", "--logs=gs://bucket/logs", "--grace_seconds=9", SHIP_SECONDS="1"
    )
    # While it runs already, as a machine may be taken away.
    log = world.directory / "buckets/bucket/logs/demo-w-0.log"
    world.wait_for(log.exists)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, world.resources()) == (130, {}), stderr
    assert "asked to stop; the command ended with 75" in log.read_text()
