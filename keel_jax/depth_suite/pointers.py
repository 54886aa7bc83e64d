"""Pointer chasing: `pointer_chase`, k hops along arrows between names.

The arrows form two rings of the same size, so every name is the tail of one arrow and the head of
another, wherever the question begins: no name stands out. A ring has 2k + 2 names, so that walking
backwards is no shorter (k + 2 steps). The choices are the answer, the name before or after it, and
two neighbours of the other ring: a rough idea of the distance does not tell the answer, and nor do
the choices and the arrows between them. An arrow on the way that leads elsewhere always changes the
answer.

Looking k hops ahead is the k-hop induction heads task of Sanford, Hsu and Telgarsky (2024,
arXiv:2402.09268): depth O(log k), by doubling the length of the known jumps, is enough for a
transformer and, if one ring cannot be told from two in less than logarithmic rounds, needed.
"""

from keel_jax.depth_suite import draws, example, names, task

NUM_RINGS = 2
NUM_CHOICES = 4


def ring_size(difficulty: int) -> int:
    """The number of names of a ring."""
    return 2 * difficulty + 2


def make(rng: draws.Draws, difficulty: int) -> example.Problem:
    """A name `difficulty` hops away from another."""
    size = ring_size(difficulty)
    chosen = rng.sample(names.SHORT, NUM_RINGS * size)
    # The names are in random order, so the question may always be about the first ring's first.
    rings = [chosen[first : first + size] for first in range(0, len(chosen), size)]
    arrows = [f"{ring[i - 1]}>{ring[i]}" for ring in rings for i in range(size)]
    start, answer = rings[0][0], rings[0][difficulty]
    # With one hop, the name before is the one asked about.
    neighbour = rings[0][difficulty + (1 if difficulty == 1 or rng.coin() else -1)]
    place = rng.below(size)
    others = [neighbour, rings[1][place - 1], rings[1][place]]
    hops = "1 step" if difficulty == 1 else f"{difficulty} steps"
    return example.Problem(
        "arrows " + " ".join(sorted(arrows)),
        f"{start} {difficulty}",
        f"Arrows: {' '.join(rng.shuffled(arrows))}. From {start}, {hops}:",
        f" {answer}",
        tuple(sorted(f" {name}" for name in [answer, *others])),
    )


POINTER_CHASE = task.Task(
    name="pointer_chase",
    asks="the name that is k arrows away",
    dial="hops",
    chance=lambda difficulty: 1 / NUM_CHOICES,
    chance_text="1/4",
    serial_depth="k hops; O(log k) by doubling, and no less if one ring cannot be told from two in "
    "fewer rounds (Sanford, Hsu and Telgarsky 2024, arXiv:2402.09268)",
    make=make,
    max_difficulty=len(names.SHORT) // (2 * NUM_RINGS) - 1,
    limited_by=f"where its {len(names.SHORT)} names are used up",
)
