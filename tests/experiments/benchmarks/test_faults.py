"""The benchmark of kills draws every kind of case, notices a wrong start, and goes on."""

import json

import pytest

from experiments.benchmarks import faults, moments
from keel_jax.runtime import exit_codes


def test_cases_are_those_of_their_seed_and_of_every_kind():
    cases = [faults.draw(seed) for seed in range(200)]
    assert cases == [faults.draw(seed) for seed in range(200)]
    assert {case.kind for case in cases} == set(faults.KINDS)
    assert {(case.num_processes, case.num_trials) for case in cases} == {
        (processes, trials) for processes in (1, 4) for trials in (1, 2)
    }
    kills = [kill for case in cases for kill in case.kills]
    assert {kill.number for kill in kills} == {9, 15}
    assert any(kill.again_seconds is not None for kill in kills)
    assert {kill.moment.name for kill in kills} == set(moments.MOMENTS)


def test_a_start_from_another_step_is_noticed():
    line = "keel: 3 blocks, 5,000 parameters; steps 4 to 24 of 8 x 16 tokens on 1 x cpu"
    assert faults._wrong_start(4, line) == []
    assert faults._wrong_start(8, line) == ["resumed: from 4, not from 8"]
    assert faults._wrong_start(8, "") == []


def test_finished_trials_are_not_run_again(tmp_path, capsys):
    row = {"seed": 5, "kind": "train", "found": [], "codes": [[exit_codes.DONE]]}
    (tmp_path / "trials.jsonl").write_text(json.dumps(row) + '\n{"seed": 6, "ki')
    assert faults.measure("nowhere", tmp_path, [5], 1.0) == [row]
    assert "seed 5 train: held" in capsys.readouterr().err


def test_a_start_that_comes_to_its_end_is_no_kill():
    done, killed = [exit_codes.DONE] * 4, [exit_codes.HUNG] * 3 + [-9]
    assert faults._num_kills([killed, done]) == 1
    assert faults._num_kills([[-9], [None], [exit_codes.DONE]]) == 2


@pytest.mark.parametrize("is_complete", [False, True])
def test_growing_that_was_killed_at_its_very_end_is_not_started_again(
    is_complete, tmp_path, monkeypatch
):
    """A second start would be refused, as what it wrote is complete."""
    starts, compared = [], []

    def start(self, case, place, cache, kill, seed):
        starts.append(kill)
        (place / "run").mkdir(parents=True)
        if is_complete or kill is None:
            (place / "run" / "config.json").write_text("{}")
        return [-15] if kill else [exit_codes.DONE]

    def differences(case, run, reference):
        compared.append(run)
        return []

    monkeypatch.setattr(faults.Bench, "_start", start)
    monkeypatch.setattr(faults.Bench, "_undisturbed", lambda self, case: tmp_path)
    monkeypatch.setattr(faults, "_differences", differences)
    seed = next(s for s in range(1000) if faults.draw(s).kind == "grow")
    row = faults.Bench("nowhere", tmp_path / "out", 1.0).run(seed)
    kills = list(faults.draw(seed).kills)
    assert starts == (kills[:1] if is_complete else [*kills, None])
    assert row["found"] == [] and len(compared) == 1


@pytest.mark.slow
def test_a_killed_run_holds(token_dir, tmp_path):
    """The first seed of a run in one process, of one trial."""
    simple = (
        seed
        for seed in range(1000)
        if faults.draw(seed).kind == "train"
        and faults.draw(seed).num_processes == faults.draw(seed).num_trials == 1
        and len(faults.draw(seed).kills) == 1
    )
    [row] = faults.measure(str(token_dir), tmp_path, [next(simple)], 180.0)
    assert row["found"] == []
