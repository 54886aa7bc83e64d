"""Loss against depth (NOTES.md): `python -m experiments.depth_scaling.run --preset=micro`."""

from experiments.depth_scaling import analysis, points
from experiments.frame import command
from keel_jax.runtime import command as program


def main(_):
    return command.run("depth_scaling", points.PRESETS, analysis.analyse)


if __name__ == "__main__":
    command.define_flags("depth_scaling", points.PRESETS)
    program.run(main)
