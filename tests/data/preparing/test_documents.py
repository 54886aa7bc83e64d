"""Laws of the documents: bad ones are counted with their place and the reason."""

import json

import pytest

from keel_jax.data.preparing import documents
from tests.data.preparing import corpora


def test_prompt_and_response(tmp_path):
    values = [
        {"prompt": "Q", "response": "A"},
        {"prompt": "Q", "response": "B", "weight": 0.5},
        {"prompt": "", "response": "C"},
        {"prompt": "Q", "response": ""},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, values)))
    tally = documents.Tally()
    read, _ = corpora.read([path], tally=tally)
    assert [document.parts() for document in read] == [
        (("Q", 0.0), ("A", 1.0)),
        (("Q", 0.0), ("B", 0.5)),
        (("C", 1.0),),
    ]
    assert tally.num_empty == 1


BAD_LINES = [
    (b"{nonsense", "not JSON"),
    (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'["text"]', "JSON list"),
    (b'{"txt": "a"}', "neither 'text'"),
    (b'{"text": 7}', "a int, not a string"),
    (b'{"text": "\\ud800"}', "lone surrogate"),
    (b'{"prompt": "a", "response": "b", "weight": -1}', "weight -1"),
    (b'{"prompt": "a", "response": "b", "weight": NaN}', "weight nan"),
    (b'{"prompt": "a", "response": "b", "weight": 1e6}', "weight 1000000.0"),
    (b'{"prompt": "a", "response": "b", "weight": true}', "weight True"),
    (b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize("unit_bytes", [0, 60])
@pytest.mark.parametrize("line, reason", BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_bad_lines_are_counted_with_their_place(line, reason, unit_bytes, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        corpora.jsonl(corpora.FORMAT_TEXTS[:3])
        + line
        + b"\n"
        + corpora.jsonl(corpora.FORMAT_TEXTS[3:6])
    )
    tally = documents.Tally()
    read, _ = corpora.read([path], tally=tally, unit_bytes=unit_bytes)
    assert [document.text for document in read] == corpora.FORMAT_TEXTS[:6]
    assert tally.num_bad == 1
    assert tally.examples[0].startswith(f"{path}, line 4: ") and reason in tally.examples[0]


def test_the_limit_of_bad_documents_stops(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"bad\n" * 20)
    with pytest.raises(ValueError, match="4 bad documents.*max_bad_documents=3.*line 1"):
        corpora.read([path], tally=documents.Tally(max_bad=3))
