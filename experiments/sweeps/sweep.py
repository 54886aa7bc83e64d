"""Runs the points of a sweep through the driver, those of a series as trials of one program.

Every group of trials is one process, `python -m keel_jax.train` or a launcher in its place.
Finished points are skipped; so what was interrupted goes on, and what is added to a sweep is run
alone. A diverged point is a result; a group that failed is started once more, and its points are
then missing.
"""

import dataclasses
import functools
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

import rich.progress

from experiments.sweeps import corpus
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib
from keel_jax.data import shards
from keel_jax.runtime import exit_codes, files

_ATTEMPTS = 2
_POLL_SECONDS = 0.5
# Codes after which nothing more is started: a stop request, Ctrl-C in a launcher, and a paid
# machine that may have been left running (launch/launcher.py).
_STOPS = (exit_codes.PREEMPTED, 130, 5)
_STATES = {exit_codes.DONE: outcome_lib.DONE, exit_codes.DIVERGED: outcome_lib.DIVERGED}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Where and how the points of a sweep are run."""

    # Holds groups/, the driver's work directories, and points/, a record each.
    runs: pathlib.Path
    # Token shards that every point reads; those of fewer distinct tokens are made beside them.
    data: str
    # Points side by side in one program, at most: what fits into memory.
    max_trials: int = 32
    # (i, n): this process runs every n-th group from the i-th on. All share `runs`.
    shard: tuple[int, int] = (0, 1)
    # Module that trains, with its own flags: "keel_jax.train", or "launch.slurm --nodes=4 …".
    launcher: str = "keel_jax.train"

    def run(self, points: Sequence[point_lib.Point]) -> int:
        """Runs what has no result yet; DONE, or the code after which nothing more was started.

        Raises:
          UserError: options that no run can have, before anything is started.
        """
        groups = self._groups(points)
        index, count = self.shard
        mine = groups[index::count]
        pending = [(group, todo) for group in mine if (todo := self._pending(group))]
        print(
            f"{len(points)} points in {len(groups)} groups; here: {len(mine)} groups, of which "
            f"{len(pending)} are not finished",
            flush=True,
        )
        with _Bar(sum(len(todo) for _, todo in pending)) as bar:
            for _, todo in pending:
                if (code := self._run_group(todo, bar)) in _STOPS:
                    return code
        return exit_codes.DONE

    def outcomes(self, points: Sequence[point_lib.Point]) -> list[outcome_lib.Outcome]:
        """What became of every point, in order."""
        return [outcome_lib.read(self.runs, point, self._digest([point])) for point in points]

    def commands(self, points: Sequence[point_lib.Point]) -> list[list[str]]:
        """What would be started, a command a group."""
        return [
            self._command(todo) for group in self._groups(points) if (todo := self._pending(group))
        ]

    def _groups(self, points) -> list[list[point_lib.Point]]:
        """Series, cut into as many trials as one program may have; the same on every shard."""
        return [
            members[start : start + self.max_trials]
            for members in point_lib.by_series(points).values()
            for start in range(0, len(members), self.max_trials)
        ]

    def _pending(self, group) -> list[point_lib.Point]:
        return [outcome.point for outcome in self.outcomes(group) if not outcome.has_result]

    def _run_group(self, group: list[point_lib.Point], bar: "_Bar") -> int:
        begin = time.monotonic()
        for attempt in range(1, _ATTEMPTS + 1):
            bar.begin(group, attempt)
            code = self._start(group, bar)
            if code in _STATES:
                self._record(group, attempt, time.monotonic() - begin)
                bar.end(group, f"exit code {code}, {time.monotonic() - begin:.0f} s")
                return code
            log = self._workdir(group) / "log.txt"
            if code in _STOPS:
                bar.end([], f"stopped with exit code {code} ({log}); the same command goes on")
                return code
            bar.end([], f"failed with exit code {code}, see {log}")
        for point in group:
            self._write(point, outcome_lib.MISSING, {"attempts": _ATTEMPTS, "exit_code": code})
        return code

    def _start(self, group, bar) -> int:
        """One process, to its end; a stop request is passed on."""
        workdir = self._workdir(group)
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "log.txt").open("a") as log:
            process = subprocess.Popen(
                self._command(group), stdout=log, stderr=log, cwd=point_lib.ROOT
            )
            try:
                while (code := process.poll()) is None:
                    time.sleep(_POLL_SECONDS)
                    bar.show(len(group), files.read_json(workdir / "status.json") or {})
            except KeyboardInterrupt:
                # SIGINT has reached it too where both belong to a terminal; the driver takes a
                # second signal right after the first for the same one.
                process.terminate()
                process.wait()
                return exit_codes.PREEMPTED
        return code

    def _command(self, group) -> list[str]:
        data = pathlib.Path(self._data_of(group)).absolute()
        flags = point_lib.arguments(group, str(data), self._workdir(group).absolute())
        return [sys.executable, "-m", *shlex.split(self.launcher), *flags]

    def _workdir(self, group) -> pathlib.Path:
        return self.runs / "groups" / f"{group[0].series}-{self._digest(group)}"

    def _data_of(self, group) -> str:
        return corpus.first_tokens(self.data, group[0].num_train_tokens)

    def _digest(self, group) -> str:
        data = self._data_of(group)
        return point_lib.digest(point_lib.build(group, data), _fingerprint(data))

    def _record(self, group, attempt: int, seconds: float):
        """Notes how each trial of a group that has ended stands."""
        workdir = self._workdir(group)
        ran_on = files.read_json(workdir / "versions.json") or {}
        for trial, point in enumerate(group):
            directory = workdir / "trials" / f"{trial:03}" if len(group) > 1 else workdir
            status = files.read_json(directory / "status.json")
            self._write(
                point,
                _STATES[status["exit_code"]],
                {
                    "attempts": attempt,
                    "exit_code": status["exit_code"],
                    "step": status["step"],
                    "workdir": str(directory.relative_to(self.runs)),
                    "group_seconds": round(seconds, 1),
                    "num_trials": len(group),
                    "compilations": status["compilations"],
                    "commit": ran_on.get("commit"),
                    "devices": ran_on.get("devices"),
                },
            )

    def _write(self, point, state: str, told: dict):
        path = outcome_lib.record_file(self.runs, point)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"digest": self._digest([point]), "state": state, "step": 0, "workdir": None}
        files.write_json(path, record | told)


@functools.cache
def _fingerprint(data: str) -> str:
    return shards.open_set(data).fingerprint


class _Bar:
    """Points done, on a terminal; a line a group elsewhere."""

    def __init__(self, num_points: int):
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.completed:.1f} of {task.total} points"),
            rich.progress.TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("sweep", total=num_points)
        self._done, self._num_points = 0, num_points

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def begin(self, group, attempt: int):
        """A group starts."""
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._told = f"{group[0].series}, {len(group)} trials{again}"
        self._bar.update(self._task, description=self._told)

    def show(self, num_trials: int, status: dict):
        """The group stands where its status.json says."""
        if status.get("state") == "running":
            part = num_trials * status["step"] / status["num_steps"]
            self._bar.update(self._task, completed=self._done + part)

    def end(self, group, how: str):
        """A group has ended."""
        self._done += len(group)
        self._bar.update(self._task, completed=self._done)
        line = f"[{self._done}/{self._num_points}] {self._told}: {how}"
        if self._bar.disable:
            print(line, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
