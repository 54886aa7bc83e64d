"""The command of an experiment that is a sweep: `python -m experiments.NAME.run --preset=…`.

It prepares the data, runs what has no result yet, and analyses what there is.
"""

import dataclasses
import pathlib
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from experiments.sweeps import corpus, results
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib
from experiments.sweeps import sweep as sweep_lib
from keel_jax import errors
from keel_jax.data import shards
from keel_jax.runtime import exit_codes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """One size of an experiment."""

    points: Sequence[point_lib.Point]
    # Ids of the tokenizer with which the embedded corpus is prepared; None: --data must be there.
    stdlib_vocab_size: int | None = None
    # Points side by side in one program, at most.
    max_trials: int = 32


# The flags are those of the experiment's own module, whose --help is to list them.
flags.disclaim_key_flags()

# (outcomes of all points, directory of results, data) -> the numbers of results.json.
Analysis = Callable[[Sequence[outcome_lib.Outcome], pathlib.Path, str], dict]


def define_flags(experiment: str, presets: Mapping[str, Callable[[], Preset]]):
    """The flags that all sweeps have."""
    flags.DEFINE_enum("preset", None, list(presets), "Size: micro is for two cores.")
    flags.DEFINE_string(
        "out",
        None,
        "Directory of results.json and figures/; committed ones lie in "
        f"experiments/{experiment}/results/PRESET [runs/{experiment}/PRESET].",
    )
    flags.DEFINE_string(
        "runs",
        None,
        f"Directory of the runs, which every shard sees [runs/{experiment}/PRESET/runs].",
    )
    flags.DEFINE_string(
        "data",
        None,
        "Token shards; micro prepares the embedded corpus there if need be "
        "[runs/data/stdlib_VOCABULARY].",
    )
    flags.DEFINE_string(
        "shard",
        "0/1",
        "i/n: run every n-th group of trials from the i-th on. The shards are "
        "processes or machines that share --runs.",
    )
    flags.DEFINE_string(
        "launcher",
        "keel_jax.train",
        "Module that trains a group, with its own flags: "
        "keel_jax.train, or a launcher, as in 'launch.local --num_processes=2'.",
    )
    flags.DEFINE_bool("dry_run", False, "Print the commands of what is to be run, and leave.")
    flags.mark_flag_as_required("preset")


def run(experiment: str, presets: Mapping[str, Callable[[], Preset]], analyse: Analysis) -> int:
    """What the flags say; the exit code."""
    values = flags.FLAGS
    results.source()  # what runs is what is there now
    preset = presets[values.preset]()
    home = pathlib.Path("runs") / experiment / values.preset
    sweep = sweep_lib.Sweep(
        runs=pathlib.Path(values.runs or home / "runs"),
        data=_data(values.data, preset),
        max_trials=preset.max_trials,
        shard=parse_shard(values.shard),
        launcher=values.launcher,
    )
    if values.dry_run:
        for command in sweep.commands(preset.points):
            print(shlex.join(command))
        return exit_codes.DONE
    # As Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if (code := sweep.run(preset.points)) != exit_codes.DONE:
        return code
    return finish(
        experiment, values.preset, sweep, preset, analyse, pathlib.Path(values.out or home)
    )


def finish(
    experiment: str,
    preset_name: str,
    sweep: sweep_lib.Sweep,
    preset: Preset,
    analyse: Analysis,
    out: pathlib.Path,
) -> int:
    """Analyses a sweep if no point is pending; says so otherwise."""
    outcomes = sweep.outcomes(preset.points)
    pending = [outcome for outcome in outcomes if outcome.state == outcome_lib.PENDING]
    if pending:
        print(
            f"{len(pending)} of {len(outcomes)} points are with other shards; results follow "
            "from the same command once they are there."
        )
        return exit_codes.DONE
    missing = [o.point.name for o in outcomes if o.state == outcome_lib.MISSING]
    # Where nothing came to a result there is nothing to analyse.
    has_any = len(missing) < len(outcomes)
    numbers = (analyse(outcomes, out, sweep.data) if has_any else {}) | {"missing": missing}
    groups = {
        o.record["workdir"].split("/")[1]: o.record["group_seconds"]
        for o in outcomes
        if o.has_result
    }
    results.write(
        out,
        experiment,
        preset_name,
        numbers=numbers,
        points=[outcome.summary() for outcome in outcomes],
        seconds=sum(groups.values()),
    )
    print(
        f"{out / results.FILE}: {len(outcomes) - len(missing)} points"
        + (f", missing: {', '.join(missing)}" if missing else "")
    )
    return exit_codes.ERROR if missing else exit_codes.DONE


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
      UserError: it is none.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise errors.UserError(f"--shard={text}: write i/n with 0 <= i < n, as in 0/4.")
    return int(index), int(count)


def _data(path: str | None, preset: Preset) -> str:
    """The directory of token shards, prepared if it can be."""
    vocab_size = preset.stdlib_vocab_size
    if path is None and vocab_size is None:
        raise errors.UserError(
            "This preset reads a corpus that is not embedded: prepare it with python -m "
            "keel_jax.prepare, and give its directory as --data."
        )
    path = path or f"runs/data/stdlib_{vocab_size}"
    if vocab_size is not None and not (pathlib.Path(path) / shards.INDEX_FILE).exists():
        corpus.ensure_stdlib(pathlib.Path(path), vocab_size)
    shards.open_set(path)
    return path
