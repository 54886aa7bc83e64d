"""The supervisor starts a run again exactly where that can help."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SUPERVISE = ROOT / "launch/supervise.sh"


def _command(tmp_path, script):
    """A command that counts its starts in `starts`, then runs `script` with $n, the count."""
    path = tmp_path / "command.sh"
    path.write_text(f"echo >> {tmp_path}/starts\nn=$(wc -l < {tmp_path}/starts)\n{script}\n")
    return [str(SUPERVISE), "bash", str(path)]


def _run(tmp_path, script, **env):
    done = subprocess.run(
        _command(tmp_path, script),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PAUSE_SECONDS": "0", **env},
    )
    return done, len((tmp_path / "starts").read_text().splitlines())


@pytest.mark.parametrize(
    ("script", "code", "starts", "word"),
    [
        ("exit 0", 0, 1, "done"),
        ("exit 1", 1, 1, "fail again"),
        ("exit 3", 3, 1, "diverged"),
        ("exit 6", 6, 1, "look at the machine"),
        ("exit 42", 42, 1, "fail again"),
        ("[ $n = 4 ] || exit 75", 0, 4, "stopped and saved"),
        ("[ $n = 3 ] || kill -KILL $$", 0, 3, "killed (137)"),
        ("[ $n = 2 ] && exit 3; kill -SEGV $$", 3, 2, "killed (139)"),
        ("[ $n = 2 ] || kill -ABRT $$", 0, 2, "killed (134)"),
        ("[ $n = 2 ] || kill -TERM $$", 0, 2, "killed (143)"),
        ("[ $n = 3 ] || exit 76", 0, 3, "lost a peer (76)"),
    ],
)
def test_the_exit_code_decides(tmp_path, script, code, starts, word):
    done, count = _run(tmp_path, script)
    assert (done.returncode, count) == (code, starts), done.stderr
    assert word in done.stderr


def test_it_gives_up_on_a_run_that_dies_and_dies(tmp_path):
    done, count = _run(tmp_path, "kill -KILL $$", MAX_RETRIES="2")
    assert (done.returncode, count) == (137, 3)
    assert "giving up" in done.stderr


def test_all_kinds_of_failure_count_together(tmp_path):
    script = "case $n in 1) exit 76;; 2) exit 75;; 3) kill -KILL $$;; esac; exit 76"
    done, count = _run(tmp_path, script, MAX_RETRIES="3")
    assert (done.returncode, count) == (76, 4), done.stderr


def test_a_stop_that_comes_at_once_again_and_again_does_not_spin(tmp_path):
    done, count = _run(tmp_path, "exit 75", MAX_RETRIES="2", PAUSE_SECONDS="1")
    assert (done.returncode, count) == (75, 3)
    pauses = [line.split("in ")[-1] for line in done.stderr.splitlines() if "retry" in line]
    assert pauses == ["1 s", "2 s"]
    # One that had run for a while goes on at once, any number of times.
    (tmp_path / "starts").unlink()
    done, count = _run(
        tmp_path, "[ $n = 9 ] || exit 75", MAX_RETRIES="0", PAUSE_SECONDS="100", QUICK_SECONDS="0"
    )
    assert (done.returncode, count) == (0, 9)


@pytest.mark.parametrize("code", [0, 3, 1, 76])
def test_the_exit_code_is_left_in_a_file(tmp_path, code):
    path = tmp_path / "code"
    done, _ = _run(tmp_path, f"exit {code}", EXIT_CODE_FILE=str(path), MAX_RETRIES="0")
    assert done.returncode == code and path.read_text() == f"{code}\n"


def test_a_healthy_run_starts_the_count_anew(tmp_path):
    done, count = _run(
        tmp_path, "[ $n = 5 ] && exit 0; kill -KILL $$", MAX_RETRIES="1", HEALTHY_SECONDS="0"
    )
    assert (done.returncode, count) == (0, 5), done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_passed_on_and_its_answer_is_the_answer(tmp_path, number):
    # Python, as the command will be: a shell's trap could not undo that the SIGINT of a background
    # process is ignored.
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: (time.sleep(0.3), sys.exit(75)))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(30)\n"
    )
    script = f"exec {sys.executable} {program}"
    process = subprocess.Popen(_command(tmp_path, script), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75, stderr
    assert len((tmp_path / "starts").read_text().splitlines()) == 1
    assert "asked to stop" in stderr


def test_help_is_the_header():
    done = subprocess.run([SUPERVISE, "--help"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0 and "launch/supervise.sh python" in done.stdout
