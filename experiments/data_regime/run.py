"""Keel against Pre-LN as data grow (NOTES.md): `python -m experiments.data_regime.run`."""

from experiments.data_regime import analysis, points
from experiments.frame import command
from keel_jax.runtime import command as program


def main(_):
    return command.run("data_regime", points.PRESETS, analysis.analyse)


if __name__ == "__main__":
    command.define_flags("data_regime", points.PRESETS)
    program.run(main)
