"""When a run is killed: at a moment of what it does, as it is seen from outside.

Moments by the clock would mostly fall into the start of a small run, and miss it where the machine
is busier, or quieter, than when it was timed.
"""

import dataclasses
import pathlib
import random
import re
import subprocess
import time
from collections.abc import Callable

from keel_jax.runtime import ownership
from keel_jax.training import checkpoint

# What is waited for, and the longest time in seconds from it to the kill.
_DELAYS = {
    # The interpreter has been started.
    "start": 6.0,
    # The work directory is held; then the newest checkpoint is verified and restored.
    "restore": 2.0,
    # The options have been printed; then the programs are compiled or loaded.
    "compile": 2.0,
    # A step has been printed.
    "step": 0.05,
    # A checkpoint's directory is there; then it is written and committed.
    "save": 0.3,
    # The step before a validation has been printed.
    "validation": 0.2,
    # The last step has been printed; then the run saves, validates and draws.
    "end": 3.0,
}
MOMENTS = tuple(_DELAYS)
# How often a program is looked at, and how long at most until it has done what is waited for.
_POLL_SECONDS, _LONGEST_SECONDS = 0.005, 900.0


@dataclasses.dataclass(frozen=True)
class Moment:
    """One moment of a run."""

    # One of MOMENTS.
    name: str
    # The step of "step", "save" and "validation"; a run that is further already counts as there.
    step: int
    # From then to the kill.
    delay_seconds: float


def draw(rng: random.Random, num_steps: int, save_every: int, eval_every: int) -> Moment:
    """A random moment of a run of `num_steps` steps; each kind is as likely as any other."""
    name = rng.choice(MOMENTS)
    every = {"save": save_every, "validation": eval_every}.get(name, 1)
    step = rng.randrange(every, num_steps + 1, every)
    return Moment(name, step, rng.uniform(0.0, _DELAYS[name]))


def wait(
    moment: Moment,
    process: subprocess.Popen,
    workdir: pathlib.Path,
    output: Callable[[], str],
    num_steps: int,
) -> None:
    """Returns at the moment, or when the process has ended before.

    Args:
      process: the one that will be killed, started just before.
      workdir: of the run.
      output: what process 0 of the run has printed since it was started.
      num_steps: of the run.
    """
    started = time.time()
    reached: dict[str, Callable[[], bool]] = {
        "start": lambda: True,
        # A killed run has left its own.
        "restore": lambda: _modified(workdir / ownership.FILE) >= started,
        "compile": lambda: "recompute: " in output(),
        "step": lambda: _last_step(output()) >= moment.step,
        "save": lambda: _newest_directory(workdir) >= moment.step,
        "validation": lambda: _last_step(output()) >= moment.step,
        "end": lambda: _last_step(output()) >= num_steps,
    }
    deadline = time.monotonic() + _LONGEST_SECONDS
    while process.poll() is None and not reached[moment.name]():
        if time.monotonic() > deadline:
            return  # what does not come is a hang, and found as one
        time.sleep(_POLL_SECONDS)
    begin = time.monotonic()
    while process.poll() is None and time.monotonic() < begin + moment.delay_seconds:
        time.sleep(_POLL_SECONDS)


def _modified(path: pathlib.Path) -> float:
    """Seconds since the epoch; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _last_step(output: str) -> int:
    """The last step that was printed; 0 if there is none."""
    return max((int(step) for step in re.findall(r"^step (\d+)/", output, re.MULTILINE)), default=0)


def _newest_directory(workdir: pathlib.Path) -> int:
    """The newest checkpoint, committed or not; 0 if there is none."""
    names = [path.name.split(".")[0] for path in (workdir / checkpoint.DIRECTORY).glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)
