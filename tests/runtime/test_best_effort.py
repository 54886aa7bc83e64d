"""Logs: what cannot be read or written is named once and kept, and stops nothing."""

import errno
import json

import pytest

from keel_jax.runtime import best_effort, files


def _fail(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_cannot_be_written_is_said_once(tmp_path, capsys):
    for _ in range(3):
        with best_effort.writing(tmp_path / "log"):
            _fail()
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: {tmp_path}/log cannot be written (No space left on device): it is only a log, "
        "and the run goes on."
    )


def test_other_errors_are_not_hidden(tmp_path):
    with pytest.raises(ZeroDivisionError), best_effort.writing(tmp_path / "log"):
        _ = 1 / 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON"),
        (b'{"a": ', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object but '[]'"),
        (b"3", "is not a JSON object but '3'"),
        (b'{"a": 1, "content_sha256": "0"}', "has changed since it was written"),
    ],
)
def test_a_damaged_object_is_named_and_kept(content, reason, tmp_path, capsys):
    path = tmp_path / "status.json"
    path.write_bytes(content)
    assert best_effort.read_object(path) == best_effort.read_object(path) == {}
    [line] = capsys.readouterr().err.splitlines()
    assert str(path) in line and reason in line and "left out" in line
    best_effort.keep_damaged(path)
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line and "kept as status.json.damaged" in line
    assert not path.exists() and (tmp_path / "status.json.damaged").read_bytes() == content
    # A second one does not replace it.
    path.write_bytes(content + b"}")
    best_effort.keep_damaged(path)
    assert (tmp_path / "status.json.damaged").read_bytes() == content
    assert (tmp_path / "status.json.damaged-2").exists()


def test_a_good_or_an_absent_object_is_left_alone(tmp_path, capsys):
    assert best_effort.read_object(tmp_path / "none") == {}
    best_effort.keep_damaged(tmp_path / "none")
    files.write_checked_json(tmp_path / "good", {"a": (1, 2.5), "b": {3: None}})
    best_effort.keep_damaged(tmp_path / "good")
    assert best_effort.read_object(tmp_path / "good") == {"a": [1, 2.5], "b": {"3": None}}
    assert list(tmp_path.iterdir()) == [tmp_path / "good"] and not capsys.readouterr().err


def test_every_changed_digit_is_noticed(tmp_path):
    path = tmp_path / "config.json"
    files.write_checked_json(path, {"alpha": 12.5, "steps": 340})
    content = json.loads(path.read_text())
    for key, value in (("alpha", 12.6), ("steps", 341)):
        path.write_text(json.dumps(content | {key: value}))
        with pytest.raises(ValueError, match="has changed since it was written"):
            files.read_json(path)
    del content["content_sha256"]  # changed on purpose
    path.write_text(json.dumps(content | {"alpha": 3}))
    assert files.read_json(path) == {"alpha": 3, "steps": 340}
