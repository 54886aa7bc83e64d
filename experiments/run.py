"""Runs an experiment: `python -m experiments.run NAME --preset=micro --out=DIR`.

Prepares its data, runs what has no result yet, and writes results.json and figures/ to --out. An
interrupted experiment goes on with the same command. `python -m experiments.run NAME --help` lists
the flags of one experiment.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from experiments import registry
from experiments.sweeps import experiment as experiment_lib
from keel_jax import errors
from keel_jax.runtime import cli, exit_codes

_HELP = {"-h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull"}


def split_name(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """(NAME, the flags after it); the name is None where only the help is asked for.

    Raises:
      UserError: the first argument is no name.
    """
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    if _HELP & set(arguments):
        return None, list(arguments)
    raise errors.UserError(
        "Which experiment? Its name comes first: python -m experiments.run NAME --preset=micro. "
        f"NAME is one of {', '.join(registry.MODULES)}."
    )


def describe() -> str:
    """The experiments, one a line, for --help."""
    width = max(map(len, registry.MODULES))
    lines = [f"  {name:{width}}  {registry.summary(name)}" for name in registry.MODULES]
    return "\n".join(["Experiments:", "", *lines, ""])


def define_flags(name: str, experiment: experiment_lib.Experiment) -> None:
    """The flags that all experiments share, and those of this one."""
    flags.DEFINE_enum("preset", None, list(experiment.presets), "Size: micro is for two cores.")
    flags.DEFINE_string(
        "out",
        None,
        "Directory of results.json and figures/; committed ones are in "
        f"experiments/{name}/results/PRESET [runs/{name}/PRESET].",
    )
    flags.DEFINE_string(
        "data",
        None,
        "Directory of token shards. Presets of sweeps that read the embedded corpus prepare it "
        "there if need be [runs/data/embedded_VOCABULARY].",
    )
    flags.mark_flag_as_required("preset")
    experiment.define_flags()


def request(name: str) -> experiment_lib.Request:
    """What the parsed flags ask for."""
    values = flags.FLAGS
    out = pathlib.Path(values.out) if values.out else None
    return experiment_lib.Request(name=name, preset=values.preset, out=out, data=values.data)


def main() -> None:
    """Runs the experiment that the command line names, and exits with its code."""
    try:
        name, arguments = split_name(sys.argv[1:])
        experiment = registry.load(name) if name else None
    except errors.UserError as error:
        cli.print_error(error)
        sys.exit(exit_codes.ERROR)
    # Of the entry points' command lines, this one alone has a positional argument.
    sys.argv[1:] = arguments
    if name is None or experiment is None:
        _set_help(f"{__doc__}\n{describe()}")
        cli.run(lambda _: exit_codes.DONE)
    else:
        _set_help(f"{name}: {registry.summary(name)}\n\nNotes: experiments/{name}/NOTES.md\n")
        define_flags(name, experiment)
        cli.run(lambda _: experiment.run(request(name)))


def _set_help(text: str) -> None:
    """What absl prints above the flags on --help."""
    sys.modules["__main__"].__doc__ = text


if __name__ == "__main__":
    main()
