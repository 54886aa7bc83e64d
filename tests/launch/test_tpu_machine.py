"""A Cloud TPU machine: its creation is bounded, its loss noticed, its deletion verified."""

import pytest

from tests.launch import conftest


def test_a_place_in_the_queue(world):
    waiting = ["CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    world.configure("states", {"queued-resources": waiting})
    world.configure(
        "faults", [dict(match="describe.*state.state", after=2, code=1, stderr="timeout")]
    )
    done = world.launch("queued_resource")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    assert "WAITING_FOR_RESOURCES" in done.stderr


@pytest.mark.parametrize("state", ["FAILED", pytest.param("UNKNOWN", marks=pytest.mark.slow)])
def test_a_request_that_fails_is_deleted(world, state):
    world.configure("states", {"queued-resources": ["WAITING_FOR_RESOURCES"] + [state] * 20})
    done = world.launch("queued_resource")
    assert (done.returncode, world.resources()) == (1, {})
    assert state in done.stderr and len(world.calls(" create ")) == 1


def test_waiting_is_bounded(world):
    world.configure("states", {"queued-resources": ["WAITING_FOR_RESOURCES"] * 999})
    done = world.launch("queued_resource", "--wait_minutes=0.01")
    assert (done.returncode, world.resources()) == (1, {})
    assert "still WAITING_FOR_RESOURCES after 0.01 minutes" in done.stderr


@conftest.KINDS
def test_a_machine_of_that_name_is_not_touched(world, module):
    theirs = {f"{conftest.KIND_OF[module]}/demo": {"states": ["READY"], "nodes": ["demo"]}}
    world.configure("resources", theirs)
    done = world.launch(module)
    assert done.returncode == 1 and "already" in done.stderr
    assert world.resources() == theirs
    # Nor is one that appears between the query and the creation.
    world.configure("faults", [dict(match="describe", code=1, stderr="NOT_FOUND")])
    done = world.launch(module)
    assert done.returncode == 1 and "Someone else" in done.stderr
    assert world.resources() == theirs and world.calls(" delete ") == []


def test_nothing_is_created_if_the_state_is_unknown(world):
    world.configure("faults", [dict(match="describe", code=1, stderr="PERMISSION_DENIED")])
    done = world.launch("tpu_vm")
    assert done.returncode == 1 and world.calls(" create ") == []


@pytest.mark.parametrize(
    "module", ["queued_resource", pytest.param("tpu_vm", marks=pytest.mark.slow)]
)
def test_a_preempted_machine_is_created_anew(world, module):
    (world.workdir / "demo-w-0").write_text("sleep 0")
    world.configure("faults", [dict(match="ssh.*status", after=2, preempt=True, effect=True)])
    done = world.launch(module, "--spot")
    assert done.returncode == 0, done.stderr
    assert "was taken away" in done.stderr
    assert world.starts() == {"demo-w-0": 2}
    assert len(world.calls(" create ")) == len(world.calls(" delete ")) == 2
    assert world.resources() == {}


def test_preemptions_are_bounded(world):
    world.configure("faults", [dict(match="ssh.*status", preempt=True, effect=True, times=99)])
    done = world.launch("tpu_vm", "--max_recreations=1")
    assert (done.returncode, world.resources()) == (1, {})
    assert "Preempted 2 times" in done.stderr and len(world.calls(" create ")) == 2


def test_a_preemption_while_it_is_created(world):
    world.configure("states", {"queued-resources": ["PROVISIONING", *["SUSPENDED"] * 20]})
    done = world.launch("queued_resource", "--max_recreations=1")
    assert (done.returncode, world.resources()) == (1, {})
    assert len(world.calls(" create ")) == 2


def test_a_lost_connection_does_not_end_a_run(world):
    world.configure(
        "faults",
        [
            dict(match="tpu-vm ssh.*status", code=255, times=3, stderr="Connection timed out"),
            dict(match="describe", after=2, code=1, stderr="no network"),
        ],
    )
    done = world.launch("tpu_vm")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    assert len(world.calls(" create ")) == 1 and world.starts() == {"demo-w-0": 1}


def test_a_machine_that_does_not_answer_is_lost(world):
    world.configure("faults", [dict(match="ssh.*status", code=255, times=99)])
    done = world.launch("tpu_vm", "--lost_minutes=0.005", "--max_recreations=0")
    assert (done.returncode, world.resources()) == (1, {})
    assert "could not be reached" in done.stderr


def test_a_machine_is_gone_only_if_describe_says_so(world):
    # The deletion's own exit code is 0 here although nothing was deleted.
    world.configure("faults", [dict(match=" delete ", code=0, times=2)])
    done = world.launch("tpu_vm")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    assert len(world.calls(" delete ")) == 3
