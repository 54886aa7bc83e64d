"""Variables: answers by running the code, and how many of its lines matter."""

import contextlib
import io

import pytest

from keel_jax.depth_suite import draws, variables
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


def test_code_is_in_one_split_whatever_it_prints():
    """The content is the lines before the last, and the question what the last one names."""
    for number in range(20):
        problem = variables.make(draws.Draws("code", number), 2)
        code, last = problem.prompt.rsplit("\n", 1)
        assert problem.content == f"code {code}" and last == f"print({problem.question})  #"
