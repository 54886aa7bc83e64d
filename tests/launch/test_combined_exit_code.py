"""One exit code for many processes: the cause, not a consequence."""

import pathlib
import re

import pytest

from keel_jax.runtime import exit_codes
from launch import combined_exit_code

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([3, 3], 3),
        ([75, 75], 75),
        ([0, 75], 75),
        # A consequence never hides its cause.
        ([76, 1, 134], 1),
        ([3, 1], 1),
        ([137, 3], 3),
        ([76, 134, 137, 75], 137),
        ([76, 75], 76),
        ([143, 75], 143),
        # A process that left no code is a lost peer.
        ([0, None], 76),
        ([None, 1], 1),
        ([42, 137], 42),
    ],
)
def test_combined_exit_codes(codes, expected):
    assert combined_exit_code.combine_exit_codes(codes) == expected
    assert combined_exit_code.combine_exit_codes(reversed(codes)) == expected


def test_no_processes_have_no_code():
    with pytest.raises(ValueError, match="no processes"):
        combined_exit_code.combine_exit_codes([])


def test_the_supervisor_starts_again_exactly_what_is_retryable():
    script = (ROOT / "launch/supervise.sh").read_text()
    branches = re.findall(r"^    ([\d| ]+)\)(.*)", script, re.MULTILINE)
    final = {int(code) for codes, rest in branches if "exit" in rest for code in codes.split("|")}
    again = {int(code) for codes, _ in branches for code in codes.split("|")} - final
    assert again == set(combined_exit_code.RETRYABLE)
    assert final == {exit_codes.DONE, exit_codes.DIVERGED, exit_codes.CORRUPTED}


def test_codes_are_read_from_files(tmp_path):
    (tmp_path / "0").write_text("76\n")
    (tmp_path / "2").write_text("137\n")
    (tmp_path / "3").write_text("")
    (tmp_path / "4").write_bytes(b"\xff\n")
    assert combined_exit_code.read_exit_codes(tmp_path, 5) == [76, None, 137, None, None]
