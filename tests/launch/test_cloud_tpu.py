"""Runs on Cloud TPU machines: whatever goes wrong, no paid machine is left without a warning."""

import contextlib
import signal

import pytest

from tests.launch import conftest

_QUOTA = "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded."

_CAPACITY = '{"code": 8, "message": "There is no more capacity in the zone \\"z\\""}'


@conftest.KINDS
def test_a_run_that_ends_well(world, module):
    done = world.launch(module, "--config.model.num_blocks=7", "--spot", STANDIN_WORKERS="2")
    assert done.returncode == 0, done.stderr
    assert world.resources() == {}
    assert world.starts() == {"demo-w-0": 1, "demo-w-1": 1}
    assert (world.directory / "planned").read_text().split() == [
        "--config=experiments/configs/tiny.py",
        "--topology=v5e:2x4",
        "--config.model.num_blocks=7",
    ]
    (create,) = world.calls(" create ")
    assert "--accelerator-type=v5litepod-8" in create and "--spot" in create
    log = (world.directory / "run/logs/demo.log").read_text()
    assert "demo-w-0: process demo-w-0 start 1" in log and "demo-w-1: process demo-w-1" in log
    installs = (world.directory / "pip").read_text().splitlines()
    assert len(installs) == 2 and installs[0].endswith("-c constraints.txt ./source[tpu,gcs]")


def test_several_slices(world):
    done = world.launch("queued_resource", "--num_slices=2")
    assert done.returncode == 0, done.stderr
    assert world.resources() == {}
    assert world.starts() == {"demo-0-w-0": 1, "demo-1-w-0": 1}
    (create,) = world.calls(" create ")
    assert "--node-count=2 --node-prefix=demo" in create
    assert "--num_slices=2" in (world.directory / "planned").read_text()
    assert world.launch("tpu_vm", "--num_slices=2").returncode == 1


# --- The start ------------------------------------------------------------------------------------


@conftest.KINDS
def test_what_does_not_fit_is_not_created(world, module):
    world.configure("plan", 4)
    done = world.launch(module)
    assert done.returncode == 4
    assert "a table of HBM" in done.stdout and "nothing was created" in done.stderr
    assert world.calls("gcloud") == []
    assert world.launch(module, "--no_plan").returncode == 0


def test_a_plan_that_fails_creates_nothing(world):
    world.configure("plan", 1)
    done = world.launch("tpu_vm")
    assert (done.returncode, world.calls("gcloud")) == (1, [])


_FAILED_STARTS = {
    "quota": dict(match=" create ", code=1, stderr=_QUOTA),
    # gcloud fails, but the machine exists.
    "half-created": dict(match=" create ", code=1, stderr=_CAPACITY, effect=True),
    "scp": dict(match=" scp ", code=255, times=99, stderr="SSH Key is not in the SSH agent"),
    "one worker": dict(match="on demo-w-1: mkdir", code=1, times=99),
    "pip": dict(match="no-pip", stderr="No matching distribution found"),
    "start": dict(match="worker.sh start", code=255, times=99, stderr="Connection refused"),
}


@pytest.mark.parametrize(
    ("module", "fault"),
    [
        ("tpu_vm", "quota"),
        ("queued_resource", "half-created"),
        ("tpu_vm", "scp"),
        ("tpu_vm", "one worker"),
        ("queued_resource", "pip"),
        ("tpu_vm", "start"),
        pytest.param("tpu_vm", "half-created", marks=pytest.mark.slow),
    ],
)
def test_a_start_that_fails_leaves_nothing(world, module, fault):
    fault = _FAILED_STARTS[fault]
    world.configure("faults", [fault])
    if fault["match"] == "no-pip":
        (world.directory / "no-pip").touch()
    done = world.launch(module, STANDIN_WORKERS="2")
    assert done.returncode == 1, done.stderr
    assert world.resources() == {}
    assert world.starts() == {}
    assert fault.get("stderr", "failed") in done.stderr


# --- The end --------------------------------------------------------------------------------------


def test_attach_follows_and_deletes(world):
    (world.workdir / "demo-w-0").write_text("sleep")
    process = world.start("tpu_vm")
    world.wait_for(lambda: world.starts())
    process.kill()
    process.communicate()
    assert world.resources()
    done = world.start("tpu_vm", "--attach")
    world.wait_for(lambda: len(world.calls("worker.sh status")) > 3)
    done.send_signal(signal.SIGTERM)
    _, stderr = done.communicate(timeout=30)
    assert done.returncode == 130, stderr
    assert len(world.calls(" create ")) == 1 and world.resources() == {}
    assert world.launch("tpu_vm", "--attach").returncode == 1


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("tpu_vm", signal.SIGINT),
        ("queued_resource", signal.SIGHUP),
        pytest.param("tpu_vm", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_while_creating_deletes(world, module, number):
    world.configure("faults", [dict(match=" create ", sleep=20, effect=True)])
    world.configure("resources", {})
    process = world.start(module)
    world.wait_for(lambda: world.calls(" create "))
    # The cloud has the request; gcloud still waits.
    kind = conftest.KIND_OF[module]
    world.configure("resources", {f"{kind}/demo": {"states": ["CREATING"], "nodes": ["demo"]}})
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert world.resources() == {} and world.calls(" delete ")


def test_a_launcher_under_nohup_outlives_its_terminal(world):
    world.configure("states", {"queued-resources": ["WAITING_FOR_RESOURCES"] * 9999})
    with _ignored(signal.SIGHUP):
        process = world.start("queued_resource")
    world.wait_for(lambda: len(world.calls("describe")) > 3)
    process.send_signal(signal.SIGHUP)
    asked = len(world.calls("describe"))
    world.wait_for(lambda: len(world.calls("describe")) > asked + 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (130, {}), stderr


@contextlib.contextmanager
def _ignored(number: signal.Signals):
    """A scope whose new processes ignore the signal, as nohup's do SIGHUP."""
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, previous)


def test_ctrl_c_in_the_queue_deletes(world):
    world.configure("states", {"queued-resources": ["WAITING_FOR_RESOURCES"] * 9999})
    process = world.start("queued_resource")
    world.wait_for(lambda: len(world.calls("describe")) > 3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (130, {}), stderr


# --- Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir=runs/x"], "would lie on one worker"),
        (["--topology=v5e:4x4x4"], "3 dimensions"),
        (["--topology=v5:4x4"], "did you mean"),
        (["--topology=tpu7x:2x2x2"], "through GKE only"),
        (["--topology=v5e:2x8"], "has the shape 4x4"),
        (["--logs=logs"], "no gs:// directory"),
        (["--name=Demo_1"], "lower-case"),
        (["--pol_second=3"], "did you mean --poll_seconds"),
    ],
)
def test_mistakes_are_reported_before_anything_is_created(world, flags, words):
    done = world.launch("tpu_vm", *flags)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
    assert world.calls() == []
