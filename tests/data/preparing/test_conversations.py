"""Laws of conversations: every known form gives the same examples, and what is none is named."""

import importlib
import json
import re

import pytest

from keel_jax import errors
from keel_jax.data import chat_template, shards
from keel_jax.data.preparing import corpus, documents
from tests.data.preparing import corpora

TURNS = chat_template.TEMPLATES["turns"]


def _read(tmp_path, values, **options):
    tally = documents.Tally()
    inputs = corpora.write_jsonl(tmp_path / "a.jsonl", values)
    read, _ = corpora.read(inputs, tally=tally, template=TURNS, **options)
    return read, tally


FORMS = [
    {"prompt": "Name it.\n\nA cat", "response": "Cat"},
    {"prompt": "Name it.\n\nA cat", "completion": "Cat"},
    {"instruction": "Name it.", "input": "A cat", "output": "Cat"},
    {"instruction": "Name it.", "context": "A cat", "response": "Cat", "category": "closed_qa"},
    {"instruction": "Name it.\n\nA cat", "input": "", "output": "Cat", "text": "ignored"},
    {
        "messages": [
            {"role": "user", "content": "Name it.\n\nA cat"},
            {"role": "assistant", "content": "Cat"},
        ]
    },
    {
        "conversations": [
            {"from": "human", "value": "Name it.\n\nA cat"},
            {"from": "gpt", "value": "Cat"},
        ]
    },
]


@pytest.mark.parametrize("value", FORMS, ids=lambda value: "+".join(value))
def test_every_form_of_a_record_is_the_same_example(value, tmp_path):
    read, tally = _read(tmp_path, [value])
    assert tally.num_bad == 0
    assert [document.parts() for document in read] == [
        (("User:\nName it.\n\nA cat\n\nAssistant:\n", 0.0), ("Cat", 1.0))
    ]


def _messages(*texts, **last):
    roles = ["user", "assistant"]
    values = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    values[-1] |= last
    return {"messages": values}


def test_each_response_is_learned_once_after_all_that_precedes_it(tmp_path):
    value = _messages("a", "b", "c", "d")
    value["messages"].insert(0, {"role": "system", "content": "s"})
    read, _ = _read(tmp_path, [value])
    assert [(document.prompt, document.text) for document in read] == [
        ("System:\ns\n\nUser:\na\n\nAssistant:\n", "b"),
        ("System:\ns\n\nUser:\na\n\nAssistant:\nb\n\nUser:\nc\n\nAssistant:\n", "d"),
    ]


def test_weights_of_messages_and_records_multiply_and_of_0_nothing_is_learned(tmp_path):
    values = [
        {**_messages("a", "b", "c", "d", weight=0.5), "weight": 0.5},
        _messages("a", "b", weight=0),
        {"prompt": "a", "response": "b", "weight": 0.25},
    ]
    read, tally = _read(tmp_path, values)
    assert [(document.text, document.weight) for document in read] == [
        ("b", 0.5),
        ("d", 0.25),
        ("b", 0.25),
    ]
    assert tally.num_bad == tally.num_empty == 0


def test_a_conversation_is_in_one_split(tmp_path):
    values = [_messages(f"a{i}", "b", "c", "d", "e", "f") for i in range(60)]
    read, _ = _read(tmp_path, values)
    splits = [corpus.is_validation(document, 0.3) for document in read]
    of_conversations = [set(splits[start : start + 3]) for start in range(0, len(splits), 3)]
    assert all(len(split) == 1 for split in of_conversations)
    assert {True} in of_conversations and {False} in of_conversations


BAD = [
    ({"text": "a"}, "without a conversation .*, but 'text'"),
    ({"prompt": "a"}, "without a conversation .*, but 'prompt'"),
    ({"prompt": "a", "response": ""}, "message 1 is an empty response"),
    ({"prompt": "a", "response": None}, "message 1 is an empty response"),
    ({"prompt": 7, "response": "b"}, "text is a int"),
    ({"prompt": "a", "response": "\ud800"}, "lone surrogate"),
    (_messages("a", "b", "c", ""), "message 3 is an empty response"),
    (_messages("a"), "without a message of the assistant's"),
    ({"messages": []}, "without a message of the assistant's"),
    ({"messages": "a"}, "messages is a str, not a list"),
    ({"messages": ["a"]}, r"messages\[0\] is 'a'"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\] is {'role': 'user'}"),
    (_messages("a", "b", role="tool"), r"messages\[1\] has the role 'tool'"),
    (_messages("a", "b", role=["user"]), r"messages\[1\] has the role \['user'\]"),
    (_messages("a", "b", content=None), r"messages\[1\]: whose text is a NoneType"),
    (_messages("a", "b", weight="1"), r"messages\[1\]: weight '1' is not a number"),
    ({"messages": _messages("a", "b")["messages"][1:]}, "assistant speaks before the user"),
    (
        {"messages": [*_messages("a", "b")["messages"], {"role": "system", "content": "s"}]},
        "system message that is not the first",
    ),
]


@pytest.mark.parametrize("value, reason", BAD, ids=[reason for _, reason in BAD])
def test_a_record_that_is_none_is_named_with_file_and_line(value, reason, tmp_path):
    read, tally = _read(tmp_path, [FORMS[0], value, FORMS[0]])
    assert len(read) == 2 and tally.num_bad == 1
    [example] = tally.examples
    assert example.startswith(f"{tmp_path / 'a.jsonl'}, line 2: ")
    assert re.search(reason, example), example


def test_without_a_template_messages_are_refused_with_a_hint(tmp_path):
    tally = documents.Tally()
    corpora.read(corpora.write_jsonl(tmp_path / "a.jsonl", [_messages("a", "b")]), tally=tally)
    assert "neither 'text'" in tally.examples[0] and "--chat_template" in tally.examples[0]


def test_parquet_gives_the_same_examples_and_a_table_of_texts_is_an_error(tmp_path):
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    values = [_messages(f"ask {i}", "b", "c", f"answer {i}") for i in range(9)]
    expected, _ = _read(tmp_path, values)
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(values), path, row_group_size=4)
    read, _ = corpora.read([path], template=TURNS)
    assert read == expected
    parquet.write_table(pyarrow.Table.from_pylist(FORMS[3:4] * 3), path)
    read, _ = corpora.read([path], template=TURNS)
    assert [document.text for document in read] == ["Cat"] * 3
    corpora.write_texts(path)
    with pytest.raises(errors.UserError, match=r"a.parquet has no columns of a conversation"):
        corpora.read([path], template=TURNS)


def test_a_text_file_is_no_conversation(tmp_path):
    (tmp_path / "a.txt").write_text("User: Hi")
    tally = documents.Tally()
    read, _ = corpora.read([tmp_path / "a.txt"], template=TURNS, tally=tally)
    assert not read and tally.num_bad == 1
    assert "a.txt: whole files of text, which are no conversations" in tally.examples[0]


def test_the_tokens_of_a_prompt_are_those_that_generation_reads(tmp_path):
    """No piece spans prompt and response, whatever the tokenizer has seen there."""
    text = "User:\nalpha\n\nAssistant:\nbeta"
    values = [{"prompt": "alpha", "response": "beta"}] * 50
    inputs = corpora.write_jsonl(tmp_path / "a.jsonl", values)
    corpora.prepare(
        inputs, tmp_path / "out", corpora.TRAIN_ONLY, chat_template="turns", vocab_size=290
    )
    token_set = shards.open_set(tmp_path / "out")
    model, split = token_set.tokenizer(), token_set.split("train")
    prompt = model.encode(TURNS.prompt([chat_template.Message("user", "alpha")]))
    response = model.encode("beta")
    assert split.tokens(1, 1 + len(prompt) + len(response) + 1).tolist() == [
        *prompt,
        *response,
        model.eos_id,
    ]
    assert model.decode([*prompt, *response]) == text
    weights = split.loss_weights(1, 2 + len(prompt) + len(response))
    assert weights.tolist() == [0.0] * len(prompt) + [1.0] * (len(response) + 1)


def test_the_index_holds_the_template_and_a_damaged_one_is_named(tmp_path):
    inputs = corpora.write_jsonl(tmp_path / "a.jsonl", FORMS)
    output = tmp_path / "out"
    corpora.prepare(inputs, output, corpora.TRAIN_ONLY, chat_template="turns")
    assert shards.open_set(output).chat_template == TURNS
    index = json.loads((output / "index.json").read_text())
    del index["sha256"]
    index["chat_template"]["user"][0] = "Human:\n"
    (output / "index.json").write_text(json.dumps(index))
    with pytest.raises(errors.UserError, match="'chat_template' is not the one of 'settings"):
        shards.open_set(output)
    del index["chat_template"]
    (output / "index.json").write_text(json.dumps(index))
    with pytest.raises(errors.UserError, match="'chat_template': None is not a chat template"):
        shards.open_set(output)
