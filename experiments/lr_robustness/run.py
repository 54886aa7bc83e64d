"""Learning-rate robustness (NOTES.md): `python -m experiments.lr_robustness.run --preset=micro`."""

from experiments.frame import command
from experiments.lr_robustness import analysis, points
from keel_jax.runtime import command as program


def main(_):
    return command.run("lr_robustness", points.PRESETS, analysis.analyse)


if __name__ == "__main__":
    command.define_flags("lr_robustness", points.PRESETS)
    program.run(main)
