"""Texts that a tokenizer might not reproduce."""

import random

ADVERSARIAL = [
    "",
    " ",
    "\n",
    "  a  ",
    "\n\n    def f(x):\n\t\treturn  x\n",
    "a\r\nb\rc\n\r",
    "\u2581",
    "a\u2581b \u2581 ",
    "\x00",
    "a\x00b",
    "\x1b",
    "\x1ba",
    "\x1b\x1ba\u2581",
    "\x1c\x1d\x1e\x1f",
    "\u2585\u2047 \u2047",
    "<unk><s></s><pad><0x0A><keel_eos_1>",
    "\ufeff\ufffd\uffff\U0010ffff\ue000",
    "e\u0301 \u00e9 \ufb01 \u3000 \u00a0 \u200b\u2028\u2029",
    "漢字かな 한글 العربية 👩‍👩‍👧‍👦",
    "x" * 3000 + " " * 3000 + "\n" * 300,
]


def random_text(generator: random.Random) -> str:
    """Characters of all planes, many of them whitespace or special to SentencePiece."""
    kinds = (
        lambda: chr(generator.randrange(0x80)),
        lambda: chr(generator.randrange(0xD800)),
        lambda: chr(generator.randrange(0xE000, 0x110000)),
        lambda: generator.choice("\n\t\r \x1b\x1c\x1d\x1e\x1f\u2581\u2585\x00abcde"),
    )
    return "".join(generator.choice(kinds)() for _ in range(generator.randrange(60)))
