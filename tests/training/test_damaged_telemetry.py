"""Files of telemetry that are damaged or cannot be written: named once, and the rest is kept."""

import errno
import random
import shutil

import numpy as np
import pytest

from keel_jax.runtime import files
from keel_jax.training import telemetry_records

_NUM_RECORDS = 70  # two files


def _record(value: float, num_blocks: int = 4) -> dict:
    return {
        "stream_rms": np.full((num_blocks, 2), value),
        "param_rms/ffn/up": np.full(num_blocks, value),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A directory with 70 records in two files."""
    directory = tmp_path_factory.mktemp("written")
    store = telemetry_records.Store(directory, 0)
    store._write = lambda: None  # each record rewrites its file
    for step in range(1, _NUM_RECORDS + 1):
        store.append(step, _record(step))
        if step in (64, _NUM_RECORDS):
            telemetry_records.Store._write(store)
    return directory


@pytest.fixture
def run(written, tmp_path):
    """A copy of it."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path


def _flip(path):
    content = bytearray(path.read_bytes())
    at = content.index(b"stream_rms") + 200  # within the numbers
    content[at] ^= 1
    path.write_bytes(content)


_DAMAGES = {
    "flipped": _flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "emptied": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"[]"),
    "of other steps": lambda path: path.write_bytes(
        next(p for p in path.parent.iterdir() if p != path).read_bytes()
    ),
}


@pytest.mark.parametrize("name", ["0000000001.npz", "0000000065.npz"])
@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_file_is_named_and_the_other_is_read(name, damage, run, capsys):
    path = run / "telemetry" / name
    _DAMAGES[damage](path)
    steps = telemetry_records.load(run)["step"].tolist()
    assert steps == list(range(65, 71) if name == "0000000001.npz" else range(1, 65))
    error = capsys.readouterr().err
    assert f"{path} is damaged (" in error and "left out" in error


def test_a_run_goes_on_after_a_damaged_file_and_keeps_it(run, capsys):
    path = run / "telemetry/0000000065.npz"
    _DAMAGES["truncated"](path)
    damaged = path.read_bytes()
    resumed = telemetry_records.Store(run, _NUM_RECORDS)
    resumed.append(_NUM_RECORDS + 1, _record(1.0))
    assert path.with_name(path.name + ".damaged").read_bytes() == damaged
    assert telemetry_records.load(run)["step"].tolist() == [*range(1, 65), _NUM_RECORDS + 1]
    assert "kept as 0000000065.npz.damaged, and the run goes on" in capsys.readouterr().err


def test_records_of_another_model_are_named_and_left_out(run, capsys):
    first = run / "telemetry/0000000001.npz"
    other = telemetry_records.Store(run / "other", 0)
    other.append(1, _record(1.0, num_blocks=9))
    first.write_bytes((run / "other/telemetry" / first.name).read_bytes())
    assert telemetry_records.load(run)["step"].tolist() == list(range(65, 71))
    assert f"{first} holds records of another model" in capsys.readouterr().err


def test_no_damage_has_a_traceback_or_another_number(run):
    rng, path = random.Random(0), run / "telemetry/0000000065.npz"
    whole = path.read_bytes()
    for _ in range(200):
        content = bytearray(whole)
        if rng.random() < 0.5:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            content = content[: rng.randrange(len(content))]
        path.write_bytes(content)
        found = telemetry_records.load(run)
        assert len(found["step"]) in (64, _NUM_RECORDS)
        for name in ("stream_rms", "param_rms/ffn/up"):
            numbers = found[name].reshape(len(found["step"]), -1)
            np.testing.assert_array_equal(numbers[:, 0], found["step"])


def test_a_record_that_a_full_disk_refuses_is_written_with_the_next(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = telemetry_records.Store(tmp_path, 0)
    store.append(1, _record(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", fail)
        store.append(2, _record(2.0))
        store.append(3, _record(3.0))
        # What explains a divergence and what is drawn needs no disk.
        assert store.records()["step"].tolist() == [1, 2, 3]
    assert telemetry_records.load(tmp_path)["step"].tolist() == [1]
    store.append(4, _record(4.0))
    assert telemetry_records.load(tmp_path)["step"].tolist() == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("cannot be written (No space left on device)") == 1
