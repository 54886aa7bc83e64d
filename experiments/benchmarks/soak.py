"""One long run with faults: `python -m experiments.benchmarks.soak --data=DIR --output=DIR`.

For --minutes a small run trains, and every --fault_minutes something happens to it: SIGKILL; the
same, and a bit of its newest checkpoint flips; SIGTERM; half a line in its log, and SIGKILL. Each
time it is started again. What must hold:

  exit codes  of each start the one that its end promises
  resumed     each start continues from the newest whole checkpoint
  memory      within a start the memory that is the process's own, and in no file, is flat: its
              median of the last third is within --tolerance of that of the second one (in the
              first third, caches fill). Pages of files come and go as the kernel likes
  handles     open files and threads likewise, and one more, as a save or a reader may be under way;
              threads may also be as many as at the end of the start before, as pools of them
              (tensorstore's has 8) fill when saves overlap, which may be late in a start

Each save leaves some memory behind (docs/checkpoints.md), which in the minutes between two faults
is less than the tolerance.

Printed are a line per start, and what `python -m keel_jax.goodput` says of the whole.
"""

import dataclasses
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

from absl import flags

from experiments.benchmarks import small_runs
from keel_jax import errors
from keel_jax.runtime import cli, exit_codes, result_file
from keel_jax.training import logs

# One after the other, again and again.
FAULTS = ("killed", "checkpoint damaged", "asked to stop", "log damaged")
# Far more steps than a soak has time for.
_NUM_STEPS = 10**8
_SAMPLE_SECONDS = 2.0
# Fewer samples say nothing about memory.
_MIN_SAMPLES = 15


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a process holds."""

    megabytes: float
    num_files: int
    num_threads: int


@dataclasses.dataclass
class Start:
    """One start of the run, and how it ended."""

    fault: str
    exit_code: int
    first_step: int
    last_step: int
    samples: list[Sample]
    found: list[str]

    def thirds(self) -> tuple[Sample, Sample] | None:
        """Medians of the second and of the last third; None if it was too short."""
        third = len(self.samples) // 3
        if len(self.samples) < _MIN_SAMPLES:
            return None
        return _median(self.samples[third : 2 * third]), _median(self.samples[-third:])


def soak(
    data: str, output: pathlib.Path, minutes: float, fault_minutes: float, tolerance: float
) -> list[Start]:
    """Trains for `minutes`, and then once more, until it is asked to stop.

    Args:
      fault_minutes: from one fault to the next.
      tolerance: by which fraction memory may grow.

    Raises:
      UserError: `output` is in use.
    """
    run = output / "run"
    if run.exists():
        raise errors.UserError(f"{run} exists: a soak needs a new --output.")
    output.mkdir(parents=True, exist_ok=True)
    _write_options(data, output)
    starts, end, is_over = [], time.monotonic() + 60 * minutes, False
    while not is_over:
        is_over = time.monotonic() >= end
        fault = "asked to stop" if is_over else FAULTS[len(starts) % len(FAULTS)]
        start = _start(output, 60 * fault_minutes, fault)
        start.found += _problems(start, starts[-1] if starts else None, tolerance)
        starts.append(start)
        print(_describe(start), file=sys.stderr, flush=True)
    return starts


def _write_options(data: str, output: pathlib.Path) -> None:
    train = dict(num_steps=_NUM_STEPS, log_every_steps=20, eval_every_steps=500, eval_num_batches=2)
    train |= dict(checkpoint_every_steps=200)
    cfg = small_runs.options(
        data,
        str(output / "cache"),
        train=train,
        optim=dict(schedule="constant"),
        telemetry=dict(every_steps=500),
    )
    small_runs.write_config(output / "config.py", cfg)


def _start(output: pathlib.Path, seconds: float, fault: str) -> Start:
    """One start, which lasts for `seconds` from its first step on, then meets its fault."""
    run, printed = output / "run", output / "output.txt"
    begin = len(printed.read_text()) if printed.exists() else 0
    arguments = [f"--config={output / 'config.py'}", f"--workdir={run}"]
    process = small_runs.start("keel_jax.train", *arguments, output=printed)
    samples = []
    try:
        while process.poll() is None and "\nstep " not in printed.read_text()[begin:]:
            time.sleep(0.1)
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            samples.append(_sample(process))
            time.sleep(min(_SAMPLE_SECONDS, max(0.0, deadline - time.monotonic())))
        if fault == "log damaged":
            with (run / logs.JSONL).open("a") as log:
                log.write('{"step": 1, "train/')
        process.send_signal(signal.SIGTERM if fault == "asked to stop" else signal.SIGKILL)
        code = process.wait(300)
    finally:
        process.kill()
        process.wait()
    if fault == "checkpoint damaged":
        _flip_a_bit(run / "checkpoints" / str(small_runs.newest_step(run)))
    text = printed.read_text()[begin:]
    first = re.search(r"; steps (\d+) to ", text)
    return Start(
        fault=fault,
        exit_code=code,
        first_step=int(first[1]) if first else -1,
        last_step=small_runs.newest_step(run),
        samples=samples,
        found=["a traceback was printed"] if "Traceback" in text else [],
    )


def _flip_a_bit(checkpoint: pathlib.Path) -> None:
    """In the largest file of the weights."""
    path = max((checkpoint / "params").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _sample(process: subprocess.Popen) -> Sample:
    place = pathlib.Path("/proc") / str(process.pid)
    try:
        megabytes = small_runs.own_bytes(process.pid) / 1e6
        num_files, num_threads = len(os.listdir(place / "fd")), len(os.listdir(place / "task"))
    except (OSError, KeyError):  # it has just ended
        return Sample(0.0, 0, 0)
    return Sample(megabytes, num_files, num_threads)


def _median(samples: list[Sample]) -> Sample:
    columns = zip(*(dataclasses.astuple(sample) for sample in samples), strict=True)
    megabytes, num_files, num_threads = map(statistics.median, columns)
    return Sample(megabytes, round(num_files), round(num_threads))


# --- What must hold ------------------------------------------------------------------------------


def _problems(start: Start, before: Start | None, tolerance: float) -> list[str]:
    found = []
    expected = exit_codes.PREEMPTED if start.fault == "asked to stop" else -signal.SIGKILL
    if start.exit_code != expected:
        found.append(f"exit code {start.exit_code}, not {expected}")
    newest = before.last_step if before else 0
    is_damaged = before is not None and before.fault == "checkpoint damaged"
    if (start.first_step >= newest) if is_damaged else (start.first_step != newest):
        found.append(f"began at step {start.first_step}, the newest checkpoint was {newest}")
    if start.last_step <= start.first_step:
        found.append(f"from step {start.first_step} it did not get further")
    if thirds := start.thirds():
        middle, last = thirds
        largest = 1 + tolerance
        if last.megabytes > middle.megabytes * largest:
            found.append(f"memory grew from {middle.megabytes:.0f} to {last.megabytes:.0f} MB")
        if last.num_files > middle.num_files * largest + 1:
            found.append(f"open files grew from {middle.num_files} to {last.num_files}")
        before_thirds = before.thirds() if before else None
        filled = before_thirds[1].num_threads if before_thirds else 0
        if last.num_threads > max(middle.num_threads * largest, filled) + 1:
            found.append(f"threads grew from {middle.num_threads} to {last.num_threads}")
    return found


def _describe(start: Start) -> str:
    thirds = start.thirds()
    memory = "too short to measure memory"
    if thirds:
        middle, last = thirds
        memory = (
            f"{middle.megabytes:.0f} then {last.megabytes:.0f} MB, {last.num_files} files, "
            f"{last.num_threads} threads"
        )
    steps = f"steps {start.first_step} to {start.last_step}, {start.fault} ({start.exit_code})"
    return f"{steps}: {memory}; {'; '.join(start.found) or 'held'}"


def main(_: list[str]) -> int:
    result_file.check("--json", _JSON.value)
    output = pathlib.Path(_OUTPUT.value)
    starts = soak(_DATA.value, output, _MINUTES.value, _FAULT_MINUTES.value, _TOLERANCE.value)
    goodput = [sys.executable, "-m", "keel_jax.goodput", f"--workdir={output / 'run'}"]
    subprocess.run(goodput, cwd=small_runs.ROOT, check=True)
    num_failed = sum(bool(start.found) for start in starts)
    print(f"{len(starts)} starts, {num_failed} with something that did not hold")
    result_file.write_json(_JSON.value, {"starts": [dataclasses.asdict(s) for s in starts]})
    return exit_codes.ERROR if num_failed else exit_codes.DONE


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "Token shards to train on.", required=True)
    _OUTPUT = flags.DEFINE_string("output", None, "New directory of the run.", required=True)
    _MINUTES = flags.DEFINE_float("minutes", 60.0, "Length of the soak.", lower_bound=0.1)
    _FAULT_MINUTES = flags.DEFINE_float("fault_minutes", 5.0, "From fault to fault.", 0.05)
    _TOLERANCE = flags.DEFINE_float("tolerance", 0.03, "By which fraction memory may grow.", 0.0)
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
