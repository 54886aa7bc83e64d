"""Damages configs, indices, manifests and input files at random, thousands of times.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.fuzz --trials=5000

Each trial (`experiments.benchmarks.fuzzing`) is a function of its seed. It ends as "refused", with
a message of ours, or as "accepted", with nothing absurd in what was read. Anything else is a fault:
another exception, something absurd that is accepted, or no end within --trial_seconds. The command
prints its seed and exits with code 1.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import logging
import pathlib
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping

from absl import flags

from experiments.benchmarks import fuzzing
from keel_jax.data.preparing import options as preparation_options
from keel_jax.data.preparing import preparation
from keel_jax.runtime import cli, exit_codes, result_file, versions

Fuzz = Callable[[int, pathlib.Path], fuzzing.Outcome]

KINDS: Mapping[str, Fuzz] = {
    "config": fuzzing.fuzz_config,
    "index": fuzzing.fuzz_index,
    "manifest": fuzzing.fuzz_manifest,
    "jsonl": fuzzing.fuzz_jsonl,
    "parquet": fuzzing.fuzz_parquet,
}
VERDICTS = ("refused", "accepted", "fault")
# A trial that hangs outside Python, where no exception reaches it, ends the command.
_HANGS_OUTSIDE = 4


class Hang(Exception):
    """A trial did not end in time."""


@dataclasses.dataclass
class Tally:
    """What became of the trials of one kind."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    # Seed and traceback of each fault.
    faults: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    longest_seconds: float = 0.0


def measure(
    num_trials: int,
    first_seed: int,
    trial_seconds: float,
    directory: pathlib.Path,
    kinds: Mapping[str, Fuzz] = KINDS,
) -> dict[str, Tally]:
    """The tally of each kind, over which the trials are spread evenly.

    Args:
      directory: an empty one.
    """
    _write_inputs(directory)
    tallies = {name: Tally() for name in kinds}
    for name, fuzz in kinds.items():
        for seed in range(first_seed, first_seed + -(-num_trials // len(kinds))):
            _try(fuzz, seed, directory, trial_seconds, tallies[name])
        print(f"{name}: {dict(tallies[name].counts)}", file=sys.stderr)
    return tallies


def _try(fuzz: Fuzz, seed: int, directory: pathlib.Path, trial_seconds: float, tally: Tally):
    begin = time.monotonic()
    try:
        with _bounded(trial_seconds):
            tally.counts[fuzz(seed, directory)] += 1
    except Exception:
        tally.counts["fault"] += 1
        tally.faults.append((seed, traceback.format_exc()))
    seconds = time.monotonic() - begin
    tally.seconds += seconds
    tally.longest_seconds = max(tally.longest_seconds, seconds)


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Raises Hang within it after that time; in the main thread only."""

    def hang(*_):
        raise Hang(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(_HANGS_OUTSIDE * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _write_inputs(directory: pathlib.Path) -> None:
    """Token shards, whose tokenizer the input files are prepared with, and checkpoints."""
    text = directory / "text.txt"
    text.write_text("\n".join(f"def f_{i}(x):\n    return x + {i * i}" for i in range(300)))
    options = preparation_options.PreparationOptions(
        vocab_size=300, validation_fraction=0.2, unit_bytes=2000
    )
    texts = directory / "texts"
    texts.mkdir()
    for number, part in enumerate(text.read_text().split("def ")[1:]):
        (texts / f"{number:03}.txt").write_text(f"def {part}")
    text.unlink()
    preparation.prepare_token_set([str(texts / "*.txt")], directory / "set", options)
    # Where every trial looks for what it damages, or prepares with.
    for path in (directory / "set").iterdir():
        path.rename(directory / path.name)
    fuzzing.write_checkpoints(directory)


def main(_: list[str]) -> int:
    """Runs the trials; 1 if any was a fault."""
    result_file.check("--json", _JSON.value)
    # Each trial would say what it repairs or leaves out.
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as directory:
        tallies = measure(
            _TRIALS.value, _SEED.value, _TRIAL_SECONDS.value, pathlib.Path(directory).resolve()
        )
    header = "".join(f"{verdict:>10}" for verdict in VERDICTS)
    print(f"{'kind':<10}{'trials':>8}{header}{'s a trial':>12}{'longest s':>12}")
    for name, tally in tallies.items():
        counts = "".join(f"{tally.counts[verdict]:>10}" for verdict in VERDICTS)
        total = tally.counts.total()
        each = f"{tally.seconds / total:>12.3f}{tally.longest_seconds:>12.2f}"
        print(f"{name:<10}{total:>8}{counts}{each}")
    counts = sum((tally.counts for tally in tallies.values()), collections.Counter())
    print(f"{'all':<10}{counts.total():>8}" + "".join(f"{counts[v]:>10}" for v in VERDICTS))
    for name, tally in tallies.items():
        for seed, text in tally.faults:
            print(f"{name}, seed {seed}:\n{text}")
    kinds = {name: dataclasses.asdict(tally) for name, tally in tallies.items()}
    values = {"seed": _SEED.value, "kinds": kinds, **versions.describe()}
    result_file.write_json(_JSON.value, values)
    return exit_codes.ERROR if counts["fault"] else exit_codes.DONE


if __name__ == "__main__":
    _TRIALS = flags.DEFINE_integer("trials", 5000, "In all, over all kinds.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "The first of each kind.")
    _TRIAL_SECONDS = flags.DEFINE_float("trial_seconds", 60.0, "After which a trial hangs.", 0.1)
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
