"""Trains Keel and Pre-LN, and finds out what each of their sub-layers and blocks is worth.

    python -m experiments.layer_redundancy.run --preset=micro --out=runs/layer_redundancy/micro
    python -m experiments.layer_redundancy.run --preset=micro --workdirs=DIR,DIR    # any runs

What "removed" means: removal.py; what was predicted and found: NOTES.md.
"""

import pathlib
import sys
import time
from collections.abc import Sequence

import rich.progress
from absl import flags

from experiments.layer_redundancy import analysis, points, removal
from experiments.sweeps import experiment, results
from experiments.sweeps import outcome as outcome_lib
from keel_jax.runtime import cli, exit_codes

EXPERIMENT = "layer_redundancy"


def take_apart(
    workdirs: Sequence[pathlib.Path], sizes: points.Sizes, data_path: str | None
) -> list[dict]:
    """`analysis.measure` of every model."""
    found = []
    for workdir in rich.progress.track(
        workdirs, "taking models apart", transient=True, disable=not sys.stdout.isatty()
    ):
        model = removal.load(workdir, sizes.num_sequences, data_path)
        found.append(analysis.measure(model, sizes.num_candidates))
        print(f"{workdir}: {len(found)} of {len(workdirs)} models", flush=True)
    return found


def analyse(outcomes: Sequence[outcome_lib.Outcome], out: pathlib.Path, data_path: str) -> dict:
    """The numbers and figures of a sweep; a diverged model is not taken apart."""
    trained = [o for o in outcomes if o.state == outcome_lib.DONE]
    sizes = points.SIZES[flags.FLAGS.preset]
    found = take_apart([o.workdir for o in trained], sizes, data_path)
    analysis.draw(found, out)
    diverged = [o.point.name for o in outcomes if o.state == outcome_lib.DIVERGED]
    return analysis.numbers(found) | {"diverged": diverged}


def analyse_workdirs(workdirs: list[pathlib.Path], preset: str, out: pathlib.Path) -> int:
    """The same for runs that are there already."""
    results.source()
    started = time.monotonic()
    found = take_apart(workdirs, points.SIZES[preset], flags.FLAGS.data)
    analysis.draw(found, out)
    models = [{key: model[key] for key in ("topology", "seed", "step", "loss")} for model in found]
    results.write(
        out,
        EXPERIMENT,
        preset,
        numbers=analysis.numbers(found),
        points=models,
        seconds=time.monotonic() - started,
    )
    print(f"{out / results.FILE}")
    return exit_codes.DONE


def main(_) -> int:
    preset = flags.FLAGS.preset
    if _WORKDIRS.value:
        out = pathlib.Path(flags.FLAGS.out or f"runs/{EXPERIMENT}/workdirs")
        return analyse_workdirs([pathlib.Path(w) for w in _WORKDIRS.value], preset, out)
    return experiment.run(EXPERIMENT, points.PRESETS, analyse)


if __name__ == "__main__":
    experiment.define_flags(EXPERIMENT, points.PRESETS)
    _WORKDIRS = flags.DEFINE_list(
        "workdirs", [], "Runs, or trials of runs, to take apart in place of the preset's own."
    )
    cli.run(main)
