"""Permutations of five things, one after another: `permutation_point` and `permutation_product`.

The word problem of S5. S5 is not solvable, and its word problem is NC1-complete (Barrington 1989),
so a transformer of fixed depth cannot solve it for every length unless TC0 = NC1 (Merrill, Petty
and Sabharwal 2024, arXiv:2404.08819); depth O(log k) can (Merrill and Sabharwal 2025,
arXiv:2503.03961). Where one point goes is as hard: Barrington's programs are told apart by it.

The permutations are uniform in S5 and independent, so without any one of them the product is
uniform. Another permutation in one place always changes the product, and where a point goes with
probability 96/119: of the 119 others, 4! - 1 = 23 take the point that comes there to the same
place.
"""

import itertools
import math

from keel_jax.depth_suite import draws, example, task

NUM_POINTS = 5
POINTS = tuple(range(1, NUM_POINTS + 1))
_ALL = tuple(itertools.permutations(POINTS))


def make_point(rng: draws.Draws, difficulty: int) -> example.Problem:
    """Where a point goes under `difficulty` permutations."""
    content, lists, images = _word(rng, difficulty)
    start = rng.choice(POINTS)
    choices = tuple(f" {point}" for point in POINTS)
    prompt = f"{lists} {start} goes to"
    return example.Problem(content, str(start), prompt, f" {images[start - 1]}", choices)


def make_product(rng: draws.Draws, difficulty: int) -> example.Problem:
    """Where all points go under `difficulty` permutations."""
    content, lists, images = _word(rng, difficulty)
    answer = " " + "".join(map(str, images))
    return example.Problem(content, "all", f"{lists} 12345 goes to", answer)


def _word(rng: draws.Draws, length: int) -> tuple[str, str, list[int]]:
    """(content, text, where each point goes) of permutations drawn at random."""
    word = [rng.choice(_ALL) for _ in range(length)]
    images = list(POINTS)
    for permutation in word:
        images = [permutation[point - 1] for point in images]
    text = " ".join("".join(map(str, permutation)) for permutation in word)
    # Both tasks ask about the same contents.
    return f"S5 {text}", f"Each list says where 1 2 3 4 5 go. {text} in this order:", images


POINT = task.Task(
    name="permutation_point",
    asks="where one of five points goes under permutations",
    dial="permutations",
    chance=lambda difficulty: 1 / NUM_POINTS,
    chance_text="1/5",
    serial_depth="k in order; O(log k) by composing in pairs (Merrill and Sabharwal 2025, "
    "arXiv:2503.03961). No fixed depth is enough for all k unless TC0 = NC1 (Barrington 1989; "
    "Merrill, Petty and Sabharwal 2024, arXiv:2404.08819)",
    make=make_point,
)
PRODUCT = task.Task(
    name="permutation_product",
    asks="the product of permutations of five points, as a list",
    dial="permutations",
    chance=lambda difficulty: 1 / math.factorial(NUM_POINTS),
    chance_text="1/120",
    serial_depth="as permutation_point",
    make=make_product,
)
