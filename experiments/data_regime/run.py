"""Keel against Pre-LN as data grow (NOTES.md): `python -m experiments.data_regime.run`."""

from experiments.data_regime import analysis, points
from experiments.sweeps import experiment
from keel_jax.runtime import cli as program


def main(_):
    return experiment.run("data_regime", points.PRESETS, analysis.analyse)


if __name__ == "__main__":
    experiment.define_flags("data_regime", points.PRESETS)
    program.run(main)
