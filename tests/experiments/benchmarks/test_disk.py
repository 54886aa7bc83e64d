"""The benchmark of disks fills them, tells differences, and starts again in a namespace."""

import subprocess
import sys

import pytest

from experiments.benchmarks import disk, small_runs


def test_every_kind_is_tried_as_often_as_asked():
    kinds = [kind for kind, _, _ in disk.cases(bench=None, num_sizes=3, num_starts=5)]
    assert {kind: kinds.count(kind) for kind in disk.KINDS} == {
        "save": 3, "prepare": 3, "log": 2, "read-only": 3, "two": 5
    }  # fmt: skip


def test_what_a_program_said_and_left_is_judged(tmp_path):
    (tmp_path / "output.txt").write_text("error: No space left\n")
    assert disk._not_an_error(1, tmp_path, "No space left") == []
    assert disk._not_an_error(None, tmp_path, "No space left")
    assert disk._not_an_error(1, tmp_path, "/another/place")
    (tmp_path / "output.txt").write_text("Traceback (most recent call last):\n")
    assert disk._tracebacks(tmp_path)
    for name, content in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same").write_text("0")
        (tmp_path / name / "index.json").write_text(content)
    assert disk._different_files(tmp_path / "a", tmp_path / "b") == ["index.json differs"]


def test_a_disk_is_filled_to_its_last_byte(tmp_path):
    """Here one that ends at a limit of the process's own (EFBIG)."""
    limit = 123_457
    body = "import pathlib, resource, signal, sys\n"
    body += "from experiments.benchmarks import mounts\n"
    body += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    body += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    body += "mounts.fill(pathlib.Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-B", "-c", body, str(tmp_path / "full")], cwd=small_runs.ROOT, check=True
    )
    assert (tmp_path / "full").stat().st_size == limit


@pytest.mark.slow
def test_one_trial_of_some_kinds_holds(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.disk", f"--output={tmp_path}"]
        + ["--sizes=1", "--starts=3", "--kind=save", "--kind=prepare", "--kind=two"],
        cwd=small_runs.ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "save" in done.stdout or "may not mount" in done.stdout
