"""JobSets on GKE: nothing of ours stays in the cluster."""

import signal

import pytest

_RUNNING = {"replicatedJobsStatus": [{"name": "slice", "ready": 1}]}

_COMPLETED = {"conditions": [{"type": "Completed", "status": "True"}]}

_FAILED = {
    "conditions": [
        {"type": "StartupPolicyCompleted", "status": "True"},
        {"type": "Failed", "status": "True"},
    ]
}


def test_a_run_that_ends_well(world):
    world.configure("jobset", [{}, _RUNNING, _COMPLETED])
    done = world.launch("gke")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    assert (world.directory / "planned").exists() and "All 1 slices run" in done.stderr
    assert "step 1" in (world.directory / "run/logs/pods.log").read_text()


@pytest.mark.parametrize(("pods", "code"), [([76, 1, 137], 1), ([3, 3], 3), ([0, 0], 1)])
def test_a_failed_jobset_has_its_pods_code(world, pods, code):
    world.configure("jobset", [_RUNNING, _FAILED])
    world.configure("pods", pods)
    done = world.launch("gke", "--keep")
    assert (done.returncode, world.resources()) == (code, {}), done.stderr


@pytest.mark.parametrize(
    ("fault", "statuses", "words"),
    [
        (dict(match="create configmap", code=1, stderr="forbidden"), [], "forbidden"),
        (dict(match="create -f", code=1, stderr="timeout", effect=True), [], "timeout"),
        (dict(match="never"), [{}], "0 of 1 slices run after"),
        (dict(match="get jobset demo", code=1, times=99, stderr="refused"), [{}], "No answer"),
    ],
    ids=["configmap", "half-created", "no nodes", "no cluster"],
)
def test_a_start_that_fails_leaves_nothing(world, fault, statuses, words):
    world.configure("faults", [fault])
    world.configure("jobset", statuses)
    done = world.launch("gke", "--wait_minutes=0.005", "--lost_minutes=0.005")
    assert (done.returncode, world.resources()) == (1, {}), done.stderr
    assert words in done.stderr


def test_what_does_not_fit_or_exists_already_is_not_created(world):
    world.configure("plan", 4)
    assert world.launch("gke").returncode == 4
    world.configure("plan", 0)
    theirs = {"jobset/demo": {}}
    world.configure("resources", theirs)
    done = world.launch("gke")
    assert done.returncode == 1 and "already" in done.stderr
    assert world.resources() == theirs and world.calls(" create ") == world.calls(" delete ") == []


@pytest.mark.parametrize("times", [2, 99])
def test_deleting_is_tried_again_and_failure_is_loud(world, times):
    world.configure("jobset", [_COMPLETED])
    world.configure("faults", [dict(match=" delete ", code=1, times=times)])
    done = world.launch("gke", "--delete_tries=3")
    if times == 2:
        assert (done.returncode, world.resources()) == (0, {}), done.stderr
    else:
        assert done.returncode == 5 and "COULD NOT BE DELETED" in done.stderr
        assert f"  {world.calls(' delete ')[0]}" in done.stderr.splitlines()


def test_ctrl_c_deletes(world):
    world.configure("jobset", [_RUNNING])
    process = world.start("gke")
    world.wait_for(lambda: world.calls("get jobset demo"))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (130, {}), stderr
