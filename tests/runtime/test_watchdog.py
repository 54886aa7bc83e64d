"""The watchdog ends what stands still, and nothing else; each case in a process of its own."""

import pathlib
import subprocess
import sys

import pytest

from keel_jax.runtime import exit_codes

ROOT = pathlib.Path(__file__).parents[2]
_SCRIPT = """
import os, sys, threading, time
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import watchdog

clock = clock_lib.Clock()
guard = watchdog.Watchdog(clock, 2.0, dict(compile=60.0, checkpoint_wait=0.0))
guard.on_hang = lambda told: print("told:", told)
with guard:
    {body}
print("came to its end")
"""


def _start(body):
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT.format(body=body)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


_HANGS = {
    "step": "threading.Lock().acquire() and threading.Event().wait()",
    "data_wait": "with clock.measure('data_wait'): threading.Event().wait()",
}
_LIVES = {
    "other limit": "with clock.measure('compile'): time.sleep(5)",
    "no limit": "with clock.measure('checkpoint_wait'): time.sleep(5)",
    "beats": "for _ in range(10): time.sleep(0.5); clock.beat()",
    "activities": "for _ in range(10):\n        with clock.measure('data_wait'): time.sleep(0.5)",
}


def test_a_hang_ends_with_76_and_nothing_else_does():
    """All cases at once: they sleep."""
    hangs = {name: _start(body) for name, body in _HANGS.items()}
    lives = {name: _start(body) for name, body in _LIVES.items()}
    try:
        for name, process in hangs.items():
            output, errors = process.communicate(timeout=60)
            assert process.returncode == exit_codes.HUNG, (name, errors)
            activity = "a step" if name == "step" else name
            assert f"error: {activity} showed no sign of life for" in errors
            assert "(the limit is 2 s)" in errors
            assert "Event" in errors or "threading" in errors, "the stacks of all threads"
            assert output.startswith(f"told: {activity} showed"), output
        for name, process in lives.items():
            output, errors = process.communicate(timeout=60)
            assert (process.returncode, output) == (0, "came to its end\n"), (name, errors)
    finally:
        for process in [*hangs.values(), *lives.values()]:
            process.kill()


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
