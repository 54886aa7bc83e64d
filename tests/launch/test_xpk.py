"""xpk's workloads: created, waited for, deleted."""

import signal

import pytest


def test_a_run_that_ends_well(world):
    done = world.launch("xpk", "--num_slices=2", "--spot")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    (create,) = world.calls("workload create")
    assert "--tpu-type=v5litepod-8 --num-slices=2" in create
    assert "--restart-on-exit-codes=75,76" in create
    assert "worker.sh install tpu,gcs" in create and "worker.sh run -m keel_jax.train" in create
    assert (world.directory / "run/bundle/source.tar.gz").exists()


@pytest.mark.parametrize(("pods", "code"), [([3, 3], 3), ([76, 137], 137)])
def test_a_failed_workload_has_its_pods_code(world, pods, code):
    world.configure("faults", [dict(match="--wait-for-job", code=125)])
    world.configure("pods", pods)
    done = world.launch("xpk", "--keep")
    assert (done.returncode, world.resources()) == (code, {}), done.stderr


@pytest.mark.parametrize(
    "fault",
    [
        dict(match="workload create", code=1, stderr="quota"),
        dict(match="workload create", code=1, stderr="kubectl failed", effect=True),
        dict(match="--wait-for-job", code=1, stderr="no such cluster"),
    ],
    ids=["create", "half-created", "wait"],
)
def test_a_start_that_fails_leaves_nothing(world, fault):
    world.configure("faults", [fault])
    done = world.launch("xpk")
    assert (done.returncode, world.resources()) == (1, {}), done.stderr
    assert fault["stderr"] in done.stderr


def test_the_queue_is_bounded_and_a_long_run_is_not(world):
    timed_out = dict(match="--wait-for-job", code=124)
    queued = dict(match="QUEUED", stdout="Jobset Name   Created\ndemo   2026\n")
    world.configure("faults", [timed_out, queued])
    done = world.launch("xpk")
    assert (done.returncode, world.resources()) == (1, {})
    assert "still in the queue after 60 minutes" in done.stderr
    world.configure("faults", [timed_out])
    assert world.launch("xpk").returncode == 0
    waits = [call.split("--timeout=")[1] for call in world.calls("--timeout")]
    assert waits[-2:] == ["3600", str(168 * 3600 - 3600)]


def test_what_exists_already_is_not_touched(world):
    world.configure("resources", {"workload/demo": {}})
    done = world.launch("xpk")
    assert done.returncode == 1 and "already" in done.stderr
    assert list(world.resources()) == ["workload/demo"] and world.calls(" delete ") == []


def test_a_failure_to_delete_is_loud(world):
    world.configure("faults", [dict(match=" delete ", code=1, times=99)])
    done = world.launch("xpk", "--delete_tries=2")
    assert done.returncode == 5 and f"  {world.calls(' delete ')[0]}" in done.stderr.splitlines()


def test_ctrl_c_deletes(world):
    world.configure("faults", [dict(match="--wait-for-job", sleep=30)])
    process = world.start("xpk")
    world.wait_for(lambda: world.calls("--wait-for-job"))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (130, {}), stderr
