"""How gradients travel at initialization, topology by topology, against the theory.

    python -m experiments.gradient_flow.run --preset=micro --out=runs/gradient_flow
    python -m experiments.gradient_flow.run --preset=micro --out=… --workdirs=DIR,DIR   # trained

The check to run before booking anything. No data are read, except for trained models. What is
measured: measure.py; what was predicted and found: NOTES.md.
"""

import pathlib
import time

import jax
import rich.progress
from absl import flags

from experiments.gradient_flow import analysis, measure, points, trained
from experiments.sweeps import figures, results
from keel_jax.runtime import cli


def run(preset_name: str, out: pathlib.Path, workdirs: list[pathlib.Path], data: str | None):
    """Measures every case of the preset and every trained model; writes results and figures."""
    results.source()  # what runs is what is there now
    started, preset = time.monotonic(), points.PRESETS[preset_name]
    found = []
    for name, num_blocks in rich.progress.track(points.cases(preset), "models", transient=True):
        found += initialized(name, num_blocks, preset)
    for workdir in workdirs:
        found += trained.points(workdir, data)
    told = analysis.numbers(found, preset)
    for stem, (canvas, drawn) in analysis.figures(found, preset).items():
        figures.save(canvas, out, stem, drawn)
    results.write(
        out,
        "gradient_flow",
        preset_name,
        numbers={"checks": analysis.checks(told), **told},
        points=analysis.scalars(found),
        seconds=time.monotonic() - started,
    )
    return told


def initialized(name: str, num_blocks: int, preset: points.Preset) -> list[dict]:
    """One model of every seed: as initialized and, where the theory speaks, with unit branches."""
    model = points.model(name, num_blocks, preset)
    shape = (preset.batch_size, preset.seq_len)
    flow, init = measure.compile_flow(model, *shape), measure.compile_init(model)
    found = []
    for seed in range(preset.num_seeds):
        tokens_BT = measure.random_tokens(shape, preset.vocab_size, seed)
        weights = {"initial": init(jax.random.key(seed))}
        if name in points.OVER_DEPTH and name != "pre_ln":  # whose path has no norm
            weights["unit"] = measure.with_unit_branches(
                flow, weights["initial"], tokens_BT, model, seed
            )
        for kind, params in weights.items():
            told = measure.look(flow, params, tokens_BT, model, seed)
            found.append(
                {"kind": kind, "name": name, "num_blocks": num_blocks, "seed": seed, **told}
            )
    return found


def main(_):
    out = pathlib.Path(_OUT.value or f"runs/gradient_flow/{_PRESET.value}")
    told = run(_PRESET.value, out, [pathlib.Path(w) for w in _WORKDIRS.value], _DATA.value)
    for key, check in analysis.checks(told).items():
        print(
            f"{'holds' if check['holds'] else 'FAILS'}  {key}: {check['says']}: "
            f"{check['value']:g} in [{check['low']:g}, {check['high']:g}]"
        )
    print(f"{out}/results.json, figures/")


if __name__ == "__main__":
    _PRESET = flags.DEFINE_enum("preset", "micro", list(points.PRESETS), "Sizes: points.py.")
    _OUT = flags.DEFINE_string("out", None, "Directory; default: runs/gradient_flow/PRESET.")
    _WORKDIRS = flags.DEFINE_list("workdirs", [], "Trained models: of runs, or of their trials.")
    _DATA = flags.DEFINE_string("data", None, "Token shards of the trained models, if moved.")
    cli.run(main)
