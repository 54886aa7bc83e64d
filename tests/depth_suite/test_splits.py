"""The split of a content: pinned, by its share, and by nothing but the content."""

import hashlib
import itertools

from keel_jax.depth_suite import splits
from tests.depth_suite import many


def test_a_content_has_the_split_of_its_keyed_hash():
    contents = [f"chain {a}+{b}" for a, b in itertools.product(range(20), repeat=2)]
    for content in contents:
        digest = hashlib.blake2b(content.encode(), key=b"keel_jax depth suite", digest_size=8)
        # A quarter of all hashes begins with two zero bits.
        is_test = digest.digest()[0] >> 6 == 0
        assert splits.split_of(content) == ("test" if is_test else "train")
    share = sum(splits.split_of(content) == "test" for content in contents) / len(contents)
    assert abs(share - splits.TEST_SHARE) < many.tolerance(splits.TEST_SHARE, len(contents))
