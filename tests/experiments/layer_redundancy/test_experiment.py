"""Layer redundancy from trained runs to results."""

import pytest

from experiments.layer_redundancy import experiment, points
from experiments.sweeps import experiment as experiment_lib
from experiments.sweeps import outcome, point, results
from tests.experiments.layer_redundancy import NUM_BLOCKS

SIZES = points.Sizes(num_sequences=4, num_candidates=1)


@pytest.fixture
def trials(run_dir):
    """The models to measure."""
    return [run_dir / "trials" / trial for trial in ("000", "001")]


def test_of_a_sweep_the_completed_runs_are_measured(trials, token_dir, tmp_path):
    """A diverged model is named, and not measured."""
    at = [
        point.Point("keel-L6", "experiments/configs/micro.py", {}, 1e-2, seed) for seed in (3, 4, 5)
    ]
    states = (outcome.DONE, outcome.DONE, outcome.DIVERGED)
    outcomes = [
        outcome.Outcome(p, state, workdir)
        for p, state, workdir in zip(at, states, [*trials, trials[0]], strict=True)
    ]
    numbers = experiment.analyse_outcomes(outcomes, tmp_path, str(token_dir), sizes=SIZES)
    assert numbers["keel"]["ppl"]["num_seeds"] == 2
    assert numbers["diverged"] == ["keel-L6_lr0.01_seed5"]


def test_results_of_given_runs_are_written(trials, tmp_path, capsys):
    request = experiment_lib.Request(name="layer_redundancy", preset="micro", out=tmp_path)
    assert experiment.analyse_workdirs(trials, request, SIZES) == 0
    content = results.load(tmp_path)
    assert [point["seed"] for point in content["points"]] == [3, 4]
    assert len(content["numbers"]["keel"]["delta_ppl_sublayer"]) == 2 * NUM_BLOCKS
    stems = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert stems == {"block", "sublayer", "rotation", "greedy"}
    assert "results.json" in capsys.readouterr().out
