"""How gradients travel at initialization, topology by topology, against the theory.

    python -m experiments.run gradient_flow --preset=micro --out=runs/gradient_flow
    python -m experiments.run gradient_flow --preset=micro --out=… --workdirs=DIR,DIR   # trained

A check to run before booking accelerators. No data are read, except for trained models. What is
measured: measure.py; what was predicted and found: NOTES.md.
"""

import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
import rich.progress
from absl import flags

from experiments.gradient_flow import analysis, drawing, measure, points, trained
from experiments.sweeps import experiment, figures, results
from keel_jax.runtime import exit_codes

# --help lists the flags that are defined here as those of experiments.run.
flags.disclaim_key_flags()


def define_flags() -> None:
    """The one flag that this experiment has beside those of all experiments."""
    flags.DEFINE_list("workdirs", [], "Trained models to measure, too: runs, or trials of runs.")


def run(request: experiment.Request) -> int:
    """Measures what the flags say, and prints the predictions; the exit code."""
    out = request.out or request.directory
    workdirs = [pathlib.Path(workdir) for workdir in flags.FLAGS.workdirs]
    numbers = measure_all(request.preset, out, workdirs, request.data)
    print_checks(analysis.checks(numbers))
    print(f"{out}/results.json, figures/")
    return exit_codes.DONE


def measure_all(
    preset_name: str, out: pathlib.Path, workdirs: Sequence[pathlib.Path], data: str | None
) -> dict:
    """Measures every case of the preset and every trained model; writes results and figures."""
    results.source()  # the state of the tree that this process was started from
    started, preset = time.monotonic(), points.PRESETS[preset_name]
    measured = []
    for name, num_blocks in rich.progress.track(points.cases(preset), "models", transient=True):
        measured += initial_points(name, num_blocks, preset)
    for workdir in workdirs:
        measured += trained.trained_points(workdir, data)
    numbers = analysis.numbers(measured, preset)
    for stem, (figure, drawn) in drawing.draw_all(measured, preset).items():
        figures.save(figure, out, stem, drawn)
    results.write(
        out,
        "gradient_flow",
        preset_name,
        numbers={"checks": analysis.checks(numbers), **numbers},
        points=analysis.scalars(measured),
        seconds=time.monotonic() - started,
    )
    return numbers


def initial_points(name: str, num_blocks: int, preset: points.Preset) -> list[dict]:
    """One model of every seed, as initialized and, where a theory exists, with unit branches."""
    model = points.model(name, num_blocks, preset)
    shape = (preset.batch_size, preset.seq_len)
    flow, init = measure.compile_flow(model, *shape), measure.compile_init(model)
    measured = []
    for seed in range(preset.num_seeds):
        tokens_BT = measure.random_tokens(shape, preset.vocab_size, seed)
        params_of = {"initial": init(jax.random.key(seed))}
        if name in points.OVER_DEPTH and name != "pre_ln":  # whose path has no norm
            params_of["unit"] = measure.with_unit_branches(
                flow, params_of["initial"], tokens_BT, model, seed
            )
        measured += [
            {
                "kind": kind,
                "name": name,
                "num_blocks": num_blocks,
                "seed": seed,
                **measure.measure_flow(flow, params, tokens_BT, model, seed),
            }
            for kind, params in params_of.items()
        ]
    return measured


def print_checks(checks: Mapping[str, Mapping]) -> None:
    """The predictions, one a line, and whether they hold."""
    for key, check in checks.items():
        print(
            f"{'holds' if check['holds'] else 'FAILS'}  {key}: {check['says']}: "
            f"{check['value']:g} in [{check['low']:g}, {check['high']:g}]"
        )


EXPERIMENT = experiment.Experiment(presets=list(points.PRESETS), define_flags=define_flags, run=run)
