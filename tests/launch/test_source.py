"""The pinned source: a dirty tree and a config that the commit lacks are refused."""

import subprocess
import tarfile

import pytest

from tests.launch import conftest


@pytest.fixture
def dirty(world, tmp_path):
    """A project of one's own with a change, an untracked file, and the world in it."""
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "-q", str(world.project), str(copy)], check=True)
    with open(copy / "keel_jax/__init__.py", "a") as file:
        file.write("CHANGED = True\n")
    (copy / "untracked.py").write_text("")
    world.project = copy
    return world


def test_a_dirty_tree_is_refused(dirty):
    done = dirty.launch("tpu_vm")
    assert done.returncode == 1 and dirty.calls() == []
    assert "keel_jax/__init__.py" in done.stderr and "untracked.py" in done.stderr
    done = dirty.launch("slurm", "--allow_dirty")
    assert done.returncode == 0, done.stderr
    with tarfile.open(dirty.directory / "run/bundle/source.tar.gz") as archive:
        assert b"CHANGED" in archive.extractfile("keel_jax/__init__.py").read()
        assert "untracked.py" not in archive.getnames()
    # It is on no branch, and the tree is as it was.
    assert conftest.git(dirty.project, "log", "--oneline").count("\n") == 1
    assert "M keel_jax/__init__.py" in conftest.git(dirty.project, "status", "--porcelain")


def test_a_config_that_the_commit_lacks_is_refused(world):
    done = world.launch("tpu_vm", "--config=experiments/configs/mine.py")
    assert done.returncode == 1 and "has no file experiments/configs/mine.py" in done.stderr
    assert world.calls() == []
