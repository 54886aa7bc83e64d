"""Arithmetic: answers by Python's own evaluation, and which numbers matter."""

import ast
import re

import pytest

from keel_jax.depth_suite import arithmetic, splits
from tests.depth_suite import many


def _stated(prompt: str) -> str:
    """What is to be computed, as the prompt states it."""
    return re.fullmatch(r"Modulo 7(?:, from left to right)?: (.*) =", prompt)[1]


def _value(task: str, text: str) -> int:
    """Its value, by Python, in whole numbers of any size, with one division at the end."""
    if task == "modular_chain":
        start, *steps = re.findall(r"\d|[-+*] \d", text)
        text = "(" * len(steps) + start + "".join(f"{step})" for step in steps)
    return eval(text) % 7


def _numbers(text: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\d", text)]


@pytest.mark.parametrize("difficulty", [1, 2, 5, 16])
@pytest.mark.parametrize("task", ["modular_chain", "expression"])
def test_answers_are_pythons(task, difficulty):
    for each in many.examples(task, difficulty):
        assert each.answer == f" {_value(task, _stated(each.prompt))}"


@pytest.mark.parametrize("difficulty", [1, 2, 5, 16])
def test_a_chain_has_as_many_operations_as_its_difficulty_and_each_does_something(difficulty):
    for each in many.examples("modular_chain", difficulty):
        steps = re.findall(r"([-+*]) (\d)", each.prompt)
        assert len(steps) == difficulty
        assert all(int(number) > (operator == "*") for operator, number in steps)


def _height(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return 1 + max(_height(node.left), _height(node.right))
    return 0


@pytest.mark.parametrize("difficulty", [1, 2, 5, 16])
def test_an_expression_is_nested_as_deeply_as_its_difficulty(difficulty):
    sizes = set()
    for each in many.examples("expression", difficulty):
        tree = ast.parse(_stated(each.prompt), mode="eval").body
        assert _height(tree) == difficulty
        sizes.add(sum(isinstance(node, ast.BinOp) for node in ast.walk(tree)))
    assert min(sizes) >= difficulty and (difficulty == 1) == (len(sizes) == 1)


@pytest.mark.parametrize("difficulty", [1, 4])
def test_a_number_in_a_chain_matters_unless_it_multiplies_zero(difficulty):
    changed, factors_of_zero, num_factors = 0, 0, 0
    for each in many.examples("modular_chain", difficulty):
        text = _stated(each.prompt)
        for place in _numbers(text):
            others = {
                _value(each.task, text[:place] + str(other) + text[place + 1 :])
                for other in range(7)
            }
            is_factor = text[max(place - 2, 0)] == "*"
            matters = len(others) == 7
            num_factors += is_factor
            factors_of_zero += not matters
            # All or nothing: another number gives another result, or the chain is at 0.
            assert matters or (is_factor and len(others) == 1)
            changed += matters
    assert changed and abs(factors_of_zero / num_factors - 1 / 7) < many.tolerance(
        1 / 7, num_factors
    )


@pytest.mark.parametrize("difficulty", [2, 8])
def test_a_number_in_an_expression_matters_in_95_percent_of_cases(difficulty):
    results = []
    for each in many.examples("expression", difficulty):
        text = _stated(each.prompt)
        for place in _numbers(text):
            other = str((int(text[place]) + 1) % 7)
            changed = _value(each.task, text[:place] + other + text[place + 1 :])
            results.append(f" {changed}" != each.answer)
    assert sum(results) / len(results) > 0.94


def _problem(task: str, prompt: str) -> tuple:
    """A problem apart from how it is stated; not by the content that the split is decided by."""
    text = _stated(prompt)
    if task == "modular_chain":
        start, steps = text[0], re.findall(r"([-+*]) (\d)", text)
        return start, *(tuple(eval(f"{x} {op} {n}") % 7 for x in range(7)) for op, n in steps)
    return _unordered(ast.parse(text, mode="eval").body)


def _unordered(node: ast.expr):
    if isinstance(node, ast.Constant):
        return node.value
    assert isinstance(node, ast.BinOp)
    operands = [_unordered(node.left), _unordered(node.right)]
    if not isinstance(node.op, ast.Sub):
        operands.sort(key=repr)
    return type(node.op).__name__, *operands


@pytest.mark.parametrize("task, total", [("modular_chain", 7 * (6 + 5)), ("expression", None)])
def test_all_small_problems_are_in_one_split_each(task, total):
    """Exhaustively, with 3 + 4 and 4 + 3, or 5 - 3 and 5 + 4, the same problem."""
    of_split = {
        split: [_problem(task, each.prompt) for each in many.examples(task, 1, 1000, split)]
        for split in splits.SPLITS
    }
    assert all(len(set(found)) == len(found) > 15 for found in of_split.values())
    assert not set(of_split["train"]) & set(of_split["test"])
    if task == "expression":
        digits = [(a, b) for a in range(7) for b in range(7)]
        total = len({frozenset(d) if d[0] != d[1] else d for d in digits if 0 not in d}) + 6  # a+b
        total += sum(1 for a, b in digits if a or b)  # a - b: one of the two is drawn as not 0
        total += len(_products())
    assert sum(map(len, of_split.values())) == total


def _products() -> set:
    """a * b where one is at least 2, without order."""
    return {tuple(sorted((a, b))) for a in range(7) for b in range(2, 7)}


def test_operations_are_those_modulo_seven():
    assert [arithmetic.apply(op, 3, 5) for op in "+-*"] == [1, 5, 1]
