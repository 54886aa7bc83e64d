"""The watchdog ends what stands still, and nothing else; each case in a process of its own."""

import pathlib
import subprocess
import sys
import time

import pytest

from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import exit_codes

ROOT = pathlib.Path(__file__).parents[2]
_SCRIPT = """
import os, sys, threading, time
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import watchdog

clock = clock_lib.Clock()
guard = watchdog.Watchdog(clock, 2.0, dict(compile=60.0, checkpoint_wait=0.0))
guard.on_hang = lambda told: print("told:", told)
guard.workdir = {workdir!r}
with guard:
    {body}
print("came to its end")
"""


def _start(body, workdir=None):
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT.format(body=body, workdir=workdir)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


_HANGS = {
    "step": "clock.finish_step(7); threading.Lock().acquire() and threading.Event().wait()",
    "data_wait": "with clock.measure('data_wait'): threading.Event().wait()",
}
_LIVES = {
    "other limit": "with clock.measure('compile'): time.sleep(5)",
    "no limit": "with clock.measure('checkpoint_wait'): time.sleep(5)",
    "beats": "for _ in range(10): time.sleep(0.5); clock.beat()",
    "activities": "for _ in range(10):\n        with clock.measure('data_wait'): time.sleep(0.5)",
}


def test_a_hang_ends_with_76_and_nothing_else_does(tmp_path):
    """All cases at once: they sleep."""
    hangs = {name: _start(body, str(tmp_path / name)) for name, body in _HANGS.items()}
    lives = {name: _start(body) for name, body in _LIVES.items()}
    try:
        for name, process in hangs.items():
            output, errors = process.communicate(timeout=60)
            assert process.returncode == exit_codes.HUNG, (name, errors)
            activity = "a step" if name == "step" else name
            assert f"error: {activity} showed no sign of life for" in errors
            assert f"(the limit is 2 s) after step {7 if name == 'step' else 0}" in errors
            assert "Event" in errors or "threading" in errors, "the stacks of all threads"
            assert output.startswith(f"told: {activity} showed"), output
            report = (tmp_path / name / "hangs/process_0.txt").read_text()
            assert f"process 0 of 1, pid {process.pid} on " in report
            assert f": {activity} showed no sign of life" in report
            assert "(most recent call first)" in report and 'File "<string>"' in report
        for name, process in lives.items():
            output, errors = process.communicate(timeout=60)
            assert (process.returncode, output) == (0, "came to its end\n"), (name, errors)
    finally:
        for process in [*hangs.values(), *lives.values()]:
            process.kill()


def test_a_second_counts_for_the_innermost_activity_only(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = clock_lib.Clock()
    ended = []
    clock.on_measured = lambda *measured: ended.append(measured)
    now = 1.0
    with clock.measure("telemetry"):
        now = 3.0
        with clock.measure("telemetry"):
            now = 6.0
        with clock.measure("checkpoint_wait"):
            now = 10.0
        now = 15.0
    now = 21.0
    assert clock.seconds == {"telemetry": 10.0, "checkpoint_wait": 4.0}
    assert ended == [("checkpoint_wait", 4.0), ("telemetry", 10.0)]
    assert clock.step_seconds == 7.0 and clock.total == 21.0 and clock.activity == ""


@pytest.mark.parametrize("seconds", [0.3, 60.0])
def test_a_deadline_ends_what_takes_longer(seconds):
    script = (
        "import time\nfrom keel_jax.runtime import watchdog\n"
        f"with watchdog.deadline({seconds}, lambda: 'nobody came'): time.sleep(1.5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if seconds < 1:
        assert done.returncode == exit_codes.HUNG
        assert done.stderr == "error: nobody came: ending with exit code 76.\n"
    else:
        assert (done.returncode, done.stderr) == (0, "")
