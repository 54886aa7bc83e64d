"""Variables in code: `variables`, the value that a chain of k assignments passes on.

Four constants are passed on by four chains of k assignments each, in a random interleaving. There
are only eight variables, which are assigned again and again, so that the order of the lines counts.
The four chains are alike, so that each constant is equally likely; a line of the chain that reads
another chain's variable always changes the answer.

After Wu, Geiger and Millière (2025, arXiv:2505.20896), whose trained transformer follows such
chains, of up to four steps, through the residual stream. In code whose variables are assigned
again, following values is following a state (Merrill, Petty and Sabharwal 2024, arXiv:2404.08819).
"""

from keel_jax.depth_suite import draws, example, task

NUM_CHAINS = 4
NUM_VARIABLES = 8
_LETTERS = "abcdefghijkmnpqrstuvwxyz"  # not l and o, which look like digits
_DIGITS = "0123456789"


def make(rng: draws.Draws, difficulty: int) -> example.Problem:
    """What is printed after `difficulty` assignments of each of four chains."""
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
    chance_text="1/4",
    serial_depth="k assignments; O(log k) by doubling, as pointer_chase. Wu, Geiger and Millière "
    "2025, arXiv:2505.20896",
    make=make,
)
