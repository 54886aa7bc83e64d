"""Copying with edits: `copy_edits`, a list of six letters after k edits.

An edit exchanges two places, reverses the list, moves its first letter to the end, or puts a new
letter for one of the list. Letters never return, so places and letters are bijections throughout,
and leaving out any edit changes the result. Exchanges and rotations generate S6, which is not
solvable, so what happens to the places is again an NC1-complete word problem (Barrington 1989); the
letters are a chain of pointers.
"""

import math
import string

from keel_jax.depth_suite import draws, example, task

LENGTH = 6
PLACES = tuple(range(1, LENGTH + 1))


def make(rng: draws.Draws, difficulty: int) -> example.Problem:
    """A list after `difficulty` edits."""
    letters = rng.shuffled(string.ascii_lowercase)
    values, unused = letters[:LENGTH], letters[LENGTH:]
    before, edits = " ".join(values), []
    for _ in range(difficulty):
        # As often as one of the others, while there are letters.
        kind = rng.below(4 if unused else 3)
        if kind == 0:
            i, j = sorted(rng.sample(PLACES, 2))
            values[i - 1], values[j - 1] = values[j - 1], values[i - 1]
            edits.append(f"swap {i} and {j}")
        elif kind == 1:
            values.reverse()
            edits.append("reverse")
        elif kind == 2:
            values.append(values.pop(0))
            edits.append("first to end")
        else:
            place = rng.below(LENGTH)
            edits.append(f"{values[place]} becomes {unused[-1]}")
            values[place] = unused.pop()
    text = f"{before}: {', '.join(edits)}"
    return example.Problem("edits " + text, "", f"{text}. Result:", " " + " ".join(values))


COPY_EDITS = task.Task(
    name="copy_edits",
    asks="a list of six letters after edits",
    dial="edits",
    chance=lambda difficulty: 1 / math.factorial(LENGTH),
    chance_text="1/720, if the letters are known",
    serial_depth="k in order; O(log k) by composing them in pairs. The places are a word "
    "problem of S6, for which no fixed depth is enough unless TC0 = NC1 (Barrington 1989)",
    make=make,
)
