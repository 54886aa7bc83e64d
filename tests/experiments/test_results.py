"""Where results come from: a tree is clean though results are being written into it."""

import subprocess

import pytest

from experiments.sweeps import results


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A git checkout with one experiment."""

    def git(*arguments):
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    (tmp_path / "experiments/alpha").mkdir(parents=True)
    (tmp_path / "experiments/alpha/run.py").write_text("")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    results.source.cache_clear()
    yield tmp_path
    results.source.cache_clear()


def test_results_being_written_do_not_count(tree):
    """Also where the directory is new, which git tells as a whole."""
    (tree / "experiments/alpha/results/micro").mkdir(parents=True)
    (tree / "experiments/alpha/results/micro/results.json").write_text("{}")
    found = results.source()
    assert found["is_clean"] and len(found["commit"]) == 40


@pytest.mark.parametrize("name", ["experiments/alpha/run.py", "experiments/alpha/new.py"])
def test_code_that_is_changed_or_new_does(tree, name):
    (tree / name).write_text("changed")
    assert not results.source()["is_clean"]
