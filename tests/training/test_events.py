"""The event log: it is only appended to, survives kills and full disks, and never stops a run."""

import errno
import json
import os
import time

import pytest

from keel_jax.runtime import clock as clock_lib
from keel_jax.training import events


def _steps(workdir, first, last, exit_code=None):
    """A run from `first` to `last`."""
    clock = clock_lib.Clock()
    with events.EventLog(workdir, clock, first) as log:
        with clock.measure("compile"):
            pass
        for step in range(first + 1, last + 1):
            with clock.measure("data_wait"):
                pass
            clock.finish_step(step)
        if exit_code is not None:
            log.stop(exit_code)


def _names(workdir):
    return [event["event"] for event in events.read(workdir)[0]]


def test_a_resumed_run_appends_and_changes_nothing(tmp_path):
    _steps(tmp_path, 0, 5)
    before = (tmp_path / events.JSONL).read_bytes()
    _steps(tmp_path, 3, 7, exit_code=0)
    after = (tmp_path / events.JSONL).read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    rows, num_bad = events.read(tmp_path)
    assert num_bad == 0
    assert [row["event"] for row in rows] == [
        *("start", "activity", "steps"),
        *("start", "activity", "steps", "stop"),
    ]
    first, second = (row for row in rows if row["event"] == "steps")
    assert (first["first_step"], first["step"], first["num_steps"]) == (1, 5, 5)
    assert (second["first_step"], second["step"]) == (4, 7)
    assert rows[3]["step"] == 3 and rows[3]["lost_steps"] == 2
    assert rows[-1] | {"exit_code": 0, "state": "done", "step": 7} == rows[-1]
    assert sorted(row["time"] for row in rows) == [row["time"] for row in rows]


def test_each_finished_step_is_on_disk_at_once(tmp_path):
    """Rewritten in place, so that the log does not grow with the steps."""
    clock = clock_lib.Clock()
    with events.EventLog(tmp_path, clock, 0):
        sizes = set()
        for step in range(1, 200):
            clock.finish_step(step)
            rows, num_bad = events.read(tmp_path)
            assert rows[-1]["event"] == "steps" and rows[-1]["step"] == step and not num_bad
            sizes.add((tmp_path / events.JSONL).stat().st_size)
        assert _names(tmp_path) == ["start", "steps"]
        assert max(sizes) - min(sizes) < 20


def test_a_log_cut_off_anywhere_keeps_its_good_lines_and_goes_on(tmp_path):
    """As a kill while writing leaves it: the cut line stays, alone, and is not counted."""
    _steps(tmp_path, 0, 5, exit_code=75)
    path = tmp_path / events.JSONL
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        is_cut = bool(content[:size].rpartition(b"\n")[2])
        _steps(tmp_path, 2, 3)
        assert path.read_bytes().startswith(content[:size])
        rows, num_bad = events.read(tmp_path)
        # A line without its newline may be whole.
        assert len(rows) + num_bad == whole + is_cut + 3 and num_bad <= is_cut
        assert [row["event"] for row in rows[-3:]] == ["start", "activity", "steps"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[]\n3\nnull\n{}\n", b"{" * 5000])
def test_a_foreign_file_is_counted_as_damaged_and_kept(content, tmp_path):
    (tmp_path / events.JSONL).write_bytes(content)
    _steps(tmp_path, 0, 2)
    assert (tmp_path / events.JSONL).read_bytes().startswith(content)
    assert _names(tmp_path) == ["start", "activity", "steps"]
    assert events.read(tmp_path)[1] == len(content.splitlines())


def test_a_full_disk_is_told_once_and_the_log_goes_on_after_it(tmp_path, monkeypatch, capsys):
    """The disk takes part of a line, then nothing, then is free again."""
    clock = clock_lib.Clock()
    with events.EventLog(tmp_path, clock, 0) as log:
        clock.finish_step(1)
        pwrite = os.pwrite
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:9], at))
            log.add("first")

            def full(*_):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(os, "pwrite", full)
            log.add("second")
            clock.finish_step(2)
        clock.finish_step(3)
        log.add("third")
    rows, num_bad = events.read(tmp_path)
    assert [row["event"] for row in rows] == ["start", "steps", "steps", "third"]
    assert num_bad == 1 and rows[2]["step"] == 3
    told = capsys.readouterr().err
    assert told.count("cannot be written (No space left on device)") == 1
    assert "the run goes on" in told


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / events.JSONL).mkdir()
    _steps(tmp_path, 0, 3, exit_code=0)
    assert "goodput of this run will be incomplete" in capsys.readouterr().err


def test_numbers_are_finite_and_the_lines_are_json(tmp_path):
    _steps(tmp_path, 0, 3, exit_code=76)
    for line in (tmp_path / events.JSONL).read_text().splitlines():
        row = json.loads(line, parse_constant=lambda name: pytest.fail(name))
        assert abs(row["time"] - time.time()) < 600 and row["elapsed_seconds"] >= 0
