"""Loss against depth (NOTES.md): `python -m experiments.depth_scaling.run --preset=micro`."""

from experiments.depth_scaling import analysis, points
from experiments.sweeps import experiment
from keel_jax.runtime import cli as program


def main(_):
    return experiment.run("depth_scaling", points.PRESETS, analysis.analyse)


if __name__ == "__main__":
    experiment.define_flags("depth_scaling", points.PRESETS)
    program.run(main)
