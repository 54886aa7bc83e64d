"""An experiment's NOTES.md: its sections, and which numbers it quotes without support.

Sections whose heading says "Numbers" or "Verdict" may quote what results.json holds under
"numbers", rounded as they like, and what the paper says where that is marked: in a table's column
whose head says "paper", or in parentheses that begin with "paper". Everything else is unsupported:
also a ratio of two supported numbers, which must be put into results.json first.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

_HEADING = re.compile(r"^## +(.+?)\s*$", re.MULTILINE)
_QUOTING = re.compile(r"numbers|verdict", re.IGNORECASE)
# Digits that are names, not results: code, links, identifiers, places in papers, the confidence.
_NAMES = re.compile(
    r"```.*?```|`[^`]*`|\]\([^)]*\)|arXiv:[\d.]+|(?:Table|Fig\.?|App\.|§|issue|jax|Python)\s*[\d.]+\w*"
    r"|\(paper[^)]*\)|\b[A-Za-z]+\d[\w.]*|95 % (?:confidence )?intervals?",
    re.DOTALL,
)
_NUMBER = re.compile(r"(?<![\w.])([-−+]?\d+(?:\.\d+)?(?:e[-−+]?\d+)?)(?![\w.]*\w)\s?(%)?")
_IN_KEYS = re.compile(r"(?<![\d.])\d+(?:\.\d+)?(?:e[-+]?\d+)?$")
# A whole number below this is a count, and must be met exactly.
_COUNTS_BELOW = 10


def sections(text: str) -> dict[str, str]:
    """The text under each "## heading"."""
    parts = _HEADING.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def quoting(text: str) -> str:
    """The sections that quote results, joined."""
    return "\n".join(body for head, body in sections(text).items() if _QUOTING.search(head))


def unsupported(text: str, numbers: Mapping) -> list[str]:
    """The numbers in the quoting sections of `text` that `numbers` does not hold, as quoted."""
    values = set(_values(numbers))
    bare = _NAMES.sub(" ", _without_papers_columns(quoting(text)))
    return [
        match[0].strip()
        for match in _NUMBER.finditer(bare)
        if not any(_is_quoted(match[1], bool(match[2]), value) for value in values)
    ]


def _is_quoted(quoted: str, is_percentage: bool, value: float) -> bool:
    """Whether `value`, rounded to the digits of `quoted`, is it; a sign may be left out."""
    quoted = quoted.replace("−", "-")
    mantissa, _, exponent = quoted.partition("e")
    decimals = len(mantissa.partition(".")[2])
    half = 0.5 * 10.0 ** (int(exponent or 0) - decimals)
    if is_percentage:
        half, wanted = half / 100, float(quoted) / 100
    else:
        wanted = float(quoted)
        if not decimals and not exponent and abs(wanted) < _COUNTS_BELOW:
            return abs(value) == abs(wanted)
    if quoted[0] not in "+-":
        value = abs(value)
    return abs(value - wanted) <= half * (1 + 1e-9)


def _values(tree: object) -> Iterator[float]:
    """Every number in nested data, and those that keys end with: a depth, "removable_at_1.1"."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from map(float, _IN_KEYS.findall(str(key)))
            yield from _values(value)
    elif isinstance(tree, str):
        return
    elif isinstance(tree, Sequence):
        for value in tree:
            yield from _values(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield float(tree)


def _without_papers_columns(text: str) -> str:
    """`text` without the cells of tables' columns whose head says "paper"."""
    lines, papers = [], None
    for line in text.splitlines():
        if not line.lstrip().startswith("|"):
            papers = None
            lines.append(line)
            continue
        cells = line.strip().strip("|").split("|")
        if papers is None:
            papers = {place for place, cell in enumerate(cells) if "paper" in cell.lower()}
        lines.append(
            " | ".join("" if place in papers else cell for place, cell in enumerate(cells))
        )
    return "\n".join(lines)
