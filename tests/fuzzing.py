"""Seeded damage to files and configs: `fuzz_NAME(seed, directory) -> Outcome`, one trial each.

A trial that raises something else than a `UserError`, or accepts what is absurd, is a fault of the
program and raises here. Any number of trials can be run: the tests run a few hundred.
"""

import copy
import json
import math
import pathlib
import random
from typing import Any, Literal

from keel_jax import errors
from keel_jax.data import index as index_lib
from keel_jax.data import shards

# What a trial ended as: refused with a message of ours, or accepted although it was changed.
Outcome = Literal["refused", "accepted"]

_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, math.inf, math.nan),
    *("", "x", "../../etc/passwd", "\ud800", "0" * 64, [], [1], {}, {"a": 1}, [[]] * 3),
)


def fuzz_index(seed: int, directory: pathlib.Path) -> Outcome:
    """Damages index.json of an intact token set and reads the set; the file is put back.

    Accepted is only what leaves every number as it was: a change of white space, or of what only
    describes where the set came from. Two numbers are known by the checksum alone, so that an index
    without one may be off in them: the documents and, with loss weights, their bytes.
    """
    path = directory / shards.INDEX_FILE
    content = path.read_bytes()
    try:
        before = shards.open_set(directory)
        path.write_bytes(_damaged_index(random.Random(seed), content))
        try:
            after = shards.open_set(directory, verify=True)
        except errors.UserError:
            return "refused"
        unknown = () if index_lib.CHECKSUM in after.index else ("num_documents", "num_loss_bytes")
        assert _numbers(after, unknown) == _numbers(before, unknown), f"seed {seed} is accepted"
        return "accepted"
    finally:
        path.write_bytes(content)


def _numbers(token_set: shards.TokenSet, unknown: tuple[str, ...]) -> dict[str, Any]:
    """Everything that a run computes with, but for the counts of these names."""
    splits = {name: token_set.split(name) for name in token_set.split_names}
    return {
        "fingerprint": token_set.fingerprint,
        "vocab_size": (token_set.vocab_size, token_set.eos_id),
        "splits": {
            name: [v for k, v in vars(split).items() if not k.startswith("_") and k not in unknown]
            for name, split in splits.items()
        },
    }


def _damaged_index(generator: random.Random, content: bytes) -> bytes:
    """One of: bytes changed, cut, or a value changed; the last with the checksum kept or gone."""
    kind = generator.randrange(5)
    if kind == 0:
        return damaged_bytes(generator, content)
    index = json.loads(content)
    changed = damaged_value(generator, index)
    if kind > 2:
        # As an index from before there were checksums, which only its values speak for.
        changed = without_checksum(changed)
        if kind == 4:
            return json.dumps(_consistent_change(generator, index)).encode()
    return json.dumps(changed).encode()


def _consistent_change(generator: random.Random, index: dict[str, Any]) -> dict[str, Any]:
    """A number of a split that bits per byte are computed from, off by a little."""
    index = without_checksum(index)
    split = index["splits"][generator.choice(list(index["splits"]))]
    key = generator.choice(["num_tokens", "num_targets", "total_target_weight", "num_bytes"])
    split[key] += generator.choice([-1, 1])
    return index


def without_checksum(index: Any) -> Any:
    """The index as one from before there were checksums."""
    if not isinstance(index, dict):
        return index
    return {key: value for key, value in index.items() if key != index_lib.CHECKSUM}


def damaged_bytes(generator: random.Random, content: bytes) -> bytes:
    """`content` with a bit flipped, cut short, emptied, or with bytes put in or left out."""
    changed = bytearray(content)
    at = generator.randrange(max(len(content), 1))
    kind = generator.randrange(6)
    if kind == 0 and changed:
        changed[at] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at:at] = generator.randbytes(generator.randrange(1, 9))
    elif kind == 3:
        del changed[at : at + generator.randrange(1, 40)]
    elif kind == 4:
        changed[at : at + 8] = bytes(8)
    else:
        changed = bytearray()
    return bytes(changed)


def damaged_value(generator: random.Random, tree: Any) -> Any:
    """A copy of nested JSON in which one value is odd, missing, doubled, or renamed."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    container, key = generator.choice(places)
    kind = generator.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    elif kind == 2 and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    elif kind == 3 and isinstance(container[key], int | float):
        container[key] = container[key] * generator.choice([-1, 2, 10]) + generator.choice([0, 1])
    elif kind == 4 and isinstance(container[key], str) and container[key]:
        at = generator.randrange(len(container[key]))
        container[key] = container[key][:at] + "~" + container[key][at + 1 :]
    else:
        container[key] = copy.deepcopy(generator.choice(_ODD_VALUES))
    return tree


def _places(tree: Any):
    """(container, key) of every value of nested JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)
