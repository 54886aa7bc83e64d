"""Runs the points of a sweep through the driver, those of a series as trials of one program.

Every group of trials is one process: `python -m keel_jax.train`, or a launcher in its place.
Several may run side by side, each on its share of the cores (`Sweep.jobs`). Finished points are
skipped, so an interrupted sweep goes on where it was, and points that are added later are run
alone. A diverged point is a result. A group that fails is started once more; if it fails again, its
points are missing.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from experiments.sweeps import datasets, processes, progress
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib
from keel_jax.data import shards
from keel_jax.runtime import best_effort, exit_codes, files
from keel_jax.training import status as status_lib

_ATTEMPTS = 2
_POLL_SECONDS = 0.5
_LOG, _STATUS = "log.txt", status_lib.FILE
_STATES = {exit_codes.DONE: outcome_lib.DONE, exit_codes.DIVERGED: outcome_lib.DIVERGED}


@dataclasses.dataclass(kw_only=True)
class _Running:
    """A group whose process has been started."""

    group: list[point_lib.Point]
    # The place among the groups that run side by side, from 0.
    slot: int
    # What it runs on; empty: on all that there are.
    cores: set[int]
    process: subprocess.Popen
    # When the first attempt began; `time.monotonic`.
    begin: float
    attempt: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Where and how the points of a sweep are run."""

    # Holds groups/, the driver's work directories, and points/, one record a point.
    runs: pathlib.Path
    # Token shards that every point reads; those of fewer distinct tokens are made beside them.
    data: str
    # Most points side by side in one program: what fits into memory.
    max_trials: int = 32
    # (i, n): this process runs every n-th group from the i-th on. All shards share `runs`.
    shard: tuple[int, int] = (0, 1)
    # Module that trains, with its own flags: "keel_jax.train", or "launch.slurm --nodes=4 …".
    launcher: str = "keel_jax.train"
    # Groups that run side by side. With several, each has its share of this process's cores, and
    # together they need the memory of as many programs of `max_trials`.
    jobs: int = 1

    def run(self, points: Sequence[point_lib.Point]) -> int:
        """Runs what has no result yet; DONE, or the code of the stop that ended it.

        Raises:
          UserError: options that no run can have, before anything is started.
        """
        groups = self._groups(points)
        index, count = self.shard
        own = groups[index::count]
        pending = [(group, todo) for group in own if (todo := self._pending(group))]
        print(
            f"{len(points)} points in {len(groups)} groups; in this process: {len(own)} groups, of "
            f"which {len(pending)} are not finished",
            flush=True,
        )
        with progress.SweepProgress(sum(len(todo) for _, todo in pending)) as bar:
            return self._run_groups([todo for _, todo in pending], bar)

    def outcomes(self, points: Sequence[point_lib.Point]) -> list[outcome_lib.Outcome]:
        """What became of every point, in order."""
        return [
            outcome_lib.load_outcome(self.runs, point, self._digest([point])) for point in points
        ]

    def commands(self, points: Sequence[point_lib.Point]) -> list[list[str]]:
        """What would be started, one command a group."""
        return [
            self._command(todo) for group in self._groups(points) if (todo := self._pending(group))
        ]

    def _groups(self, points: Sequence[point_lib.Point]) -> list[list[point_lib.Point]]:
        """Series, cut into as many trials as one program may have; the same on every shard."""
        return [
            members[start : start + self.max_trials]
            for members in point_lib.group_by_series(points).values()
            for start in range(0, len(members), self.max_trials)
        ]

    def _pending(self, group: Sequence[point_lib.Point]) -> list[point_lib.Point]:
        return [outcome.point for outcome in self.outcomes(group) if not outcome.has_result]

    def _run_groups(
        self, groups: Sequence[list[point_lib.Point]], bar: progress.SweepProgress
    ) -> int:
        """Runs every group, `jobs` of them side by side; the exit code of `run`."""
        waiting = collections.deque(groups)
        running: dict[int, _Running] = {}
        num_slots = min(self.jobs, len(groups))
        code = exit_codes.DONE
        with processes.StopRequest() as stop:
            while (waiting or running) and code not in processes.STOPS:
                for slot in range(num_slots):
                    if slot not in running and waiting:
                        running[slot] = self._start(waiting.popleft(), slot, num_slots, bar)
                time.sleep(_POLL_SECONDS)
                for slot, each in list(running.items()):
                    if (ended := each.process.poll()) is None:
                        status = best_effort.read_object(self._workdir(each.group) / _STATUS)
                        bar.update(slot, len(each.group), status)
                    elif self._is_over(each, ended, bar):
                        del running[slot]
                        code = processes.stronger_stop(code, ended)
                if stop.is_made and (waiting or running):
                    code = processes.stronger_stop(code, exit_codes.PREEMPTED)
            # After a stop: what still runs is asked to save and to leave. On a terminal SIGINT has
            # reached it already; the driver takes a second signal right after the first for the
            # same request.
            for each in running.values():
                each.process.terminate()
            for each in running.values():
                ended = each.process.wait()
                self._is_over(each, ended, bar, is_last=True)
                code = processes.stronger_stop(code, ended)
        return code

    def _start(
        self,
        group: list[point_lib.Point],
        slot: int,
        num_slots: int,
        bar: progress.SweepProgress,
    ) -> _Running:
        bar.start_group(slot, group, attempt=1)
        cores = processes.share_of_cores(slot, num_slots) if num_slots > 1 else set()
        return _Running(
            group=group,
            slot=slot,
            cores=cores,
            process=self._train(group, cores),
            begin=time.monotonic(),
        )

    def _is_over(
        self, each: _Running, code: int, bar: progress.SweepProgress, is_last: bool = False
    ) -> bool:
        """Records a group whose process has exited, or starts it once more if it failed.

        Args:
          is_last: the sweep stops, so nothing is started, and a failure is nothing to record.
        """
        log = self._workdir(each.group) / _LOG
        seconds = time.monotonic() - each.begin
        statuses = self._final_statuses(each.group) if code in _STATES else None
        if statuses:
            self._record_results(each.group, statuses, each.attempt, seconds)
            bar.end_group(each.slot, len(each.group), f"exit code {code}, {seconds:.0f} s")
            return True
        if code in processes.STOPS:
            said = f"stopped with exit code {code} ({log}); the same command goes on"
            bar.end_group(each.slot, 0, said)
            return True
        said = " and no final status.json" if code in _STATES else ""
        bar.end_group(each.slot, 0, f"failed with exit code {code}{said}, see {log}")
        if is_last:
            return True
        if each.attempt < _ATTEMPTS:
            each.attempt += 1
            bar.start_group(each.slot, each.group, each.attempt)
            each.process = self._train(each.group, each.cores)
            return False
        for point in each.group:
            self._record(point, outcome_lib.MISSING, {"attempts": _ATTEMPTS, "exit_code": code})
        return True

    def _train(self, group: list[point_lib.Point], cores: set[int]) -> subprocess.Popen:
        """Starts the group's process, on these cores if any are given; it has a log of its own."""
        workdir = self._workdir(group)
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / _LOG).open("a") as log:
            process = subprocess.Popen(
                self._command(group), stdout=log, stderr=log, cwd=point_lib.ROOT
            )
        if cores:
            with contextlib.suppress(ProcessLookupError):  # it has exited already
                os.sched_setaffinity(process.pid, cores)
        return process

    def _command(self, group: Sequence[point_lib.Point]) -> list[str]:
        data = pathlib.Path(self._data_of(group)).absolute()
        flags = point_lib.driver_flags(group, str(data), self._workdir(group).absolute())
        return [sys.executable, "-m", *shlex.split(self.launcher), *flags]

    def _workdir(self, group: Sequence[point_lib.Point]) -> pathlib.Path:
        return self.runs / "groups" / f"{group[0].series}-{self._digest(group)}"

    def _data_of(self, group: Sequence[point_lib.Point]) -> str:
        return datasets.first_tokens(self.data, group[0].num_train_tokens)

    def _digest(self, group: Sequence[point_lib.Point]) -> str:
        data = self._data_of(group)
        return point_lib.digest(point_lib.build_config(group, data), _fingerprint(data))

    def _record_results(
        self,
        group: list[point_lib.Point],
        statuses: Sequence[Mapping],
        attempt: int,
        seconds: float,
    ) -> None:
        """Records how each trial of a group that has ended ended, as their `statuses` say."""
        workdir = self._workdir(group)
        versions = best_effort.read_object(workdir / "versions.json")
        for point, directory, status in zip(group, self._directories(group), statuses, strict=True):
            self._record(
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
                    "commit": versions.get("commit"),
                    "devices": versions.get("devices"),
                },
            )

    def _final_statuses(self, group: Sequence[point_lib.Point]) -> list[Mapping] | None:
        """status.json of each trial; None if one does not say how it ended, as on a full disk."""
        statuses = []
        for directory in self._directories(group):
            match status := best_effort.read_object(directory / _STATUS):
                case {"exit_code": code, "step": int(), "compilations": dict()} if code in _STATES:
                    statuses.append(status)
                case _:
                    return None
        return statuses

    def _directories(self, group: Sequence[point_lib.Point]) -> list[pathlib.Path]:
        """Each point's trial."""
        workdir = self._workdir(group)
        if len(group) == 1:
            return [workdir]
        return [workdir / "trials" / f"{trial:03}" for trial in range(len(group))]

    def _record(self, point: point_lib.Point, state: str, details: Mapping) -> None:
        path = outcome_lib.record_file(self.runs, point)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"digest": self._digest([point]), "state": state, "step": 0, "workdir": None}
        files.write_checked_json(path, {**record, **details})


@functools.cache
def _fingerprint(data: str) -> str:
    return shards.open_set(data).fingerprint
