"""Kills runs at random moments, starts them again, and compares what they end with.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.faults --data=DIR --output=runs/faults

A trial starts a run in 1 or 4 processes, with one trial of the model or two, and kills it one to
three times: SIGKILL or SIGTERM, to one process, at a random moment (`moments`: its start, while it
restores, compiles, steps, saves, validates, and its end), sometimes with a second signal shortly
after; some starts find an empty compilation cache. Then the run is started once more, and must end.
Or it does the same to `prepare` and to `grow`, by the clock. What must hold:

  weights    those of the run that was never disturbed, bit for bit
  log        its rows, the clock's aside, each once
  resumed    every start continues from the newest checkpoint that was committed before it
  codes      exit codes are those that docs/processes.md promises
  no hang    every process ends within --patience_seconds of the signal

`OUTPUT/trials.jsonl` has a line per trial; the same command goes on where it was stopped.
"""

import collections
import dataclasses
import functools
import pathlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence

from absl import flags

from experiments.benchmarks import moments, small_runs
from keel_jax import config, errors
from keel_jax.runtime import cli, exit_codes
from keel_jax.training import checkpoint, trained

NUM_STEPS, SAVE_EVERY, EVAL_EVERY = 24, 4, 6
KINDS = ("train", "prepare", "grow")
# How often each kind is drawn, and each signal.
_KIND_WEIGHTS, _SIGNALS = (8, 1, 1), (signal.SIGKILL, signal.SIGTERM)
# Bound of an undisturbed program's time.
_FIRST_SECONDS = 600.0
# What a killed process of a run may end with; a death by signal is negative.
_CODES = {
    exit_codes.DONE,
    exit_codes.PREEMPTED,
    exit_codes.HUNG,
    -signal.SIGKILL,
    -signal.SIGTERM,
    -signal.SIGABRT,
}


@dataclasses.dataclass(frozen=True)
class Kill:
    """A signal, when it comes, and what follows it."""

    number: int
    # Of a run.
    moment: moments.Moment
    # Of `prepare` and `grow`: the fraction of the undisturbed program's time.
    fraction: float
    # Seconds to a SIGKILL after it; None: there is none.
    again_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Case:
    """What one trial does."""

    kind: str
    num_processes: int
    num_trials: int
    kills: tuple[Kill, ...]
    has_cache: bool


def draw(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(seed)
    [kind] = rng.choices(KINDS, _KIND_WEIGHTS)
    kills = tuple(
        Kill(
            number=int(rng.choice(_SIGNALS)),
            moment=moments.draw(rng, NUM_STEPS, SAVE_EVERY, EVAL_EVERY),
            fraction=rng.uniform(0.0, 1.0),
            again_seconds=rng.uniform(0.0, 1.0) if rng.random() < 0.3 else None,
        )
        for _ in range(rng.randint(1, 3))
    )
    return Case(
        kind=kind,
        # Four processes on two cores take four times as long to start.
        num_processes=rng.choices((1, 4), (9, 1))[0] if kind == "train" else 1,
        num_trials=rng.choice((1, 2)) if kind == "train" else 1,
        kills=kills,
        has_cache=rng.random() < 0.8,
    )


class Bench:
    """The undisturbed runs, and the trials that are compared with them."""

    def __init__(self, data: str, output: pathlib.Path, patience_seconds: float):
        self._data, self._output, self._patience = data, output, patience_seconds
        output.mkdir(parents=True, exist_ok=True)
        self._text = small_runs.write_texts(output / "text")
        # Seconds of each undisturbed program.
        self._seconds: dict[tuple[str, int, int], float] = {}

    def run(self, seed: int) -> dict:
        """One trial: its case, the exit codes, and what did not hold."""
        case, found = draw(seed), []
        reference = self._undisturbed(case)
        place = self._output / f"trial-{seed}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        cache = self._output / "cache" if case.has_cache else place / "cache"
        codes = []
        for kill in case.kills:
            before = small_runs.newest_step(place / "run")
            begin = len(_text(place))
            ended = self._start(case, place, cache, kill=kill, seed=seed)
            codes.append(ended)
            if None in ended:
                found.append(f"hang: {ended}")
            elif not set(ended) <= _CODES:
                found.append(f"codes: {ended}: {_text(place)[-600:]}")
            if case.kind == "train":
                found += _wrong_start(before, _text(place, begin))
            is_done = set(ended) == {exit_codes.DONE}
            if case.kind == "grow":
                # Its last file: a kill after that finds all done, and a second start is refused.
                is_done = (place / "run" / checkpoint.CONFIG).exists()
                if not is_done:
                    found += _readable(place / "run")
                    shutil.rmtree(place / "run", ignore_errors=True)
            if is_done:
                break
        else:
            before, begin = small_runs.newest_step(place / "run"), len(_text(place))
            codes.append(self._start(case, place, cache, kill=None, seed=seed))
            if set(codes[-1]) != {exit_codes.DONE}:
                found.append(f"end: {codes[-1]}: {_text(place)[-600:]}")
            elif case.kind == "train":
                found += _wrong_start(before, _text(place, begin))
        if not any(text.startswith(("hang", "end")) for text in found):
            found += _differences(case, place / "run", reference)
        if not found:
            shutil.rmtree(place)
        return {"seed": seed, **dataclasses.asdict(case), "codes": codes, "found": found}

    def _undisturbed(self, case: Case) -> pathlib.Path:
        """The program that is never disturbed."""
        key = case.kind, case.num_processes, case.num_trials
        place = self._output / "undisturbed" / "-".join(map(str, key))
        if key not in self._seconds:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            begin = time.monotonic()
            codes = self._start(case, place, self._output / "cache", kill=None, seed=0)
            if set(codes) != {exit_codes.DONE}:
                raise errors.UserError(
                    f"The undisturbed {case.kind} ended with {codes}: {_text(place)[-1000:]}"
                )
            self._seconds[key] = time.monotonic() - begin
        return place / "run"

    def _start(
        self, case: Case, place: pathlib.Path, cache: pathlib.Path, kill: Kill | None, seed: int
    ) -> list[int | None]:
        """The exit codes of all processes; None for one that had to be ended."""
        module, arguments = self._command(case, place, cache)
        port, processes, begin = small_runs.free_port(), [], len(_text(place))
        try:
            for rank in range(case.num_processes):
                several = (
                    f"--coordinator_address=127.0.0.1:{port}",
                    f"--num_processes={case.num_processes}",
                    f"--process_id={rank}",
                    "--heartbeat_timeout_seconds=10",
                    # The others wait so long for one that was killed before it joined them.
                    f"--initialization_timeout_seconds={round(self._patience / 2)}",
                )
                arguments_of_rank = [*arguments, *(several if case.num_processes > 1 else ())]
                output = place / f"output-{rank}.txt"
                processes.append(small_runs.start(module, *arguments_of_rank, output=output))
            # A program that is not killed takes its time, on a busy machine several times that.
            key = case.kind, case.num_processes, case.num_trials
            usual = self._seconds.get(key, _FIRST_SECONDS)
            if kill is not None:
                victim = processes[seed % case.num_processes]
                if case.kind == "train":
                    output = functools.partial(_text, place, begin)
                    moments.wait(kill.moment, victim, place / "run", output, NUM_STEPS)
                else:
                    small_runs.wait(processes, kill.fraction * usual)
                victim.send_signal(kill.number)
                if kill.again_seconds is not None:
                    small_runs.wait(processes, kill.again_seconds)
                    victim.kill()
            deadline = time.monotonic() + self._patience + (0 if kill else 3 * usual)
            return [
                small_runs.exit_code(process, deadline - time.monotonic()) for process in processes
            ]
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def _command(
        self, case: Case, place: pathlib.Path, cache: pathlib.Path
    ) -> tuple[str, list[str]]:
        """The program's module and its arguments."""
        run = place / "run"
        if case.kind == "prepare":
            options = ["--vocab_size=300", "--validation_fraction=0.1", "--unit_bytes=4000"]
            return "keel_jax.prepare", [f"--input={self._text}", f"--output={run}", *options]
        if case.kind == "grow":
            source = self._undisturbed(Case("train", 1, 1, (), True))
            arguments = [f"--workdir={source}", f"--output={run}", "--num_blocks=5"]
            return "keel_jax.grow", arguments
        path = place / "config.py"
        small_runs.write_config(path, _config(self._data, case, cache))
        return "keel_jax.train", [f"--config={path}", f"--workdir={run}"]


def _config(data: str, case: Case, cache: pathlib.Path) -> config.Config:
    train = dict(num_steps=NUM_STEPS, checkpoint_every_steps=SAVE_EVERY)
    train |= dict(eval_every_steps=EVAL_EVERY, eval_num_batches=2)
    trials = dict(peak_lr=(1e-3, 3e-3), seed=(1, 2)) if case.num_trials > 1 else {}
    telemetry = dict(every_steps=8)
    return small_runs.options(data, str(cache), train=train, trials=trials, telemetry=telemetry)


# --- What must hold ------------------------------------------------------------------------------


def _wrong_start(newest: int, output: str) -> list[str]:
    """Whether a start continued from another step than the newest that was committed before."""
    for line in output.splitlines():
        if "; steps " in line:
            step = int(line.split("; steps ")[1].split()[0])
            return [] if step == newest else [f"resumed: from {step}, not from {newest}"]
    return []


def _readable(run: pathlib.Path) -> list[str]:
    """A directory that `grow` did not finish must not be taken for a model."""
    try:
        trained.load(run, trained.one_device())
    except errors.UserError:
        return []
    return ["grow: what was not finished can be read"]


def _differences(case: Case, run: pathlib.Path, reference: pathlib.Path) -> list[str]:
    if case.kind == "prepare":
        mine, theirs = (
            {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
            for place in (run, reference)
        )
        wrong = [
            name
            for name in sorted({*mine, *theirs})
            if name.endswith((".bin", ".model", "index.json"))
            and mine.get(name) != theirs.get(name)
        ]
        return [f"prepare: {name} differs" for name in wrong]
    suffixes = [""] if case.num_trials == 1 else [f"trials/{i:03}" for i in range(case.num_trials)]
    found = []
    for suffix in suffixes:
        what = suffix or "the run"
        if case.kind == "train":
            different = small_runs.differences(run / suffix, reference / suffix)
        else:
            different = small_runs.different_weights(run, reference)
        found += [f"{text} ({what})" for text in different]
    return found


def _text(place: pathlib.Path, begin: int = 0) -> str:
    """What the first process has printed, from one character on."""
    path = place / "output-0.txt"
    return path.read_text(errors="replace")[begin:] if path.exists() else ""


# --- The command ---------------------------------------------------------------------------------


def measure(data: str, output: pathlib.Path, seeds: Sequence[int], patience: float) -> list[dict]:
    """The results of `seeds`; those that `output` already holds are not run again."""
    bench, found = Bench(data, output, patience), []
    for row in small_runs.resumed(output / "trials.jsonl", seeds, bench.run):
        found.append(row)
        verdict = "; ".join(row["found"]) or "held"
        position = f"{len(found)}/{len(seeds)}"
        print(f"{position} seed {row['seed']} {row['kind']}: {verdict}", file=sys.stderr)
    return found


def _num_kills(codes: Sequence[Sequence[int | None]]) -> int:
    """The starts of which a process did not come to its end."""
    return sum(set(ended) != {exit_codes.DONE} for ended in codes)


def main(_: list[str]) -> int:
    seeds = range(_SEED.value, _SEED.value + _TRIALS.value)
    rows = measure(_DATA.value, pathlib.Path(_OUTPUT.value), seeds, _PATIENCE.value)
    counts = collections.Counter()
    for row in rows:
        name = f"{row['kind']}, {row['num_processes']} processes, {row['num_trials']} trials"
        counts[name, "trials"] += 1
        counts[name, "kills"] += _num_kills(row["codes"])
        counts[name, "failed"] += bool(row["found"])
    for name in sorted({name for name, _ in counts}):
        numbers = (counts[name, what] for what in ("trials", "kills", "failed"))
        print("{:<32} {:>5} trials {:>5} kills {:>5} failed".format(name, *numbers))
    by_moment = collections.Counter(
        kill["moment"]["name"]
        for row in rows
        if row["kind"] == "train"
        for kill, ended in zip(row["kills"], row["codes"], strict=False)
        if set(ended) != {exit_codes.DONE}
    )
    print("kills of runs by moment: " + ", ".join(f"{m} {by_moment[m]}" for m in moments.MOMENTS))
    failed = [row for row in rows if row["found"]]
    for row in failed:
        print(f"seed {row['seed']}: {row['found']}")
    return exit_codes.ERROR if failed else exit_codes.DONE


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "Token shards to train on.", required=True)
    _OUTPUT = flags.DEFINE_string("output", None, "Of trials.jsonl and the runs.", required=True)
    _TRIALS = flags.DEFINE_integer("trials", 200, "Runs to kill.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Of the first trial.")
    _PATIENCE = flags.DEFINE_float("patience_seconds", 180.0, "After which a process hangs.")
    cli.run(main)
