"""A sweep's analysis waits until every point is decided; shards are written i/n."""

import dataclasses
import pathlib

import pytest

from experiments.sweeps import experiment, registration, results
from keel_jax import errors
from keel_jax.runtime import exit_codes
from tests.experiments.sweeps import points_of_tiny


def test_results_are_written_once_every_point_is_decided(faked, tmp_path, capsys):
    points = points_of_tiny.grid("a") + points_of_tiny.grid(
        "b", overrides={"model.topology": "pre_ln"}
    )
    preset = experiment.Preset(points=points)

    def finish():
        return experiment.analyse_sweep(
            experiment.Request(name="alpha", preset="micro", out=tmp_path / "out"),
            faked,
            preset,
            lambda outcomes, out, data: {"n": len(outcomes)},
        )

    dataclasses.replace(faked, shard=(0, 2)).run(points)
    assert finish() == exit_codes.DONE
    assert "4 of 8 points are with other shards" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    (faked.runs / "FAILURES").write_text("2")
    dataclasses.replace(faked, shard=(1, 2)).run(points)
    assert finish() == exit_codes.ERROR
    written = results.load(tmp_path / "out")
    assert written["numbers"] == {"n": 8, "missing": [p.name for p in points[4:]]}
    states = [row["state"] for row in written["points"]]
    assert states == ["done"] * 4 + ["missing"] * 4
    assert written["points"][-1]["eval_loss_nats_per_token"] is None
    assert faked.run(points) == exit_codes.DONE and finish() == exit_codes.DONE
    assert results.load(tmp_path / "out")["numbers"]["missing"] == []


def test_predictions_are_held_against_the_numbers_once_all_are_there(faked, tmp_path, monkeypatch):
    points = points_of_tiny.grid("a")
    registered = registration.Registration(
        pathlib.Path("a.toml"),
        (registration.Prediction("it rises", "slope", at_least=0.0),),
        (),
        "0",
    )
    monkeypatch.setattr(registration, "load", lambda name, preset: registered)

    def finish():
        experiment.analyse_sweep(
            experiment.Request(name="alpha", preset="micro", out=tmp_path / "out"),
            faked,
            experiment.Preset(points=points),
            lambda outcomes, out, data: {"slope": {"mean": 2.0, "low": 1.0, "high": 3.0}},
        )
        written = results.load(tmp_path / "out")
        return written["registration"], written["numbers"]["checks"]["it rises"]["verdict"]

    faked.runs.mkdir(parents=True)
    (faked.runs / "FAILURES").write_text("2")
    faked.run(points)
    assert finish()[1] == "undecided"
    faked.run(points)
    entry, verdict = finish()
    # The stand-in's runs do not say by what commit they were made: nothing could be compared.
    assert (verdict, entry["unverified_commits"]) == ("holds", ["None"])


def test_a_shard_is_written_as_i_of_n():
    for wrong in ("2/2", "1", "a/b", "-1/2"):
        with pytest.raises(errors.UserError, match="i/n"):
            experiment.parse_shard(wrong)
    assert experiment.parse_shard("1/4") == (1, 4)
