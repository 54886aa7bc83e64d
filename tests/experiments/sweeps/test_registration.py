"""Predictions cannot change after the first run, and hold only of whole intervals."""

import subprocess

import pytest

from experiments import registry, result_sets
from experiments.sweeps import intervals, registration, results
from keel_jax import errors

TEXT = """
[[prediction]]
claim = "it is large"
number = "L64/pair"
at_least = 0.1

[[prediction]]
claim = "it is small"
number = "L64/pair"
at_most = 0.05
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with registered predictions; the function commits a text and returns its id."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    file = tmp_path / "experiments/alpha/predictions/micro.toml"
    file.parent.mkdir(parents=True)

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "--quiet")

    def commit(text: str) -> str:
        file.write_text(text)
        git("add", ".")
        git("commit", "--quiet", "--allow-empty", "--message=a")
        return git("rev-parse", "HEAD")

    commit.root = tmp_path
    return commit


@pytest.mark.parametrize(
    ("low", "high", "large", "small"),
    [
        (0.1, 0.2, "holds", "does not hold"),
        (0.06, 0.2, "undecided", "does not hold"),
        (0.0, 0.2, "undecided", "undecided"),
        (-0.1, 0.05, "does not hold", "holds"),
        (None, None, "undecided", "undecided"),
        (0.2, None, "holds", "does not hold"),
    ],
)
def test_a_prediction_holds_only_of_a_whole_interval(project, low, high, large, small):
    project(TEXT)
    registered = registration.load("alpha", "micro", project.root)
    numbers = {"L64": {"pair": {"mean": 0.15, "low": low, "high": high}}}
    checks = registration.check(registered, numbers, [])
    assert [check["verdict"] for check in checks.values()] == [large, small]
    assert [check["holds"] for check in checks.values()] == [large == "holds", small == "holds"]


def test_a_number_that_is_missing_decides_nothing(project):
    project(TEXT)
    registered = registration.load("alpha", "micro", project.root)
    whole = {"L64": {"pair": {"mean": 0.15, "low": 0.1, "high": 0.2}}}
    checks = registration.check(registered, whole, ["keel_lr1_seed2"])
    assert {check["verdict"] for check in checks.values()} == {"undecided"}
    for numbers in ({}, {"L64": {}}, {"L64": None}):
        checks = registration.check(registered, numbers, [])
        assert {check["verdict"] for check in checks.values()} == {"undecided"}


def test_predictions_cannot_change_after_a_run(project):
    before = project("")
    commit = project(TEXT)
    registered = registration.load("alpha", "micro", project.root)
    entry = registration.verify(registered, [commit])
    assert entry["sha256"] == registered.sha256 and entry["unverified_commits"] == []
    # git's short name, as the runs have it.
    assert registration.verify(registered, [commit[:12]])["unverified_commits"] == []
    for text, run_by in ((TEXT, before), (TEXT.replace("0.1", "0.2"), commit)):
        project(text)
        registered = registration.load("alpha", "micro", project.root)
        with pytest.raises(errors.UserError, match="cannot change after the first run"):
            registration.verify(registered, [run_by])
    for nowhere in ("0" * 40, f"{commit[:12]}-dirty", None):
        entry = registration.verify(registered, [nowhere])
        assert entry["unverified_commits"] == [str(nowhere)]


def test_a_file_that_says_nothing_or_too_much_is_refused(project):
    assert registration.load("alpha", "small", project.root) is None
    for text, words in (
        ("[[prediction]]\nclaim='a'\nnumber='b'", "predicts nothing"),
        ("[[prediction]]\nclaim='a'\nnumbers='b'", "numbers"),
        ("[[predictions]]\nclaim='a'", "unknown tables"),
        (2 * "[[prediction]]\nclaim='a'\nnumber='b'\nat_most=0\n", "claimed twice"),
        ("x = ", "micro.toml"),
    ):
        project(text)
        with pytest.raises(errors.UserError, match=words):
            registration.load("alpha", "micro", project.root)


def _registered():
    for name in registry.MODULES:
        for preset in registry.load(name).presets:
            if registered := registration.load(name, preset):
                yield name, preset, registered


def test_the_power_that_is_stated_is_the_tests():
    stated = [power for *_, registered in _registered() for power in registered.power]
    assert stated
    for power in stated:
        found = intervals.detectable(power.deviation, power.seeds)
        assert power.detects == pytest.approx(found, rel=0.02), power.quantity


def test_committed_results_are_of_the_predictions_as_they_are():
    by_key = {each.key: each.values for each in result_sets.gather([])}
    for name, preset, registered in _registered():
        if (name, preset) in by_key:
            entry = by_key[name, preset]["registration"]
            assert entry["sha256"] == registered.sha256, f"{registered.file} has been changed"
            assert entry["unverified_commits"] == [] and by_key[name, preset]["runs"]["commits"]
