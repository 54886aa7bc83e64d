"""Which process this is, by flags or by the environment; and whose fault an error is."""

import types

import jax
import pytest

from keel_jax.runtime import distributed, exit_codes, versions

_EXPLICIT = dict(coordinator_address="10.0.0.1:8476", num_processes=2, process_id=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(num_processes=2), "--num_processes=2 without --coordinator_address, --process_id"),
        (dict(_EXPLICIT, process_id=None), "without --process_id"),
        (dict(_EXPLICIT, mode="off"), "--distributed=off contradicts --num_processes=2"),
        (dict(_EXPLICIT, process_id=2), "--process_id=2 is not one of --num_processes=2"),
        (dict(_EXPLICIT, process_id=-1), "--process_id=-1 is not one of"),
        (dict(_EXPLICIT, num_processes=0), "is not one of --num_processes=0"),
        (dict(_EXPLICIT, coordinator_address="10.0.0.1"), "10.0.0.1 is not HOST:PORT"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        distributed.Options(**values)


@pytest.fixture
def joined(monkeypatch):
    """What `start` would join, instead of joining it."""
    found = []
    monkeypatch.setattr(distributed, "_join", lambda _, processes: found.append(processes))
    return found


_SLURM = dict(
    SLURM_JOB_ID="4097",
    SLURM_STEP_NODELIST="node[07-08]",
    SLURM_NTASKS="2",
    SLURM_PROCID="1",
    SLURM_LOCALID="0",
)


def test_slurm_is_read(joined, monkeypatch):
    for name, value in _SLURM.items():
        monkeypatch.setenv(name, value)
    distributed.start(distributed.Options())
    assert joined == [("node07:61441", 2, 1, [0])]


def test_flags_go_before_the_environment(joined, monkeypatch):
    for name, value in _SLURM.items():
        monkeypatch.setenv(name, value)
    distributed.start(distributed.Options(**_EXPLICIT))
    assert joined == [("10.0.0.1:8476", 2, 1, None)]


@pytest.mark.parametrize(
    ("slurm", "mode"), [({}, "auto"), ({**_SLURM, "SLURM_NTASKS": "1"}, "auto"), (_SLURM, "off")]
)
def test_otherwise_it_is_a_single_process(slurm, mode, joined, monkeypatch):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    distributed.start(distributed.Options(mode=mode))
    assert joined == []


def test_on_without_an_environment_is_refused(joined):
    with pytest.raises(ValueError, match="--distributed=on, but neither TPU nor Slurm"):
        distributed.start(distributed.Options(mode="on"))


def test_a_platform_that_cannot_be_asked_is_told(joined, monkeypatch, capsys):
    def fail(_):
        raise ConnectionError("no metadata server")

    monkeypatch.setattr(versions, "detect_processes", fail)
    distributed.start(distributed.Options())
    assert "a single process: the environment could not be read" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no metadata server"):
        distributed.start(distributed.Options(mode="on"))


def test_tpu_slices_are_read(monkeypatch):
    """GKE with two slices of two hosts: the third host is the first of the second slice."""
    gke = dict(
        TPU_WORKER_HOSTNAMES="host-0,host-1",
        TPU_WORKER_ID="0",
        MEGASCALE_NUM_SLICES="2",
        MEGASCALE_SLICE_ID="1",
        MEGASCALE_COORDINATOR_ADDRESS="localhost:8080",
    )
    for name, value in gke.items():
        monkeypatch.setenv(name, value)
    on_tpu = types.SimpleNamespace(running_in_cloud_tpu_vm=True)
    for module in ("cloud_tpu_cluster", "cluster"):
        target = f"jax._src.clusters.{module}.running_in_cloud_tpu_vm"
        monkeypatch.setattr(target, on_tpu.running_in_cloud_tpu_vm)
    assert versions.detect_processes(5) == ("localhost:8482", 4, 2, None)


def _caused_by(cause):
    error = OSError("Writing a checkpoint failed")
    error.__cause__ = cause
    return error


_GLOO = ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (_GLOO, exit_codes.HUNG),
        (_caused_by(_GLOO), exit_codes.HUNG),
        (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out."), exit_codes.HUNG),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Task 1 heartbeat timeout."), exit_codes.HUNG),
        (
            jax.errors.JaxRuntimeError("INTERNAL: NCCL operation failed: remote process exited"),
            exit_codes.HUNG,
        ),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), exit_codes.ERROR),
        (jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed to compile"), exit_codes.ERROR),
        (ValueError("train.batch_size=3 has no peer"), exit_codes.ERROR),
        (_caused_by(OSError(28, "No space left")), exit_codes.ERROR),
    ],
)
def test_a_lost_peer_is_never_an_error_of_ours(error, code, monkeypatch):
    assert distributed.exit_code(error) == exit_codes.ERROR, "a single process has no peer"
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert distributed.exit_code(error) == code
