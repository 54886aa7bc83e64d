"""The soak tells growth from fluctuation, and each start what its fault allows."""

import dataclasses
import subprocess
import sys
import time

import pytest

from experiments.benchmarks import soak
from keel_jax import errors
from keel_jax.runtime import exit_codes


def _start(**changes) -> soak.Start:
    samples = [soak.Sample(500.0 + i % 3, 20 + i % 2, 30) for i in range(60)]
    held = soak.Start("killed", -9, first_step=0, last_step=400, samples=samples, found=[])
    return dataclasses.replace(held, **changes)


def test_what_fluctuates_is_flat():
    assert soak._problems(_start(), None, 0.03) == []


def test_pools_of_threads_may_fill_late():
    """Up to what the start before had, and no further."""
    late = _start(samples=[soak.Sample(500.0, 20, 24 + i // 20) for i in range(30)])
    assert soak._problems(late, None, 0.03) == []
    late = _start(samples=[soak.Sample(500.0, 20, 24 + 3 * (i // 20)) for i in range(30)])
    assert soak._problems(late, None, 0.03) == ["threads grew from 24 to 27"]
    before = _start(samples=[soak.Sample(500.0, 20, 26)] * 30)
    late = dataclasses.replace(late, first_step=before.last_step, last_step=before.last_step + 9)
    assert soak._problems(late, before, 0.03) == []
    leaking = [soak.Sample(500.0, 20, 27 + 2 * (i // 10)) for i in range(30)]
    late = dataclasses.replace(late, samples=leaking)
    assert soak._problems(late, before, 0.03) == ["threads grew from 29 to 31"]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda i: soak.Sample(500.0 + 2 * i, 20, 30), "memory grew from 559 to 599 MB"),
        (lambda i: soak.Sample(500.0, 20 + i // 5, 30), "open files grew from 26 to 30"),
        (lambda i: soak.Sample(500.0, 20, 30 + i // 5), "threads grew from 36 to 40"),
    ],
)
def test_growth_is_found(sample, message):
    start = _start(samples=[sample(i) for i in range(60)])
    assert soak._problems(start, None, 0.03) == [message]


def test_a_process_has_its_own_memory_and_then_none():
    program = [sys.executable, "-c", "x = bytearray(2**27); input()"]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while soak._sample(process).megabytes < 2**27 / 1e6 and time.monotonic() < deadline:
            time.sleep(0.1)
        held = soak._sample(process).megabytes
        process.kill()
    assert held >= 2**27 / 1e6
    assert soak._sample(process) == soak.Sample(0.0, 0, 0)


def test_a_short_start_says_nothing_of_memory():
    few = [soak.Sample(500.0 * i, i, i) for i in range(10)]
    assert soak._problems(_start(samples=few), None, 0.03) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(exit_code=1), "exit code 1, not -9"),
        (dict(fault="asked to stop"), f"exit code -9, not {exit_codes.PREEMPTED}"),
        (dict(first_step=800, last_step=900), "began at step 800, the newest checkpoint was 400"),
        (dict(first_step=400, last_step=400), "from step 400 it did not get further"),
    ],
)
def test_a_start_must_end_and_begin_as_its_faults_say(changes, message):
    start = _start(**dict(dict(first_step=400, last_step=900), **changes))
    assert soak._problems(start, _start(), 0.03) == [message]


def test_after_damage_an_older_checkpoint_is_the_beginning():
    damaged = _start(fault="checkpoint damaged")
    assert soak._problems(_start(first_step=200, last_step=900), damaged, 0.03) == []
    found = soak._problems(_start(first_step=400, last_step=900), damaged, 0.03)
    assert found == ["began at step 400, the newest checkpoint was 400"]


def test_a_soak_needs_a_new_directory(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(errors.UserError, match=r"run exists: a soak needs a new --output"):
        soak.soak("nowhere", tmp_path, 1.0, 1.0, 0.03)


@pytest.mark.slow
def test_a_short_soak_meets_every_fault(token_dir, tmp_path):
    starts = soak.soak(str(token_dir), tmp_path, minutes=1.5, fault_minutes=0.15, tolerance=0.03)
    assert {start.fault for start in starts} >= {"killed", "checkpoint damaged", "asked to stop"}
    assert [start.found for start in starts] == [[]] * len(starts)
