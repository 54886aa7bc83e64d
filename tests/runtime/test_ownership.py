"""A directory has one holder, and a holder that has ended keeps it from nobody."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from keel_jax import errors
from keel_jax.runtime import exit_codes, ownership


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(ownership, "_RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(ownership, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(ownership, "ABANDONED_SECONDS", 1.0)
    monkeypatch.setattr(ownership, "_PATIENCE_SECONDS", 3.0)
    monkeypatch.setattr(ownership, "_SETTLE_SECONDS", 0.05)


def _lease(directory) -> dict:
    return json.loads((directory / ownership.FILE).read_text())


def _write_lease(directory, **changes) -> dict:
    """The lease of a process of this machine that is alive, or as `changes` say."""
    with ownership.Claim(directory):
        values = _lease(directory) | {"token": "another"} | changes
    (directory / ownership.FILE).write_text(json.dumps(values))
    return values


def test_the_second_is_told_who_holds_the_directory_and_since_when(tmp_path):
    with ownership.Claim(tmp_path):
        since = _lease(tmp_path)["since"]
        with pytest.raises(
            errors.UserError, match=f"in use by process {os.getpid()} on .* {since}"
        ):
            ownership.Claim(tmp_path).__enter__()
        assert _lease(tmp_path)["since"] == since
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_killed_holder_keeps_the_directory_from_nobody(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from keel_jax.runtime import ownership\n"
        "ownership.Claim(sys.argv[1]).__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, tmp_path], timeout=120)
    assert killed.returncode == -9
    assert _lease(tmp_path)["pid"] != os.getpid()
    with ownership.Claim(tmp_path):
        assert _lease(tmp_path)["pid"] == os.getpid()


def test_a_later_process_with_the_same_pid_is_not_the_holder(tmp_path):
    _write_lease(tmp_path, process_start="1")
    with ownership.Claim(tmp_path):
        assert _lease(tmp_path)["process_start"] != "1"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_lease_is_one_that_nobody_renews(tmp_path, content):
    (tmp_path / ownership.FILE).write_text(content)
    with ownership.Claim(tmp_path):
        assert _lease(tmp_path)["pid"] == os.getpid()


def test_an_abandoned_lease_of_another_machine_is_taken_over(tmp_path, capsys):
    _write_lease(tmp_path, machine="another", host="host-3", pid=17)
    begin = time.monotonic()
    with ownership.Claim(tmp_path):
        assert _lease(tmp_path)["pid"] == os.getpid()
    assert time.monotonic() - begin >= ownership.ABANDONED_SECONDS
    output = capsys.readouterr().out
    assert "is held by process 17 on host-3" in output and "no longer renews" in output


def test_a_renewed_lease_of_another_machine_is_respected(tmp_path, monkeypatch):
    # epath's times are whole seconds.
    monkeypatch.setattr(ownership, "ABANDONED_SECONDS", 2.5)
    values = _write_lease(tmp_path, machine="another", host="host-3", pid=17)
    ended = threading.Event()

    def renew():
        while not ended.wait(0.1):
            os.utime(tmp_path / ownership.FILE)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(errors.UserError, match="in use by process 17 on host-3"):
            ownership.Claim(tmp_path).__enter__()
    finally:
        ended.set()
        thread.join()
    assert _lease(tmp_path) == values


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_of_simultaneous_starts_one_gets_the_directory(tmp_path, is_abandoned):
    for number in range(20):
        directory = tmp_path / str(number)
        directory.mkdir()
        if is_abandoned:
            _write_lease(directory, process_start="1")
        together, claims, refused = threading.Barrier(6), [], []

        def start(directory=directory, together=together, claims=claims, refused=refused):
            together.wait()
            try:
                claims.append(ownership.Claim(directory).__enter__())
            except errors.UserError as error:
                refused.append(error)

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(claims) == 1 and len(refused) == 5
        claims[0].__exit__()
        assert not list(directory.iterdir())


def test_a_holder_that_was_taken_over_ends(tmp_path, monkeypatch, capsys):
    codes = set()
    left = threading.Event()

    def leave(code):
        codes.add(code)
        left.set()

    monkeypatch.setattr(ownership.watchdog, "leave", leave)
    with ownership.Claim(tmp_path):
        values = _lease(tmp_path) | {"token": "another", "host": "host-3"}
        (tmp_path / ownership.FILE).write_text(json.dumps(values))
        assert left.wait(60)
    assert codes == {exit_codes.ERROR}
    assert "on host-3" in capsys.readouterr().err
    assert _lease(tmp_path) == values, "it is not this process's to remove"


def test_a_lease_that_was_deleted_is_written_again(tmp_path):
    with ownership.Claim(tmp_path):
        (tmp_path / ownership.FILE).unlink()
        deadline = time.monotonic() + 60
        while not (tmp_path / ownership.FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _lease(tmp_path)["pid"] == os.getpid()


def test_the_owner_of_a_bucket_is_the_last_to_write(tmp_path, monkeypatch):
    """Without exclusive creation, as in gs://."""
    monkeypatch.setattr(ownership, "_SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(ownership, "_is_local", lambda path: False)
    path = epath.Path(tmp_path) / ownership.FILE
    first = ownership.Claim(tmp_path)
    timer = threading.Timer(
        0.1,
        lambda: path.write_text(
            json.dumps(dataclasses.asdict(first._owner) | {"token": "another", "host": "host-3"})
        ),
    )
    timer.start()
    with pytest.raises(errors.UserError, match="on host-3"):
        first.__enter__()
    timer.join()
