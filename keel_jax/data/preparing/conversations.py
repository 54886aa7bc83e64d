"""Conversations: a record's prompt and response, or its messages, become examples to learn from.

Each of the assistant's messages is one example: what precedes it, written by the template, is the
prompt, and the message is the text that is learned, with the EOS after it. A conversation of
several turns gives several examples, which stay in one split.

The forms of records (field names are those of the data sets that are distributed so):

    {"messages": [{"role": …, "content": …}, …]}       OpenAI's chat format and its successors
    {"conversations": [{"from": …, "value": …}, …]}    ShareGPT's; from human (the user) or gpt
    {"prompt": …, "response": …}, or "completion"
    {"instruction": …, "output": …}, "input" optional       Stanford Alpaca
    {"instruction": …, "response": …}, "context" optional   databricks-dolly-15k

What stands in "input" or "context" follows the instruction after an empty line. A "weight" of the
record, or of one of the assistant's messages (OpenAI: 0 or 1), is the loss weight of its tokens.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keel_jax.data import chat_template
from keel_jax.data.preparing.documents import Document, Rejection

_MAX_WEIGHT = float(np.finfo(np.float16).max)  # weights are stored as float16
# (field of the list, field of the role, field of the text)
_MESSAGES = (("messages", "role", "content"), ("conversations", "from", "value"))
# (field of the prompt, field of what follows it, field of the response)
_PAIRS = (
    ("prompt", "", "response"),
    ("prompt", "", "completion"),
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
)
_ROLE_OF = {"human": chat_template.USER, "gpt": chat_template.ASSISTANT}
_FORMS = "messages, conversations, prompt and response, instruction and output"
# The columns of a table that are read.
FIELDS = ("weight", *dict.fromkeys([m[0] for m in _MESSAGES] + [f for p in _PAIRS for f in p if f]))

_Weighted = tuple[chat_template.Message, float]


def is_one(values: Mapping[str, Any]) -> bool:
    """Whether a record, or a table of these columns, has the fields of a conversation."""
    return any(form[0] in values for form in _MESSAGES) or any(
        prompt in values and response in values for prompt, _, response in _PAIRS
    )


def from_values(
    values: Mapping[str, Any], template: chat_template.ChatTemplate
) -> tuple[Document, ...] | Rejection:
    """The examples of a record, or why it has none."""
    weight = weight_of(values)
    if isinstance(weight, Rejection):
        return weight
    messages = _messages(values, weight)
    if isinstance(messages, Rejection):
        return messages
    if (rejection := _disorder([message for message, _ in messages])) is not None:
        return rejection
    texts = [message for message, _ in messages]
    group = json.dumps([[message.role, message.text] for message in texts])
    return tuple(
        Document(message.text, template.prompt(texts[:position]), its_weight, group)
        for position, (message, its_weight) in enumerate(messages)
        if message.role == chat_template.ASSISTANT and its_weight
    )


def weight_of(values: Mapping[str, Any]) -> float | Rejection:
    """The loss weight that a record or a message gives, 1 if it gives none."""
    weight = values.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        return Rejection(
            "with a weight that is not a number", f"weight {weight!r:.40} is not a number"
        )
    if not 0 <= weight <= _MAX_WEIGHT:  # NaN fails too
        return Rejection(
            "with a weight out of range",
            f"weight {weight!r:.40} is not between 0 and {_MAX_WEIGHT:.0f}",
        )
    return float(weight)


def not_text(value: object) -> Rejection | None:
    """Why a value is not a text that UTF-8 can write; None if it is one."""
    if not isinstance(value, str):
        return Rejection(f"whose text is a {type(value).__name__}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        return Rejection("whose text holds a lone surrogate, which UTF-8 cannot write")
    return None


def keys(values: Mapping[str, Any]) -> str:
    """The first fields of a record, for a message."""
    named = ", ".join(map(repr, sorted(map(str, values))[:8]))
    return named[:200] or "nothing"


def _messages(values: Mapping[str, Any], weight: float) -> list[_Weighted] | Rejection:
    """The messages of a record, each with the loss weight of its tokens if it is a response."""
    for field, role_field, text_field in _MESSAGES:
        if values.get(field) is not None:
            return _of_list(values[field], field, role_field, text_field, weight)
    for prompt_field, more_field, response_field in _PAIRS:
        if prompt_field in values and response_field in values:
            prompt = values[prompt_field] or ""
            more = values.get(more_field) or ""
            for part in (prompt, more, values[response_field] or ""):
                if (rejection := not_text(part)) is not None:
                    return rejection
            prompt = "\n\n".join(filter(None, (prompt, more)))
            user = chat_template.Message(chat_template.USER, prompt)
            response = values[response_field] or ""
            return [
                (user, weight),
                (chat_template.Message(chat_template.ASSISTANT, response), weight),
            ]
    missing = "without a conversation"
    return Rejection(missing, f"{missing} (one of: {_FORMS}), but {keys(values)}")


def _of_list(
    values: object, field: str, role_field: str, text_field: str, weight: float
) -> list[_Weighted] | Rejection:
    if not isinstance(values, list):
        return Rejection(f"whose {field} is a {type(values).__name__}, not a list")
    messages = []
    for position, value in enumerate(values):
        place = f"{field}[{position}]"
        if not isinstance(value, dict) or role_field not in value or text_field not in value:
            kind = f"with a message that lacks {role_field!r} or {text_field!r}"
            return Rejection(kind, f"{place} is {value!r:.60}")
        role = value[role_field]
        role = _ROLE_OF.get(role, role) if isinstance(role, str) else role
        if role not in chat_template.ROLES:
            return Rejection(
                "with a message of an unknown role",
                f"{place} has the role {role!r:.40}, not one of {', '.join(chat_template.ROLES)}",
            )
        if (rejection := not_text(value[text_field])) is not None:
            return Rejection(rejection.kind, f"{place}: {rejection}")
        its_weight = weight_of(value)
        if isinstance(its_weight, Rejection):
            return Rejection(its_weight.kind, f"{place}: {its_weight}")
        messages.append((chat_template.Message(role, value[text_field]), weight * its_weight))
    return messages


def _disorder(messages: Sequence[chat_template.Message]) -> Rejection | None:
    """Why these messages are no conversation to learn from; None if they are one."""
    roles = [message.role for message in messages]
    if chat_template.ASSISTANT not in roles:
        return Rejection("without a message of the assistant's")
    if chat_template.SYSTEM in roles[1:]:
        return Rejection("with a system message that is not the first")
    if roles[roles[0] == chat_template.SYSTEM] != chat_template.USER:
        return Rejection("in which the assistant speaks before the user")
    for position, message in enumerate(messages):
        if message.role == chat_template.ASSISTANT and not message.text:
            return Rejection("with an empty response", f"message {position} is an empty response")
    return None
