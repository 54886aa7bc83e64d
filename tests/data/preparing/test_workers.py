"""Laws of the workers: whichever process is killed, no finished shard is lost."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from keel_jax.data import shards
from keel_jax.data.preparing import workers
from tests.data.preparing import corpora

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_and_run_again_is_the_uninterrupted_run(num_workers, source, tmp_path):
    corpora.prepare(source, tmp_path / "whole")
    output = tmp_path / "killed"
    # Slow reading leaves time to kill the run, and its workers, in the middle of the work.
    script = tmp_path / "slow.py"
    script.write_text(f"""
import sys, time; sys.path.insert(0, {str(ROOT)!r})
from keel_jax.data.preparing import corpus
from tests.data.preparing import corpora
read = corpus.read_documents
def slow(*args, **kwargs):
    for document in read(*args, **kwargs):
        time.sleep(0.02)
        yield document
corpus.read_documents = slow
if __name__ == "__main__":
    corpora.prepare({source!r}, {str(output)!r}, num_workers={num_workers})
""")
    child = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(output.glob("unit-*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    finished = list(output.glob("unit-*.json"))
    assert finished and not (output / "index.json").exists()
    with pytest.raises(ValueError, match="unfinished.*same prepare command"):
        shards.open_set(output)
    _wait_until_gone(child.pid)
    summary = corpora.prepare(source, output)
    assert summary.num_units_reused >= len(finished)
    assert summary.num_units_reused < summary.num_units
    assert corpora.contents(output) == corpora.contents(tmp_path / "whole")


def _wait_until_gone(group: int):
    """Workers of a killed parent end by themselves."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        # A container without an init process keeps zombies: those have ended too.
        if all(state == "Z" for state in _states(group)):
            return
        time.sleep(0.05)
    raise AssertionError("workers outlived their parent by 20 s")


def _states(group: int):
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            yield fields[0]


def test_a_killed_worker_is_noticed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_run_in_worker", _die)
    with pytest.raises(workers.WorkerDied, match="same command again"):
        corpora.prepare(source, tmp_path / "out", num_workers=2)
    assert not (tmp_path / "out" / "index.json").exists()


def _die(job):
    os.kill(os.getpid(), signal.SIGKILL)
