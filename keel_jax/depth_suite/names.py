"""The names in problems. None is a prefix of another, so that neither is the likelier for that."""

import itertools
import string

# 260 names of two characters: a0, a1, … z9.
SHORT = tuple("".join(pair) for pair in itertools.product(string.ascii_lowercase, string.digits))

# 64 first names of three letters.
PEOPLE: tuple[str, ...] = tuple(
    """
    Abe Ada Ali Amy Ana Ann Art Ava Bea Ben Bob Cal Cam Cid Dan Dee Deb Del Don Dot Eli Ema Eva Eve
    Fay Flo Gia Gil Gus Guy Hal Ian Ida Ina Ira Ivy Jan Jay Jed Jim Joe Jon Joy Kai Ken Kim Kit Lea
    Lee Len Leo Liv Liz Lou Mae Max May Meg Mia Ned Nia Pam Pat Ray
    """.split()
)
