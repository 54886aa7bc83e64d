"""Laws of chat templates: what a conversation is written as, and that it survives JSON."""

import json

import pytest

from keel_jax import errors
from keel_jax.data import chat_template

MESSAGES = [
    chat_template.Message("system", "Be brief."),
    chat_template.Message("user", "Hi"),
    chat_template.Message("assistant", "Hello"),
    chat_template.Message("user", "Bye"),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "turns",
            "System:\nBe brief.\n\nUser:\nHi\n\nAssistant:\nHello\n\nUser:\nBye\n\nAssistant:\n",
        ),
        (
            "alpaca",
            "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye\n\n"
            "### Response:\n",
        ),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
    ],
)
def test_a_conversation_is_written_as_documented(name, expected):
    """These texts are in sets and checkpoints: a change of one is a new template."""
    assert chat_template.TEMPLATES[name].prompt(MESSAGES) == expected


def test_json_keeps_a_template_and_the_digest_is_of_its_strings():
    digests = set()
    for template in chat_template.TEMPLATES.values():
        again = chat_template.ChatTemplate.from_json(json.loads(json.dumps(template.to_json())))
        assert again == template
        digests.add(template.digest)
    assert len(digests) == len(chat_template.TEMPLATES) > 1


@pytest.mark.parametrize(
    "change", [{"name": 1, "user": ["a"]}, {"user": ["a", 1]}, {"tool": ["a", "b"]}, {"user": None}]
)
def test_damaged_json_is_no_template(change):
    values = chat_template.TEMPLATES["turns"].to_json() | change
    with pytest.raises(ValueError, match="chat template"):
        chat_template.ChatTemplate.from_json(values)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    assert chat_template.by_name("none") is None
    with pytest.raises(errors.UserError, match="'llama' is unknown.*'none', 'turns'"):
        chat_template.by_name("llama")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there is no message"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "the last"),
        ([{"role": "tool", "content": "a"}], r"messages\[0\] has the role 'tool'"),
        ([{"content": "a"}], r"messages\[0\] has the role None"),
        ([{"role": "user", "content": None}], r"messages\[0\] has the content None"),
    ],
)
def test_messages_that_ask_for_no_response_are_named(messages, message):
    with pytest.raises(errors.UserError, match=message):
        chat_template.parse_messages(messages)
