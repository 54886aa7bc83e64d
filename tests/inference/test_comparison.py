"""Laws of the table of several results."""

import math

from keel_jax.inference import comparison

BEFORE = {"loss": 2.0, "num_tokens": 1200, "step": 10, "tasks": {"arc": {"acc": 0.25}}, "x": "a"}
AFTER = {"loss": 1.5, "num_tokens": 1200, "step": 4, "tasks": {"arc": {"acc": 0.5}, "piqa": 0.1}}


def test_two_results_have_a_row_for_every_number_and_their_difference():
    lines = comparison.table({"before": BEFORE, "after": AFTER}).splitlines()
    assert [line.split() for line in lines] == [
        ["before", "after", "change"],
        ["loss", "2.0000", "1.5000", "-0.5000"],
        ["num_tokens", "1,200", "1,200", "+0"],
        ["step", "10", "4", "-6"],
        ["tasks/arc/acc", "0.2500", "0.5000", "+0.2500"],
        ["tasks/piqa", "-", "0.1000", "-"],
    ]
    assert (
        len(
            {
                line.index(cell) + len(cell)
                for line, cell in zip(lines[1:], ("2.0000", "1,200", "10", "0.2500"), strict=False)
            }
        )
        == 1
    ), "numbers are aligned to the right"


def test_other_numbers_of_results_have_no_difference():
    one = comparison.table({"a": {"loss": math.nan}})
    assert [line.split() for line in one.splitlines()] == [["a"], ["loss", "nan"]]
    three = comparison.table({"a": BEFORE, "b": AFTER, "c": {}})
    assert "change" not in three and three.splitlines()[1].split() == [
        "loss",
        "2.0000",
        "1.5000",
        "-",
    ]
