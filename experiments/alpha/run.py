"""What Keel's choices are worth (NOTES.md): `python -m experiments.alpha.run --preset=micro`."""

from experiments.alpha import analysis, points
from experiments.frame import command
from keel_jax.runtime import command as program


def main(_):
    return command.run("alpha", points.PRESETS, analysis.analyse)


if __name__ == "__main__":
    command.define_flags("alpha", points.PRESETS)
    program.run(main)
