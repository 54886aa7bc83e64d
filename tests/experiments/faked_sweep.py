"""A preset's sweep whose runs are those of `fake_train`."""

import pathlib

import pytest

from experiments.sweeps import experiment, registration, results, sweep
from keel_jax.runtime import exit_codes


def of(preset: experiment.Preset, token_dir: pathlib.Path, directory: pathlib.Path) -> sweep.Sweep:
    """The sweep; its runs are in `directory`/runs."""
    return sweep.Sweep(
        runs=directory / "runs",
        data=str(token_dir),
        launcher="tests.experiments.fake_train",
        max_trials=preset.max_trials,
    )


def numbers_of_all_predictions(
    name: str,
    preset: str,
    points: experiment.Preset,
    analyse: experiment.Analysis,
    token_dir: pathlib.Path,
    directory: pathlib.Path,
) -> dict:
    """The numbers of a preset that has been run as a whole; they are in `directory`/out, too.

    Every registered prediction is of a number that there is.
    """
    faked = of(points, token_dir, directory)
    assert faked.run(points.points) == exit_codes.DONE
    request = experiment.Request(name=name, preset=preset, out=directory / "out")
    with pytest.MonkeyPatch.context() as patch:
        # The runs of a stand-in are of no commit.
        patch.setattr(registration, "verify", lambda registered, commits: {})
        assert experiment.analyse_sweep(request, faked, points, analyse) == exit_codes.DONE
    numbers = results.load(directory / "out")["numbers"]
    registered = registration.load(name, preset)
    assert registered and set(numbers["checks"]) == {each.claim for each in registered.predictions}
    for claim, check in numbers["checks"].items():
        number = registration.find(numbers, check["number"])
        assert number is not None, f"{claim}: there is no {check['number']}"
    return numbers
