"""Which split a problem belongs to: a keyed hash of its content, whatever the seed."""

import hashlib

TRAIN, TEST = "train", "test"
SPLITS = (TRAIN, TEST)
# Of all problems; a test of a few hundred examples needs no more, even of the small spaces.
TEST_SHARE = 0.25
_KEY = b"keel_jax depth suite"


def split_of(content: str) -> str:
    """The split of a problem with this content (`example.Problem`).

    It depends on the content alone, so that no problem is ever in both splits: not in those of one
    suite, nor in the training text of one and the test of another that has other seeds,
    difficulties or numbers of examples.
    """
    digest = hashlib.blake2b(content.encode(), key=_KEY, digest_size=8).digest()
    return TEST if int.from_bytes(digest, "big") < TEST_SHARE * 2**64 else TRAIN
