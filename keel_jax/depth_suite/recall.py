"""In-context recall: `recall`, the value of a key among 4k; it does not ask for depth.

Each of the four values occurs k times, so that counting them says nothing. Two layers, an induction
head, are enough at any size (Olsson et al. 2022, arXiv:2209.11895), and one needs a width that
grows with the prompt (Sanford, Hsu and Telgarsky 2024, arXiv:2408.14332): beside the other tasks,
this tells what length alone costs from what depth does.
"""

from keel_jax.depth_suite import draws, example, names, task

VALUES = ("red", "blue", "gold", "pink")


def make(rng: draws.Draws, difficulty: int) -> example.Problem:
    """The value of one of 4 x `difficulty` keys."""
    values = rng.shuffled(VALUES * difficulty)
    pairs = list(zip(rng.sample(names.SHORT, len(values)), values, strict=True))
    key, value = rng.choice(pairs)
    items = [f"{key} {value}" for key, value in pairs]
    return example.Problem(
        "pairs " + " ".join(sorted(items)),
        key,
        f"{', '.join(items)}. {key}",
        f" {value}",
        tuple(f" {value}" for value in VALUES),
    )


RECALL = task.Task(
    name="recall",
    asks="the value of a key",
    dial="a quarter of the pairs",
    chance=lambda difficulty: 1 / len(VALUES),
    chance_text="1/4",
    serial_depth="2 at any k (Olsson et al. 2022, arXiv:2209.11895); 1 is not enough (Sanford, Hsu "
    "and Telgarsky 2024, arXiv:2408.14332)",
    make=make,
    max_difficulty=len(names.SHORT) // len(VALUES),
    limited_by=f"where its {len(names.SHORT)} keys are used up",
)
