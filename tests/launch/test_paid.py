"""What costs money is deleted, in several tries if need be; else the user is warned loudly."""

import signal

import pytest

from tests.launch import conftest


def test_deleting_is_tried_again(world):
    world.configure(
        "faults", [dict(match=" delete ", code=1, stderr="FAILED_PRECONDITION", times=2)]
    )
    done = world.launch("queued_resource")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    assert len(world.calls(" delete ")) == 3


@pytest.mark.parametrize(
    ("module", "started"),
    [("tpu_vm", False), pytest.param("queued_resource", True, marks=pytest.mark.slow)],
)
def test_a_machine_that_cannot_be_deleted_is_named_loudly(world, module, started):
    faults = [dict(match=" delete ", code=1, times=99)]
    if not started:
        (world.directory / "no-pip").touch()
    world.configure("faults", faults)
    done = world.launch(module, "--delete_tries=3", "--project=p")
    assert done.returncode == 5
    assert "COULD NOT BE DELETED AND MAY COST MONEY" in done.stderr
    (command,) = {
        line.strip()
        for line in done.stderr.splitlines()
        if line.startswith("  gcloud") and " delete " in line
    }
    assert command == world.calls(" delete ")[0]
    assert list(world.resources()) == [f"{conftest.KIND_OF[module]}/demo"]


@pytest.mark.parametrize(("script", "is_kept"), [("0", True), ("3", False)])
def test_keep_keeps_what_ended_well_only(world, script, is_kept):
    (world.workdir / "demo-w-0").write_text(script)
    done = world.launch("tpu_vm", "--keep")
    assert done.returncode == int(script) and ("is kept" in done.stderr) == is_kept
    assert list(world.resources()) == ["tpu-vm/demo"] * is_kept


def test_ctrl_c_while_deleting_is_answered_with_words(world):
    world.configure("faults", [dict(match=" delete ", sleep=1, effect=True)])
    process = world.start("tpu_vm")
    world.wait_for(lambda: world.calls(" delete "))
    for _ in range(3):
        process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (0, {}), stderr
    assert "Still deleting tpu-vm demo" in stderr
