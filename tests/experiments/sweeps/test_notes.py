"""NOTES.md quote nothing that the committed results do not hold."""

import pathlib

import pytest

from experiments.sweeps import notes, results

ROOT = pathlib.Path(__file__).parents[3]
NOTES = sorted((ROOT / "experiments").glob("*/NOTES.md"))


def _numbers(directory: pathlib.Path) -> list[dict]:
    """The numbers of every preset that has committed results."""
    return [
        results.load(path.parent)["numbers"]
        for path in sorted(directory.glob(f"results/*/{results.FILE}"))
    ]


@pytest.mark.parametrize("path", NOTES, ids=lambda path: path.parent.name)
def test_what_is_quoted_is_in_the_results(path):
    unsupported = notes.unsupported(path.read_text(), {"presets": _numbers(path.parent)})
    assert not unsupported, f"{path}: not in results.json: {unsupported}"


@pytest.mark.parametrize("path", NOTES, ids=lambda path: path.parent.name)
def test_results_come_with_a_question_a_prediction_and_a_verdict(path):
    heads = " ".join(notes.sections(path.read_text())).lower()
    assert "question" in heads and "prediction" in heads
    if _numbers(path.parent):
        assert "verdict" in heads


_RESULTS = {
    "keel": {"64": {"loss": 2.4371, "rate": 0.01013, "ratios": [0.0549, -3.2], "kept_at_1.2": 0}},
    "num_seeds": 3,
}


def _verdict(text: str) -> str:
    return f"# x\n\n## Prediction\n\nAt most 99.\n\n## Verdict\n\n{text}\n"


@pytest.mark.parametrize(
    "text",
    [
        "At 64 sub-layers Keel ends at 2.44 (2.437), 3 seeds.",
        "A rate of 1.01e-2, or 0.010; 5.5 % of it; −3.2 or 3.2.",
        "| | ours | paper |\n|---|---|---|\n| rate | 1.01e-2 | 7.65e-3 |\n\nRatio (paper: 1.32).",
        "Up to 1.2 x the rate the 95 % interval holds; L = 64.",
        "`0.123` and arXiv:2601.19895, Table 1, §4 and keel_L512.py are names.",
    ],
)
def test_supported(text):
    assert notes.unsupported(_verdict(text), _RESULTS) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("Keel ends at 2.45.", ["2.45"]),
        ("2.44 of 4 seeds.", ["4"]),
        ("2.4372", ["2.4372"]),
        ("5.6 %", ["5.6 %"]),
        ("+3.2", ["+3.2"]),
        ("| | ours | paper |\n|---|---|---|\n| rate | 7.65e-3 | 1 |\n\n7.65e-3", ["7.65e-3"] * 2),
        ("128 sub-layers", ["128"]),
        ("95 % of it", ["95 %"]),
    ],
)
def test_unsupported(text, missing):
    assert notes.unsupported(_verdict(text), _RESULTS) == missing


def test_only_sections_that_quote_are_read():
    assert notes.unsupported(_verdict("fine"), {}) == []
    assert notes.unsupported("## Numbers, micro\n\n99\n", {}) == ["99"]
