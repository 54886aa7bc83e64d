"""results.json: where its numbers come from; a tree is clean though results are being written."""

import subprocess

import numpy as np
import pytest

from experiments.sweeps import results


def test_results_say_where_they_come_from(tmp_path):
    numbers = {"a": {"b": np.float32(1 / 3), "c": [np.nan, 2], "d": np.arange(2)}, "e": None}
    results.write(tmp_path, "alpha", "micro", numbers=numbers, points=[{"lr": 0.1}], seconds=1.25)
    content = results.load(tmp_path)
    assert content["numbers"] == {"a": {"b": 0.333333, "c": [None, 2], "d": [0, 1]}, "e": None}
    assert content["command"] == "python -m experiments.run alpha --preset=micro"
    assert len(content["commit"]) == 40 and content["is_clean"] in (True, False)
    assert {"jax", "python"} <= set(content["versions"]) and content["hardware"][
        "platform"
    ] == "cpu"
    with pytest.raises(ValueError, match="run the experiment"):
        results.load(tmp_path / "elsewhere")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A git checkout with one experiment."""

    def git(*arguments):
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    (tmp_path / "experiments/alpha").mkdir(parents=True)
    (tmp_path / "experiments/alpha/points.py").write_text("")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    results.source.cache_clear()
    yield tmp_path
    results.source.cache_clear()


def test_results_being_written_do_not_count(tree):
    """Even where the directory is new, which git reports as a whole."""
    written = tree / "experiments/alpha/results/micro"
    (written / "figures").mkdir(parents=True)
    (written / "results.json").write_text("{}")
    (written / "figures/loss.json").write_text("{}")
    source = results.source()
    assert source["is_clean"] and len(source["commit"]) == 40


@pytest.mark.parametrize("name", ["experiments/alpha/points.py", "experiments/alpha/new.py"])
def test_code_that_is_changed_or_new_does(tree, name):
    (tree / name).write_text("changed")
    assert not results.source()["is_clean"]
