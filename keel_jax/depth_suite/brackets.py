"""Brackets of four kinds: `bracket_close`, which closes next, and `bracket_balance`, yes or no.

`bracket_close`: one bracket of each kind is left open, so that counting says nothing; behind the
last of them stands a balanced string that is exactly k deep, which has to be matched away. Behind
each of the others stands one that is made in the same way.

`bracket_balance`: three balanced strings one after another, each exactly k deep; in half of the
prompts the last brackets of two have changed places, so that the only fault lies at the outermost
brackets, across all that is nested in them. The counts of each kind and the depth at each place are
those of a balanced string.

From the inside out, matching takes a layer per level: k + 1 layers of hard attention recognize
brackets up to k deep, while two layers that count the depth by uniform attention are enough to tell
which bracket closes next, with a precision that grows with the length (Yao et al. 2021,
arXiv:2105.11115). So the depth that is asked for is k without counting, and does not grow with it.
"""

from keel_jax.depth_suite import draws, example, task

PAIRS = ("()", "[]", "{}", "<>")
NUM_BLOCKS = 3


def make_close(rng: draws.Draws, difficulty: int) -> example.Problem:
    """Which bracket closes next, behind a balanced string that is `difficulty` deep."""
    kinds = rng.shuffled(PAIRS)
    text = "".join(kind[0] + _balanced(rng, difficulty) for kind in kinds)
    return example.Problem(
        "open " + text,
        "",
        f"Which bracket closes next? {text}",
        f" {kinds[-1][1]}",
        tuple(f" {kind[1]}" for kind in PAIRS),
    )


def make_balance(rng: draws.Draws, difficulty: int) -> example.Problem:
    """Whether brackets that are `difficulty` deep are balanced."""
    outer = [rng.choice(PAIRS)]
    while len(outer) < NUM_BLOCKS:
        outer.append(rng.choice(PAIRS))
        if len(outer) == NUM_BLOCKS and len(set(outer)) == 1:
            outer = [rng.choice(PAIRS)]  # nothing to exchange
    inner = ["" if difficulty == 1 else _balanced(rng, difficulty - 1) for _ in outer]
    closing = [kind[1] for kind in outer]
    balanced = _blocks(outer, inner, closing)
    if rng.coin():
        text, answer = balanced, " yes"
    else:
        unequal = [(i, j) for i in range(NUM_BLOCKS) for j in range(i) if outer[i] != outer[j]]
        i, j = rng.choice(unequal)
        closing[i], closing[j] = closing[j], closing[i]
        text, answer = _blocks(outer, inner, closing), " no"
    return example.Problem(
        # A string and what exchanging brackets makes of it are one content, and asked about as such
        # once for each answer: a small space that is used up has as many of both.
        "balanced " + balanced,
        answer,
        f"Are these brackets balanced? {text}",
        answer,
        (" yes", " no"),
    )


def _blocks(outer: list[str], inner: list[str], closing: list[str]) -> str:
    parts = zip(outer, inner, closing, strict=True)
    return "".join(kind[0] + within + end for kind, within, end in parts)


def _balanced(rng: draws.Draws, depth: int) -> str:
    """A balanced string exactly `depth` deep; on each level, half of the time, a pair beside it."""
    text = ""
    for level in range(depth):
        kind = rng.choice(PAIRS)
        text = kind[0] + text + kind[1]
        # Not on the first level, where it would make no difference which of the two is nested.
        if level and rng.coin():
            text = text + rng.choice(PAIRS) if rng.coin() else rng.choice(PAIRS) + text
    return text


CLOSE = task.Task(
    name="bracket_close",
    asks="which bracket closes next",
    dial="nesting depth of what is to be skipped",
    chance=lambda difficulty: 1 / len(PAIRS),
    chance_text="1/4",
    serial_depth="k from the inside out (k + 1 layers of hard attention); 2 where depth is counted "
    "(Yao et al. 2021, arXiv:2105.11115)",
    make=make_close,
)
BALANCE = task.Task(
    name="bracket_balance",
    asks="whether brackets are balanced",
    dial="nesting depth",
    chance=lambda difficulty: 1 / 2,
    chance_text="1/2",
    serial_depth="as bracket_close",
    make=make_balance,
)
