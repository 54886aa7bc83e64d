"""Brackets of four kinds: `bracket_close`, which closes next, and `bracket_balance`, yes or no.

`bracket_close`: one bracket of each kind is left open, so that counting says nothing. Before the
first, between them and behind the last stand balanced strings, all drawn in the same way and each
exactly k deep: to find the bracket that is open, the last of them has to be matched away.

`bracket_balance`: a string of two pairs of different kinds, each around balanced strings, k deep
with them, and of balanced strings before, between and behind them. In half of the prompts the
closing brackets of the two have changed places, so that the only fault lies across all that is
nested in them. The counts of each kind and the depth at each place are those of a balanced string,
and so is what stands side by side: without the strings between the two, a closing bracket would
more often stand before an opening one of its kind.

From the inside out, matching takes a layer per level: k + 1 layers of hard attention recognize
brackets up to k deep, while two layers that count the depth by uniform attention are enough to tell
which bracket closes next, with a precision that grows with the length (Yao et al. 2021,
arXiv:2105.11115). So the depth that is asked for is k without counting, and does not grow with it.
"""

from keel_jax.depth_suite import draws, example, task

PAIRS = ("()", "[]", "{}", "<>")
# Depth of what may stand beside the deepest part of a string on each level.
_MAX_SIDE_DEPTH = 2


def make_close(rng: draws.Draws, difficulty: int) -> example.Problem:
    """Which bracket closes next, behind a balanced string that is `difficulty` deep."""
    kinds = rng.shuffled(PAIRS)
    text = _balanced(rng, difficulty)
    for kind in kinds:
        text += kind[0] + _balanced(rng, difficulty)
    return example.Problem(
        "open " + text,
        "",
        f"Which bracket closes next? {text}",
        f" {kinds[-1][1]}",
        tuple(f" {kind[1]}" for kind in PAIRS),
    )


def make_balance(rng: draws.Draws, difficulty: int) -> example.Problem:
    """Whether brackets that are `difficulty` deep are balanced."""
    first, second = rng.sample(PAIRS, 2)
    inner = [_balanced(rng, difficulty - 1) for _ in range(2)]
    around = [_balanced(rng, difficulty) for _ in range(3)]

    def text(ends: tuple[str, str]) -> str:
        blocks = [first[0] + inner[0] + ends[0], second[0] + inner[1] + ends[1]]
        return around[0] + blocks[0] + around[1] + blocks[1] + around[2]

    balanced = text((first[1], second[1]))
    stated, answer = balanced, " yes"
    if rng.coin():
        stated, answer = text((second[1], first[1])), " no"
    return example.Problem(
        # A string and what exchanging brackets makes of it are one content, and asked about as such
        # once for each answer: a small space that is used up has as many of both.
        "balanced " + balanced,
        answer,
        f"Are these brackets balanced? {stated}",
        answer,
        (" yes", " no"),
    )


def _balanced(rng: draws.Draws, depth: int) -> str:
    """A balanced string exactly `depth` deep; on each level, half of the time, with one beside it.

    So its length is random, and where it begins cannot be told from where it ends.
    """
    text = ""
    for level in range(1, depth + 1):
        kind = rng.choice(PAIRS)
        text = kind[0] + text + kind[1]
        if rng.coin():
            side = _balanced(rng, 1 + rng.below(min(level, _MAX_SIDE_DEPTH)))
            text = text + side if rng.coin() else side + text
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
