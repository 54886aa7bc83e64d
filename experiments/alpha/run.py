"""What Keel's choices are worth (NOTES.md): `python -m experiments.alpha.run --preset=micro`."""

from experiments.alpha import analysis, points
from experiments.sweeps import experiment
from keel_jax.runtime import cli as program


def main(_):
    return experiment.run("alpha", points.PRESETS, analysis.analyse)


if __name__ == "__main__":
    experiment.define_flags("alpha", points.PRESETS)
    program.run(main)
