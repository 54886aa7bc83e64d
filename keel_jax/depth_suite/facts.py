"""Multi-hop lookup: `multi_hop`, k relations between people, one after another.

Each of eight people has a boss and a friend, two others; each is boss of one and friend of one. So
every name occurs equally often, and in every step the other relation leads to another person and,
as both are bijections, to another answer. It is never the person asked about, and by the symmetry
of the names each of the seven others is equally likely.

A hop is a lookup; two permutations of eight people, given anew in each prompt, are composed along
the question, which is the word problem of a group that is not solvable where they generate one
(Barrington 1989). In trained models, later hops are found to be resolved in later layers, and
questions to fail where too few are left (Biran et al. 2024, arXiv:2406.12775).
"""

from keel_jax.depth_suite import draws, example, names, task

NUM_PEOPLE = 8
RELATIONS = ("boss", "friend")


def make(rng: draws.Draws, difficulty: int) -> example.Problem:
    """Who stands in `difficulty` relations, one after another, to a person."""
    people = rng.sample(names.PEOPLE, NUM_PEOPLE)
    boss = _others(rng, people, {})
    friend = _others(rng, people, boss)
    start = people[0]  # of people in random order
    while True:
        path = [rng.choice(RELATIONS) for _ in range(difficulty)]
        answer = start
        for relation in path:
            answer = (boss if relation == "boss" else friend)[answer]
        # Of two paths that differ in their last relation, at most one leads back.
        if answer != start:
            break
    facts = [f"{name}: boss {boss[name]}, friend {friend[name]}." for name in people]
    question = start + "".join(f"'s {relation}" for relation in path)
    return example.Problem(
        "facts " + " ".join(sorted(facts)),
        question,
        f"{' '.join(rng.shuffled(facts))} {question} is",
        f" {answer}",
        tuple(sorted(f" {name}" for name in people if name != start)),
    )


def _others(rng: draws.Draws, people: list[str], taken: dict[str, str]) -> dict[str, str]:
    """Somebody else for each, everybody for one, and nobody for whom they are in `taken`."""
    while True:
        others = dict(zip(people, rng.shuffled(people), strict=True))
        if all(other not in (name, taken.get(name)) for name, other in others.items()):
            return others


MULTI_HOP = task.Task(
    name="multi_hop",
    asks="who is somebody's boss's friend's boss, and so on",
    dial="relations one after another",
    chance=lambda difficulty: 1 / (NUM_PEOPLE - 1),
    chance_text="1/7",
    serial_depth="k lookups; O(log k) if relations are composed in pairs first. Two general "
    "permutations of eight people generate a group that is not solvable, for which no fixed depth "
    "is enough unless TC0 = NC1 (Barrington 1989); hops of trained models: Biran et al. 2024, "
    "arXiv:2406.12775",
    make=make,
)
