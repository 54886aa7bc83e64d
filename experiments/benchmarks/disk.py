"""Full disks, read-only directories, and two starts at once: what is left, and whether it goes on.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.disk --output=runs/disk

The kernel itself refuses: the command moves to a mount namespace of its own (`unshare -m`, which
root may use, or `unshare -r -m`), in which the full disk is a small tmpfs (ENOSPC) and a read-only
directory a read-only bind mount (EROFS), for root, too. Where that is not allowed, only the two
starts are tried, which is said.

  save      a disk that a run needs more of, of 12 sizes: the run ends with an error
  prepare   the same, while token shards are written
  log       a disk that is full for a part of a run, or to its end, while only logs are written
  read-only a work directory, token shards and a compilation cache that may only be read
  two       a second start of a run, at 20 random moments of the first; those that come
            while it holds the directory are refused, and how many did is printed

What must hold: no traceback; every committed checkpoint stays whole; with room again, the same
command comes to its end, and all weights and rows are those of a run that was never disturbed, bit
for bit. Of two starts exactly one trains, and the other is told by whom the directory is held.
"""

import collections
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import flags
from etils import epath

from experiments.benchmarks import mounts, small_runs
from keel_jax import config, errors
from keel_jax.runtime import cli, exit_codes, files, ownership, result_file, versions
from keel_jax.training import checkpoint, verification

NUM_STEPS, SAVE_EVERY = 24, 4
KINDS = ("save", "prepare", "log", "read-only", "two")
_PATIENCE_SECONDS = 300.0
_IN_USE = "is in use by process "


class Bench:
    """The undisturbed runs, and the trials that are compared with them."""

    def __init__(self, output: pathlib.Path):
        self._output = output
        shutil.rmtree(output / "trials", ignore_errors=True)
        (output / "trials").mkdir(parents=True)
        self._text = small_runs.write_texts(output / "text")
        self._data, self._run = output / "set", output / "undisturbed"
        # How long an undisturbed run holds its directory.
        self._held_seconds = 0.0
        # Of the last trial of two starts: whether one was refused, or came after the other.
        self.outcome = ""
        for _ in range(2):  # the second one finds the programs compiled, as trials do
            for place in (self._data, self._run):
                shutil.rmtree(place, ignore_errors=True)
            self._must_end(self._prepare(self._data, output))
            process = self._train(self._run, output)
            _wait_for((self._run / ownership.FILE).exists, process)
            begin = time.monotonic()
            self._must_end(process)
            self._held_seconds = time.monotonic() - begin

    def full_while_saving(self, fraction: float, place: pathlib.Path) -> list[str]:
        """Trains on a disk of that fraction of what the run needs, then on a large one."""
        compare = small_runs.differences
        return self._full(fraction, place, self._train, self._run, compare, _broken_files)

    def full_while_preparing(self, fraction: float, place: pathlib.Path) -> list[str]:
        """The same with `prepare`."""
        return self._full(fraction, place, self._prepare, self._data, _different_files)

    def _full(
        self,
        fraction: float,
        place: pathlib.Path,
        program: Callable[[pathlib.Path, pathlib.Path], subprocess.Popen],
        reference: pathlib.Path,
        differences: Callable[[pathlib.Path, pathlib.Path], list[str]],
        broken: Callable[[pathlib.Path], list[str]] = lambda _: [],
    ) -> list[str]:
        disk = place / "disk"
        mounts.mount_tmpfs(disk, max(int(fraction * mounts.num_bytes(reference)), 1 << 15))
        ended = _end(program(disk / "run", place))
        found = []
        if ended != exit_codes.DONE:  # what is not read back may fit on less
            found = _not_an_error(ended, place, "error: ") + broken(disk / "run")
        mounts.mount_tmpfs(disk, 1 << 28, "remount,")
        again = place / "again"
        again.mkdir()
        process = program(disk / "run", again)
        return found + _ends(process, again, lambda: differences(disk / "run", reference))

    def full_while_logging(self, until_end: bool, place: pathlib.Path) -> list[str]:
        """Fills the disk of the logs, not that of the checkpoints, while a run goes on."""
        disk, run = place / "disk", place / "disk/run"
        mounts.mount_tmpfs(disk, 1 << 22)
        mounts.mount_tmpfs(run / checkpoint.DIRECTORY, 1 << 28)
        process = self._train(run, place)
        _wait_for(lambda: "step 2/" in _text(place), process)
        process.send_signal(signal.SIGSTOP)
        mounts.fill(disk / "ballast")
        process.send_signal(signal.SIGCONT)
        if not until_end:
            _wait_for(lambda: "cannot be written" in _text(place), process)
            process.send_signal(signal.SIGSTOP)
            (disk / "ballast").unlink()
            process.send_signal(signal.SIGCONT)
        found = _unless(_end(process) == exit_codes.DONE, "the run did not go on", place)
        found += _unless("cannot be written" in _text(place), "nobody was told", place)
        found += _tracebacks(place)
        if not until_end:
            return found + small_runs.differences(run, self._run)
        (disk / "ballast").unlink()
        found += small_runs.different_weights(run, self._run)
        rows, all_rows = small_runs.rows(run), small_runs.rows(self._run)
        return found + _unless(rows == all_rows[: len(rows)], "log: a row is another one", place)

    def read_only(self, what: str, place: pathlib.Path) -> list[str]:
        """Lets a run, a reader or `prepare` meet a directory that may only be read."""
        run, shards, cache = place / "run", place / "set", place / "cache"
        shutil.copytree(self._run, run)
        shutil.rmtree(run / checkpoint.DIRECTORY / str(NUM_STEPS))
        (run / "status.json").unlink()
        shutil.copytree(self._data, shards)
        cache.mkdir()
        found = []

        def differences() -> list[str]:
            return small_runs.differences(run, self._run)

        if what == "work directory":
            before = _contents(run)
            with mounts.read_only(run):
                found += _not_an_error(_end(self._train(run, place)), place, str(run))
                found += _ends(self._evaluate(run, place), place)
            found += _unless(_contents(run) == before, "a file has changed", place)
        elif what == "output of prepare":
            (shards / "index.json").unlink()
            before = _contents(shards)
            with mounts.read_only(shards):
                found += _not_an_error(_end(self._prepare(shards, place)), place, str(shards))
            found += _unless(_contents(shards) == before, "a file has changed", place)
            again = self._prepare(shards, place)
            found += _ends(again, place, lambda: _different_files(shards, self._data))
        else:
            with mounts.read_only(shards), mounts.read_only(cache):
                process = self._train(run, place, data=shards, cache=cache)
                found += _ends(process, place, differences)
            found += _unless(f"{cache}" in _text(place), "nobody was told of the cache", place)
        return found + _ends(self._train(run, place), place, differences)

    def two_starts(self, fraction: float, place: pathlib.Path) -> list[str]:
        """Starts a run, and after that fraction of the time for which it holds its directory again.

        Both take as long until they ask for the directory, so that the second one mostly does while
        the first one holds it.
        """
        places = [place / name for name in ("first", "second")]
        for each in places:
            each.mkdir()
        first = self._train(place / "run", places[0])
        small_runs.wait([first], fraction * self._held_seconds)
        processes = [first, self._train(place / "run", places[1])]
        ended = [_end(process) for process in processes]
        said = [_text(each) for each in places]
        found = [text for each in places for text in _tracebacks(each)]
        if sorted(ended, key=str) == [exit_codes.DONE, exit_codes.ERROR]:
            self.outcome, refused = "refused", ended.index(exit_codes.ERROR)
            holder = processes[1 - refused].pid
            found += _unless(f"{_IN_USE}{holder} " in said[refused], "not told by whom", place)
        elif ended == [exit_codes.DONE] * 2:  # the second one came after the first
            self.outcome = "after"
            done = ["this run is done" in text for text in said]
            found += _unless(sum(done) == 1, "both trained", place)
        else:
            found.append(f"exit codes: {ended}: {said}")
        found += _unless(not (place / "run" / ownership.FILE).exists(), "still held", place)
        return found + small_runs.differences(place / "run", self._run)

    def _train(
        self,
        run: pathlib.Path,
        place: pathlib.Path,
        data: pathlib.Path | None = None,
        cache: pathlib.Path | None = None,
    ) -> subprocess.Popen:
        cfg = _config(data or self._data, cache or self._output / "cache")
        small_runs.write_config(place / "config.py", cfg)
        arguments = (f"--config={place / 'config.py'}", f"--workdir={run}")
        return small_runs.start("keel_jax.train", *arguments, output=place / "output.txt")

    def _prepare(self, directory: pathlib.Path, place: pathlib.Path) -> subprocess.Popen:
        arguments = ["--vocab_size=300", "--validation_fraction=0.1", "--unit_bytes=4000"]
        arguments += [f"--input={self._text}", f"--output={directory}"]
        return small_runs.start("keel_jax.prepare", *arguments, output=place / "output.txt")

    def _evaluate(self, run: pathlib.Path, place: pathlib.Path) -> subprocess.Popen:
        return small_runs.start(
            "keel_jax.evaluate", f"--workdir={run}", output=place / "output.txt"
        )

    def _must_end(self, process: subprocess.Popen) -> None:
        if (code := _end(process)) != exit_codes.DONE:
            raise errors.UserError(f"undisturbed, exit code {code}: {_text(self._output)[-1000:]}")


def _config(data: pathlib.Path, cache: pathlib.Path) -> config.Config:
    train = dict(num_steps=NUM_STEPS, checkpoint_every_steps=SAVE_EVERY, keep_checkpoints=2)
    train |= dict(eval_every_steps=6, eval_num_batches=2)
    return small_runs.options(
        str(data), str(cache), train=train, telemetry=dict(every_steps=0), optim=dict(peak_lr=1e-2)
    )


# --- What must hold ------------------------------------------------------------------------------


def _ends(
    process: subprocess.Popen,
    place: pathlib.Path,
    differences: Callable[[], list[str]] = list,
) -> list[str]:
    """Whether a program comes to its end, and then `differences`."""
    ended = _end(process)
    found = _unless(ended == exit_codes.DONE, f"exit code {ended}", place) + _tracebacks(place)
    return found or differences()


def _not_an_error(ended: int | None, place: pathlib.Path, text: str) -> list[str]:
    """Whether a program ended otherwise than by an error of ours that says this."""
    found = _unless(ended == exit_codes.ERROR, f"exit code {ended}", place) + _tracebacks(place)
    return found + _unless(text in _text(place), f"{text!r} was not said", place)


def _tracebacks(place: pathlib.Path) -> list[str]:
    return _unless("Traceback" not in _text(place), "a traceback", place)


def _unless(holds: bool, what: str, place: pathlib.Path) -> list[str]:
    return [] if holds else [f"{what}: {_text(place)[-1500:]}"]


def _broken_files(run: pathlib.Path) -> list[str]:
    """The committed checkpoints that are not whole, and the JSON files that cannot be read."""
    found = []
    for path in (run / checkpoint.DIRECTORY).glob("*"):
        if path.name.isdecimal():
            items = ("meta", "params", "progress")
            damage = verification.damage(epath.Path(path), items, contents=True)
            found += [f"{path}: {text}" for text in damage]
    for path in run.glob("*.json"):
        try:
            files.read_json(path)
        except errors.UserError as error:
            found.append(str(error))
    return found


def _contents(directory: pathlib.Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def _different_files(directory: pathlib.Path, reference: pathlib.Path) -> list[str]:
    mine, theirs = _contents(directory), _contents(reference)
    return [
        f"{name} differs" for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)
    ]


def _end(process: subprocess.Popen) -> int | None:
    code = small_runs.exit_code(process, _PATIENCE_SECONDS)
    process.kill()
    process.wait()
    return code


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def _text(place: pathlib.Path) -> str:
    path = place / "output.txt"
    return path.read_text(errors="replace") if path.exists() else ""


# --- The command ---------------------------------------------------------------------------------


def cases(bench: Bench, num_sizes: int, num_starts: int) -> Iterator[tuple[str, str, Callable]]:
    """(kind, what is special, trial) of every trial."""
    for number in range(num_sizes):
        fraction = (number + 0.5) / num_sizes
        percent = f"{100 * fraction:.0f} % of what is needed"
        yield "save", percent, lambda p, f=fraction: bench.full_while_saving(f, p)
        yield "prepare", percent, lambda p, f=fraction: bench.full_while_preparing(f, p)
    for until_end in (False, True):
        name = "to its end" if until_end else "for a while"
        yield "log", name, lambda p, u=until_end: bench.full_while_logging(u, p)
    for what in ("work directory", "output of prepare", "shards and cache"):
        yield "read-only", what, lambda p, w=what: bench.read_only(w, p)
    rng = random.Random(0)
    for _ in range(num_starts):
        fraction = rng.uniform(0.0, 0.9)
        name = f"after {100 * fraction:.0f} % of the time that it is held"
        yield "two", name, lambda p, f=fraction: bench.two_starts(f, p)


def measure(
    output: pathlib.Path, num_sizes: int, num_starts: int, kinds: Sequence[str] = KINDS
) -> list[dict]:
    """What did not hold in each trial of these kinds; within `mounts.enter_namespace`."""
    bench, rows = Bench(output.absolute()), []
    for number, (kind, name, trial) in enumerate(cases(bench, num_sizes, num_starts)):
        if kind not in kinds:
            continue
        place = output.absolute() / "trials" / str(number)
        place.mkdir()
        bench.outcome = ""
        found = trial(place)
        rows.append({"kind": kind, "name": name, "outcome": bench.outcome, "found": found})
        print(f"{kind}, {name}: {'; '.join(found) or 'held'} {bench.outcome}", file=sys.stderr)
    return rows


def main(_: list[str]) -> int:
    """Prints how many trials of each kind held; 1 if one did not."""
    result_file.check("--json", _JSON.value)
    may_mount = mounts.enter_namespace("experiments.benchmarks.disk")
    small_runs.use_fast_compiler()
    kinds = [kind for kind in _KINDS.value if may_mount or kind == "two"]
    if not may_mount:
        print("This user may not mount (unshare -m): only two starts at once are tried.")
    rows = measure(pathlib.Path(_OUTPUT.value), _SIZES.value, _STARTS.value, kinds)
    counts = collections.Counter((row["kind"], bool(row["found"])) for row in rows)
    print(f"{'kind':<12}{'held':>8}{'did not':>10}")
    for kind in kinds:
        print(f"{kind:<12}{counts[kind, False]:>8}{counts[kind, True]:>10}")
    outcomes = collections.Counter(row["outcome"] for row in rows if row["kind"] == "two")
    if outcomes:
        text = "{refused} second starts were refused, {after} came after the first had ended"
        print(text.format(refused=outcomes["refused"], after=outcomes["after"]))
    failed = [row for row in rows if row["found"]]
    for row in failed:
        print(f"{row['kind']}, {row['name']}: {row['found']}")
    result_file.write_json(_JSON.value, {"rows": rows, **versions.describe()})
    # Without a start that is refused, nothing was shown.
    is_vacuous = bool(outcomes) and not outcomes["refused"]
    return exit_codes.ERROR if failed or is_vacuous else exit_codes.DONE


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", None, "Of the runs.", required=True)
    _SIZES = flags.DEFINE_integer("sizes", 12, "Sizes of disks that are too small.", lower_bound=1)
    _STARTS = flags.DEFINE_integer("starts", 20, "Moments of the second start.", lower_bound=1)
    _KINDS = flags.DEFINE_multi_enum("kind", list(KINDS), KINDS, "What is tried; may be repeated.")
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
