"""A planted corruption is named: which leaf, which device and process, how many elements."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import errors, train
from keel_jax.config import MeshConfig
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.parallel import sharding
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import exit_codes, files
from keel_jax.training import events, programs, repeatability, trained
from tests import conftest, processes


@pytest.fixture(scope="module")
def state():
    """A pair, as a step returns: arrays of every dtype, over 4 x 2 devices."""
    mesh = mesh_lib.make(MeshConfig(data=4, fsdp=2))
    rows = sharding.sharding(mesh, ("embed", "norm"), (8, 3))
    everywhere = sharding.replicated(mesh)
    rng = np.random.default_rng(0)
    tree = {
        "sharded": jax.device_put(rng.normal(size=(8, 3)).astype(np.float32), rows),
        "small": jax.device_put(jnp.asarray(rng.normal(size=(5,)), jnp.bfloat16), everywhere),
        "step": jax.device_put(np.int32(3), everywhere),
        "flag": jax.device_put(np.asarray([True, False]), everywhere),
        "nan": jax.device_put(np.asarray([np.nan, 0.0], np.float32), everywhere),
    }
    return tree, {"nats": jax.device_put(np.float32(1.0), everywhere)}


def _with_flipped(pair, name, device, element, bit):
    """`pair` with one bit of one element flipped in what one device holds of one array."""
    array = pair[0][name]
    parts = []
    for shard in array.addressable_shards:
        value = np.array(shard.data)
        if shard.device.id == device:
            raw = value.reshape(-1).view(np.uint8).reshape(value.size, -1)
            raw[element, bit // 8] ^= np.uint8(1 << (bit % 8))
        parts.append(jax.device_put(value, shard.device))
    flipped = jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)
    return {**pair[0], name: flipped}, pair[1]


def test_equal_results_and_replicas_are_no_difference(state):
    assert repeatability.repeated_differences(state, state) == []
    assert repeatability.replica_differences(state) == []


@pytest.mark.parametrize(
    ("name", "size", "num_bits"),
    [("sharded", 12, 32), ("small", 5, 16), ("step", 1, 32), ("flag", 2, 1), ("nan", 2, 32)],
)
def test_any_flipped_bit_is_found(name, size, num_bits, state):
    """By the comparison of two computations, and by that of replicas, the same element each."""
    for bit in {0, num_bits // 3, num_bits - 1}:
        bad = _with_flipped(state, name, device=5, element=size - 1, bit=bit)
        assert repeatability.repeated_differences(state, bad) == [
            f"{name} differs in 1 of {size} elements on device 5 (process 0) when it is computed "
            "twice"
        ]
        [found] = repeatability.replica_differences(bad)
        assert found.startswith(f"{name} on device 5 (process 0) is not the copy that device ")
        assert found.endswith(f"(process 0) has, in 1 of {size} elements")


def test_the_same_elements_in_another_order_are_another_copy(state):
    """A sum alone would not see it."""
    swapped = np.asarray([0.0, 1.0], np.float32)
    mesh = mesh_lib.make(MeshConfig(data=8, fsdp=1))
    parts = [jax.device_put(swapped[::-1] if d.id == 2 else swapped, d) for d in mesh.devices.flat]
    array = jax.make_array_from_single_device_arrays((2,), sharding.replicated(mesh), parts)
    [found] = repeatability.replica_differences(({"a": array}, {}))
    assert found == (
        "a on device 2 (process 0) is not the copy that device 0 (process 0) has, in 2 of 2 "
        "elements"
    )


def test_steps_are_due_by_the_option():
    due = [s for s in range(1, 9) if repeatability.Check(3, clock_lib.Clock()).is_due(s)]
    assert due == [3, 6]
    assert not any(repeatability.Check(0, clock_lib.Clock()).is_due(s) for s in range(1, 9))


# --- Runs ----------------------------------------------------------------------------------------


def _config(token_dir, cache_dir, every):
    return conftest.tiny_config(
        model=dict(vocab_size=0, num_blocks=1),
        data=dict(path=str(token_dir)),
        optim=dict(schedule="constant"),
        mesh=dict(data=2, fsdp=-1),
        train=dict(
            num_steps=6, checkpoint_every_steps=2, check_every_steps=every, eval_num_batches=1
        ),
        runtime=dict(compilation_cache_dir=cache_dir),
    )


def _state_files(workdir):
    mesh = mesh_lib.make(MeshConfig(), jax.devices()[:1])
    return jax.device_get(trained.load_params(workdir, mesh)[0])


@pytest.fixture(scope="module")
def checked(token_dir, cache_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("checked")
    cfg = _config(token_dir, cache_dir, every=2)
    assert train.train(cfg, workdir) == exit_codes.DONE
    return cfg, workdir


def test_a_check_changes_nothing(checked, tmp_path):
    """Bit by bit; its time is the check's."""
    cfg, workdir = checked
    plain = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, check_every_steps=0))
    assert train.train(plain, tmp_path) == exit_codes.DONE
    jax.tree.map(np.testing.assert_array_equal, _state_files(tmp_path), _state_files(workdir))
    for directory, num_checks in ((workdir, 3), (tmp_path, 0)):
        rows = [row for row in events.read(directory)[0] if row.get("activity") == "check"]
        assert len(rows) == 2 * num_checks, "before and after the second time"


def test_a_step_that_cannot_be_repeated_stops_the_run(checked, tmp_path, monkeypatch):
    """Its state is not saved; the checkpoint before it is there, and the run goes on from it."""
    cfg, workdir = checked
    compile_all = programs.compile_all
    calls = []

    def faulty(*args):
        compiled = compile_all(*args)

        def train_step(state, batch):
            state, sums = compiled.train_step(state, batch)
            calls.append(None)
            if len(calls) == 5:  # step 4, for the first time
                with jax.transfer_guard("allow"):
                    table = state.params["embedding"]["table"].at[3, 5].add(1e-3)
                params = state.params | {"embedding": {"table": table}}
                state = dataclasses.replace(state, params=params)
            return state, sums

        return dataclasses.replace(compiled, train_step=train_step)

    with monkeypatch.context() as patch:
        patch.setattr(programs, "compile_all", faulty)
        with pytest.raises(errors.CorruptionError) as raised:
            train.train(cfg, tmp_path)
    message = str(raised.value)
    assert message.startswith(
        "Step 4 was not computed reliably: params/embedding/table differs in 1 of "
    )
    assert " when it is computed twice. Nothing was saved after it." in message
    assert "The last check that passed was of step 2" in message
    status = files.read_json(tmp_path / "status.json")
    assert (status["state"], status["exit_code"]) == ("corrupted", exit_codes.CORRUPTED)
    assert status["error"] == message
    stop = events.read(tmp_path)[0][-1]
    assert stop | {"event": "stop", "exit_code": 6, "error": message} == stop
    assert {p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal()} == {"2"}
    assert train.train(cfg, tmp_path) == exit_codes.DONE
    jax.tree.map(np.testing.assert_array_equal, _state_files(tmp_path), _state_files(workdir))


@pytest.mark.slow
def test_a_replica_of_another_process_is_compared(token_dir, cache_dir, tmp_path):
    """Process 1 flips a bit of its own copy after the second step: all end with 6 at the third."""
    cfg = _config(token_dir, cache_dir, every=3)
    cfg = dataclasses.replace(cfg, mesh=MeshConfig(data=2, fsdp=1))
    flags = processes.train_flags(cfg, tmp_path / "run")
    with processes.start("tests.corrupting_train", flags, tmp_path, num_processes=2) as program:
        assert program.codes() == [exit_codes.CORRUPTED] * 2, program.told()
    for output in program.outputs:
        told = output.read_text()
        assert "error: Step 3 was not computed reliably: params/embedding/table on device " in told
        assert "(process 1) is not the copy that device 0 (process 0) has, in 1 of " in told
        assert "Traceback" not in told
