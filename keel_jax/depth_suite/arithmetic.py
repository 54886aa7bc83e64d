"""Multi-step arithmetic modulo 7: `modular_chain`, from left to right, and `expression`, nested.

Modulo a prime, adding, subtracting and multiplying by anything but 0 are bijections. The number
that the computation begins with is uniform and everything else is drawn without regard to it, so
the answer is uniform whatever the rest of the prompt is: no part of the numbers says anything about
it. In a chain, every number that is added or subtracted matters with probability 1, and a factor
unless it multiplies a 0, which is the case with probability 1/7; of the numbers of an expression
95 % matter or more (measured, 1 to 16 deep).

Formulas in general are NC1-complete to evaluate (Buss 1987), and a transformer of fixed depth and
polynomial width cannot write down their value at once unless TC0 = NC1 (Feng et al. 2023,
arXiv:2305.15408). These are a special case: on each level only one operand is deep, which keeps
them short, and what is around it is a map x -> ax + b modulo 7. Such maps form a solvable group,
whose products a constant depth can compute in principle (Liu et al. 2023, arXiv:2210.10749); what
is asked of a model that does not find that construction is one step after another, or pairs.
"""

import dataclasses

from keel_jax.depth_suite import draws, example, task

MODULUS = 7
CHOICES = tuple(f" {digit}" for digit in range(MODULUS))
_OPERATORS = ("+", "-", "*")


def apply(operator: str, left: int, right: int) -> int:
    """The value of an operation modulo 7."""
    if operator == "+":
        return (left + right) % MODULUS
    if operator == "-":
        return (left - right) % MODULUS
    assert operator == "*", operator
    return left * right % MODULUS


def make_chain(rng: draws.Draws, difficulty: int) -> example.Problem:
    """A chain of `difficulty` operations on a number."""
    value = rng.below(MODULUS)
    words, content = [str(value)], [str(value)]
    for _ in range(difficulty):
        operator = rng.choice(_OPERATORS)
        operand = _operand(rng, operator)
        value = apply(operator, value, operand)
        words += [operator, str(operand)]
        # To subtract 3 is to add 4.
        plus = operator == "-"
        content += ["+" if plus else operator, str(MODULUS - operand if plus else operand)]
    prompt = f"Modulo {MODULUS}, from left to right: {' '.join(words)} ="
    return example.Problem("chain " + "".join(content), "", prompt, f" {value}", CHOICES)


@dataclasses.dataclass(frozen=True)
class _Term:
    """Part of an expression; `content` is the same for operands that have changed places."""

    text: str
    value: int
    content: str


def make_expression(rng: draws.Draws, difficulty: int) -> example.Problem:
    """An expression whose innermost operation is `difficulty` deep: each waits for the one in it.

    The other operand is a digit or, but for the innermost with probability 1/2, an operation on two
    digits.
    """
    term = _digit(rng.below(MODULUS))
    for level in range(difficulty):
        operator = rng.choice(_OPERATORS)
        is_digit = level == 0 or rng.coin()
        other = _digit(_operand(rng, operator)) if is_digit else _operation(rng, operator)
        left, right = (term, other) if rng.coin() else (other, term)
        term = _combine(operator, left, right)
    prompt = f"Modulo {MODULUS}: {term.text} ="
    return example.Problem("expression " + term.content, "", prompt, f" {term.value}", CHOICES)


def _operand(rng: draws.Draws, operator: str) -> int:
    """A number that has an effect: not 0, and no factor of 1."""
    return rng.below(MODULUS - 2) + 2 if operator == "*" else rng.below(MODULUS - 1) + 1


def _operation(rng: draws.Draws, operator: str) -> _Term:
    """An operation on two digits whose value has an effect as an operand of `operator`."""
    while True:
        inner = rng.choice(_OPERATORS)
        term = _combine(inner, _digit(rng.below(MODULUS - 1) + 1), _digit(_operand(rng, inner)))
        if term.value > (operator == "*"):
            return term


def _digit(value: int) -> _Term:
    return _Term(str(value), value, str(value))


def _combine(operator: str, left: _Term, right: _Term) -> _Term:
    contents = [left.content, right.content]
    if operator != "-":
        contents.sort()
    return _Term(
        f"({left.text}{operator}{right.text})",
        apply(operator, left.value, right.value),
        f"({contents[0]}{operator}{contents[1]})",
    )


CHAIN = task.Task(
    name="modular_chain",
    asks="the result of a chain of +, - and * modulo 7",
    dial="operations",
    chance=lambda difficulty: 1 / MODULUS,
    chance_text="1/7",
    serial_depth="k steps in order; O(log k) by composing them in pairs. The maps x -> ax + b are "
    "a solvable group, for which a constant depth is enough in principle (Liu et al. 2023, "
    "arXiv:2210.10749)",
    make=make_chain,
)
EXPRESSION = task.Task(
    name="expression",
    asks="the value of a nested expression modulo 7",
    dial="operations inside each other",
    chance=lambda difficulty: 1 / MODULUS,
    chance_text="1/7",
    serial_depth="k from the inside out; O(log k) in pairs, once each operand is found. Formulas "
    "in general are NC1-complete (Buss 1987; Feng et al. 2023, arXiv:2305.15408); these, of which "
    "one operand is deep on each level, are as modular_chain",
    make=make_expression,
)
