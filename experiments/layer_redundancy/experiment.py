"""Trains Keel and Pre-LN, and measures what each of their sub-layers and blocks is worth.

    python -m experiments.run layer_redundancy --preset=micro --out=runs/layer_redundancy/micro
    python -m experiments.run layer_redundancy --preset=micro --workdirs=DIR,DIR    # any runs

What "removed" means: removal.py; what was predicted and found: NOTES.md.
"""

import functools
import pathlib
import sys
import time
from collections.abc import Sequence

import rich.progress
from absl import flags

from experiments.layer_redundancy import analysis, drawing, points, removal
from experiments.sweeps import experiment, results
from experiments.sweeps import outcome as outcome_lib
from keel_jax.data import shards
from keel_jax.runtime import exit_codes

# --help lists the flags that are defined here as those of experiments.run.
flags.disclaim_key_flags()


def define_flags() -> None:
    """The flags of all sweeps, and one of this experiment's own."""
    experiment.define_sweep_flags()
    flags.DEFINE_list(
        "workdirs", [], "Runs, or trials of runs, to measure in place of the preset's own."
    )


def run(request: experiment.Request) -> int:
    """Trains the preset's models, or takes the given ones, and measures them; the exit code."""
    sizes = points.SIZES[request.preset]
    if flags.FLAGS.workdirs:
        workdirs = [pathlib.Path(workdir) for workdir in flags.FLAGS.workdirs]
        return analyse_workdirs(workdirs, request, sizes)
    analyse = functools.partial(analyse_outcomes, sizes=sizes)
    return experiment.run_sweep(request, points.PRESETS, analyse)


def analyse_outcomes(
    outcomes: Sequence[outcome_lib.Outcome], out: pathlib.Path, data: str, *, sizes: points.Sizes
) -> dict:
    """The numbers and figures of a sweep; diverged models are named and not measured."""
    workdirs = [o.workdir for o in outcomes if o.state == outcome_lib.DONE and o.workdir]
    measured = measure_all(workdirs, sizes, data)
    drawing.draw_all(measured, out)
    diverged = [o.point.name for o in outcomes if o.state == outcome_lib.DIVERGED]
    return analysis.numbers(measured) | {"diverged": diverged}


def analyse_workdirs(
    workdirs: Sequence[pathlib.Path], request: experiment.Request, sizes: points.Sizes
) -> int:
    """The same for runs that exist already; the exit code."""
    results.source()  # the state of the tree that this process was started from
    out = request.out or request.directory.with_name("workdirs")
    started = time.monotonic()
    measured = measure_all(workdirs, sizes, request.data)
    drawing.draw_all(measured, out)
    results.write(
        out,
        request.name,
        request.preset,
        numbers=analysis.numbers(measured),
        points=[
            {key: model[key] for key in ("topology", "seed", "step", "loss")} for model in measured
        ],
        seconds=time.monotonic() - started,
        data=shards.open_set(request.data) if request.data else None,
    )
    print(f"{out / results.FILE}")
    return exit_codes.DONE


def measure_all(
    workdirs: Sequence[pathlib.Path], sizes: points.Sizes, data_path: str | None
) -> list[dict]:
    """`analysis.measure` of every model."""
    measured = []
    for workdir in rich.progress.track(
        workdirs, "measuring models", transient=True, disable=not sys.stdout.isatty()
    ):
        model = removal.load(workdir, sizes.num_sequences, data_path)
        measured.append(analysis.measure(model, sizes.num_candidates))
        print(f"{workdir}: {len(measured)} of {len(workdirs)} models", flush=True)
    return measured


EXPERIMENT = experiment.Experiment(presets=list(points.PRESETS), define_flags=define_flags, run=run)
