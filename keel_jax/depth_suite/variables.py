"""Variables in code: `variables`, the value that a chain of k assignments passes on.

Five constants are passed on by five chains of k assignments each, in a random interleaving. There
are only eight variables, which are assigned again and again, so that the order of the lines counts.
The chains are alike, so that each constant is equally likely; a line of the chain that reads a
variable of another value always changes the answer, and no other line does.

After Wu, Geiger and Millière (2025, arXiv:2505.20896), whose trained transformer follows such
chains, of up to four steps, through the residual stream. Their variables are assigned once. Five
values that move among eight places can be permuted at will, so that following one is a word problem
of S5 (`permutations`), as Merrill, Petty and Sabharwal (2024, arXiv:2404.08819) say of code.
"""

from keel_jax.depth_suite import draws, example, task

NUM_CHAINS = 5
NUM_VARIABLES = 8
_LETTERS = "abcdefghijkmnpqrstuvwxyz"  # not l and o, which look like digits
_DIGITS = "0123456789"


def make(rng: draws.Draws, difficulty: int) -> example.Problem:
    """What is printed after `difficulty` assignments of each of five chains."""
    variables = rng.sample(_LETTERS, NUM_VARIABLES)
    constants = rng.sample(_DIGITS, NUM_CHAINS)
    holder, free = variables[:NUM_CHAINS], variables[NUM_CHAINS:]
    lines = [f"{name} = {value}" for name, value in zip(holder, constants, strict=True)]
    for chain in rng.shuffled(list(range(NUM_CHAINS)) * difficulty):
        place = rng.below(len(free))
        lines.append(f"{free[place]} = {holder[chain]}")
        holder[chain], free[place] = free[place], holder[chain]
    asked = rng.below(NUM_CHAINS)
    code = "\n".join(lines)
    return example.Problem(
        "code " + code,
        holder[asked],
        f"{code}\nprint({holder[asked]})  #",
        f" {constants[asked]}",
        tuple(sorted(f" {value}" for value in constants)),
    )


VARIABLES = task.Task(
    name="variables",
    asks="what code prints that passes values from variable to variable",
    dial="assignments to follow",
    chance=lambda difficulty: 1 / NUM_CHAINS,
    chance_text="1/5",
    serial_depth="k assignments (Wu, Geiger and Millière 2025, arXiv:2505.20896), among 5k lines "
    "whose order counts; O(log k) by doubling. Five values in eight variables can be permuted at "
    "will, so no fixed depth is enough for all k unless TC0 = NC1 (Merrill, Petty and Sabharwal "
    "2024, arXiv:2404.08819)",
    make=make,
)
