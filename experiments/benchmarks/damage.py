"""Damages every file that the package writes in every way, and counts what is done about it.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.damage --output=runs/damage

The files are those of `damage_world.World`: two runs with their checkpoints, token shards, a
grown model, compiled programs. A trial damages one of them and lets a reader read it: a resumed
run, `evaluate`, `generate`, `inspect_run`, `prepare`, the cache. The result is compared with that
of the whole files; a resumed run must have the weights of one that was never stopped, bit for bit,
also where it had to go back to an earlier checkpoint. What must not happen: a number that differs
without a word about the file ("silent"), and an exception without a message of ours ("traceback").

Without --trials, each file meets each damage before each of its readers once.
`OUTPUT/trials.jsonl` has a line per trial; the same command goes on where it was stopped.
"""

import collections
import contextlib
import io
import logging
import pathlib
import random
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks import damage_artefacts, damage_world, small_runs
from keel_jax import errors
from keel_jax.runtime import best_effort, cli, exit_codes, result_file, versions

# A UserError or an OSError names the file or its directory; a warning does, and the command goes
# on; the same result without a word; another result without a word, or one that must not differ;
# and any other exception, or an error that does not say what it is about.
VERDICTS = ("error", "fallback", "harmless", "silent", "traceback")


class Bench:
    """Trials on one world."""

    def __init__(self, world: damage_world.World, seed: int, output: pathlib.Path):
        self._world, self._seed, self._output = world, seed, output
        self._table = damage_artefacts.table()
        self._files = damage_artefacts.by_artefact(world.whole)
        if forgotten := self._files[""]:
            raise AssertionError(f"no reader is known for {forgotten}")
        # Of each reader: its result on whole files, and what it said.
        self._whole: dict[damage_artefacts.Reader, tuple[damage_artefacts.Result, str]] = {}

    @property
    def num_cases(self) -> int:
        """The trials after which everything has been tried once."""
        return len(self._table)

    def run(self, number: int) -> dict[str, Any]:
        """The trial of that number."""
        cycle, position = divmod(number, len(self._table))
        order = random.Random(f"{self._seed}/order/{cycle}").sample(self._table, len(self._table))
        artefact, damage, reader = order[position]
        rng = random.Random(f"{self._seed}/{number}")
        verdict, said = self._attempt(artefact, damage, reader, rng)
        row = {"seed": number, "file": artefact, "damage": damage, "reader": reader.__name__}
        return row | {"verdict": verdict, "said": said[-2000:] if is_fault(verdict) else ""}

    def _attempt(
        self, artefact: str, damage: str, reader: damage_artefacts.Reader, rng: random.Random
    ) -> tuple[str, str]:
        """The verdict on a reader of a damaged file, and what was said."""
        if reader not in self._whole:
            self._whole[reader] = self._read(reader)
        whole, usual = self._whole[reader]
        self._world.restore()
        name = rng.choice(self._files[artefact])
        path = self._world.here / name
        other = self._foreign(artefact, name)
        foreign = other.read_bytes() if other else b"from elsewhere"
        content = damage_artefacts.DAMAGES[damage](path.read_bytes(), rng, foreign)
        path.unlink() if content is None else path.write_bytes(content)
        error, result, said = None, None, io.StringIO()
        try:
            with _heard(said):
                result = reader(self._world)
        except (errors.UserError, OSError) as caught:
            error = str(caught)
        except Exception:
            return "traceback", traceback.format_exc()
        changed = self._changed_older_steps(path)
        if changed:
            return "silent", f"{changed} has changed"
        return verdict(path, result, error, said.getvalue(), whole, usual)

    def _read(self, reader: damage_artefacts.Reader) -> tuple[damage_artefacts.Result, str]:
        self._world.restore()
        with _heard(said := io.StringIO()):
            return reader(self._world), said.getvalue()

    def _foreign(self, artefact: str, name: pathlib.Path) -> pathlib.Path | None:
        """The file of another world that replaces one: of the same name, or of the same kind."""
        same = self._world.foreign / name
        if same.exists():
            return same
        others = damage_artefacts.by_artefact(self._world.foreign)[artefact]
        return self._world.foreign / others[0] if others else None

    def _changed_older_steps(self, damaged: pathlib.Path) -> str:
        """A file of a checkpoint before the newest that a reader changed; empty if none."""
        for run in ("lean", "run"):
            for step in range(1, damage_world.STOPPED_AT):
                directory = self._world.whole / run / "checkpoints" / str(step)
                for path in filter(pathlib.Path.is_file, directory.rglob("*")):
                    now = self._world.here / path.relative_to(self._world.whole)
                    if now == damaged:
                        continue
                    if not now.exists() or now.read_bytes() != path.read_bytes():
                        return str(now)
        return ""


def verdict(
    path: pathlib.Path,
    result: damage_artefacts.Result | None,
    error: str | None,
    said: str,
    whole: damage_artefacts.Result,
    usual: str,
) -> tuple[str, str]:
    """The verdict on what a reader of the damaged `path` did, and what was said.

    Args:
      error: the message that it ended with, or None and its `result`.
      whole, usual: its result on whole files, and what it says then.
    """
    if "Traceback (most recent call last)" in said:
        return "traceback", said
    if error is not None:
        return ("error" if _names(path, error) else "traceback"), error
    assert result is not None
    if not _same(result.kept, whole.kept):
        return "silent", said
    if any(_names(path, line) for line in set(said.splitlines()) - set(usual.splitlines())):
        return "fallback", said
    return ("harmless" if _same(result.output, whole.output) else "silent"), said


def is_fault(verdict: str) -> bool:
    """Whether it must not happen."""
    return verdict in ("silent", "traceback")


def _names(path: pathlib.Path, text: str) -> bool:
    """Whether a text names the file's directory or, of a checkpoint, its step's or the step."""
    if str(path.parent) in text:
        return True
    steps = (parent for parent in path.parents if parent.parent.name == "checkpoints")
    return any(
        str(step) in text or (str(step.parent) in text and f"step {step.name}: " in text)
        for step in steps
    )


def _same(one: Any, other: Any) -> bool:
    try:
        np.testing.assert_equal(one, other)  # NaN equals NaN
    except AssertionError:
        return False
    return True


@contextlib.contextmanager
def _heard(said: io.StringIO) -> Iterator[None]:
    """Keeps what is printed and logged, also what would be said once per process only."""
    for once in (best_effort.warn, best_effort._warn_unwritten):
        once.cache_clear()
    handler = logging.StreamHandler(said)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            yield
    finally:
        logging.getLogger().removeHandler(handler)


# --- The command ---------------------------------------------------------------------------------


def measure(output: pathlib.Path, num_trials: int, seed: int) -> list[dict[str, Any]]:
    """The trials with their verdicts; those that `output` already holds are not run again.

    Args:
      num_trials: 0 for one of each kind.
    """
    output.mkdir(parents=True, exist_ok=True)
    with damage_world.fast():
        bench = Bench(damage_world.make(output.absolute()), seed, output)
        numbers = range(num_trials or bench.num_cases)
        found = []
        for row in small_runs.resumed(output / f"trials-{seed}.jsonl", numbers, bench.run):
            found.append(row)
            what = f"{row['file']} {row['damage']}, {row['reader']}: {row['verdict']}"
            print(f"{len(found)}/{len(numbers)} {what}", file=sys.stderr)
    return found


def count(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], collections.Counter]:
    """The verdicts by file and damage."""
    counts = collections.defaultdict(collections.Counter)
    for row in rows:
        counts[row["file"], row["damage"]][row["verdict"]] += 1
    return dict(counts)


def main(_: list[str]) -> int:
    """Damages as often as the flags say; 1 if anything was silent or a traceback."""
    result_file.check("--json", _JSON.value)
    small_runs.use_fast_compiler()
    rows = measure(pathlib.Path(_OUTPUT.value), _TRIALS.value, _SEED.value)
    counts = count(rows)
    print(f"{'file':<42} {'damage':<12}" + "".join(f"{verdict:>10}" for verdict in VERDICTS))
    for artefact in damage_artefacts.ARTEFACTS:
        for damage in damage_artefacts.DAMAGES:
            if row := counts.get((artefact, damage)):
                print(f"{artefact:<42} {damage:<12}" + "".join(f"{row[v]:>10}" for v in VERDICTS))
    total = sum(counts.values(), collections.Counter())
    print(f"{f'all {len(rows)}':<55}" + "".join(f"{total[v]:>10}" for v in VERDICTS))
    faults = [row for row in rows if is_fault(row["verdict"])]
    for row in faults:
        print(f"{row['verdict']}: {row['file']} {row['damage']}, {row['reader']}: {row['said']}")
    table = [{"file": a, "damage": d, **row} for (a, d), row in counts.items()]
    values = {"seed": _SEED.value, "rows": table, "faults": faults, **versions.describe()}
    result_file.write_json(_JSON.value, values)
    return exit_codes.ERROR if faults else exit_codes.DONE


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", None, "Of trials and the files.", required=True)
    _TRIALS = flags.DEFINE_integer("trials", 0, "Files to damage; 0: each kind once.", 0)
    _SEED = flags.DEFINE_integer("seed", 0, "Of the damages.")
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
