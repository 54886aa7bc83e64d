"""How the launchers' child processes end."""

from launch import child_processes


def test_exit_codes_are_a_shells():
    assert child_processes.shell_exit_code(-9) == 137
    assert child_processes.shell_exit_code(3) == 3
