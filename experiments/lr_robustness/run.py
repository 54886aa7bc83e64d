"""Learning-rate robustness (NOTES.md): `python -m experiments.lr_robustness.run --preset=micro`."""

from experiments.lr_robustness import analysis, points
from experiments.sweeps import experiment
from keel_jax.runtime import cli as program


def main(_):
    return experiment.run("lr_robustness", points.PRESETS, analysis.analyse)


if __name__ == "__main__":
    experiment.define_flags("lr_robustness", points.PRESETS)
    program.run(main)
