"""Cloud TPU machines: whatever goes wrong, no paid machine is left, or it is said loudly."""

import signal

import pytest

# The two kinds differ in what they say to gcloud; all else is the same code.
KINDS = pytest.mark.parametrize(
    "module", ["tpu_vm", pytest.param("queued_resource", marks=pytest.mark.slow)]
)
KIND_OF = {"tpu_vm": "tpu-vm", "queued_resource": "queued-resources"}

_QUOTA = "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded."
_CAPACITY = '{"code": 8, "message": "There is no more capacity in the zone \\"z\\""}'


@KINDS
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


# --- The start -----------------------------------------------------------------------------------


@KINDS
def test_what_does_not_fit_is_not_created(world, module):
    world.tell("plan", 4)
    done = world.launch(module)
    assert done.returncode == 4
    assert "a table of HBM" in done.stdout and "nothing was created" in done.stderr
    assert world.calls("gcloud") == []
    assert world.launch(module, "--no_plan").returncode == 0


def test_a_plan_that_fails_creates_nothing(world):
    world.tell("plan", 1)
    done = world.launch("tpu_vm")
    assert (done.returncode, world.calls("gcloud")) == (1, [])


_FAILED_STARTS = {
    "quota": dict(match=" create ", code=1, stderr=_QUOTA),
    # Half-way: gcloud fails, but the machine is there.
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
    world.tell("faults", [fault])
    if fault["match"] == "no-pip":
        (world.directory / "no-pip").touch()
    done = world.launch(module, STANDIN_WORKERS="2")
    assert done.returncode == 1, done.stderr
    assert world.resources() == {}
    assert world.starts() == {}
    assert fault.get("stderr", "failed") in done.stderr


def test_a_copy_that_fails_once_is_tried_again(world):
    world.tell("faults", [dict(match=" scp ", code=255)])
    done = world.launch("tpu_vm")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr


def test_a_place_in_the_queue(world):
    waiting = ["CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    world.tell("states", {"queued-resources": waiting})
    world.tell("faults", [dict(match="describe.*state.state", after=2, code=1, stderr="timeout")])
    done = world.launch("queued_resource")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    assert "WAITING_FOR_RESOURCES" in done.stderr


@pytest.mark.parametrize("state", ["FAILED", pytest.param("UNKNOWN", marks=pytest.mark.slow)])
def test_a_request_that_fails_is_deleted(world, state):
    world.tell("states", {"queued-resources": ["WAITING_FOR_RESOURCES"] + [state] * 20})
    done = world.launch("queued_resource")
    assert (done.returncode, world.resources()) == (1, {})
    assert state in done.stderr and len(world.calls(" create ")) == 1


def test_waiting_is_bounded(world):
    world.tell("states", {"queued-resources": ["WAITING_FOR_RESOURCES"] * 999})
    done = world.launch("queued_resource", "--wait_minutes=0.01")
    assert (done.returncode, world.resources()) == (1, {})
    assert "still WAITING_FOR_RESOURCES after 0.01 minutes" in done.stderr


@KINDS
def test_a_machine_of_that_name_is_not_touched(world, module):
    theirs = {f"{KIND_OF[module]}/demo": {"states": ["READY"], "nodes": ["demo"]}}
    world.tell("resources", theirs)
    done = world.launch(module)
    assert done.returncode == 1 and "already" in done.stderr
    assert world.resources() == theirs
    # Also if it appears between the look and the creation.
    world.tell("faults", [dict(match="describe", code=1, stderr="NOT_FOUND")])
    done = world.launch(module)
    assert done.returncode == 1 and "Someone else" in done.stderr
    assert world.resources() == theirs and world.calls(" delete ") == []


def test_nothing_is_created_where_nobody_knows(world):
    world.tell("faults", [dict(match="describe", code=1, stderr="PERMISSION_DENIED")])
    done = world.launch("tpu_vm")
    assert done.returncode == 1 and world.calls(" create ") == []


# --- The run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "verdict", "starts"),
    [
        ({"demo-w-0": "3", "demo-w-1": "3"}, 3, 1),
        ({"demo-w-0": "76 0", "demo-w-1": "75 0"}, 0, 2),
        pytest.param(
            {"demo-w-0": "134 76 0", "demo-w-1": "139 137 0"}, 0, 3, marks=pytest.mark.slow
        ),
    ],
)
def test_exit_codes(world, codes, verdict, starts):
    for host, script in codes.items():
        (world.workdir / host).write_text(script)
    done = world.launch("tpu_vm", STANDIN_WORKERS="2")
    assert done.returncode == verdict, done.stderr
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


@pytest.mark.parametrize(
    "module", ["queued_resource", pytest.param("tpu_vm", marks=pytest.mark.slow)]
)
def test_a_preempted_machine_is_created_anew(world, module):
    (world.workdir / "demo-w-0").write_text("sleep 0")
    world.tell("faults", [dict(match="ssh.*status", after=2, preempt=True, effect=True)])
    done = world.launch(module, "--spot")
    assert done.returncode == 0, done.stderr
    assert "was taken away" in done.stderr
    assert world.starts() == {"demo-w-0": 2}
    assert len(world.calls(" create ")) == len(world.calls(" delete ")) == 2
    assert world.resources() == {}


def test_preemptions_are_bounded(world):
    world.tell("faults", [dict(match="ssh.*status", preempt=True, effect=True, times=99)])
    done = world.launch("tpu_vm", "--max_recreations=1")
    assert (done.returncode, world.resources()) == (1, {})
    assert "Preempted 2 times" in done.stderr and len(world.calls(" create ")) == 2


def test_a_preemption_while_it_is_created(world):
    world.tell("states", {"queued-resources": ["PROVISIONING", *["SUSPENDED"] * 20]})
    done = world.launch("queued_resource", "--max_recreations=1")
    assert (done.returncode, world.resources()) == (1, {})
    assert len(world.calls(" create ")) == 2


def test_a_lost_connection_does_not_end_a_run(world):
    world.tell(
        "faults",
        [
            dict(match="tpu-vm ssh.*status", code=255, times=3, stderr="Connection timed out"),
            dict(match="describe", after=2, code=1, stderr="no network"),
        ],
    )
    done = world.launch("tpu_vm")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    assert len(world.calls(" create ")) == 1 and world.starts() == {"demo-w-0": 1}


def test_a_machine_that_says_nothing_is_lost(world):
    world.tell("faults", [dict(match="ssh.*status", code=255, times=99)])
    done = world.launch("tpu_vm", "--lost_minutes=0.005", "--max_recreations=0")
    assert (done.returncode, world.resources()) == (1, {})
    assert "could not be reached" in done.stderr


# --- The end -------------------------------------------------------------------------------------


def test_deleting_is_tried_again(world):
    world.tell("faults", [dict(match=" delete ", code=1, stderr="FAILED_PRECONDITION", times=2)])
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
    world.tell("faults", faults)
    done = world.launch(module, "--delete_tries=3", "--project=p")
    assert done.returncode == 5
    assert "COULD NOT BE DELETED AND MAY COST MONEY" in done.stderr
    (command,) = {
        line.strip()
        for line in done.stderr.splitlines()
        if line.startswith("  gcloud") and " delete " in line
    }
    assert command == world.calls(" delete ")[0]
    assert list(world.resources()) == [f"{KIND_OF[module]}/demo"]


def test_a_machine_is_gone_only_if_a_look_says_so(world):
    # The deletion's own exit code says 0 here, and lies.
    world.tell("faults", [dict(match=" delete ", code=0, times=2)])
    done = world.launch("tpu_vm")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    assert len(world.calls(" delete ")) == 3


@pytest.mark.parametrize(("script", "is_kept"), [("0", True), ("3", False)])
def test_keep_keeps_what_ended_well_only(world, script, is_kept):
    (world.workdir / "demo-w-0").write_text(script)
    done = world.launch("tpu_vm", "--keep")
    assert done.returncode == int(script) and ("is kept" in done.stderr) == is_kept
    assert list(world.resources()) == ["tpu-vm/demo"] * is_kept


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


# --- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("tpu_vm", signal.SIGINT),
        ("queued_resource", signal.SIGHUP),
        pytest.param("tpu_vm", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_while_creating_deletes(world, module, number):
    world.tell("faults", [dict(match=" create ", sleep=20, effect=True)])
    world.tell("resources", {})
    process = world.start(module)
    world.wait_for(lambda: world.calls(" create "))
    # The request is with the cloud; gcloud still waits.
    kind = KIND_OF[module]
    world.tell("resources", {f"{kind}/demo": {"states": ["CREATING"], "nodes": ["demo"]}})
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert world.resources() == {} and world.calls(" delete ")


def test_ctrl_c_in_the_queue_deletes(world):
    world.tell("states", {"queued-resources": ["WAITING_FOR_RESOURCES"] * 9999})
    process = world.start("queued_resource")
    world.wait_for(lambda: len(world.calls("describe")) > 3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (130, {}), stderr


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


def test_ctrl_c_while_deleting_is_answered_with_words(world):
    world.tell("faults", [dict(match=" delete ", sleep=1, effect=True)])
    process = world.start("tpu_vm")
    world.wait_for(lambda: world.calls(" delete "))
    for _ in range(3):
        process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (0, {}), stderr
    assert "Still deleting tpu-vm demo" in stderr


# --- Options -------------------------------------------------------------------------------------


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
def test_mistakes_are_told_before_anything_is_created(world, flags, words):
    done = world.launch("tpu_vm", *flags)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
    assert world.calls() == []


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
