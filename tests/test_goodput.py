"""A run that is killed and started again, its events, and the command that prints its goodput."""

import json
import shutil
import signal

import pytest

from keel_jax import errors, goodput
from keel_jax.runtime import exit_codes, files
from keel_jax.training import events, logs
from tests import conftest, processes


@pytest.fixture(scope="module")
def killed(token_dir, cache_dir, tmp_path_factory):
    """A run that was killed between two checkpoints and two logged rows, and then ended."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    cfg = conftest.tiny_config(
        model=dict(vocab_size=0, num_blocks=1),
        data=dict(path=str(token_dir)),
        optim=dict(schedule="constant"),
        train=dict(num_steps=10**6, checkpoint_every_steps=20, eval_num_batches=1),
        runtime=dict(compilation_cache_dir=cache_dir),
    )
    flags = processes.train_flags(cfg, workdir)
    with processes.start("keel_jax.train", flags, workdir.parent, num_processes=1) as program:
        program.wait_until((workdir / "checkpoints/40").is_dir)
        program.processes[0].kill()
        assert program.codes() == [-signal.SIGKILL]
    before = (workdir / events.JSONL).read_bytes()
    last_logged = logs.read(workdir)[-1]["step"]
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    flags += ["--config.train.num_tokens=0", f"--config.train.num_steps={newest + 5}"]
    assert processes.run("keel_jax.train", flags, workdir.parent, num_processes=1) == [0]
    return workdir, before, last_logged, newest


def test_a_killed_and_resumed_run_shows_the_lost_steps_exactly(killed):
    workdir, before, last_logged, newest = killed
    assert (workdir / events.JSONL).read_bytes().startswith(before)
    rows, num_bad = events.read(workdir)
    starts = [row for row in rows if row["event"] == "start"]
    assert [row["step"] for row in starts] == [0, newest] and num_bad == 0
    [last_known] = [row["step"] for row in rows if row["event"] == "steps"][-2:-1]
    # The kill fell between a step's event and its row, or after both.
    assert last_known - last_logged in (0, 1)
    assert starts[1]["lost_steps"] == last_known - newest
    summary = files.read_json(workdir / "status.json")["goodput"]
    assert summary["num_steps_computed_again"] == last_known - newest
    assert summary["num_productive_steps"] == newest + 5
    assert sum(summary["seconds"].values()) == pytest.approx(summary["total_seconds"])
    assert summary["seconds"]["down"] > 0 and summary["seconds"]["restore"] > 0
    activities = {row["activity"] for row in rows if row["event"] == "activity"}
    assert {"initialization", "restore", "compile", "checkpoint_wait", "evaluation"} <= activities
    assert rows[-1]["event"] == "stop" and rows[-1]["exit_code"] == exit_codes.DONE


def test_the_command_prints_what_status_json_holds(killed, tmp_path):
    workdir, *_ = killed
    flags = [f"--workdir={workdir}"]
    with processes.start("keel_jax.goodput", flags, tmp_path, num_processes=1) as program:
        assert program.codes() == [0], program.told()
    told = program.outputs[0].read_text()
    assert told.splitlines()[0].split() == ["seconds", "run", "1", "run", "2", "all", "share"]
    with processes.start(
        "keel_jax.goodput", [*flags, "--json"], tmp_path, num_processes=1
    ) as program:
        assert program.codes() == [0]
    printed = json.loads(program.outputs[0].read_text())
    summary = files.read_json(workdir / "status.json")["goodput"]
    assert printed["seconds"] == pytest.approx(summary["seconds"], abs=1e-2)
    assert f"goodput: {printed['effective_fraction']:.1%} of the time" in told


def test_a_damaged_line_is_told_and_a_directory_without_events_refused(killed, tmp_path):
    workdir, *_ = killed
    shutil.copy(workdir / events.JSONL, tmp_path)
    with (tmp_path / events.JSONL).open("a") as file:
        file.write('{"event": "st')
    tally, num_bad = goodput.load(tmp_path)
    assert num_bad == 1 and tally.to_json()["num_runs"] == 2
    with pytest.raises(errors.UserError, match="holds no events: it is written by keel_jax.train"):
        goodput.load(tmp_path / "none")
