"""What `python -m experiments.run NAME` needs of an experiment, and that of one which is a sweep.

A sweep prepares its data, runs what has no result yet, and analyses the outcomes.
"""

import dataclasses
import functools
import pathlib
import shlex
import signal
from collections.abc import Callable, Collection, Mapping, Sequence

from absl import flags

from experiments.sweeps import datasets, registration, results
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib
from experiments.sweeps import sweep as sweep_lib
from keel_jax import errors
from keel_jax.data import shards
from keel_jax.runtime import exit_codes

# --help lists the flags that are defined here as those of experiments.run.
flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What the flags that all experiments share ask for."""

    # Package under experiments/.
    name: str
    preset: str
    # Directory of results.json and figures/; None: the experiment's default.
    out: pathlib.Path | None = None
    # Directory of token shards; None: the experiment's default.
    data: str | None = None

    @property
    def directory(self) -> pathlib.Path:
        """Where the experiment writes by default."""
        return pathlib.Path("runs") / self.name / self.preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What can be run by its name, once it is in `experiments.registry`."""

    # Names of its sizes, the values of --preset.
    presets: Collection[str]
    # Defines the flags that it has beside --preset, --out and --data.
    define_flags: Callable[[], None]
    # Measures, writes results.json and figures/, and returns the exit code.
    run: Callable[[Request], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """One size of a sweep."""

    points: Sequence[point_lib.Point]
    # Vocabulary of the embedded corpus that is prepared for it; None: it needs --data.
    embedded_vocab_size: int | None = None
    # Most points side by side in one program.
    max_trials: int = 32


Presets = Mapping[str, Callable[[], Preset]]
# (outcomes of all points, directory of results, token shards) -> the numbers of results.json.
Analysis = Callable[[Sequence[outcome_lib.Outcome], pathlib.Path, str], dict]


def of_sweep(presets: Presets, analyse: Analysis) -> Experiment:
    """The experiment that runs the points of a preset and analyses their outcomes."""
    return Experiment(
        presets=list(presets),
        define_flags=define_sweep_flags,
        run=functools.partial(run_sweep, presets=presets, analyse=analyse),
    )


def define_sweep_flags() -> None:
    """The flags that all sweeps have beside those of all experiments."""
    flags.DEFINE_string(
        "runs", None, "Directory of the runs, which every shard sees [runs/NAME/PRESET/runs]."
    )
    flags.DEFINE_string(
        "shard",
        "0/1",
        "i/n: run every n-th group of trials from the i-th on. The shards are processes or "
        "machines that share --runs.",
    )
    flags.DEFINE_string(
        "launcher",
        "keel_jax.train",
        "Module that trains a group, with its own flags: keel_jax.train, or a launcher, as in "
        "'launch.local --num_processes=2'.",
    )
    flags.DEFINE_integer(
        "jobs",
        1,
        "Groups of trials to run side by side, each on its share of the CPU's cores. They need as "
        "many times the memory. Leave it at 1 where an accelerator trains, which one process takes "
        "for itself.",
        lower_bound=1,
    )
    flags.DEFINE_bool("dry_run", False, "Print the commands of what would be run, and exit.")


def run_sweep(request: Request, presets: Presets, analyse: Analysis) -> int:
    """Runs a preset as the flags say and analyses it; the exit code."""
    values = flags.FLAGS
    results.source()  # the state of the tree that this process was started from
    preset = presets[request.preset]()
    sweep = sweep_lib.Sweep(
        runs=pathlib.Path(values.runs or request.directory / "runs"),
        data=_prepared_data(request.data, preset),
        max_trials=preset.max_trials,
        shard=parse_shard(values.shard),
        launcher=values.launcher,
        jobs=values.jobs,
    )
    if values.dry_run:
        for command in sweep.commands(preset.points):
            print(shlex.join(command))
        return exit_codes.DONE
    # SIGTERM stops the sweep as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if (code := sweep.run(preset.points)) != exit_codes.DONE:
        return code
    return analyse_sweep(request, sweep, preset, analyse)


def analyse_sweep(
    request: Request, sweep: sweep_lib.Sweep, preset: Preset, analyse: Analysis
) -> int:
    """Writes the results of a sweep if no point is pending, and says so otherwise."""
    outcomes = sweep.outcomes(preset.points)
    pending = [outcome for outcome in outcomes if outcome.state == outcome_lib.PENDING]
    if pending:
        print(
            f"{len(pending)} of {len(outcomes)} points are with other shards. Once they have run, "
            "the same command writes the results."
        )
        return exit_codes.DONE
    out = request.out or request.directory
    missing = [o.point.name for o in outcomes if o.state == outcome_lib.MISSING]
    # Without any result there is nothing to analyse.
    has_any = len(missing) < len(outcomes)
    registered = registration.load(request.name, request.preset)
    commits = [o.record.get("commit") for o in outcomes if o.has_result]
    registered_before = registration.verify(registered, commits) if registered else None
    numbers = (analyse(outcomes, out, sweep.data) if has_any else {}) | {"missing": missing}
    if registered:
        assert "checks" not in numbers, f"{registered.file} has the predictions of this preset"
        numbers["checks"] = registration.check(registered, numbers, missing)
    group_seconds = {
        o.record["workdir"].split("/")[1]: o.record["group_seconds"]
        for o in outcomes
        if o.has_result
    }
    results.write(
        out,
        request.name,
        request.preset,
        numbers=numbers,
        data=shards.open_set(sweep.data),
        registration=registered_before,
        points=[outcome.summary() for outcome in outcomes],
        seconds=sum(group_seconds.values()),
    )
    print(
        f"{out / results.FILE}: {len(outcomes) - len(missing)} points"
        + (f", missing: {', '.join(missing)}" if missing else "")
    )
    return exit_codes.ERROR if missing else exit_codes.DONE


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
      UserError: the text is something else.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise errors.UserError(f"--shard={text}: write i/n with 0 <= i < n, as in 0/4.")
    return int(index), int(count)


def _prepared_data(path: str | None, preset: Preset) -> str:
    """The directory of token shards; the embedded corpus is prepared there if need be."""
    vocab_size = preset.embedded_vocab_size
    if path is None and vocab_size is None:
        raise errors.UserError(
            "This preset reads a corpus that is not embedded: prepare it with python -m "
            "keel_jax.prepare, and give its directory as --data."
        )
    path = path or f"runs/data/embedded_{vocab_size}"
    if vocab_size is not None and not (pathlib.Path(path) / shards.INDEX_FILE).exists():
        datasets.ensure_embedded(pathlib.Path(path), vocab_size)
    shards.open_set(path)
    return path
