"""Benchmarks scored by a real model, through the entry point and through Python."""

import json
import pathlib
import subprocess
import sys

import pytest

from keel_jax.tasks import evaluation, running
from keel_jax.training import trained
from tests import processes
from tests.tasks import layouts

_TASKS = ["piqa", "lambada", "winogrande"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in _TASKS:
        layouts.write(name, folder)
    return folder


def _lines(directory: pathlib.Path):
    """Of every item: where it is, and its log-likelihoods."""
    lines = [
        json.loads(line)
        for path in sorted(directory.glob("*.jsonl"))
        for line in path.read_text().split("\n")
        if line
    ]
    return {line["where"]: line["log_likelihoods"] for line in lines}


def _evaluate(workdir, folder, items, **options):
    found, step = evaluation.evaluate(workdir, _TASKS, folder, items=items, **options)
    assert step == 3
    return found, _lines(items)


def test_scores_depend_neither_on_the_batch_nor_on_the_devices(workdir, folder, tmp_path):
    """But for the rounding of sums over another number of rows or devices."""
    one = trained.one_device()
    found, lines = _evaluate(workdir, folder, tmp_path / "1", mesh=one)
    assert [result.name for result in found] == ["lambada", "piqa", "winogrande"]
    for number, options in enumerate(
        [dict(options=running.Options(batch_size=3), mesh=one), dict(mesh=None)]
    ):
        others, other_lines = _evaluate(workdir, folder, tmp_path / f"o{number}", **options)
        assert [result.metrics["acc"] for result in others] == [
            result.metrics["acc"] for result in found
        ]
        for where, values in lines.items():
            assert other_lines[where] == pytest.approx(values, rel=1e-5)


def _command(flags):
    return subprocess.run(
        [sys.executable, "-m", "keel_jax.evaluate", *flags],
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
        timeout=processes.LIMIT_SECONDS,
    )


@pytest.mark.slow
def test_the_command_prints_writes_and_goes_on(workdir, folder, tmp_path):
    argv = [
        f"--workdir={workdir}", "--tasks=piqa,lambada",
        f"--task_data={folder}", "--num_shots=0", f"--json={tmp_path}/r.json",
        f"--figure={tmp_path}/r.png",
    ]  # fmt: skip
    first = _command(argv)
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["step"] == 3 and {*result["tasks"]} == {"piqa", "lambada"}
    assert result["tasks"]["piqa"]["num_items"] == 2 and result["tasks"]["piqa"]["chance"] == 0.5
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    assert "lambada" in first.stdout and "averages:" in first.stdout
    assert len(_lines(workdir / "tasks/step_00000003")) == 4
    assert _command(argv).stdout == first.stdout


@pytest.mark.slow
def test_two_models_are_scored_side_by_side(workdir, folder, tmp_path):
    """Here one model twice: nothing has changed, and the files of its items lie apart."""
    done = _command(
        [
            f"--workdir={workdir}",
            f"--before={workdir}/checkpoints/3",
            "--tasks=piqa",
            f"--task_data={folder}",
            f"--items={tmp_path}/items",
            f"--json={tmp_path}/r.json",
        ]  # fmt: skip
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["before"]["tasks"] == result["after"]["tasks"]
    [row] = [line for line in done.stdout.split("\n") if line.startswith("piqa (acc_norm)")]
    assert row.endswith("+0.0000")
    assert sorted(path.name for path in (tmp_path / "items").iterdir()) == ["after", "before"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks=piqa"], "--tasks needs --task_data"),
        (["--num_shots=1"], "--num_shots: read only with --tasks"),
        (["--tasks=pica", "--task_data=."], "Did you mean 'piqa'"),
        (["--tasks=piqa", "--task_data=.", "--seq_len=8"], "--seq_len: read only without --tasks"),
    ],
)
def test_flags_that_cannot_be_are_refused(workdir, flags, message):
    failed = _command([f"--workdir={workdir}", *flags])
    assert failed.returncode == 1 and message in failed.stderr


@pytest.mark.slow
def test_two_processes_score_as_one(workdir, folder, tmp_path):
    one, _ = _evaluate(workdir, folder, tmp_path / "one")
    flags = [
        f"--workdir={workdir}", f"--tasks={','.join(_TASKS)}", f"--task_data={folder}",
        f"--items={tmp_path}/two", f"--json={tmp_path}/two.json",
    ]  # fmt: skip
    for _ in range(2):  # the second time all is known, to the lead alone
        with processes.start(
            "keel_jax.evaluate", flags, tmp_path, num_processes=2, devices_each=2
        ) as program:
            assert program.codes() == [0, 0], program.told()
        found = json.loads((tmp_path / "two.json").read_text())["tasks"]
        for result in one:
            assert found[result.name]["metrics"]["acc"]["value"] == result.metrics["acc"].value
