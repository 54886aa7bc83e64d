"""A preset's sweep whose runs are those of `fake_train`."""

import pathlib

from experiments.sweeps import experiment, sweep


def of(preset: experiment.Preset, token_dir: pathlib.Path, directory: pathlib.Path) -> sweep.Sweep:
    """The sweep; its runs are in `directory`/runs."""
    return sweep.Sweep(
        runs=directory / "runs",
        data=str(token_dir),
        launcher="tests.experiments.fake_train",
        max_trials=preset.max_trials,
    )
