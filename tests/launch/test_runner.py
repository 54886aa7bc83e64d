"""How the launchers' commands end."""

from launch import runner


def test_exit_codes_are_a_shells():
    assert runner.shell_exit_code(-9) == 137 and runner.shell_exit_code(3) == 3
