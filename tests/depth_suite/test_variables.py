"""Variables: answers by running the code, and how many of its lines matter."""

import contextlib
import io

import pytest

from tests.depth_suite import many


def _run(lines: list[str]) -> str:
    """What the lines print."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("\n".join(lines), {})
    return f" {printed.getvalue().strip()}"


@pytest.mark.parametrize("difficulty", [1, 2, 8])
def test_answers_are_what_the_code_prints(difficulty):
    for each in many.examples("variables", difficulty):
        lines = each.prompt.split("\n")
        assert each.answer == _run(lines) and len(lines) == 5 + 5 * difficulty + 1
        assert {f" {line[-1]}" for line in lines[:5]} == set(each.choices)
        assert len({line[0] for line in lines[:-1]}) <= 8


@pytest.mark.parametrize("difficulty", [1, 2, 6])
def test_as_many_assignments_matter_as_the_difficulty_says(difficulty):
    """An assignment matters if reading a variable of another value changes what is printed.

    Those that matter do so for every such variable.
    """
    for each in many.examples("variables", difficulty)[:25]:
        lines = each.prompt.split("\n")
        num_mattering = 0
        for place in range(5, len(lines) - 1):
            held: dict = {}
            exec("\n".join(lines[:place]), {}, held)
            target, source = lines[place].split(" = ")
            others = [name for name, value in held.items() if value != held[source]]
            changed = {
                _run([*lines[:place], f"{target} = {other}", *lines[place + 1 :]]) != each.answer
                for other in others
            }
            assert len(changed) == 1
            num_mattering += changed.pop()
        assert num_mattering == difficulty


def test_code_is_in_one_split():
    code = {
        split: {
            each.prompt.rsplit("\n", 1)[0] for each in many.examples("variables", 1, 500, split)
        }
        for split in ("train", "test")
    }
    assert not code["train"] & code["test"] and len(code["test"]) == 500
