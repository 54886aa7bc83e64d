"""Laws of the documents: bad ones are counted with their place and the reason."""

import json

import pytest

from keel_jax import errors
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


def test_reasons_are_counted_by_kind_with_an_example_each(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{bad\n{"body": 1}\n{worse\n{"other": 2}\n[1]\n{"text": 3}\n{worst\n')
    tally = documents.Tally()
    corpora.read([path], tally=tally)
    told = documents.describe_kinds(tally.kinds)
    assert len(told) == 4
    assert told[0].startswith(f"3 not JSON (such as {path}, line 1: not JSON (Expecting")
    missing = "with neither 'text' nor prompt and response"
    assert told[1] == f"2 {missing} (such as {path}, line 2: {missing}, but 'body')"
    assert f"1 a JSON list, not an object (such as {path}, line 5)" in told
    assert f"1 whose text is a int, not a string (such as {path}, line 6)" in told
    twice = documents.merge_kinds([tally.kinds, tally.kinds])
    assert documents.describe_kinds(twice)[0].startswith("6 not JSON (such as")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b'{"body": "a"}\n' * 200, {}, r"Of the documents, 200 with neither 'text'.*line 1: "),
        (b'{"text": ""}\n{"text": null}\n', {}, "Of the documents, 2 empty"),
        (
            b'{"text": "a"}\n{"text": "b"}\n',
            {"validation_fraction": 0.999999},
            r"2 held out for validation \(--validation_fraction=0.999999\)",
        ),
        (b"{bad\n" + b'{"text": ""}\n', {}, r"1 not JSON \(such as .*\); 1 empty"),
        (b"\n", {}, "Of the documents, there is none"),
    ],
)
def test_why_there_is_no_text_to_train_on(content, options, message, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(errors.UserError, match=f"no text to train a tokenizer on.*{message}"):
        corpora.prepare(
            [str(tmp_path / "a.jsonl")], tmp_path / "out", corpora.TRAIN_ONLY, **options
        )


def test_why_no_document_can_be_used_with_a_given_tokenizer(source, tmp_path):
    corpora.prepare(source, tmp_path / "one")
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n' * 3 + '{"text": ""}')
    told = r"No document of the corpus can be used: 1 are empty, 3 bad: 3 with neither 'text'"
    with pytest.raises(errors.UserError, match=told):
        corpora.prepare(
            [str(tmp_path / "a.jsonl")],
            tmp_path / "two",
            corpora.TRAIN_ONLY,
            vocab_size=None,
            tokenizer_model=tmp_path / "one" / "tokenizer.model",
        )
