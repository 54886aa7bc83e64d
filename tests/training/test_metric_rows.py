"""The lines of metrics.jsonl: a row is read as it was written, or not at all."""

import json
import math
import zlib

import pytest

from keel_jax.training import metric_rows

_ROW = {"step": 12, "train/loss_nats_per_token": 3.25, "train/learning_rate": 1e-3}


def test_a_line_gives_its_row_and_is_plain_json():
    line = metric_rows.to_line(_ROW | {"train/grad_norm": math.inf}, "run-1")
    [row] = metric_rows.scan(line.encode()).rows
    assert row == _ROW | {"train/grad_norm": None}
    assert json.loads(line).keys() - row.keys() == {"crc32", "run"}


def test_no_flipped_bit_is_read_as_another_number():
    line = metric_rows.to_line(_ROW, "run-1").encode()
    for position in range(len(line) - 1):
        for bit in range(8):
            flipped = bytearray(line)
            flipped[position] ^= 1 << bit
            assert metric_rows.scan(bytes(flipped)).rows in ([], [_ROW]), (position, bit)


@pytest.mark.parametrize("length", range(len(metric_rows.to_line(_ROW, "run-1")) - 1))
def test_a_part_of_a_line_is_no_row(length):
    whole = metric_rows.to_line(_ROW, "run-1").encode()
    scanned = metric_rows.scan(whole + whole[:length])
    assert scanned.rows == [_ROW] and scanned.unfinished == whole[:length] and not scanned.damaged


def test_lines_of_older_runs_have_no_checksum():
    plain = json.dumps(_ROW)
    assert metric_rows.scan(plain.encode() + b"\n").rows == [_ROW]
    without_run = f'{plain[:-1]}, "crc32": "{zlib.crc32(plain[:-1].encode()):08x}"}}'
    scanned = metric_rows.scan(without_run.encode() + b"\n", "run-1")
    assert scanned.rows == [_ROW] and not scanned.run_ids


def test_lines_of_another_run_are_named():
    mine, other = (metric_rows.to_line(_ROW, name).encode() for name in ("run-1", "run-2"))
    assert metric_rows.scan(mine + other).run_ids == {"run-1", "run-2"}
    scanned = metric_rows.scan(mine + other, "run-1")
    assert scanned.rows == [_ROW] and scanned.run_ids == {"run-1"}
    assert "line 2 is damaged (it is of another run, run-2" in scanned.describe_damage()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"3", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"{}", "step=None is not a step"),
        (b'{"step": "1"}', "step='1' is not a step"),
        (b'{"step": true}', "step=True is not a step"),
        (b'{"step": -1}', "step=-1 is not a step"),
        (b'{"step": 1, "loss": "low"}', "loss='low' is not a number"),
        (b"\xff", "can't decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{", "Expecting"),
    ],
)
def test_a_damaged_line_is_named_and_the_others_are_read(line, reason):
    good = metric_rows.to_line(_ROW, "run-1").encode()
    scanned = metric_rows.scan(good + line + b"\n" + good)
    assert scanned.rows == [_ROW, _ROW]
    [(number, content, why)] = scanned.damaged
    assert (number, content) == (2, line) and reason in why
    assert scanned.describe_damage().startswith("line 2 is damaged (")
