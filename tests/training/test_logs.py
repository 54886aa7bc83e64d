"""The logs of a run: no row is lost to a damaged line or a full disk, none is there twice."""

import builtins
import errno
import math

import pytest
from tensorboard.backend.event_processing import event_accumulator

from keel_jax.runtime import files
from keel_jax.training import logs, metric_rows, status


def _row(step):
    return {"step": step, "train/loss_nats_per_token": step / 4}


def _write(workdir, steps, start_step=0, log_every_steps=1):
    log = logs.Log(workdir, "run-1", start_step, log_every_steps)
    for step in steps:
        log.write(_row(step))
    log.close()


def _steps(workdir):
    return [row["step"] for row in logs.read(workdir)]


def test_a_damaged_line_is_kept_aside_and_the_rows_after_it_stay(tmp_path, capsys):
    _write(tmp_path, range(1, 19))
    path = tmp_path / logs.JSONL
    lines = path.read_bytes().splitlines(keepends=True)
    bad = lines[4].replace(b"1.25", b"1.35")
    assert bad != lines[4]
    path.write_bytes(b"".join([*lines[:4], bad, *lines[5:]]))
    assert _steps(tmp_path) == [1, 2, 3, 4, *range(6, 19)]
    assert f"{path}, line 5 is damaged (its checksum" in capsys.readouterr().err
    _write(tmp_path, [17, 18], start_step=16)
    assert _steps(tmp_path) == [1, 2, 3, 4, *range(6, 19)]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == bad
    error = capsys.readouterr().err
    assert error.count("line 5 is damaged") == 1 and "kept in metrics.jsonl.damaged" in error


def test_the_rest_of_a_killed_write_is_no_damage(tmp_path, capsys):
    _write(tmp_path, [1, 2, 3])
    path = tmp_path / logs.JSONL
    path.write_bytes(path.read_bytes()[:-5])
    _write(tmp_path, [3], start_step=2)
    assert _steps(tmp_path) == [1, 2, 3]
    assert not capsys.readouterr().err and not (tmp_path / "metrics.jsonl.damaged").exists()


@pytest.mark.parametrize("change", [lambda p: p.unlink(), lambda p: p.write_bytes(b"")])
def test_a_log_that_is_gone_is_named(change, tmp_path, capsys):
    _write(tmp_path, [1, 2])
    change(tmp_path / logs.JSONL)
    _write(tmp_path, [3], start_step=2)
    assert "holds no row of the 2 steps before: it begins anew" in capsys.readouterr().err


def test_rows_that_a_full_disk_refuses_are_written_once_there_is_room(
    tmp_path, capsys, monkeypatch
):
    log = logs.Log(tmp_path, "run-1", 0, 1)
    log.write(_row(1))
    path = str(tmp_path / logs.JSONL)
    whole = builtins.open

    def full(file, *arguments, **options):
        opened = whole(file, *arguments, **options)
        if str(file) != path:
            return opened

        class Nearly:
            """A file on a disk with room for five more bytes."""

            room = 5

            def write(self, content):
                if not self.room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                taken, self.room = opened.write(content[: self.room]), 0
                return taken

            def __enter__(self):
                return self

            def __exit__(self, *_):
                opened.close()

            def __getattr__(self, name):
                return getattr(opened, name)

        return Nearly()

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", full, raising=False)
        log.write(_row(2))
        log.write(_row(3))
    assert metric_rows.scan((tmp_path / logs.JSONL).read_bytes()).rows == [_row(1)]
    log.write(_row(4))
    log.close()
    assert _steps(tmp_path) == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("cannot be written (No space left on device)") == 1


def test_a_log_that_cannot_be_cut_is_cut_later(tmp_path, monkeypatch):
    """Else rows would be there twice."""
    _write(tmp_path, [1, 2, 3])

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", fail)
        log = logs.Log(tmp_path, "run-1", 1, 1)
        log.write(_row(2))
        assert _steps(tmp_path) == [1, 2, 3]
    log.write(_row(3))
    log.close()
    assert _steps(tmp_path) == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_events_that_cannot_be_written_stop_nothing(tmp_path, capsys, monkeypatch):
    log = logs.Log(tmp_path, "run-1", 0, 1)
    log.write(_row(1))
    log._events.flush()
    worker = log._events._async_writer._worker

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log._events._async_writer._writer, "write", fail)
    for step in range(2, 50):
        log.write(_row(step))
    log.close()
    # The thread of the writer dies of the error: here, and not in the middle of a later test.
    worker.join(timeout=60)
    assert _steps(tmp_path) == list(range(1, 50))
    assert f"{tmp_path}/tensorboard cannot be written" in capsys.readouterr().err
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss_nats_per_token")] == [1]


@pytest.mark.parametrize(
    ("steps", "start_step", "log_every_steps", "is_said"),
    [
        ([1, 2], 4, 1, True),
        ([1, 2, 3, 4], 4, 1, False),
        ([1, 5, 10], 17, 5, True),
        ([1, 5, 10, 15], 17, 5, False),
        ([1], 3, 5, False),
        # It was logged every 10 steps, and is to be every 4.
        ([1, 10, 20], 28, 4, False),
        ([1, 10, 20], 30, 4, True),
    ],
)
def test_rows_that_were_cut_off_are_missed(
    steps, start_step, log_every_steps, is_said, tmp_path, capsys
):
    """At the end of a line, where nothing else tells; other rows of the step do not hide it."""
    _write(tmp_path, steps, log_every_steps=log_every_steps)
    log = logs.Log(tmp_path, "run-1", start_step, log_every_steps)
    log.write({"step": start_step, "eval/loss_nats_per_token": 1.0})
    log.close()
    _write(tmp_path, [], start_step, log_every_steps)
    said = capsys.readouterr().err
    assert said.count(f"metrics.jsonl ends at step {steps[-1]}, but its rows up to") == is_said


@pytest.mark.parametrize("loss, grad_norm", [(math.nan, 1.0), (2.0, math.inf)])
def test_a_trial_that_diverged_misses_no_rows(loss, grad_norm, tmp_path, capsys):
    _write(tmp_path, [1, 2])
    log = logs.Log(tmp_path, "run-1", 2, 1)
    log.write({"step": 3, "train/loss_nats_per_token": loss, "train/grad_norm": grad_norm})
    log.close()
    _write(tmp_path, [], start_step=8)
    assert not capsys.readouterr().err


def test_results_need_the_whole_log(tmp_path):
    with pytest.raises(ValueError, match=r"metrics.jsonl does not exist"):
        logs.read_whole(tmp_path)
    _write(tmp_path, [1, 2, 3])
    assert len(logs.read_whole(tmp_path)) == 3
    path = tmp_path / logs.JSONL
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"metrics.jsonl, its end is missing: results cannot be"):
        logs.read_whole(tmp_path)
    path.write_bytes(content.replace(b"0.5", b"0.6"))
    with pytest.raises(ValueError, match=r"line 2 is damaged \(its checksum"):
        logs.read_whole(tmp_path)


def _say(workdir, run_id):
    files.write_checked_json(workdir / status.FILE, {"run_id": run_id})


def test_the_log_of_another_run_is_no_result(tmp_path, capsys):
    _write(tmp_path, [1, 2])
    _say(tmp_path, "run-1")
    assert len(logs.read_whole(tmp_path)) == 2 and not capsys.readouterr().err
    _say(tmp_path, "run-2")
    with pytest.raises(ValueError, match=r"rows of run run-1, and status.json is of run run-2"):
        logs.read_whole(tmp_path)
    # To look at, it is shown: either of the two files may be out of place.
    assert _steps(tmp_path) == [1, 2]
    assert "one of the two files is another run's" in capsys.readouterr().err


def test_a_run_does_not_continue_the_log_of_another(tmp_path, capsys):
    _write(tmp_path, [1, 2])
    log = logs.Log(tmp_path, "run-2", 2, 1)
    log.write(_row(3))
    log.close()
    assert _steps(tmp_path) == [3]
    error = capsys.readouterr().err
    assert "lines 1, 2 are damaged (it is of another run, run-1, and this one is run-2)" in error
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes().count(b'"run": "run-1"') == 2
