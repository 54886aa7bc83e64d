"""Contexts and continuations: short, long, empty, longer than a window, with a space between."""

PAIRS = [
    ("def function_1", "_2(x):"),
    ("def function_3_4(x):\n    return", " x + 12"),
    ("", "def"),
    ("    return x + 8\n\n" * 6, "def function"),
    ("return ", "x"),
]
