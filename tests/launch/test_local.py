"""Several processes on one machine: they live and die together, and leave no orphan."""

import os
import signal

import pytest


def _is_alive(pid: int) -> bool:
    """Not counting one that is dead and not yet waited for."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("scripts", "code", "starts"),
    [
        (["0", "0"], 0, 1),
        (["3", "3"], 3, 1),
        (["137 0", "76 0"], 0, 2),
        # One dies, the other ignores even SIGTERM: it is killed, and the code is that of the cause.
        (["ignore_sigterm 0", "137 0"], 0, 2),
        (["1", "ignore_sigterm"], 1, 1),
        pytest.param(["75 0", "75 0"], 0, 2, marks=pytest.mark.slow),
    ],
)
def test_exit_codes(world, scripts, code, starts):
    for process, script in enumerate(scripts):
        (world.workdir / str(process)).write_text(script)
    done = world.launch("local", "--grace_seconds=0.3")
    assert done.returncode == code, done.stderr
    assert world.starts() == {"0": starts, "1": starts}
    assert "[1] process 1 start 1" in done.stdout
    assert "--topology=cpu:2" in (world.directory / "planned").read_text()


def test_no_orphan_is_left(world):
    (world.workdir / "0").write_text("child")
    (world.workdir / "1").write_text("1")
    done = world.launch("local", "--grace_seconds=0.5")
    assert done.returncode == 1, done.stderr
    assert not _is_alive(int((world.workdir / "child").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_leaves_no_orphan(world, number):
    (world.workdir / "0").write_text("child")
    (world.workdir / "1").write_text("sleep")
    process = world.start("local", "--grace_seconds=5")
    world.wait_for(lambda: len(list(world.workdir.glob("*.ready"))) == 2)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75 and "asked to stop" in stderr
    assert not _is_alive(int((world.workdir / "child").read_text()))


def test_what_does_not_fit_is_not_started(world):
    world.configure("plan", 4)
    assert world.launch("local").returncode == 4 and world.starts() == {}
    assert world.launch("local", "--no_plan").returncode == 0
